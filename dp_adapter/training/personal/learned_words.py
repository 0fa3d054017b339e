"""Prompts with learned words in the place of the person, and the anchor: the words' initial vectors."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from dp_adapter.errors import HostError
from dp_adapter.hosts.prompts import textual_inversion
from dp_adapter.hosts.prompts.encode_prompts import readers_of
from dp_adapter.hosts.prompts.textual_inversion import Texts
from dp_adapter.text_files import read_text

NAMES = Path(__file__).parents[2] / "resources" / "names.txt"
TEMPLATES = (
    "a photo of a {}", "a rendering of a {}", "a cropped photo of the {}", "the photo of a {}",
    "a dark photo of the {}", "a photo of my {}", "a close-up photo of a {}", "a bright photo of the {}",
    "a photo of the {}", "a good photo of the {}", "a photo of one {}", "a close-up photo of the {}",
    "a photo of a nice {}", "a good photo of a {}", "a color photo of a {}", "a portrait of a {}",
)  # fmt: skip
"""Those of textual inversion's (arXiv 2208.01618) that are true of a photo of a person, and two more."""
SURROUNDINGS = (
    "a {} in the jungle", "a {} in the snow", "a {} on the beach", "a {} on a cobblestone street",
    "a {} with a city in the background", "a {} with a mountain in the background", "a {} in front of a wheat field",
    "a {} wearing a red hat", "a {} wearing a yellow shirt", "a {} wearing sunglasses", "a {} in a police outfit",
    "a {} in a chef outfit", "a {} riding a bicycle", "a {} reading a book", "a {} cooking a meal",
    "a {} playing a guitar", "a {} drinking coffee in a cafe", "a {} holding an umbrella", "an oil painting of a {}",
    "a watercolor painting of a {}", "a pencil drawing of a {}", "a sculpture of a {}",
    "a {} in the style of a comic book", "a black and white photo of a {}",
)  # fmt: skip
"""Prompts of CoRe's kinds: background, outfit, action, style."""


@dataclass(frozen=True, eq=False)
class PromptPair:
    """One prompt with learned words and with the plain word, and the tokens around the word in both.

    Attributes:
        learned, plain: one chunk each. The plain one has the word once, so what follows stands k - 1 tokens earlier.
        around, around_plain: indices of the tokens around the word in ``learned`` and in ``plain``, [L] each; with the
            end token, without the start token, which attends to no word.
    """

    learned: Texts
    plain: Texts
    around: Tensor
    around_plain: Tensor


def fill_templates(pipeline: Any, templates: Sequence[str], word: str, count: int) -> Texts:
    """Fills templates with the word ``count`` times in a row, in whose place the learned words stand; a chunk each.

    Raises:
        HostError: the word is not one token, a template has no ``{}``, or is too long for one chunk.
    """
    tokenizer, _ = readers_of(pipeline)[0]
    if len(_tokenize(tokenizer, word)) != 1:
        raise HostError(
            f"'{word}' is {len(_tokenize(tokenizer, word))} tokens for the text encoder, and learned words take the "
            "place of one",
            "Choose a short common word, such as person, man or woman.",
        )
    texts: list[str] = []
    positions: list[tuple[int, ...]] = []
    for template in templates:
        if template.count("{}") != 1:
            raise HostError(f"The template '{template}' must have {{}} once", "It stands where the person does.")
        texts.append(template.replace("{}", " ".join([word] * count)))
        start = 1 + len(_tokenize(tokenizer, template.partition("{}")[0].strip()))
        positions.append(tuple(range(start, start + count)))
        if len(_tokenize(tokenizer, texts[-1])) > textual_inversion.CHUNK - 2:
            raise HostError(f"The template '{template[:40]}…' is too long for one chunk of the text encoder")
    return textual_inversion.read(pipeline, texts, positions)


def make_prompt_pairs(
    pipeline: Any, word: str, count: int, templates: Sequence[str] = SURROUNDINGS
) -> list[PromptPair]:
    """Makes CoRe's pairs: each template with learned words and with the plain word."""
    tokenizer, _ = readers_of(pipeline)[0]
    found: list[PromptPair] = []
    for template in templates:
        text = template.replace("{}", word)
        start = 1 + len(_tokenize(tokenizer, template.partition("{}")[0].strip()))
        end = 1 + len(_tokenize(tokenizer, text))  # of the text: the end token's place
        plain = [*range(1, start), *range(start + 1, end + 1)]
        shifted = [at if at < start else at + count - 1 for at in plain]
        plain_text = textual_inversion.read(pipeline, [text], [()])
        found.append(
            PromptPair(
                fill_templates(pipeline, [template], word, count),
                plain_text,
                torch.tensor(shifted),
                torch.tensor(plain),
            )
        )
    return found


@torch.no_grad()
def compute_anchor(pipeline: Any, names: Sequence[str], count: int) -> Tensor:
    """Anchor E_a [k, D] in float32, the initial vectors of Cross Initialization (arXiv 2312.15905).

    The names' first ``count`` tokens are averaged one by one at the text encoder's input, and what it makes of the
    mean name is the anchor. Source: Whslee/ID-EA@9481a95 ``utils.py`` celeb_names_cross_init.

    Raises:
        HostError: no name has so many tokens, or outputs of this encoder cannot be its inputs.
    """
    columns: list[Tensor] = []
    for tokenizer, encoder in readers_of(pipeline):
        table: Tensor = encoder.get_input_embeddings().weight
        tokens = [_tokenize(tokenizer, name) for name in names]
        means: list[Tensor] = []
        for column in range(count):
            ids = [one[column] for one in tokens if len(one) > column]
            if not ids:
                raise HostError(
                    f"None of the {len(names)} names has {count} tokens", "Give longer names, or fewer learned words."
                )
            means.append(table[torch.tensor(ids, device=table.device)].float().mean(0))
        columns.append(torch.stack(means))
    mean = torch.cat(columns, dim=-1)  # [k, d]
    positions = tuple(range(1, count + 1))
    context = textual_inversion.encode(
        pipeline, textual_inversion.read(pipeline, [" ".join(["person"] * count)], [positions]), mean
    )
    found = context[0, 1 : count + 1].float()
    if found.shape != mean.shape:
        raise HostError(f"The text encoder takes vectors of width {mean.shape[1]} and gives {found.shape[1]}")
    return found.clone()


def read_names(path: Path) -> list[str]:
    """The names of a text file, one a line.

    Raises:
        HostError: it cannot be read, or holds none.
    """
    try:
        names = [line.strip() for line in read_text(path).splitlines() if line.strip()]
    except (OSError, ValueError) as error:
        raise HostError(
            f"The list of names {path} cannot be read ({error})", "Give a text file, a name a line."
        ) from error
    if not names:
        raise HostError(f"The list of names {path} is empty", "Give a text file, a name a line.")
    return names


def _tokenize(tokenizer: Any, text: str) -> list[int]:
    return tokenizer(text, add_special_tokens=False, truncation=False, verbose=False).input_ids
