"""Learned words in a WebUI: its own encoding with other vectors, the same numbers as diffusers, and no trace."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from dp_adapter.core.text.text_side import PromptPerson
from dp_adapter.errors import HostError
from dp_adapter.hosts.pipelines import load_pipeline
from dp_adapter.hosts.prompts import encode_prompts, textual_inversion
from dp_adapter.hosts.prompts.person_words import CHUNK
from dp_adapter.webui.prompts.textual_inversion import encode_spellings, tables_of
from tests.webui import fake_webui

LONG = "a photo of a man man, " + "very " * 80 + "old"
LATE = "very " * 80 + "old man man"


class WithFixes(nn.Module):
    """As ``EmbeddingsWithFixes`` (A1111) and ``CLIPEmbeddingForTextualInversion`` (Forge) wrap a table."""

    def __init__(self, wrapped: nn.Embedding) -> None:
        super().__init__()
        self.wrapped = wrapped
        self.weight = wrapped.weight

    def forward(self, input_ids: Tensor) -> Tensor:
        return self.wrapped(input_ids)


class Model(nn.Module):
    """A WebUI's model around a real text encoder, which it calls chunk by chunk."""

    def __init__(self, pipeline: Any) -> None:
        super().__init__()
        self.cond_stage_model = nn.Module()
        self.cond_stage_model.transformer = pipeline.text_encoder
        embeddings = (
            pipeline.text_encoder.text_model.embeddings if hasattr(pipeline.text_encoder, "text_model") else None
        )
        self.embeddings = embeddings or pipeline.text_encoder.embeddings
        self.table = self.embeddings.token_embedding
        self.embeddings.token_embedding = WithFixes(self.table)
        self.tokenizer = pipeline.tokenizer

    def get_learned_conditioning(self, texts: Sequence[str]) -> Tensor:
        count = max(encode_prompts.chunks_of(self.tokenizer, text) for text in texts)
        rows = torch.tensor([encode_prompts.rows_of(self.tokenizer, text, count) for text in texts])  # [n, m, 77]
        encoder: Any = self.cond_stage_model.transformer
        return torch.cat([encoder(rows[:, chunk]).last_hidden_state for chunk in range(count)], dim=1)


@pytest.fixture
def job(tmp_path: Path, tiny_folder: Path) -> Iterator[Any]:
    with fake_webui.installed(tmp_path) as fake:
        package: Any = fake["modules"]
        package.devices = SimpleNamespace(autocast=nullcontext)
        package.prompt_parser = SimpleNamespace(SdConditioning=lambda texts, **_size: list(texts))  # type: ignore[reportUnknownLambdaType]
        vars(sys.modules["modules.shared"])["opts"] = SimpleNamespace(CLIP_stop_at_last_layers="1")
        pipeline: Any = load_pipeline.load(tiny_folder, "cpu", "float32")
        yield SimpleNamespace(sd_model=Model(pipeline), width=64, height=64, pipeline=pipeline)


@pytest.mark.parametrize(("text", "positions"), [("a photo of a man man", (5, 6)), (LONG, (5, 6)), (LATE, (84, 85))])
def test_the_same_as_in_diffusers(job: Any, text: str, positions: tuple[int, int]) -> None:
    vectors = torch.randn(2, 64, generator=torch.Generator().manual_seed(0))
    person = PromptPerson(0, tokens=2, learned=vectors)
    (made,) = encode_spellings(job, [person, PromptPerson(1)], {text: {0: positions, 1: (1,)}, "another text": {}})
    texts = textual_inversion.read(job.pipeline, [text], [positions])
    with torch.no_grad():
        plain, spelled = (textual_inversion.encode(job.pipeline, one, vectors) for one in (texts.plain, texts))
    chunk = positions[0] // CHUNK
    torch.testing.assert_close(made.plain, plain[chunk], atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(made.learned, spelled[chunk], atol=1e-5, rtol=1e-5)
    assert not torch.allclose(made.plain, made.learned, atol=1e-2)
    assert not any(table._forward_hooks for table in tables_of(job.sd_model))


def test_forges_engines_and_what_does_not_fit(job: Any) -> None:
    (table,) = tables_of(job.sd_model)
    engine = SimpleNamespace(text_encoder=job.sd_model.cond_stage_model)
    forge = SimpleNamespace(text_processing_engine_l=engine, text_processing_engine_g=engine)
    assert tables_of(forge) == [table, table] and not tables_of(SimpleNamespace(cond_stage_model=None))
    with pytest.raises(HostError, match="32 wide, the text encoder takes 64"):
        encode_spellings(job, [PromptPerson(0, learned=torch.zeros(1, 32))], {"a man": {0: (2,)}})
    with pytest.raises(HostError, match="several tokens"):
        encode_spellings(job, [PromptPerson(0, learned=torch.zeros(2, 64))], {"a man man": {0: (2, 4)}})
    assert not table._forward_hooks
