"""Person words in the tokens of CLIP's own tokenizer."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from dp_adapter.hosts.prompts import encode_prompts, person_words
from dp_adapter.hosts.prompts.clip_tokenizer import clip_tokenizer


@pytest.fixture(scope="module")
def pipeline() -> Any:
    return SimpleNamespace(tokenizer=clip_tokenizer())


@pytest.mark.parametrize(
    ("prompt", "positions", "head"),
    [
        ("a photo of a man", (5,), False),
        ("A Man, a WOMAN; men-folk", (2, 5, 7), False),
        ("a mantle on a womanizer", (), False),
        ("1girl, solo", (2,), False),
        ("a portrait of a lady", (2, 5), True),
        ("the head of a girl with a face", (2, 8), True),
        ("two headshots", (2, 3), True),  # of two tokens
        ("tree, " * 40 + "a man", (77 + 7,), False),
        ("", (), False),
    ],
)
def test_positions(pipeline: Any, prompt: str, positions: tuple[int, ...], head: bool) -> None:
    found = encode_prompts.person_words(pipeline, prompt, batch=2)
    assert found.tokens == [[positions], [positions]]
    assert found.head(1) == head
    assert found.prompts == 1


def test_positions_are_those_of_what_is_encoded(pipeline: Any) -> None:
    """The tokens that the pipeline encodes have the word there."""
    prompt = "a long story, " * 20 + "of a woman"
    tokenizer = pipeline.tokenizer
    (found,) = encode_prompts.person_words(pipeline, prompt, batch=1).tokens[0]
    rows = encode_prompts.rows_of(tokenizer, prompt, 2)
    assert [row[0] for row in rows] == [tokenizer.bos_token_id] * 2
    assert [one for row in rows for one in row][found[0]] == tokenizer.convert_tokens_to_ids("woman</w>")


def test_the_users_own_words(pipeline: Any) -> None:
    assert encode_prompts.person_words(pipeline, "a man and an old knight", 1, "old knight, elf").tokens == [[(5, 6)]]
    assert encode_prompts.person_words(pipeline, "a man and an old knight", 1, " , ").tokens == [[(2,)]]


def test_every_default_word_is_found(pipeline: Any) -> None:
    for word in person_words.DEFAULT:
        assert encode_prompts.person_words(pipeline, f"the {word}.", 1).tokens[0][0], word


@pytest.mark.parametrize(
    ("prompt", "words"),
    [
        ("a (Woman:1.2) and a man, kid's room", ("woman", "man", "kid")),
        ("two women in a garden", ()),
        ("<lora:woman:1> a man and a man", ("man", "man")),
        ("a mannequin", ()),
    ],
)
def test_words_for_single_persons_in_order(prompt: str, words: tuple[str, ...]) -> None:
    assert person_words.single_persons(prompt) == words
