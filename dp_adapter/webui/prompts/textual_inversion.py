"""Learned words at the input of the host's text encoders, while a text is encoded for us; no trace is left.

The host reads the text as always (emphasis, BREAK, textual inversion, clip skip, LoRA) with the person's word in it,
and only the vectors that its table of embeddings answers with at the word's places are others. So nothing is registered
in its embeddings, and its caches of conditions are not touched.
"""

from __future__ import annotations

from collections.abc import Generator, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING, Any, cast

from dp_adapter.errors import HostError
from dp_adapter.hosts.prompts.person_words import CHUNK
from dp_adapter.hosts.prompts.word_positions import require_one_token

if TYPE_CHECKING:
    from torch import Tensor, nn

    from dp_adapter.core.text.text_side import LearnedChunk, Positions, PromptPerson

_TABLE = "token_embedding"  # the name in transformers and in OpenCLIP
_ENGINES = ("text_processing_engine", "text_processing_engine_l", "text_processing_engine_g")  # Forge's, in order


def encode_spellings(
    p: Any, people: Sequence[PromptPerson], texts: Mapping[str, Mapping[int, Positions]]
) -> list[LearnedChunk]:
    """What the host encodes for the texts in which a person's learned words stand.

    Args:
        texts: with where each person's word stands in them.

    Raises:
        HostError: the model has no text encoder that can be asked, the vectors do not fit it, or a word is several
            tokens.
    """
    from dp_adapter.core.text.text_side import LearnedChunk
    from dp_adapter.webui.host.encoders import encode_conditions

    found: list[LearnedChunk] = []
    for text, places in texts.items():
        for one in people:
            positions = places.get(one.person, ())
            if one.learned is None or not positions:
                continue
            require_one_token(one, positions)
            plain = encode_conditions(p, [text])[0]
            with replace_at_input(tables_of(p.sd_model), one.learned, positions):
                spelled = encode_conditions(p, [text])[0]
            for start in sorted({position // CHUNK * CHUNK for position in positions}):
                found.append(LearnedChunk(one.person, plain[start : start + CHUNK], spelled[start : start + CHUNK]))
    return found


def tables_of(model: Any) -> list[nn.Module]:
    """The tables of embeddings of a WebUI model's text encoders, in the order of their widths in the context."""
    from torch import nn

    encoders = [getattr(model, name).text_encoder for name in _ENGINES if hasattr(model, name)]
    encoders = encoders or [getattr(model, "cond_stage_model", None)]
    tables: list[nn.Module] = []
    for encoder in encoders:
        if isinstance(encoder, nn.Module):
            named = cast("Iterator[tuple[str, nn.Module]]", encoder.named_modules())
            tables += [module for name, module in named if name.split(".")[-1] == _TABLE]
    return tables


@contextmanager
def replace_at_input(tables: Sequence[nn.Module], vectors: Tensor, positions: Positions) -> Generator[None]:
    """While it lasts, and one text is encoded chunk by chunk, the tables answer with the vectors [k, d] at positions.

    Raises:
        HostError: the vectors are of another width than the tables' together.
    """
    import torch

    widths = [_width(table) for table in tables]
    if sum(widths) != vectors.shape[1]:
        raise HostError(
            f"The learned words are {vectors.shape[1]} wide, the text encoder takes {sum(widths)}",
            "Choose a personalised identity that was trained for this base model.",
        )
    with ExitStack() as stack:
        for table, own in zip(tables, torch.split(vectors, widths, dim=1), strict=True):
            stack.callback(table.register_forward_hook(_make_hook(own, positions)).remove)
        yield


def _make_hook(vectors: Tensor, positions: Positions) -> Any:
    """A forward hook that counts the chunks of one text."""
    chunk = -1

    def put(_module: Any, _inputs: Any, output: Tensor) -> Tensor:
        nonlocal chunk
        chunk += 1
        here = [number for number, position in enumerate(positions) if position // CHUNK == chunk]
        if not here:
            return output
        changed = output.clone()
        changed[..., [positions[number] % CHUNK for number in here], :] = vectors[here].to(output)
        return changed

    return put


def _width(table: nn.Module) -> int:
    """A table's, through the host's wrapper that puts textual inversion in."""
    inner: Any = getattr(table, "wrapped", table)
    return int(inner.weight.shape[1])
