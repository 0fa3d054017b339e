"""Modes: what they fill in, which words they add, how these come into prompts, and files of the user's own."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

from dp_adapter.errors import SettingsError
from dp_adapter.modes import (
    EXPRESSIONS,
    TABLE,
    Mode,
    ModeFacts,
    Modes,
    ModeWords,
    add_words,
    describe_effect,
    describe_mode,
    drop_unread_fields,
    resolve_mode,
    split_stages,
)
from dp_adapter.modes.user_modes import MAX_BYTES, read
from dp_adapter.settings import Choice, Gate, Parts, Settings, field_at
from dp_adapter.settings.fields import fields_of

DOCS = Path(__file__).parents[2] / "docs"


def edited(facts: ModeFacts | None = None, **fields: Any) -> Any:
    settings = Settings.from_dict(fields)
    return resolve_mode(settings, Modes([]).of(settings.mode), facts or ModeFacts())


def text(edit: Any, negative: bool = False) -> str:
    return ", ".join(one.text for one in edit.words if one.negative == negative)


# What a mode fills in.


def test_every_mode_of_the_settings_is_in_the_table() -> None:
    kind = field_at("mode").kind
    assert isinstance(kind, Choice) and set(kind.choices) == set(TABLE)
    assert all(mode.title and mode.does and describe_mode(mode) for mode in TABLE.values())


def test_the_portrait_changes_nothing() -> None:
    settings = Settings()
    edit = resolve_mode(settings, TABLE["portrait"], ModeFacts())
    assert edit.settings == settings.replace(retouch="off", restorer="off") and not edit.words and not edit.lines
    chosen = Settings(retouch="on", restorer="GFPGAN", free_parts=True)
    assert resolve_mode(chosen, TABLE["portrait"], ModeFacts()).settings == chosen


def test_headshot_to_full_body() -> None:
    edit = edited(mode="full_body")
    assert edit.settings.span.start == 0.3 and edit.face_pass
    weights = edit.settings.parts.weights()
    assert weights["face"] == 1 and {weights[name] for name in ("hair", "neck", "clothes", "background")} == {0}
    assert "full body" in text(edit) and "close-up" in text(edit, negative=True)
    assert not edited(mode="full_body", face_pass={"use": "off"}).face_pass


def test_an_old_photo() -> None:
    edit = edited(mode="old_photo")
    assert edit.settings.weight == pytest.approx(0.9) and edit.settings.structure == 0.3
    assert (edit.settings.retouch, edit.settings.restorer) == ("auto", "auto")
    assert "color photo" in text(edit) and "sepia" in text(edit, negative=True)


def test_inpainting_takes_the_mask_as_it_is() -> None:
    edit = edited(ModeFacts(inpaint=True), mode="inpaint")
    assert edit.settings.gate == Gate(1, 1, 1) and edit.settings.span.start == 0
    assert edited(mode="inpaint", gate={"up": 2}).settings.gate == Gate(up=2)
    assert not edited(ModeFacts(inpaint=True), mode="inpaint").notes


def test_without_an_inpaint_mask_it_is_the_portrait_and_says_so() -> None:
    edit, portrait = edited(mode="inpaint"), edited(mode="portrait")
    assert edit.settings == portrait.settings.replace(mode="inpaint") and not edit.lines
    assert edit.notes == ("Nothing is painted anew here, so the mode 'inpaint' acts as 'portrait'.",)


@pytest.mark.parametrize(("target", "share"), [(30, 0.65), (50, 0.575), (70, 0.5), (110, 0.5), (10, 0.575)])
def test_the_further_the_ages_the_more_is_the_texts(target: int, share: float) -> None:
    parts = edited(mode="age", target_age=target, reference_age=30).settings.parts
    assert parts.skin == parts.brows == pytest.approx(share) and parts.eyes is None and parts.hair == 0


def test_the_age_in_the_photo_is_the_users_else_estimated_else_left_open() -> None:
    assert edited(ModeFacts(reference_age=70), mode="age", target_age=30, reference_age=30).settings.parts.skin == 0.65
    assert edited(ModeFacts(reference_age=70), mode="age", target_age=30).settings.parts.skin == 0.5
    assert not edited(ModeFacts(reference_age=70), mode="age", target_age=30).notes
    unknown = edited(mode="age", target_age=30)
    assert unknown.settings.parts.skin == 0.575 and unknown.settings.reference_age is None
    assert "30 years old" in text(unknown) and "age in the photo is not known" in unknown.notes[0]
    told = describe_effect(Settings(mode="age", target_age=30), TABLE["age"])
    assert any("skin 0.65 to 0.5" in line for line in told)


@pytest.mark.parametrize("age", range(121))
def test_every_age_has_its_words(age: int) -> None:
    edit = edited(mode="age", target_age=age, reference_age=30)
    assert f"{age} years old" in text(edit) or age == 0
    assert ("child" in text(edit)) == (4 <= age <= 12) and ("wrinkles" in text(edit)) == (age >= 45)
    assert text(edit, negative=True)


def test_expressions_by_name_and_in_free_words() -> None:
    edit = edited(mode="expression", expression="Laughing ")
    assert text(edit) == EXPRESSIONS["laughing"].words and text(edit, negative=True) == "expressionless"
    parts = edit.settings.parts
    assert parts.mouth == parts.eyes == parts.brows == 0.6 and edit.settings.span.start == 0.2
    free = edited(mode="expression", expression="a crooked grin")
    assert text(free) == "a crooked grin" and text(free, negative=True) == ""


def test_what_the_user_says_stands_and_is_said_to_be_theirs() -> None:
    own: dict[str, Any] = {"span": {"start": 0.05}, "structure": 0.7, "parts": {"mouth": 0.9, "hair": 0.4}}
    for mode in ("old_photo", "expression"):
        edit = edited(None, mode=mode, expression="sad", **own)
        made = edit.settings
        assert (made.span.start, made.structure, made.parts.mouth, made.parts.hair) == (0.05, 0.7, 0.9, 0.4)
        assert any("0.05 (as you set it)" in line for line in edit.lines)


def test_a_start_after_the_end_of_the_span_is_its_end() -> None:
    assert edited(mode="full_body", span={"end": 0.2}).settings.span.start == 0.2


def test_words_can_be_left_out() -> None:
    edit = edited(mode="full_body", mode_words=False)
    assert not edit.words and "Its words are left out (as you set it)." in edit.lines


# Words into prompts.

PLAIN = (ModeWords("full body"), ModeWords("blurry", negative=True))
STAGED = (ModeWords("wide shot", end=0.6), ModeWords("sharp, crisp", start=0.3), ModeWords("x", start=0.2, end=0.5))


@pytest.mark.parametrize(
    ("prompt", "expected"),
    [
        ("", "full body"),
        ("a man", "a man, full body"),
        ("a man,", "a man, full body"),
        ("a man, ", "a man, full body "),
        ("a man <lora:x:0.8>", "a man <lora:x:0.8>, full body"),
        ("a man <lora:full body:1>", "a man <lora:full body:1>, full body"),
        ("a man AND a dog :0.5", "a man, full body AND a dog, full body :0.5"),
        ("a man:1.2 AND a dog", "a man, full body:1.2 AND a dog, full body"),
        ("a man AND ", "a man, full body AND "),
        ("a man BREAK a hat", "a man, full body BREAK a hat"),
        ("a man\nADDCOL\na hat", "a man, full body\nADDCOL\na hat"),
        ("a man # in a hat", "a man, full body # in a hat"),
        ("a # b\nman", "a # b\nman, full body"),
        ("A Full  Body shot", "A Full  Body shot"),
        ("(full_body:1.3)", "(full_body:1.3)"),
        ("[full body::0.8]", "[full body::0.8]"),
        ("bodyfull bodyguard", "bodyfull bodyguard, full body"),
        ("SANDY full-length", "SANDY full-length, full body"),
    ],
)
def test_words_in_a_prompt(prompt: str, expected: str) -> None:
    made, negative = add_words(prompt, "ugly", PLAIN)
    assert made == expected and negative == "ugly, blurry"
    assert add_words(made, negative, PLAIN) == (made, negative)


def test_words_of_some_stages_in_the_webuis_syntax() -> None:
    made, negative = add_words("a man", "", STAGED)
    assert made == "a man, [wide shot::0.6], [sharp, crisp:0.3], [[x::0.5]:0.2]" and negative == ""
    assert add_words(made, negative, STAGED) == (made, negative)


def test_a_phrase_that_is_there_is_not_added_and_its_neighbours_are() -> None:
    assert add_words("a sharp photo", "", STAGED[1:2])[0] == "a sharp photo, [crisp:0.3]"
    assert add_words("a", "", (ModeWords("b, b"), ModeWords("b")))[0] == "a, b"


def test_negative_prompts_know_no_and() -> None:
    assert add_words("", "cats AND dogs:0.5", PLAIN)[1] == "cats AND dogs:0.5, blurry"


def test_stages_for_diffusers() -> None:
    found = [(stage.start, stage.prompt) for stage in split_stages("a man", "", STAGED)]
    assert found == [
        (0.0, "a man, wide shot"),
        (0.2, "a man, wide shot, x"),
        (0.3, "a man, wide shot, sharp, crisp, x"),
        (0.5, "a man, wide shot, sharp, crisp"),
        (0.6, "a man, sharp, crisp"),
    ]
    (only,) = split_stages("a man AND b:0.5", "ugly", PLAIN)
    assert (only.prompt, only.negative_prompt) == ("a man AND b:0.5, full body", "ugly, blurry")


# The user's own.


@pytest.fixture
def modes(tmp_path: Path) -> Modes:
    (tmp_path / "dp_adapter" / "modes").mkdir(parents=True)
    return Modes([tmp_path / "absent", tmp_path])


def put(tmp_path: Path, name: str, content: object) -> None:
    data = content if isinstance(content, str) else json.dumps(content)
    (tmp_path / "dp_adapter" / "modes" / f"{name}.json").write_text(data, encoding="utf-8")


def test_a_mode_of_ones_own(modes: Modes, tmp_path: Path) -> None:
    words = [{"text": "film noir, {target_age} years old"}, {"text": "color", "negative": True, "end": 0.5}]
    put(
        tmp_path, "film noir", {"title": "Noir", "start": 0.4, "parts": {"hair": 1}, "words": words, "free_parts": True}
    )
    put(tmp_path, "Äpfel", {})
    assert modes.own() == ("custom:film noir", "custom:Äpfel") and modes.names()[: len(TABLE)] == tuple(TABLE)
    settings = Settings(mode="custom:film noir", target_age=40)
    edit = resolve_mode(settings, modes.of(settings.mode), ModeFacts())
    assert edit.settings.span.start == 0.4 and edit.settings.parts == Parts(hair=1.0) and edit.settings.free_parts
    assert text(edit) == "film noir, 40 years old" and edit.lines[0] == "Noir."
    assert modes.of("custom:Äpfel") == Mode()


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ({"strat": 0.2}, "Did you mean 'start'?"),
        ({"parts": {"hiar": 1}}, "parts.hiar: there is no such field. Did you mean 'hair'?"),
        ({"words": [{"text": "a", "form": 1}]}, "words[0].form"),
        ({"words": [{"text": "a", "start": 0.6, "end": 0.5}]}, "words[0].start: 0.6 is not before the end 0.5"),
        ({"words": ["a"]}, "words[0]: 'a' is not an object"),
        ({"start": 2}, "start: 2 is above the maximum 1"),
        ({"needs": ["age"]}, "needs[0]"),
        ([], "not an object"),
        ("{", "cannot be read"),
        ("[" * 100_000, "larger than 64 KB"),
        ("[" * 60_000, "nested too deeply"),
        ('"' + "a" * MAX_BYTES + '"', "larger than"),
    ],
)
def test_a_bad_file_is_refused_in_words(modes: Modes, tmp_path: Path, content: object, words: str) -> None:
    put(tmp_path, "mine", content)
    with pytest.raises(SettingsError) as caught:
        modes.of("custom:mine")
    assert caught.value.field == "mode" and "mine.json is not a mode" in str(caught.value)
    assert words in str(caught.value) and len(str(caught.value)) < 500


def test_an_absent_mode_names_the_nearest(modes: Modes, tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match=r"Put mine\.json into"):
        modes.of("custom:mine")
    put(tmp_path, "mine", {})
    with pytest.raises(SettingsError, match="Did you mean 'custom:mine'") as caught:
        modes.of("custom:mime")
    assert caught.value.nearest == "custom:mine"


def test_no_name_leaves_the_folder(modes: Modes, tmp_path: Path) -> None:
    (tmp_path / "secret.json").write_text("{}")
    (tmp_path / "dp_adapter" / "modes" / "link.json").symlink_to(tmp_path / "secret.json")
    for name in ("../../secret", "../modes/../../secret", "/etc/passwd", "", ".", "a/b", "link"):
        with pytest.raises(SettingsError):
            modes.of(f"custom:{name}")
    assert modes.own() == ()


def test_what_a_mode_of_ones_own_asks_for_and_nobody_gives_is_its_own(modes: Modes, tmp_path: Path) -> None:
    words = [{"text": "{target_age} years old, {expression}, from {reference_age} on"}]
    put(tmp_path, "older", {"needs": ["target_age", "reference_age", "expression"], "words": words})
    put(tmp_path, "oldest", {"needs": ["target_age"], "target_age": 99, "words": words})
    older, oldest = (
        resolve_mode(Settings(mode=name), modes.of(name), ModeFacts()) for name in ("custom:older", "custom:oldest")
    )
    assert text(older) == f"60 years old, {EXPRESSIONS['smiling'].words}" and len(older.notes) == 3
    assert text(oldest) == "99 years old" and oldest.notes[0] == "Target age 99 is taken, as none was given."


@pytest.mark.parametrize("name", [*TABLE, "custom:noir"])
def test_no_mode_refuses_with_its_defaults(modes: Modes, tmp_path: Path, name: str) -> None:
    put(tmp_path, "noir", (DOCS / "modes" / "noir.json").read_text())
    settings = Settings.from_dict({"mode": name, "references": [{"image": "a.png"}]})
    edit = resolve_mode(settings, modes.of(name), ModeFacts())
    assert "{" not in text(edit) + text(edit, negative=True)
    assert bool(edit.words) == bool(modes.of(name).words)


def test_values_left_over_from_another_mode_describe_nothing() -> None:
    left = {"target_age": 70, "reference_age": 30, "expression": "sad"}
    for name, asked_for in (
        ("portrait", ()),
        ("age", ("target_age", "reference_age")),
        ("expression", ("expression",)),
    ):
        asked = Settings.from_dict({"mode": name, **left})
        kept = {field: value for field, value in left.items() if field in asked_for}
        assert drop_unread_fields(asked, TABLE[name]) == Settings.from_dict({"mode": name, **kept})
    silent = Settings(mode_words=False)
    assert drop_unread_fields(silent, TABLE["portrait"]) == Settings(), "a mode without words has none to leave out"
    assert drop_unread_fields(silent, TABLE["age"]) == silent


def test_the_page_tells_of_every_mode_and_its_examples_are_valid() -> None:
    page = (DOCS / "modes.md").read_text(encoding="utf-8")
    sections = re.findall(r"^## ([\w:]+)", page, re.M)
    assert sections == [*TABLE, "custom:NAME"]
    examples = [json.loads(block) for block in re.findall(r"```json\n(.*?)```", page, re.S)]
    found = {Settings.from_dict(example).mode for example in examples}
    assert found == set(TABLE) - {"portrait"}
    assert all(f"`{info.name}`" in page for record in (Mode, ModeWords) for info in fields_of(record))
    assert all(name in page for name in EXPRESSIONS)
    assert read(DOCS / "modes" / "noir.json").title == "Film noir"
