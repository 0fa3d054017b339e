"""Any request survives a host's infotext; what cannot be read back is named, and only that is lost."""

from __future__ import annotations

import hashlib
import json
import re
from typing import Any

import pytest
from hypothesis import given

from dp_adapter.settings import Settings, walk_fields
from dp_adapter.webui.parameters import infotext
from dp_adapter.webui.parameters.infotext_photos import find_pictures, keep_pictures
from tests.settings.test_settings_round_trip import FEW, REQUESTS

HASH = "0123456789abcdef"
OTHER = "fedcba9876543210"


def hash_of(text: str, path: str = "") -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def host_text(params: dict[str, Any]) -> str:
    """The last line of a picture's parameters as A1111 1.10.1 and the Forges write it."""

    def quoted(value: object) -> str:
        return json.dumps(value, ensure_ascii=False) if re.search("[,:\n]", str(value)) else str(value)

    everything = {"Steps": 20, "Sampler": "Euler a", "Size": "512x768", **params, "Version": "v1.10.1"}
    return ", ".join(key if key == value else f"{key}: {quoted(value)}" for key, value in everything.items())


def host_read(text: str) -> dict[str, str]:
    """That line as they read it: no quotes, no empty values, ``512x768`` as two parameters."""
    assert "\n" not in text, "they take only the last line"
    assert "\r" not in text, "browsers make \\n of it"
    read: dict[str, str] = {}
    for key, value in re.findall(r'(\w[-\w /]+):\s*("(?:[^"\\]|\\.)+"|[^,]*)(?:,\s*|$)', text.strip()):
        if value == "":
            continue
        plain = json.loads(value) if len(value) > 1 and value[0] == value[-1] == '"' else value
        if size := re.match(r"(\d+)x(\d+)$", plain):
            read |= {f"{key}-1": size[1], f"{key}-2": size[2]}
        else:
            read[key] = plain
    return read


def through_a_host(settings: Settings, names: dict[str, str] | None = None) -> infotext.PastedRequest:
    pasted = infotext.read_parameters(host_read(host_text(infotext.write_parameters(settings, names or {}))))
    assert pasted is not None
    return pasted


@FEW
@given(REQUESTS)
def test_every_request_survives_a_host(request_drawn: Any) -> None:
    settings = keep_pictures(request_drawn.replace(enabled=True), hash_of)
    names = {hash_of("x"): 'anna, at 2x3: "the" beach.jpg'}
    pasted = through_a_host(settings, names)
    assert pasted.notes == ()
    assert pasted.settings == settings


def changed_settings() -> Settings:
    """A request in which no field is at its default."""
    face = {"choice": "like", "index": 2, "like": "identity:Ada L-1", "min_size": 9}
    region = {"op": "subtract", "mask": f"photo:{OTHER}", "identity": 1, "weight": 0.5, "grow": 0.3, "feather": 0.2}
    box = {"x0": 0.1, "y0": 0.2, "x1": 0.3, "y1": 0.4}
    parts = {path.removeprefix("parts."): 0.25 for path, _ in walk_fields() if path.startswith("parts.")}
    changed = {
        "references": [
            {"image": "identity:Bea"},
            {"image": f"photo:{HASH}", "weight": 0.7, "identity": 1, "face": face, "words": "woman: red"},
        ],
        "combine": "best", "face": face, "no_face": "continue", "model": "model, 2.safetensors", "variant": "plus",
        "weight": 0.55, "text_weight": 0.9, "text_emphasis": 0.1, "strict_text_region": True, "blend": "add",
        "identity_guidance": 0.7, "structure": 0.0, "lora_weight": 0.3,
        "span": {"start": 0.1, "end": 0.9}, "curve": "0.0@0.1, 1.5@0.3",
        "levels": {"down": 0.1, "middle": 0.2, "up": 0.3, "sites": {"3": 0.5, "12": 1e-05}},
        "gate": {"down": 0.2, "middle": 0.3, "up": 0.4}, "regions": [{"kind": "box", "box": box, **region}],
        "tracking": {
            "sources": [], "moments": [0.2], "decoder": "taesd", "words": "girl, dog", "fallback": "full", "grow": 0.2,
            "feather": 0.2,
        },
        "parts": parts, "mode": "custom:My mode", "target_age": 60, "reference_age": 30, "expression": "a, b: c\n\"d\"",
        "mode_words": False, "retouch": "on", "restorer": "GFPGAN", "free_parts": True,
        "hires": {"use": "own", "weight": 0.1, "span": {"start": 0.2, "end": 0.8}},
        "face_pass": {"use": "on", "strength": 0.5, "weight": 0.5, "size": 640},
        "pulid_method": "style", "sharing": "words",
        "text_side": {"lock": "key", "weight": 0.6, "personal": "me.safetensors"},
        "reference_attention": {"weight": 0.4, "start": 0.1, "end": 0.9},
        "identity_net": {"use": "on", "model": "net", "weight": 0.7, "end": 0.6},
        "w_plus": {"age": -1.5, "direction": "smile", "amount": 2.0},
        "companion": {"model": "res.safetensors", "weight": 0.5},
        "performance": {"form": "plain", "memory_mb": 64},
        "report": {
            "enabled": True, "drift": True, "masks": True, "overlay": True, "best_of": 4, "least": 0.5, "below": "skip",
        },
    }  # fmt: skip
    return Settings.from_dict(changed)


def test_every_field_has_a_parameter_under_its_infotext_name() -> None:
    written = infotext.write_parameters(changed_settings(), {})
    keys = {re.sub(r" \d+$", "", key) for key in written}
    lists = {"DP-Adapter photos", "DP-Adapter regions", "DP-Adapter enabled"}
    assert keys == {info.infotext for _, info in walk_fields()} - lists | {"DP-Adapter"}
    assert through_a_host(changed_settings()) == infotext.PastedRequest(changed_settings())


def test_persons_and_faces_are_written_as_people_count_them_and_read_as_earlier_versions_wrote_them() -> None:
    face = {"choice": "index", "index": 1}
    photos = [{"image": "identity:Ada"}, {"image": "identity:Bea", "identity": 1, "face": face}]
    settings = Settings.from_dict({"references": photos, "regions": [{"identity": 1}], "face": face})
    written = infotext.write_parameters(settings, {})
    assert written["DP-Adapter photo person 2"] == written["DP-Adapter region person 1"] == "person 2"
    assert written["DP-Adapter face index"] == written["DP-Adapter photo face index 2"] == "face 2"
    assert through_a_host(settings).settings == settings
    earlier = {key: {"person 2": "1", "face 2": "1"}.get(text, text) for key, text in written.items()}
    pasted = infotext.read_parameters(earlier)
    assert earlier != written and pasted is not None and pasted.settings == settings


def test_reads_as_a_person_would_write_it() -> None:
    settings = Settings.from_dict(
        {
            "references": [{"image": f"photo:{HASH}"}, {"image": "identity:Anna", "weight": 0.5}],
            "regions": [{}],
            "tracking": {"moments": [0.2, 0.4]},
            "levels": {"sites": {"3": 0.5, "7": 1}},
        }
    )
    assert infotext.write_parameters(settings, {HASH: "anna.jpg"}) == {
        "DP-Adapter": "1",
        "DP-Adapter photo 1": f"photo:{HASH} anna.jpg",
        "DP-Adapter photo 2": "identity:Anna",
        "DP-Adapter photo weight 2": "0.5",
        "DP-Adapter weight": "0.8",
        "DP-Adapter weight per site": "3=0.5, 7=1",
        "DP-Adapter region kind 1": "auto",
        "DP-Adapter preview moments": "0.2, 0.4",
    }


@pytest.mark.parametrize(
    "text",
    ['"laughing"', '"', "512x768", " ", "a\rb", "a\nb", 'json "x"', "json x", "DP-Adapter expression", "a  ", "\x85 é",
     "CFG scale: 7, Steps: 3", "\\", 'a", Steps: 9, b: "', "😀\u200d🔥", "null"],
)  # fmt: skip
def test_words_that_the_hosts_would_change_survive(text: str) -> None:
    settings = Settings(expression=text)
    pasted = through_a_host(settings)
    assert pasted.settings == settings
    assert host_read(host_text(infotext.write_parameters(settings, {})))["Steps"] == "20"


def test_the_name_of_a_photo_comes_back_beside_its_hash() -> None:
    settings = Settings.from_dict({"references": [{"image": f"photo:{HASH}"}]})
    assert dict(through_a_host(settings, {HASH: "my anna, 2.jpg"}).names) == {HASH: "my anna, 2.jpg"}


def test_nothing_is_written_while_disabled_and_none_is_read_where_nothing_was_written() -> None:
    assert infotext.write_parameters(changed_settings().replace(enabled=False), {}) == {}
    assert infotext.read_parameters({"Steps": "20", "Seed": "1"}) is None
    assert infotext.read_parameters({"Steps": "20"}) is None


def test_a_picture_itself_is_never_written() -> None:
    settings = Settings.from_dict({"references": [{"image": "data:image/png;base64,AAAA"}]})
    with pytest.raises(ValueError, match="keep it first"):
        infotext.write_parameters(settings, {})


def test_results_and_other_extensions_are_passed_over() -> None:
    params = {
        "DP-Adapter": "1",
        "DP-Adapter result likeness": "0.61",
        "ADetailer model": "x",
        "DP-Adapter weight": "0.4",
    }
    assert infotext.read_parameters(params) == infotext.PastedRequest(Settings(weight=0.4))


def test_what_a_newer_version_wrote_is_named_and_the_rest_is_read() -> None:
    pasted = infotext.read_parameters({"DP-Adapter": "9", "DP-Adapter sparkle": "1", "DP-Adapter weight": "0.4"})
    assert pasted is not None
    assert pasted.settings == Settings(weight=0.4)
    assert "DP-Adapter sparkle" in pasted.notes[0]
    assert "version 9" in pasted.notes[0]


@pytest.mark.parametrize(
    ("params", "left", "words"),
    [
        ({"DP-Adapter weight": "5", "DP-Adapter end": "0.9"}, Settings.from_dict({"span": {"end": 0.9}}), "weight: 5"),
        ({"DP-Adapter blend mode": "ad"}, Settings(), "Did you mean 'add'?"),
        ({"DP-Adapter preview moments": "0.5, 0.2"}, Settings(), "does not come after"),
        ({"DP-Adapter photo weight 2": "0.5"}, Settings(), "references[0].image"),
        ({"DP-Adapter weight per site": "3=x"}, Settings(), "levels.sites"),
        ({"DP-Adapter weight per site": "3=1e"}, Settings(), "levels.sites"),
        ({"DP-Adapter photo 41": "identity:A"}, Settings.from_dict({"references": [{"image": "identity:A"}]}), ""),
    ],
)
def test_what_was_spoilt_by_hand_is_named_and_left_at_its_default(
    params: dict[str, str], left: Settings, words: str
) -> None:
    pasted = infotext.read_parameters({"DP-Adapter": "1", **params})
    assert pasted is not None
    assert pasted.settings == left
    assert words in " ".join(pasted.notes)


def test_items_with_gaps_keep_their_order() -> None:
    params = {"DP-Adapter": "1", "DP-Adapter photo 10": "identity:Bea", "DP-Adapter photo 2": "identity:Ada"}
    pasted = infotext.read_parameters({**params, "DP-Adapter photo weight 10": "0.5"})
    assert pasted is not None
    assert pasted.settings is not None
    assert [(r.image, r.weight) for r in pasted.settings.references] == [("identity:Ada", 1.0), ("identity:Bea", 0.5)]


def test_fields_that_contradict_each_other_take_nothing_over() -> None:
    pasted = infotext.read_parameters({"DP-Adapter": "1", "DP-Adapter face choice": "like"})
    assert pasted is not None
    assert pasted.settings is None
    assert "face.like" in pasted.notes[0]


class Saved:
    """Saved identities by the photos that they were made with."""

    def __init__(self, by_photo: dict[str, str]) -> None:
        self.by_photo = by_photo

    def with_photo(self, digest: str) -> str | None:
        return self.by_photo.get(digest)


def test_photos_are_found_on_the_shelf_in_saved_identities_or_reported_missing() -> None:
    third = "aaaaaaaaaaaaaaaa"
    data = {
        "references": [{"image": f"photo:{one}"} for one in (HASH, OTHER, third)],
        "regions": [{"kind": "mask", "mask": f"photo:{OTHER}"}],
    }
    settings, notes = find_pictures(Settings.from_dict(data), {third: "b.jpg"}, {HASH}, Saved({OTHER: "Anna"}))
    assert [reference.image for reference in settings.references] == [
        f"photo:{HASH}",
        "identity:Anna",
        f"photo:{third}",
    ]
    assert settings.regions[0].mask == f"photo:{OTHER}", "an identity is no mask"
    assert notes == (
        "Photo 2 is part of the saved identity 'Anna', which is used.",
        "Photo 3 ('b.jpg') is not here any more: drop it again.",
        "The mask of region 1 is not here any more: drop it again.",
    )


def test_two_photos_of_one_saved_identity_lead_to_it_once() -> None:
    settings = Settings.from_dict({"references": [{"image": f"photo:{HASH}"}, {"image": f"photo:{OTHER}"}]})
    replaced, _ = find_pictures(settings, {}, set[str](), Saved({HASH: "Anna", OTHER: "Anna"}))
    assert [reference.image for reference in replaced.references] == ["identity:Anna"]


def test_pictures_are_kept_by_hash_wherever_they_are() -> None:
    data = {
        "references": [{"image": "A" * 64, "face": {"choice": "like", "like": "B" * 64}}, {"image": "identity:Ada"}],
        "face": {"choice": "like", "like": "C" * 64},
        "regions": [{"kind": "mask", "mask": "D" * 64}, {"kind": "mask", "mask": f"photo:{HASH}"}],
    }
    asked: list[str] = []

    def keep(text: str, path: str) -> str:
        asked.append(path)
        return text[0].lower() * 16

    settings = keep_pictures(Settings.from_dict(data), keep)
    assert asked == ["references[0].image", "references[0].face.like", "face.like", "regions[0].mask"]
    assert settings.references[0].image == "photo:" + "a" * 16
    assert settings.regions[1].mask == f"photo:{HASH}"
