"""FastComposer's 40 evaluation prompts (Xiao et al., arXiv 2305.10431), ten of each kind.

Source: mit-han-lab/fastcomposer@b9304a2 ``evaluation/single_object/data.py``, MIT. There a prompt is filled with a
class word and a token of the identity, which is stripped where the prompt is judged; here ``{person}`` stands for both.
"""

from __future__ import annotations

PROMPTS: dict[str, tuple[str, ...]] = {
    "accessory": (
        "a {person} wearing a red hat",
        "a {person} wearing a santa hat",
        "a {person} wearing a rainbow scarf",
        "a {person} wearing a black top hat and a monocle",
        "a {person} in a chef outfit",
        "a {person} in a firefighter outfit",
        "a {person} in a police outfit",
        "a {person} wearing pink glasses",
        "a {person} wearing a yellow shirt",
        "a {person} in a purple wizard outfit",
    ),
    "style": (
        "a painting of a {person} in the style of Banksy",
        "a painting of a {person} in the style of Vincent Van Gogh",
        "a colorful graffiti painting of a {person}",
        "a watercolor painting of a {person}",
        "a Greek marble sculpture of a {person}",
        "a street art mural of a {person}",
        "a black and white photograph of a {person}",
        "a pointillism painting of a {person}",
        "a Japanese woodblock print of a {person}",
        "a street art stencil of a {person}",
    ),
    "action": (
        "a {person} riding a horse",
        "a {person} holding a glass of wine",
        "a {person} holding a piece of cake",
        "a {person} giving a lecture",
        "a {person} reading a book",
        "a {person} gardening in the backyard",
        "a {person} cooking a meal",
        "a {person} working out at the gym",
        "a {person} walking the dog",
        "a {person} baking cookies",
    ),
    "context": (
        "a {person} in the jungle",
        "a {person} in the snow",
        "a {person} on the beach",
        "a {person} on a cobblestone street",
        "a {person} on top of pink fabric",
        "a {person} on top of a wooden floor",
        "a {person} with a city in the background",
        "a {person} with a mountain in the background",
        "a {person} with a blue house in the background",
        "a {person} on top of a purple rug in a forest",
    ),
}


def prompt_templates() -> list[str]:
    """All 40, one of each kind in turn, so that the first few of a short run are of all kinds."""
    return [prompt for group in zip(*PROMPTS.values(), strict=True) for prompt in group]
