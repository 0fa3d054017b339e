"""Where person words stand in a job's prompts, with the hosts' text processing in the shape that it has there.

The fakes have the names, arguments and answers of modules/sd_hijack_clip.py and modules/prompt_parser.py (A1111
v1.10.1, reForge, Forge classic) and of backend/text_processing/classic_engine.py (Forge); their reading is simpler:
words between spaces, "BREAK", "AND" and one "[before:after:when]".
"""

from __future__ import annotations

import logging
import re
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from dp_adapter.core.text.text_side import PromptPerson
from dp_adapter.core.types import Row
from dp_adapter.errors import HostError
from dp_adapter.webui.prompts import word_positions
from tests.webui import fake_webui

START, END = 49406, 49407
WORDS = ["a", "man", "woman", "face", "portrait", "of", "red", "tree", "old", "knight", "cat", "and"]


class PromptChunk:
    def __init__(self, tokens: list[int]) -> None:
        self.tokens = [START, *tokens, *[END] * (75 - len(tokens)), END]
        self.multipliers = [1.0] * 77
        self.fixes: list[Any] = []


class Reader:
    """``FrozenCLIPEmbedderWithCustomWords`` and ``ClassicTextProcessingEngine``. "cat" is an embedding of 3 vectors."""

    def __init__(self) -> None:
        self.chunk_length = 75

    def tokenize(self, texts: list[str]) -> list[list[int]]:
        return [[WORDS.index(word) if word in WORDS else 300 for word in text.split()] for text in texts]

    def tokenize_line(self, line: str) -> tuple[list[PromptChunk], int]:
        chunks: list[list[int]] = []
        for part in line.replace("(", "").replace(":1.2)", "").split("BREAK"):
            (tokens,) = self.tokenize([part])
            flat = [t for token in tokens for t in ([0] * 3 if token == WORDS.index("cat") else [token])]
            chunks += [flat[i : i + 75] for i in range(0, len(flat), 75)] or [[]]
        return [PromptChunk(tokens) for tokens in chunks], sum(map(len, chunks))

    def process_texts(self, texts: list[str]) -> tuple[list[list[PromptChunk]], int]:
        read = [self.tokenize_line(text) for text in texts]
        return [chunks for chunks, _ in read], max(count for _, count in read)


class Nothing:
    """A model of another kind: its text encoder has no such methods."""


def get_multicond_prompt_list(
    prompts: Sequence[str],
) -> tuple[list[list[tuple[int, float]]], list[str], dict[str, int]]:
    flat: dict[str, int] = {}
    indexes = [[(flat.setdefault(part, len(flat)), 1.0) for part in prompt.split("AND")] for prompt in prompts]
    return indexes, list(flat), flat


def get_learned_conditioning_prompt_schedules(
    prompts: Sequence[str], base_steps: int, hires_steps: int | None = None, use_old_scheduling: bool = False
) -> list[list[list[Any]]]:
    found: list[list[list[Any]]] = []
    steps = hires_steps or base_steps
    for prompt in prompts:
        match = re.search(r"\[(.*?):(.*?):([\d.]+)\]", prompt)
        when = int((float(match[3]) - (1 if hires_steps else 0)) * steps) if match else 0
        texts = (
            [match.expand(rf"{prompt[: match.start()]}\{n}{prompt[match.end() :]}") for n in (1, 2)] if match else []
        )
        found.append([[when, texts[0]], [steps, texts[1]]] if when >= 1 else [[steps, texts[1] if texts else prompt]])
    return found


@pytest.fixture
def opts(tmp_path: Path) -> Iterator[Any]:
    """The host's settings, while its modules are there."""
    with fake_webui.installed(tmp_path) as fake:
        parser = SimpleNamespace(
            get_multicond_prompt_list=get_multicond_prompt_list,
            get_learned_conditioning_prompt_schedules=get_learned_conditioning_prompt_schedules,
        )
        config = SimpleNamespace(total_steps=lambda steps: 2 * steps)  # type: ignore[reportUnknownLambdaType]
        fake["modules"].prompt_parser = parser  # type: ignore[attr-defined]
        fake["modules"].sd_samplers = SimpleNamespace(find_sampler_config=lambda name: config)  # type: ignore[attr-defined,reportUnknownLambdaType]
        options = SimpleNamespace(use_old_scheduling=False)
        vars(sys.modules["modules.shared"])["opts"] = options
        yield options


MODELS = {
    "a1111 and its kind": lambda: SimpleNamespace(cond_stage_model=Reader()),
    "forge, sd15": lambda: SimpleNamespace(cond_stage_model=None, text_processing_engine=Reader()),
    "forge, sdxl": lambda: SimpleNamespace(text_processing_engine_l=Reader(), text_processing_engine_g=Nothing()),
}


def job(*prompts: str, model: Any = None, **settings: Any) -> Any:
    defaults = {"prompts": list(prompts), "firstpass_steps": 20, "is_hr_pass": False}
    return SimpleNamespace(sd_model=model or MODELS["a1111 and its kind"](), **{**defaults, **settings})


@pytest.mark.parametrize("model", MODELS)
def test_every_hosts_reader_is_found(opts: Any, model: str) -> None:
    found = word_positions.find_words(job("a man", model=MODELS[model]()), "")
    assert found.tokens == [[(2,)]]


@pytest.mark.parametrize(
    ("prompt", "positions"),
    [
        ("a man and a woman", (2, 5)),
        ("a (man:1.2)", (2,)),
        ("a tree BREAK a man", (79,)),
        ("a cat and a man", (7,)),
        ("tree " * 80 + "man", (77 + 6,)),
        ("a tree", ()),
        ("", ()),
    ],
    ids=["two words", "emphasis", "BREAK", "textual inversion", "two chunks", "no person", "no prompt"],
)
def test_positions_are_those_of_the_context(opts: Any, prompt: str, positions: tuple[int, ...]) -> None:
    assert word_positions.find_words(job(prompt), "").tokens == [[positions]]


def test_pictures_and_joined_prompts(opts: Any) -> None:
    found = word_positions.find_words(job("a man AND a tree", "woman", "a man AND a man AND old"), "")
    assert found.tokens == [[(2,), ()], [(1,)], [(2,), (2,), ()]]
    assert found.prompts == 1, "as many as all pictures have"
    assert word_positions.find_words(job("a AND man", "man AND a"), "").prompts == 2


def test_words_for_a_face_are_taken_alone(opts: Any) -> None:
    found = word_positions.find_words(job("a face of a man", "a portrait of a man", "a man"), "")
    assert found.tokens == [[(2,)], [(2, 5)], [(2,)]]
    assert [found.head(picture) for picture in range(3)] == [True, True, False]
    assert not word_positions.find_words(job("tree"), "").head(0)


def test_the_users_own_words(opts: Any) -> None:
    assert word_positions.find_words(job("a man and a red knight"), "Red Knight , cat").tokens == [[(5, 6)]]
    assert word_positions.find_words(job("a man"), "knight").tokens == [[()]]


@pytest.mark.parametrize(
    ("prompt", "positions"),
    [
        ("a [red:old:0.5] man", (3,)),
        ("a [man:woman:0.5]", (2,)),
        ("a [man:tree:0.5]", ()),
        ("a [red:old red:0.5] man", ()),
    ],
    ids=["same place", "another person", "not always a person", "the word moves"],
)
def test_a_scheduled_prompt_has_the_positions_of_all_its_texts(
    opts: Any, prompt: str, positions: tuple[int, ...]
) -> None:
    assert word_positions.find_words(job(prompt), "").tokens == [[positions]]


def test_the_hires_pass_has_prompts_and_a_schedule_of_its_own(opts: Any) -> None:
    hires: dict[str, Any] = {
        "hr_sampler_name": None,
        "sampler_name": "Heun",
        "hr_second_pass_steps": 0,
        "steps": 10,
        "is_hr_pass": True,
    }
    found = word_positions.find_words(
        job("a man", hr_prompts=["old a man", "a [tree:man:0.5]", "a [tree:man:1.5]"], **hires), ""
    )
    assert found.tokens == [[(3,)], [(2,)], [()]]


def test_what_is_not_understood_has_no_positions(opts: Any, caplog: pytest.LogCaptureFixture) -> None:
    class Broken(Reader):
        def process_texts(self, texts: list[str]) -> Any:
            raise RuntimeError("another extension's")

    class Longer(Reader):
        def process_texts(self, texts: list[str]) -> Any:
            chunk = PromptChunk([1])
            chunk.tokens.append(END)
            return [[chunk] for _ in texts], 1

    caplog.set_level(logging.DEBUG, "dp_adapter")
    assert not word_positions.find_words(job("a man", model=SimpleNamespace(cond_stage_model=Nothing())), "").tokens
    assert not caplog.records
    assert not word_positions.find_words(job("a man", model=SimpleNamespace(cond_stage_model=Broken())), "").tokens
    assert not word_positions.find_words(SimpleNamespace(), "").tokens
    assert len(caplog.records) == 2
    assert word_positions.find_words(job("a man", model=SimpleNamespace(cond_stage_model=Longer())), "").tokens == [
        [()]
    ]
    opts.use_old_emphasis_implementation = True
    assert not word_positions.find_words(job("a man"), "").tokens


# The persons' words.

MAN, WOMAN = PromptPerson(0), PromptPerson(1)


@pytest.mark.parametrize("model", MODELS)
def test_the_persons_words_by_every_hosts_reader(opts: Any, model: str) -> None:
    p = job("a woman of red and a man", "a (man:1.2) AND a tree BREAK a woman", model=MODELS[model]())
    texts = word_positions.find_spoken(p, (MAN, WOMAN))
    assert texts.texts == (({0: (2,), 1: (7,)},), ({0: (2,)}, {1: (79,)})) and texts.prompts == 1
    assert texts.positions(Row("cond", 1, 1), 1) == (79,)


def test_a_word_before_what_changes(opts: Any) -> None:
    texts = word_positions.find_spoken(job("a man of [red:old tree:0.5]"), (MAN,))
    assert texts.positions(Row("cond"), 0) == (2,)


def test_the_hires_prompts_words(opts: Any) -> None:
    p = job("a man", is_hr_pass=True, hr_prompts=["old man"], hr_sampler_name=None, sampler_name="Euler", steps=9)
    p.hr_second_pass_steps = 0
    assert word_positions.find_spoken(p, (MAN,)).texts == (({0: (2,)},),)


@pytest.mark.parametrize(
    ("prompt", "people", "words"),
    [
        ("a tree", (MAN,), "no word for person 1"),
        ("a man", (MAN, WOMAN), "no word for person 2"),
        ("[old:old tree:0.5] man", (MAN,), "does not stand at one place"),
        ("a man", (PromptPerson(0, tokens=2),), "2 times in a row"),
    ],
)
def test_prompts_without_the_word_are_refused(
    opts: Any, prompt: str, people: tuple[PromptPerson, ...], words: str
) -> None:
    with pytest.raises(HostError, match=words):
        word_positions.find_spoken(job(prompt), people)


def test_prompts_that_cannot_be_read_are_refused(opts: Any) -> None:
    with pytest.raises(HostError, match="cannot be read"):
        word_positions.find_spoken(job("a man", model=Nothing()), (MAN,))
    opts.use_old_emphasis_implementation = True
    with pytest.raises(HostError, match="old emphasis"):
        word_positions.find_spoken(job("a man"), (MAN,))
