"""The grammar: every caption of the training scenes is read as what its plan says."""

from __future__ import annotations

import numpy as np
import pytest

from dp_adapter.errors import SettingsError
from dp_adapter.small_base.caption_grammar import COLOURS, CaptionFacts, parse_caption, random_captions
from tools.small_base import scenes
from tools.small_base.portraits import Portrait


def test_statements_of_a_caption() -> None:
    text = (
        "close-up color photo of a smiling person on the left, with glasses, grey hair, red clothes, "
        "striped blue background"
    )
    assert [str(one) for one in parse_caption(text)] == [
        "medium color", "people 1", "size close-up", "place on the left", "smile yes", "glasses yes", "hair grey",
        "clothes red", "background blue", "pattern striped",
    ]  # fmt: skip
    assert [str(one) for one in parse_caption("black and white photo of two people, dotted background")] == [
        "medium grey", "people 2", "pattern dotted",
    ]  # fmt: skip


@pytest.mark.parametrize(
    "text", ["a person in the snow", "color photo of a person, a hat", "color photo of a person, background"]
)
def test_other_texts_are_refused_by_their_part(text: str) -> None:
    with pytest.raises(SettingsError, match="is not in the grammar"):
        parse_caption(text)


def test_the_training_scenes_captions_are_of_the_grammar() -> None:
    empty = np.zeros(0, np.float32)
    portrait = Portrait("a", 0, empty, empty.astype(np.uint8), empty, empty, empty, False, "black", True, False)
    random = np.random.default_rng(0)
    assert COLOURS == scenes.COLOURS
    for _ in range(200):
        plan = scenes.draw_plan(random, [portrait])
        said = {one.kind: one.value for one in parse_caption(scenes.write_caption(random, plan, whole=True))}
        assert said["people"] == str(len(plan.people)) and (said["medium"] == "grey") == plan.grey
        if not plan.grey:
            assert (said["background"], said["pattern"]) == (plan.background, plan.pattern)
        if len(plan.people) == 1:
            assert said["glasses"] == "yes" and said["smile"] == "no" and said["hair"] == "black"
            assert said.get("size", "portrait") == plan.size
            assert said.get("place", "in the centre") == plan.people[0].place


def test_drawn_captions_are_the_same_for_a_seed_and_keep_to_the_person() -> None:
    facts = CaptionFacts(hair="no", glasses=True, smiling=None)
    captions = random_captions(3, facts, 20)
    assert captions == random_captions(3, facts, 20) != random_captions(4, facts, 20)
    for caption in captions:
        said = {one.kind: one.value for one in parse_caption(caption)}
        assert said["hair"] == "no" and said["glasses"] == "yes" and "smile" not in said
        assert said["clothes"] != said["background"]
