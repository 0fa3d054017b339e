"""Every text of the panel and the settings page has its translation, and no translation lacks its text."""

from __future__ import annotations

import ast
import json
import re
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from dp_adapter.settings import Nullable, walk_fields
from dp_adapter.settings.messages import tidy
from dp_adapter.webui.host import options
from tests.webui import fake_webui

ROOT = Path(__file__).parents[3]
FILES = sorted((ROOT / "localizations").glob("*.json"))
each_language = pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
# What a reader has to type or find elsewhere, and therefore stays as it is.
LITERAL = re.compile(r"'[a-z_0-9]+'|\b\w+:[A-Z]+\b|models/\w+|\bnull\b|\b0\.15\b|Ctrl\+V|\bMB\b")
# The host translates no text with a pictograph in it.
PICTOGRAPH = re.compile("[\u2600-\u27bf\U0001f000-\U0001faff]")


def translations(file: Path) -> dict[str, str]:
    return json.loads(file.read_text(encoding="utf-8"))


@cache
def of_fields() -> set[str]:
    texts = {text for _, info in walk_fields() for text in (info.label, info.help)}
    automatic = {info.automatic for _, info in walk_fields() if isinstance(info.kind, Nullable)}
    return texts | {"automatic" if value is None else f"automatic ({tidy(value)})" for value in automatic}


@cache
def of_options() -> set[str]:
    infos = {f"({option.info})" for option in options.OPTIONS if option.info}  # as OptionInfo.info shows them
    return {option.label for option in options.OPTIONS} | infos | {options.JOIN_CAPTION}


@cache
def in_sources() -> tuple[set[str], list[re.Pattern[str]]]:
    """Texts in the panel's sources, and patterns for those with something to be filled in."""
    texts: set[str] = set()
    patterns: list[re.Pattern[str]] = []
    for source in sorted((ROOT / "dp_adapter" / "webui").rglob("*.py")):
        for node in ast.walk(ast.parse(source.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Constant) and isinstance(node.value, str):
                texts |= {text.strip() for text in re.split("<[^>]*>", node.value)}
            elif isinstance(node, ast.JoinedStr):
                parts = [part.value if isinstance(part, ast.Constant) else None for part in node.values]
                if sum(len(str(part)) for part in parts if part) >= 20:
                    patterns.append(
                        re.compile("".join(".+" if part is None else re.escape(str(part)) for part in parts))
                    )
    script = (ROOT / "javascript" / "dp_adapter.js").read_text(encoding="utf-8")
    for text in re.findall(r"\"([^\"\n]+)\"|`([^`\n]+)`", script):
        texts |= {text[0], *(text[1].replace("${tab}", tab) for tab in ("txt2img", "img2img"))}
    return texts, patterns


def test_there_are_german_japanese_and_simplified_chinese() -> None:
    assert [file.stem for file in FILES] == ["de_DE", "ja_JP", "zh_CN"]


@each_language
def test_every_field_and_option_is_translated(file: Path) -> None:
    assert (of_fields() | of_options()) - set(translations(file)) == set()


def shown(component: Any) -> set[str]:
    """What one component of a page says, as far as a host translates it."""
    name = type(component).__name__
    texts = [getattr(component, attribute, None) for attribute in ("label", "webui_tooltip", "placeholder")]
    if name in ("Button", "ToolButton"):
        texts.append(component.value)
    if name == "HTML":
        texts += re.split("<[^>]*>", component.value or "")
    plain = {text.strip() for text in texts if isinstance(text, str)}
    return {text for text in plain if re.search(r"[A-Za-z]{2}", text) and not PICTOGRAPH.search(text)}


def test_every_text_of_the_panel_is_translated(tmp_path: Path) -> None:
    gr = pytest.importorskip("gradio", reason="the panel is built of its components")
    with fake_webui.installed(tmp_path), gr.Blocks() as page:
        fake_webui.PanelScript().ui(is_img2img=True)
    blocks: dict[int, Any] = page.blocks
    texts = {text for block in blocks.values() for text in shown(block)}
    assert len(texts) > 100
    own = {text for text in texts if not text.startswith("DP-Adapter") and not re.search(r"\d\.\d", text)}
    for file in FILES:
        assert own - set(translations(file)) - of_fields() == set(), file.stem


@each_language
def test_no_translation_is_stale(file: Path) -> None:
    texts, patterns = in_sources()
    known = texts | of_fields() | of_options()
    stale = {key for key in translations(file) if key not in known and not any(one.fullmatch(key) for one in patterns)}
    assert stale == set()


@each_language
def test_translations_keep_what_has_to_be_typed(file: Path) -> None:
    for text, translated in translations(file).items():
        assert translated.strip() == translated != ""
        kept = {word.replace("Ctrl+V", "Strg+V") if file.stem == "de_DE" else word for word in LITERAL.findall(text)}
        assert all(word in translated for word in kept), text


@each_language
def test_the_hosts_find_every_key(file: Path) -> None:
    for key in translations(file):
        assert key == key.strip()
        assert not PICTOGRAPH.search(key), "the hosts never look such a text up"
        assert not re.fullmatch(r"[.\d]+", key)


def test_keys_are_the_same_in_all_languages() -> None:
    assert len({frozenset(translations(file)) for file in FILES}) == 1
