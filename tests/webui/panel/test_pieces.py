"""The parts of the panel that need no gradio: lists, words, the curve's picture, the preview, faces, the brush."""

from __future__ import annotations

import base64
import io
import json
import re
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from PIL import Image, ImageDraw

from dp_adapter.errors import PictureError, SettingsError
from dp_adapter.session import Session
from dp_adapter.settings import Settings, field_at
from dp_adapter.webui.host import shared_session
from dp_adapter.webui.panel import curve_plot, lists, messages
from dp_adapter.webui.panel.photos import face_choice, thumbnails
from dp_adapter.webui.panel.regions import box_canvas, mask_brush, region_drawing
from dp_adapter.webui.panel.widget_values import field_value, widget_value
from tests.webui import fake_webui


@pytest.fixture
def session(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Session]:
    made = Session([tmp_path], paths_allowed=False)
    with fake_webui.installed(tmp_path):
        monkeypatch.setattr(shared_session, "session", lambda: made)
        yield made


def test_events_that_come_at_once_share_one_session(tmp_path: Path) -> None:
    with fake_webui.installed(tmp_path), ThreadPoolExecutor(8) as threads:
        shared_session.forget()
        made = [pending.result() for pending in [threads.submit(shared_session.session) for _ in range(32)]]
        shared_session.forget()
    assert len(set(map(id, made))) == 1


# Lists.


def test_items_move_and_go() -> None:
    items = [{"image": name} for name in "abc"]
    assert lists.move(items, 0, 1) == ([{"image": "b"}, {"image": "a"}, {"image": "c"}], 1)
    assert lists.move(items, 2, 1) == (items, 2)
    assert lists.move(items, -1, 1) == (items, -1)
    assert lists.remove(items, 2) == (items[:2], 1)
    assert lists.remove(items[:1], 0) == ([], -1)
    with pytest.raises(SettingsError, match="33 photos are too many"):
        lists.append([{}] * 32, [{}], "photo")


@pytest.mark.parametrize("text", ["", "{", "3", None, "[1]", "[" * 100_000])
def test_what_is_no_list_counts_as_empty(text: object) -> None:
    assert lists.read(text) == []


def test_a_new_photo_and_a_new_region_are_valid() -> None:
    photo = lists.new_photo("photo:0123456789abcdef", "a.jpg")
    region = lists.new_region()
    for kind in ("auto", "full", "box"):
        changed = {**region, **lists.with_kind(region, kind)}
        plain = {key: value for key, value in photo.items() if key != "name"}
        assert Settings.from_dict({"references": [plain], "regions": [changed]}).regions[0].kind == kind


# The layout.

SIDES = {"x0": 0.25, "y0": 0.25, "x1": 0.75, "y1": 0.5}
BOX = {"kind": "box", "box": SIDES, "identity": 1}


def dragged(index: int, *box: float) -> box_canvas.Drag:
    return box_canvas.read_drag(json.dumps({"index": index, "box": box, "at": 1}))


def test_a_drag_adds_moves_or_chooses() -> None:
    added, chosen = box_canvas.apply_drag([BOX], 0, dragged(-1, 0.5, 0.9, 0.123, 2.0))
    assert chosen == 1 and added[0] == BOX
    region = Settings.from_dict({"regions": added}).regions[1]
    assert region.box is not None and vars(region.box) == {"x0": 0.12, "y0": 0.9, "x1": 0.5, "y1": 1.0}
    assert region.identity == 1, "as the chosen region's"
    moved, chosen = box_canvas.apply_drag([{"kind": "auto"}, BOX], 0, dragged(1, 0, 0, 0.333, 0.5))
    assert (moved[1]["box"], chosen) == ({"x0": 0, "y0": 0, "x1": 0.33, "y1": 0.5}, 1)
    assert box_canvas.apply_drag([BOX, BOX], 1, dragged(0, *SIDES.values())) == ([BOX, BOX], 0), "a click"
    for index in (-1, 0, 7):
        assert box_canvas.apply_drag([BOX], 0, dragged(index, 0.5, 0.5, 0.5, 0.5)) == ([BOX], 0), "no area"
    with pytest.raises(SettingsError, match="33 regions are too many"):
        box_canvas.apply_drag([BOX] * 32, 0, dragged(-1, 0, 0, 1, 1))


@pytest.mark.parametrize(
    "text", ["", "[]", '{"index": 0}', '{"index": 0, "box": [1, 2]}', '{"index": "a", "box": "abcd"}']
)
def test_what_is_no_drag_is_refused(text: str) -> None:
    with pytest.raises(SettingsError, match="what was drawn could not be read"):
        box_canvas.read_drag(text)


def test_the_layout_shows_boxes_with_small_ones_above() -> None:
    large = {"kind": "box", "box": {}, "op": "subtract"}
    shown = box_canvas.draw_boxes([BOX, {"kind": "auto"}, large], 0, "target")
    assert re.findall(r'data-index="(\d)"', shown) == ["2", "0"]
    assert re.findall(r"<b>([^<]*)</b>", shown) == ["− 3", "1"]
    assert 'data-target="target"' in shown and "left:25.00%;top:25.00%;width:50.00%;height:25.00%" in shown
    odd = [{"kind": "box", "box": {"x0": "</div>"}, "identity": "<b>"}, {"kind": "box", "box": [1]}]
    assert "</div><" not in box_canvas.draw_boxes(odd, 0, "t").partition("<b>")[0]
    assert "aspect-ratio: 2.0000" in box_canvas.style_with_picture(Image.new("RGB", (64, 32)), "id")


# Words.


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"weight": 3}, "Weight: 3 is above the maximum 2. Use 2 or less."),
        ({"span": {"start": 0.5, "end": 0.2}}, "Start: 0.5 is after the end 0.2. Use 0.2 or less."),
        ({"regions": [{"kind": "mask"}]}, "Region 1, mask: is empty, and the region kind 'mask' needs it."),
        ({"references": [{"image": "a", "identity": 2}]}, "Photo 1: persons are counted without gaps"),
        ({"references": [{"image": "a"}], "regions": [{"identity": 1}]}, "Region 1: persons are counted"),
    ],
)
def test_errors_speak_of_labels_and_count_from_one(settings: dict[str, object], words: str) -> None:
    with pytest.raises(SettingsError) as caught:
        Settings.from_dict(settings)
    assert messages.explain(caught.value).startswith(words)


def test_the_status_line_shows_text_not_markup(caplog: pytest.LogCaptureFixture) -> None:
    assert "&lt;b&gt;" in messages.status_html("<b>")
    assert messages.status_html(["", ""]) == ""
    said = messages.log_unexpected(KeyError("secret"))
    assert "KeyError" in said
    assert "secret" not in said
    assert caplog.records[0].exc_info


# The curve.


def test_the_curve_is_drawn_between_start_and_end() -> None:
    points = re.findall(r'polyline points="([^"]*)"', curve_plot.draw_curve("0@0.1, 2@0.5", 0.3, 1.0))[0].split()
    assert len(points) == 3
    heights = [float(point.split(",")[1]) for point in points]
    assert heights[1] == heights[2] == min(heights)
    assert curve_plot.draw_curve("0@0.1, 2@0.5").count("<circle") == 2
    assert "<script>" not in curve_plot.draw_curve("<script>@1")
    assert "is not a point" in curve_plot.draw_curve("<script>@1")


# Pictures.


def kept(session: Session, picture: Image.Image) -> str:
    file = io.BytesIO()
    picture.save(file, "PNG")
    return f"photo:{session.dropped_photos.add(file.getvalue())}"


def test_new_regions_are_those_of_persons_without_one() -> None:
    two, box = [0, 1], dragged(-1, 0.5, 0, 1, 1)
    first, chosen = box_canvas.apply_drag([], -1, box, two)
    second, chosen = box_canvas.apply_drag(first, chosen, box, two)
    third, chosen = box_canvas.apply_drag(second, chosen, box, two)
    assert [item["identity"] for item in third] == [0, 1, 1], "when all have one, the chosen region's"
    taken_away = [{**BOX, "op": "subtract", "identity": 0}]
    assert lists.next_person(taken_away, 0, two) == 0, "what is subtracted is nobody's place"
    assert box_canvas.apply_drag(first, 0, box, [0])[0][1]["identity"] == 0
    assert lists.persons_without_region(first, [0, 1, 2]) == [1, 2]
    assert lists.persons_in([{"identity": 1}, {}, {"identity": 1}]) == [0, 1]


def test_a_face_is_counted_from_1_in_its_widget() -> None:
    kind = field_at("face.index").kind
    assert (widget_value(kind, 0), field_value(field_at("face.index"), 3)) == (1, 2)
    assert field_value(field_at("face.index"), 0) == 0, "a slider whose least value the host kept from before"


def test_the_preview_shows_nothing_where_nobody_acts_yet(session: Session) -> None:
    under = region_drawing.make_canvas(512, 512, None)
    shown = region_drawing.draw_regions(Settings(), under, init=False, inpaint=None).picture
    assert shown.tobytes() == under.tobytes()
    full = Settings.from_dict({"tracking": {"fallback": "full"}})
    shown = region_drawing.draw_regions(full, under, init=False, inpaint=None).picture
    assert shown.getpixel((9, 9)) != under.getpixel((9, 9))


def test_the_preview_colours_the_region(session: Session) -> None:
    under = region_drawing.make_canvas(512, 256, None)
    assert under.size == (512, 256)
    settings = Settings.from_dict({"regions": [{"kind": "box", "box": {"x1": 0.5}}]})
    drawn = region_drawing.draw_regions(settings, under, init=False, inpaint=None)
    assert drawn.lines == ("Person 1: a box; 50% of the picture.",)
    left, right = drawn.picture.getpixel((100, 100)), drawn.picture.getpixel((400, 100))
    assert right == under.getpixel((400, 100)) != left
    assert max(region_drawing.make_canvas(4096, 64, None).size) == region_drawing.LONG_SIDE


def test_the_preview_says_where_nothing_is_known_and_where_a_face_is(session: Session, portrait: Path) -> None:
    under = region_drawing.make_canvas(512, 512, None)
    (line,) = region_drawing.draw_regions(Settings(), under, init=False, inpaint=None).lines
    assert line == (
        "Person 1: the face as soon as previews (at 15, 30, 55 % of the way) or attention maps show it, nowhere until "
        "then; the whole picture from 55 % on if nothing has shown it; 0% of the picture at the first step."
    )
    init = region_drawing.make_canvas(64, 64, Image.open(portrait))
    (line,) = region_drawing.draw_regions(Settings(), init, init=True, inpaint=None).lines
    assert line.startswith("Person 1: face 1 of the init picture")
    mask = Image.new("L", (16, 16))
    ImageDraw.Draw(mask).rectangle((0, 0, 15, 7), fill=255)
    (line,) = region_drawing.draw_regions(Settings(), init, init=True, inpaint=mask).lines
    assert line == "Person 1: the inpaint mask; 50% of the picture."


def test_faces_are_shown_with_the_one_that_is_taken(session: Session, portrait: Path, faceless: Path) -> None:
    common = {"choice": "largest"}
    source = kept(session, Image.open(portrait))
    found = face_choice.find_faces({"image": source}, common, "Photo 1")
    assert [caption for _, caption in found.pictures] == ["1 ✓"]
    assert found.words.startswith("1 face found.")
    refused = face_choice.find_faces({"image": source, "face": {"choice": "index", "index": 3}}, common, "Photo 1")
    assert refused.warns
    assert [caption for _, caption in refused.pictures] == ["1"]
    nobody = face_choice.find_faces({"image": kept(session, Image.open(faceless))}, common, "Photo 1")
    assert (nobody.pictures, nobody.warns) == ((), True)
    assert face_choice.find_faces({"image": "identity:Ada"}, common, "Photo 1").words.startswith("A saved identity")


def test_what_is_gone_has_a_grey_thumbnail(session: Session, portrait: Path) -> None:
    items = [{"image": "photo:0123456789abcdef"}, {"image": kept(session, Image.open(portrait)), "weight": 0.5}]
    (gone, first), (here, second) = thumbnails.make_gallery(items)
    assert (first, second) == ("1 · weight 1 · person 1", "2 · weight 0.5 · person 1")
    assert gone.getextrema() == ((128, 128),) * 3
    assert here.getextrema() != gone.getextrema()


# The brush.


def data_url(picture: Image.Image) -> str:
    file = io.BytesIO()
    picture.save(file, "PNG")
    return "data:image/png;base64," + base64.b64encode(file.getvalue()).decode()


def test_the_inpaint_mask_is_read_as_the_webui_does() -> None:
    layer = Image.new("RGBA", (16, 16), (0, 0, 0, 0))
    ImageDraw.Draw(layer).rectangle((0, 0, 15, 7), fill=(0, 0, 0, 255))
    assert region_drawing.read_inpaint_mask(layer).getbbox() == (0, 0, 16, 8), "alpha alone, whatever the colour"
    white = Image.new("RGB", (16, 16))
    ImageDraw.Draw(white).rectangle((0, 0, 15, 7), fill="white")
    assert region_drawing.read_inpaint_mask(white.convert("RGBA")).getbbox() == (0, 0, 16, 8), (
        "opaque: where it is white"
    )


def test_a_painting_becomes_a_mask_that_can_be_painted_on(session: Session) -> None:
    strokes = Image.new("RGBA", (32, 32))
    assert mask_brush.keep_painting(data_url(strokes)) == ""
    ImageDraw.Draw(strokes).rectangle((0, 0, 31, 15), fill=(255, 255, 255, 255))
    mask = mask_brush.keep_painting(data_url(strokes))
    picture = session.photos.read(mask, "mask")
    assert (picture[:16] == 255).all()
    assert not picture[16:].any()
    html = mask_brush.draw_canvas(Image.new("RGB", (32, 32)), mask, "target")
    before = re.search(r'dp-adapter-before" src="data:image/png;base64,([^"]*)"', html)
    assert before is not None
    again = Image.open(io.BytesIO(base64.b64decode(before[1]))).convert("RGBA").getchannel("A")
    assert again.getbbox() == (0, 0, 32, 16)
    assert "dp-adapter-before" not in mask_brush.draw_canvas(Image.new("RGB", (32, 32)), "photo:0123456789abcdef", "x")


@pytest.mark.parametrize("sent", ["data:image/png;base64,!!", "data:image/png;base64,AAAA", "x", "é"])
def test_what_is_no_painting_is_refused(session: Session, sent: str) -> None:
    with pytest.raises(PictureError, match="painted mask could not be read"):
        mask_brush.keep_painting(sent)
