"""Whose which word of a prompt is, in its text and in the tokens of CLIP's own tokenizer."""

from __future__ import annotations

from collections.abc import Mapping
from types import SimpleNamespace
from typing import Any

import pytest

from dp_adapter.core.text.text_side import Positions, PromptPerson
from dp_adapter.core.types import Row
from dp_adapter.errors import HostError
from dp_adapter.hosts.pipelines.diffusers_job import DiffusersJob, Prompts
from dp_adapter.hosts.prompts import encode_prompts
from dp_adapter.hosts.prompts.clip_tokenizer import clip_tokenizer
from dp_adapter.hosts.prompts.prompt_persons import name_persons, repeated, words_in
from dp_adapter.hosts.prompts.word_positions import SpokenTexts, in_tokens

ONE = (PromptPerson(0),)
TWICE = (PromptPerson(0, tokens=2, trigger="img"),)
TWO = (PromptPerson(0), PromptPerson(1))
NAMED = (PromptPerson(0, "woman in red, lady"), PromptPerson(1))


@pytest.fixture(scope="module")
def pipeline() -> Any:
    return SimpleNamespace(tokenizer=clip_tokenizer())


@pytest.mark.parametrize(
    ("prompt", "people", "expected"),
    [
        ("a man in a garden", TWICE, "a man man in a garden"),
        ("a man man in a garden", TWICE, "a man man in a garden"),
        ("a man img in a garden", TWICE, "a man man in a garden"),
        ("a Man img, img", TWICE, "a Man Man, img"),
        ("a (man:1.2), <lora:man:1>", TWICE, "a (man man:1.2), <lora:man:1>"),
        ("<lora:man:1> a woman BREAK a man", TWICE, "<lora:man:1> a woman woman BREAK a man"),
        ("a man AND a woman :0.5", TWICE, "a man man AND a woman woman :0.5"),
        ("1girl, solo", TWICE, "1girl girl, solo"),
        ("a mantle on a womanizer", TWICE, "a mantle on a womanizer"),
        ("# a man\na woman", TWICE, "# a man\na woman woman"),
        (
            "a man and a woman",
            (PromptPerson(0, tokens=2), PromptPerson(1, tokens=3)),
            "a man man and a woman woman woman",
        ),
        ("a man and a woman in red", (PromptPerson(0, "woman in red", 2),), "a man and a woman woman in red"),
        ("a garden", TWICE, "a garden"),
    ],
)
def test_words_as_often_as_they_have_to_stand(prompt: str, people: tuple[PromptPerson, ...], expected: str) -> None:
    assert repeated(prompt, people) == expected
    assert repeated(expected, people) == expected


PHOTOMAKER = (PromptPerson(0, trigger="img"),)
PAIR = (PromptPerson(0, trigger="img"), PromptPerson(1, trigger="img"))


@pytest.mark.parametrize(
    ("prompt", "left", "word"),
    [
        ("a man and a woman img", "a man and a woman", "woman"),
        ("a man and a woman IMG in red", "a man and a woman in red", "woman"),
        ("a man, a woman\nimg", "a man, a woman", "woman"),
        ("a man and a (woman:1.2) img", "a man and a (woman:1.2)", "woman"),
        ("a man and a ((woman)) img", "a man and a ((woman))", "woman"),
        ("a man and a (woman img:1.2)", "a man and a (woman:1.2)", "woman"),
        ("a man and a woman (img:1.2)", "a man and a woman", "woman"),
        ("a man and a woman, img, red", "a man and a woman, red", "woman"),
        ("a man and a woman's img", "a man and a woman's", "woman"),
        ("a man and a barista img at work", "a man and a barista at work", "barista"),
        ("men and women img", "men and women", "women"),
        ("a man img and a woman img", "a man and a woman", "man"),
        ("<lora:an img:1> a man and a lady img", "<lora:an img:1> a man and a lady", "lady"),
        ("[man|woman] img and a boy", "[man|woman] and a boy", "man"),
        ("img of a man and a woman", "img of a man and a woman", "man"),
    ],
)
def test_the_word_before_a_trigger_is_whose(prompt: str, left: str, word: str) -> None:
    """PhotoMaker's encode_prompt_with_trigger_word: the token before it. Emphasis is the WebUIs'."""
    assert repeated(prompt, PHOTOMAKER) == left
    assert words_in(left, name_persons([prompt], PHOTOMAKER)) == {0: word}


def test_a_trigger_among_several_persons() -> None:
    """Marked words first, then others; their order in the prompt is the persons'."""
    prompt = "a man, a woman img and a boy img"
    assert words_in(repeated(prompt, PAIR), name_persons([prompt], PAIR)) == {0: "woman", 1: "boy"}
    prompt = "a man and a woman img"
    assert words_in(repeated(prompt, PAIR), name_persons([prompt], PAIR)) == {0: "man", 1: "woman"}
    assert name_persons([prompt], PAIR) == PAIR, "their order says it already"


def test_own_words_come_before_a_trigger_where_they_are_written() -> None:
    people = (PromptPerson(0, "knight", trigger="img"),)
    assert name_persons(["a knight and a man img"], people) == people
    assert words_in("a man and an elf", name_persons(["a man and an elf img"], people)) == {0: "elf"}


def test_what_stands_several_times_is_marked() -> None:
    """So the parameters of a picture give it again."""
    assert repeated("a man and a woman img", TWICE) == "a man and a woman woman"
    assert repeated("a man and a woman woman", TWICE) == "a man and a woman woman"
    assert (
        words_in("a man and a woman woman", TWICE) == {0: "woman"}
        and name_persons(["a man and a woman img"], TWICE) == TWICE
    )


def test_hints_of_all_prompts_of_a_job() -> None:
    people = name_persons(["a man and a woman img", "a boy"], PHOTOMAKER)
    assert words_in("a man and a woman", people) == {0: "woman"} and words_in("a boy", people) == {0: "boy"}


def test_without_a_webui_nothing_is_joined_or_hidden() -> None:
    assert repeated("no # here: a man", TWICE, webui=False) == "no # here: a man man"


def test_whose_word_is_which() -> None:
    assert words_in("a knight and a Lady and a man", NAMED) == {0: "Lady", 1: "man"}
    assert words_in("a lady, a man", TWO) == {0: "lady", 1: "man"}
    assert words_in("an elf", ONE) == {}


Found = list[Mapping[int, Positions]]


def found(pipeline: Any, people: tuple[PromptPerson, ...], *texts: str) -> Found:
    tokenizer = pipeline.tokenizer
    chunks = [encode_prompts.rows_of(tokenizer, text, encode_prompts.chunks_of(tokenizer, text)) for text in texts]
    return list(in_tokens(chunks, lambda words: [encode_prompts._tokens(tokenizer, word) for word in words], people))


@pytest.mark.parametrize(
    ("people", "texts", "expected"),
    [
        (ONE, ["a photo of a man"], [{0: (5,)}]),
        (ONE, ["a man and a woman"], [{0: (2,)}]),
        (ONE, ["a face and a garden"], [{}]),
        (TWICE, ["a man man in a garden"], [{0: (2, 3)}]),
        (TWICE, ["a man in a garden"], [{0: (2,)}]),
        (TWO, ["a man, a woman and a man"], [{0: (2,), 1: (5,)}]),
        (TWO, ["a man"], [{0: (2,)}]),
        (NAMED, ["a man and a woman in red"], [{0: (5,), 1: (2,)}]),
        (NAMED, ["a woman and a lady"], [{0: (5,), 1: (2,)}]),
        ((PromptPerson(0, "old knight", 2),), ["an old knight knight"], [{0: (3, 4)}]),
        ((PromptPerson(0, "headshots"),), ["two headshots"], [{0: (3,)}]),  # of two tokens: the last
        (TWICE, ["a man and a woman woman"], [{0: (5, 6)}]),  # marked by standing twice
        (name_persons(["a man and a woman img"], PHOTOMAKER), ["a man and a woman"], [{0: (5,)}]),
        (name_persons(["a woman and a woman img"], PHOTOMAKER), ["a woman and a woman"], [{0: (5,)}]),
        ((PromptPerson(0, "man"), PromptPerson(1, "man")), ["a man and a man"], [{0: (2,), 1: (5,)}]),
        # AND: anew where one text has words for all, else on
        (TWO, ["a man", "a woman"], [{0: (2,)}, {1: (2,)}]),
        (TWO, ["a man and a woman", "a woman"], [{0: (2,), 1: (5,)}, {0: (2,)}]),
        (ONE, ["a man", "a woman"], [{0: (2,)}, {0: (2,)}]),
        (ONE, ["tree, " * 40 + "a man"], [{0: (77 + 7,)}]),
    ],
)
def test_positions(pipeline: Any, people: tuple[PromptPerson, ...], texts: list[str], expected: Found) -> None:
    assert found(pipeline, people, *texts) == expected


def test_of_a_job(pipeline: Any) -> None:
    texts = encode_prompts.find_spoken(pipeline, DiffusersJob("a man in a garden", batch=2), ONE)
    assert texts.positions(Row("cond", 1), 0) == (2,) and texts.positions(Row("cond", 1), 1) == ()
    assert texts.prompts == 1 and len(texts.texts) == 2


@pytest.mark.parametrize(
    ("job", "people", "words"),
    [
        (DiffusersJob("a garden"), ONE, "no word for person 1"),
        (DiffusersJob("a man"), TWO, "no word for person 2"),
        (DiffusersJob("a man"), (PromptPerson(0, "old knight"),), "no word for person 1 .'old knight'."),
        (DiffusersJob("a man"), TWICE, "2 times in a row, and the prompt has it 1 times"),
        (DiffusersJob("a man", later=(Prompts(0.5, "an old man", ""),)), ONE, "does not stand at one place"),
    ],
)
def test_refusals(pipeline: Any, job: DiffusersJob, people: tuple[PromptPerson, ...], words: str) -> None:
    with pytest.raises(HostError, match=words):
        encode_prompts.find_spoken(pipeline, job, people)


def test_a_word_that_is_not_needed(pipeline: Any) -> None:
    job = DiffusersJob("a garden with a man", later=(Prompts(0.5, "a man", ""),))
    assert encode_prompts.find_spoken(pipeline, job, (PromptPerson(0, needed=False),)).positions(Row("cond"), 0) == ()


def test_a_row_of_an_unknown_part() -> None:
    """It has the words where all texts have them at one place."""
    texts = SpokenTexts((({0: (2,)}, {0: (2,)}), ({0: (2,)}, {}), ({0: (2,)},)))
    assert texts.positions(Row("cond", 0, None), 0) == (2,) and texts.positions(Row("cond", 1, None), 1) == ()
    for picture in (1, 2):  # of the last one it is a region's text
        with pytest.raises(HostError, match="not known which text"):
            texts.positions(Row("cond", picture, None), 0)
