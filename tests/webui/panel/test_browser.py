"""The panel as a user meets it: a real browser, both gradios, the real session behind it."""

from __future__ import annotations

import base64
import contextlib
import io
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from tests.webui.driver import PanelPage


@pytest.fixture(scope="session")
def group(portrait: Path, people: list[Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three people beside each other; the face on the left is the largest."""
    picture = Image.new("RGB", (1000, 360), "white")
    for place, (photo, height) in enumerate(((people[0], 240), (portrait, 360), (people[2], 240))):
        picture.paste(Image.open(photo).convert("RGB").resize((300, height)), (place * 340, 0))
    path = tmp_path_factory.mktemp("group") / "group.png"
    picture.save(path)
    return path


@pytest.fixture
def ui(browser: Any, panel_address: str) -> Iterator[PanelPage]:
    page = PanelPage(browser, panel_address)
    page.switch_on()
    yield page
    page.close()


def test_photos_are_dropped_ordered_weighed_and_their_faces_chosen(ui: PanelPage, portrait: Path, group: Path) -> None:
    ui.drop([portrait, group])
    ui.photos(["1 · weight 1 · person 1", "2 · weight 1 · person 1"])
    ui.says("faces_said", "3 faces found; face 1 is taken")  # the last one dropped is the chosen one
    ui.faces(["1 ✓", "2", "3"])
    ui.pick("faces", 2)
    ui.faces(["1", "2", "3 ✓"])
    ui.slide("references_weight", 0.5)
    ui.photos(["1 · weight 1 · person 1", "2 · weight 0.5 · person 1"])
    ui.click("earlier")
    ui.photos(["1 · weight 0.5 · person 1", "2 · weight 1 · person 1"])
    ui.pick("gallery", 1)
    ui.says("faces_said", "1 face found.")
    ui.pick("gallery", 0)
    ui.faces(["1", "2", "3 ✓"])
    first, second = ui.request()["references"]
    assert first == {"image": first["image"], "weight": 0.5, "face": {"choice": "index", "index": 2}}
    assert list(second) == ["image"]
    assert all(one["image"].startswith("photo:") and len(one["image"]) == 22 for one in (first, second))
    ui.click("any_face")
    ui.faces(["1 ✓", "2", "3"])
    ui.pick("gallery", 1)
    ui.says("faces_said", "1 face found.")
    ui.choose("references_identity", "2")
    ui.photos(["1 · weight 0.5 · person 1", "2 · weight 1 · person 2"])
    assert [one.get("identity", 0) for one in ui.request()["references"]] == [0, 1]
    ui.pick("gallery", 0)
    ui.says("faces_said", "3 faces found")
    ui.click("remove")
    ui.photos(["1 · weight 1 · person 2"])
    ui.says("faces_said", "Photo 1: persons are counted without gaps and need a photo each. Use person 1.")


def test_what_is_no_photo_is_refused_in_words(ui: PanelPage, portrait: Path, faceless: Path, tmp_path: Path) -> None:
    wrong = tmp_path / "notes.jpg"
    wrong.write_text("no picture")
    ui.drop([portrait, wrong])
    ui.photos(["1 · weight 1 · person 1"])
    ui.says("status", "notes.jpg: ")
    ui.drop([faceless])
    ui.says("faces_said", "No face was found in this photo.")


def test_an_upload_survives_what_else_changes_on_the_page(ui: PanelPage, portrait: Path) -> None:
    def slowly(route: Any) -> None:
        ui.page.wait_for_timeout(1500)
        with contextlib.suppress(Exception):  # newer playwrights let it go on at unroute
            route.continue_()

    ui.open("schedule")
    ui.page.route("**/upload*", slowly)
    ui.drop([portrait])
    ui.type("curve", "1@0.5")
    ui.page.locator(f"{ui.id('curve_picture')} circle").first.wait_for()
    ui.page.unroute("**/upload*")
    ui.photos(["1 · weight 1 · person 1"])
    ui.page.wait_for_timeout(1500)
    ui.photos(["1 · weight 1 · person 1"])


def test_widgets_make_the_request(ui: PanelPage) -> None:
    ui.slide("weight", 1.2)
    ui.type("span_start", "0,2")
    ui.choose("mode", "age")
    ui.type("target_age", "60")
    ui.open("pathways")
    ui.slide("text_emphasis", 0.5)
    ui.page.check(f"{ui.id('strict_text_region')} input")
    ui.open("parts")
    ui.type("parts_hair", "0.5")
    ui.open("schedule")
    ui.type("curve", "0@0.1, 1@0.3")
    ui.page.locator(f"{ui.id('curve_picture')} circle").nth(1).wait_for()
    ui.type("levels_sites", "3: 0.5")
    ui.open("hires")
    ui.choose("hires_use", "own")
    ui.slide("hires_weight", 0.3)
    ui.open("report")
    ui.page.check(f"{ui.id('report_masks')} input")
    assert ui.request() == {
        "weight": 1.2,
        "text_emphasis": 0.5,
        "strict_text_region": True,
        "span": {"start": 0.2},
        "curve": "0.0@0.1, 1.0@0.3",
        "levels": {"sites": {"3": 0.5}},
        "parts": {"hair": 0.5},
        "mode": "age",
        "target_age": 60,
        "hires": {"use": "own", "weight": 0.3},
        "report": {"masks": True},
    }


def test_a_mode_says_what_it_does_and_asks_for_its_fields(ui: PanelPage) -> None:
    ui.choose("mode", "full_body")
    ui.says("mode_does", "Headshot to full body: Only the face")
    ui.says("mode_does", "Words: full body")
    ui.type("span_start", "0.1")
    ui.says("mode_does", "The identity starts at 0.1 (as you set it).")
    ui.choose("mode", "age")
    ui.says("mode_does", "Words: 60 years old, elderly")
    assert ui.request() == {"mode": "age", "target_age": 60, "span": {"start": 0.1}}, "it is asked for with a proposal"
    ui.type("target_age", "")
    ui.says("mode_does", "Target age 60 is taken, as none was given.")
    ui.type("target_age", "70")
    ui.says("mode_does", "Words: 70 years old, elderly")
    ui.choose("mode", "expression")
    ui.says("mode_does", "Words: smiling, gentle smile")
    assert ui.request()["expression"] == "smiling"
    field = ui.page.locator(f"{ui.id('expression')} input")
    field.click()
    field.fill("")
    field.type("a crooked grin")
    ui.says("mode_does", "Words: a crooked grin.")  # while it is typed
    field.press("Enter")
    ui.page.wait_for_timeout(500)
    ui.says("mode_does", "Words: a crooked grin.")
    assert ui.request()["expression"] == "a crooked grin"
    ui.choose("expression", "laughing")
    ui.says("mode_does", "Words: laughing, open mouth")
    assert not ui.page.locator(ui.id("target_age")).is_visible()
    ui.choose("mode", "custom:noir")
    ui.says("mode_does", "Noir: It is dark.")
    ui.page.locator(ui.id("target_age")).wait_for()
    assert ui.request()["mode"] == "custom:noir"


def test_a_curve_that_cannot_be_read_says_why_while_it_is_typed(ui: PanelPage) -> None:
    ui.open("schedule")
    ui.type("curve", "1@")
    ui.says("curve_picture", "'1@' is not a point")
    assert ui.generate().startswith("refused: curve: '1@' is not a point")


def test_models_that_fit_come_first_and_the_others_say_why(ui: PanelPage) -> None:
    expected = ["one-faceid.safetensors", "two-plus.safetensors", "a-sdxl.bin ⚠ for SDXL"]
    options = ui.options("model")
    ui.until(
        lambda: [text.replace("✓", "").strip() for text in options.all_inner_texts()],
        [*expected, "broken.safetensors ⚠ cannot be used"],
    )
    ui.page.locator(f"{ui.id('model')} input").blur()
    options.first.wait_for(state="detached")
    ui.choose("model", "a-sdxl.bin")
    ui.says("status", "a-sdxl.bin is for SDXL, the loaded checkpoint is not.")
    assert ui.request()["model"] == "a-sdxl.bin"
    ui.choose("model", "two-plus")
    ui.says("status", "cannot tell which kind it is")
    ui.radio("variant", "faceid-plus")
    assert ui.request() == {"model": "two-plus.safetensors", "variant": "faceid-plus"}
    ui.choose("model", "one-faceid")
    ui.page.locator(ui.id("variant")).wait_for(state="hidden")
    assert ui.request() == {"model": "one-faceid.safetensors"}


def test_regions_are_added_and_shown(ui: PanelPage) -> None:
    ui.open("regions")
    ui.click("region_add")
    ui.radio("regions_kind", "box")
    ui.until(lambda: ui.request().get("regions", [{}])[0].get("kind"), "box")  # the answer, which sets the box's fields
    ui.until(lambda: ui.page.input_value(f"{ui.id('regions_box_x1')} input[type=number]"), "0.75")
    ui.slide("regions_box_x1", 0.5)
    ui.until(lambda: ui.request()["regions"][0].get("box", {}).get("x1"), 0.5)  # of two answers at once one is lost
    ui.type("regions_feather", "0.1")
    box = {"x0": 0.25, "y0": 0.1, "x1": 0.5, "y1": 0.6}
    ui.until(lambda: ui.request()["regions"], [{"kind": "box", "box": box, "feather": 0.1}])
    ui.click("region_preview")
    ui.page.locator(f"{ui.id('region_picture')} img").wait_for()
    ui.says("group_regions", "Person 1: a box; 12% of the picture.")
    ui.slide("regions_box_x1", 0.1)
    ui.says("group_regions", "Region 1, box right: 0.1 is not above x0 = 0.25")
    ui.click("region_remove")
    ui.says("group_regions", "No regions: each person acts where their face is found.")
    ui.click("region_preview")
    ui.says(
        "group_regions", "Person 1: the face as soon as previews (at 15, 30, 55 % of the way) or attention maps show it"
    )


def test_a_photo_of_somebody_else_is_asked_about(ui: PanelPage, people: list[Path]) -> None:
    question = ui.page.locator(f"{ui.id('stranger_other')}, {ui.id('stranger_same')}")
    ui.drop(people[:2])
    ui.photos(["1 · weight 1 · person 1", "2 · weight 1 · person 1"])
    ui.says("faces_said", "1 face found.")
    ui.drop([people[2]])
    ui.says("stranger", "Photo 3 looks like somebody else than person 1: its likeness to their other photos is 0.")
    ui.click("stranger_other")
    ui.photos(["1 · weight 1 · person 1", "2 · weight 1 · person 1", "3 · weight 1 · person 2"])
    ui.says("stranger", "Photo 3 is person 2 now.")
    question.first.wait_for(state="hidden")
    ui.click("stranger_undo")
    ui.photos(["1 · weight 1 · person 1", "2 · weight 1 · person 1", "3 · weight 1 · person 1"])
    ui.says("stranger", "Photo 3 looks like somebody else")
    ui.click("stranger_same")
    question.first.wait_for(state="hidden")
    assert [one.get("identity", 0) for one in ui.request()["references"]] == [0, 0, 0]
    ui.drop([people[4]])
    ui.says("stranger", "Photo 4 looks like somebody else")


def test_two_people_have_two_boxes_and_the_preview_follows(ui: PanelPage, people: list[Path]) -> None:
    ui.drop([people[0], people[2]])
    ui.says("stranger", "Photo 2 looks like somebody else")
    ui.click("stranger_other")
    ui.photos(["1 · weight 1 · person 1", "2 · weight 1 · person 2"])
    ui.open("regions")
    ui.click("region_preview")
    ui.says("group_regions", "Person 2: the face as soon as")
    shown = ui.page.locator(f"{ui.id('region_picture')} img")
    ui.click("region_draw")
    layout = ui.page.locator(f"{ui.id('region_layout')} .dp-adapter-layout")
    ui.drag(layout, (0.1, 0.1), (0.4, 0.6))
    ui.says("group_regions", "Person 2 has no region and acts where their face is found.")
    ui.says("group_regions", "Person 1: a box; 15% of the picture.")  # drawn anew, nobody pressed the button
    ui.drag(layout, (0.6, 0.1), (0.9, 0.6))
    ui.until(lambda: [one.get("identity", 0) for one in ui.request()["regions"]], [0, 1])
    ui.says("group_regions", "Person 2: a box; 15% of the picture.")
    ui.slide("regions_box_x1", 0.2)  # left of its left side
    ui.says("group_regions", "Region 2, box right: 0.2 is not above x0 = 0.6")
    ui.slide("regions_box_x1", 1.0)
    ui.says("group_regions", "Person 2: a box; 20% of the picture.")
    ratio = "picture => picture.naturalWidth / picture.naturalHeight > 1.4"
    assert not shown.evaluate(ratio)
    ui.page.locator("#txt2img_width input[type=number]").fill("1024")
    ui.page.locator("#txt2img_width input[type=number]").press("Enter")
    ui.until(lambda: shown.evaluate(ratio), True)


def test_boxes_are_drawn_moved_and_resized(ui: PanelPage) -> None:
    ui.open("regions")
    ui.click("region_draw")
    layout = ui.page.locator(f"{ui.id('region_layout')} .dp-adapter-layout")
    ui.drag(layout, (0.1, 0.1), (0.4, 0.6))
    first = {"kind": "box", "box": {"x0": 0.1, "y0": 0.1, "x1": 0.4, "y1": 0.6}}
    ui.until(lambda: ui.request().get("regions"), [first])
    ui.drag(layout, (0.9, 0.5), (0.6, 0.2))
    second = {"kind": "box", "box": {"x0": 0.6, "y0": 0.2, "x1": 0.9, "y1": 0.5}}
    ui.until(lambda: ui.request()["regions"], [first, second])
    ui.radio("regions_op", "subtract")
    ui.until(lambda: ui.page.input_value(f"{ui.id('region')} input"), "2 · − box · person 1")
    ui.until(lambda: layout.locator(".dp-adapter-subtracted b").all_inner_texts(), ["− 2"])
    ui.drag(layout, (0.2, 0.2), (0.3, 0.9))  # moved, as far as the picture goes
    first["box"] = {"x0": 0.2, "y0": 0.5, "x1": 0.5, "y1": 1.0}
    ui.until(
        lambda: ui.request()["regions"][0],
        {"kind": "box", "box": {key: v for key, v in first["box"].items() if key != "y1"}},
    )
    ui.until(lambda: ui.page.input_value(f"{ui.id('regions_box_y0')} input[type=number]"), "0.5")
    ui.drag(layout, (0.2, 0.5), (0.05, 0.7))  # its corner
    ui.until(lambda: ui.request()["regions"][0]["box"], {"x0": 0.05, "y0": 0.7, "x1": 0.5})
    ui.drag(layout, (0.75, 0.35), (0.75, 0.35))  # a click
    ui.until(lambda: ui.page.input_value(f"{ui.id('region')} input"), "2 · − box · person 1")
    ui.page.keyboard.down("Shift")
    ui.drag(layout, (0.7, 0.3), (0.8, 0.4))
    ui.page.keyboard.up("Shift")
    ui.until(lambda: len(ui.request()["regions"]), 3)
    ui.drag(layout, (0.02, 0.02), (0.02, 0.02))
    ui.slide("regions_box_x1", 0.85)
    box = layout.locator("[data-index='2']")
    ui.until(lambda: box.get_attribute("data-box"), "[0.7, 0.3, 0.85, 0.4]")
    assert len(ui.request()["regions"]) == 3
    assert ui.request()["regions"][1]["op"] == "subtract"


def test_a_mask_is_painted(ui: PanelPage) -> None:
    ui.open("regions")
    ui.click("region_add")
    ui.radio("regions_kind", "mask")
    ui.says("group_regions", "Region 1, mask: is empty")
    ui.click("region_paint")
    canvas = ui.page.locator(f"{ui.id('group_regions')} .dp-adapter-canvas canvas")
    canvas.scroll_into_view_if_needed()
    area = canvas.bounding_box()
    assert area is not None
    ui.page.mouse.move(area["x"] + 0.25 * area["width"], area["y"] + 0.5 * area["height"])
    ui.page.mouse.down()
    ui.page.mouse.move(area["x"] + 0.75 * area["width"], area["y"] + 0.5 * area["height"], steps=5)
    ui.page.mouse.up()
    ui.says("group_regions", "A mask is set.")
    mask = ui.request()["regions"][0]["mask"]
    assert mask.startswith("photo:")
    ui.click("region_preview")
    ui.says("group_regions", "Person 1: a drawn mask; 3% of the picture.")
    ui.page.locator(f"{ui.id('group_regions')} .dp-adapter-canvas button").click()
    ui.says("group_regions", "Region 1, mask: is empty")


def test_pasted_settings_fill_every_part(ui: PanelPage) -> None:
    settings = {
        "weight": 0.35,
        "mode": "expression",
        "expression": "laughing, eyes closed",
        "references": [{"image": "photo:0123456789abcdef", "weight": 0.5}],
        "regions": [{"kind": "full", "weight": 0.5}],
        "tracking": {"sources": ["preview", "init"], "moments": [0.2]},
        "hires": {"use": "own", "span": {"start": 0.25}},
    }
    ui.paste(settings)
    ui.photos(["1 · weight 0.5 · person 1"])
    ui.says("faces_said", "Photo 1: The photo is not here any more. Drop it again.")
    ui.page.locator(ui.id("expression")).wait_for()
    found = ui.request()
    found.pop("model", None)
    assert found == settings
    ui.open("regions")
    ui.until(lambda: ui.page.input_value(f"{ui.id('region')} input"), "1 · full · person 1")


def test_the_two_tabs_do_not_mix(ui: PanelPage, portrait: Path) -> None:
    ui.drop([portrait])
    ui.photos(["1 · weight 1 · person 1"])
    ui.slide("weight", 0.4)
    ui.go("img2img")
    assert ui.request()["enabled"] is False
    ui.switch_on()
    ui.slide("weight", 1.5)
    found = ui.request()
    assert (found["weight"], found.get("references")) == (1.5, None)
    ui.go("txt2img")
    found = ui.request()
    assert (found["weight"], len(found["references"])) == (0.4, 1)


def test_the_init_picture_is_under_preview_and_brush(ui: PanelPage, portrait: Path) -> None:
    ui.go("img2img")
    ui.switch_on()
    ui.page.set_input_files("#img2img_image input[type=file]", portrait)
    ui.page.locator("#img2img_image img").first.wait_for()
    ui.open("regions")
    ui.click("region_preview")
    ui.says("group_regions", "Person 1: face 1 of the init picture")
    ui.click("region_add")
    ui.radio("regions_kind", "mask")
    ui.click("region_paint")
    ui.click("region_draw")
    layout = ui.page.locator(f"{ui.id('region_layout')} .dp-adapter-layout")
    layout.wait_for()
    shape = layout.bounding_box()
    assert shape is not None and abs(shape["width"] - shape["height"]) < 1
    assert "data:image/jpeg" in layout.evaluate("(element) => getComputedStyle(element).backgroundImage")
    under = ui.page.locator(f"{ui.id('group_regions')} .dp-adapter-canvas img")
    size = under.evaluate("async (img) => { await img.decode(); return [img.naturalWidth, img.naturalHeight]; }")
    assert size == [512, 512]


def test_identities_are_saved_used_and_deleted(ui: PanelPage, portrait: Path) -> None:
    ui.open("identities")
    ui.click("identity_use")
    ui.says("status", "No saved identity is chosen.")
    ui.drop([portrait])
    ui.photos(["1 · weight 1 · person 1"])
    ui.type("identity_name", "Eileen")
    ui.click("identity_save")
    ui.says("status", "Saved 'Eileen' from 1 photo(s).")
    ui.click("identity_use")
    ui.photos(["1 · weight 1 · person 1", "2 Eileen · weight 1 · person 1"])
    ui.says("faces_said", "A saved identity")
    assert ui.request()["references"][1] == {"image": "identity:Eileen"}
    ui.click("identity_delete")
    ui.says("status", "Delete the saved identity 'Eileen'?")
    ui.click("identity_delete_yes")
    ui.says("status", "Deleted 'Eileen'.")
    ui.photos(["1 · weight 1 · person 1"])
    assert ui.page.locator(ui.id("identity_delete_yes")).is_hidden()


def test_pictures_are_pasted_from_the_clipboard(ui: PanelPage, portrait: Path) -> None:
    png = io.BytesIO()
    Image.open(portrait).save(png, "PNG")
    ui.page.hover(ui.id("drop"))
    ui.page.evaluate(
        """async (data) => {
            const blob = await (await fetch("data:image/png;base64," + data)).blob();
            const transfer = new DataTransfer();
            transfer.items.add(new File([blob], "pasted.png", { type: "image/png" }));
            document.body.dispatchEvent(new ClipboardEvent("paste", { clipboardData: transfer, bubbles: true }));
        }""",
        base64.b64encode(png.getvalue()).decode(),
    )
    ui.photos(["1 · weight 1 · person 1"])
    ui.says("faces_said", "1 face found.")


def test_a_made_picture_is_sent_to_the_photos(ui: PanelPage, portrait: Path) -> None:
    ui.page.set_input_files("#txt2img_result_upload input[type=file]", portrait)
    ui.page.locator("#txt2img_gallery img").first.wait_for()
    ui.page.uncheck(f"{ui.id('enabled-checkbox')} input")
    ui.page.click("#dp_adapter_send_txt2img")
    ui.photos(["1 · weight 1 · person 1"])
    assert "references" in ui.request(), "sending opens the panel"
    ui.page.click("#dp_adapter_send_txt2img")
    ui.photos(["1 · weight 1 · person 1", "2 · weight 1 · person 1"])
