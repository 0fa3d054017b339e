"""Identities on the text side where extensions and samplers have rows and texts of their own."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from dp_adapter.core.injection import Injection
from dp_adapter.core.types import Row
from dp_adapter.errors import HostError
from dp_adapter.hosts.attach import forge, ldm
from dp_adapter.hosts.attach.forge_options import sampler_rows
from dp_adapter.hosts.prompts.word_positions import SpokenTexts
from dp_adapter.hosts.rows.a1111_rows import CfgRows
from tests import tiny
from tests.hosts.attach.test_text_side import WORD, WORDS, adding, by_word
from tests.hosts.forge_host import Forge, Model, Patcher
from tests.hosts.protocol import Diffusers, Ldm
from tests.hosts.rows import test_regional_prompts as extensions

COND, UNCOND = Row("cond"), Row("uncond")
CHUNK = 77


def with_person(given: tiny.Inputs, row: int, *positions: int) -> tiny.Inputs:
    context = given.context.clone()
    context[row] = adding(1)(context[row], positions)
    return replace(given, context=context)


@pytest.mark.parametrize("split", [True, False], ids=["halves", "all rows"])
@pytest.mark.parametrize("place", [WORD, tuple(CHUNK + one for one in WORD)], ids=["first", "second region"])
def test_regional_prompter_in_attention_mode(
    monkeypatch: pytest.MonkeyPatch, split: bool, place: tuple[int, ...]
) -> None:
    """The word acts in its region's chunk, as the changed context does."""
    monkeypatch.setattr(extensions, "TOKENS", CHUNK)
    host, rows = Ldm("sd15"), (COND, UNCOND)
    texts = torch.randn(2, 2 * CHUNK, tiny.CONTEXT, generator=torch.Generator().manual_seed(4))
    given = replace(tiny.inputs("sd15", rows), context=texts)
    for index in range(16):
        extensions.put_regional_prompter(host.block(index), split)
    words = SpokenTexts((({0: place},),))
    with torch.no_grad():
        bare, expected = host(given), host(with_person(given, 0, *place))
        with host.attached(Injection((by_word(),)), rows, words=words):
            out = host(given)
    torch.testing.assert_close(out, expected, atol=1e-5, rtol=0)
    assert (expected - bare).abs().max() > 1e-2


def test_anded_prompts_and_pictures_by_a1111s_sampler() -> None:
    """Two pictures; the first has two prompts, and the person's word in the second of them."""
    rows = (COND, Row("cond", 0, 1), Row("cond", 1), UNCOND, Row("uncond", 1))
    host, given, told = Ldm("sd15"), tiny.inputs("sd15", rows), CfgRows()
    told.announce([[(0, 1.0), (1, 1.0)], [(2, 1.0)]], given.latents, given.context[:3], given.context[3:])
    words = SpokenTexts((({}, {0: WORD}), ({0: (4, 5)},)))
    expected = with_person(with_person(given, 1, *WORD), 2, 4, 5)
    with torch.no_grad():
        with ldm.attach(host.model, Injection((by_word(),)), told, words=words):
            whole = host(given)
        told.announce([[(0, 1.0), (1, 1.0)], [(2, 1.0)]], given.latents, given.context[:3], given.context[3:])
        with ldm.attach(host.model, Injection((by_word(),)), told, words=words):
            pieces = torch.cat([host(given.rows(order)) for order in ([0, 1], [2, 3], [4])])
        reference = host(expected)
    torch.testing.assert_close(whole, reference, atol=1e-5, rtol=0)
    torch.testing.assert_close(pieces, reference, atol=1e-5, rtol=0)


def test_anded_prompts_by_forges_sampler() -> None:
    """A call takes the prompts from the last to the first."""
    rows = (UNCOND, Row("cond", 0, 1), COND)
    host, given = Forge("sd15"), tiny.inputs("sd15", rows)
    host.unet = Patcher(Model(host.model))
    words = SpokenTexts((({}, {0: WORD}),))
    with torch.inference_mode():
        with forge.attach(host.unet, Injection((by_word(),)), sampler_rows(1, 2), words=words):
            out = host(given, marks=(1, 0, 0))
            with pytest.raises(HostError, match="not known which text"):
                host(given.rows([1]), marks=(0,))
        expected = host(with_person(given, 1, *WORD), marks=(1, 0, 0))
    torch.testing.assert_close(out, expected, atol=1e-5, rtol=0)


class OfPair:
    """An attention processor as diffusers' IP-Adapters have it: the text comes with the pictures' embeddings."""

    def __call__(self, attn: Any, hidden_states: Tensor, encoder_hidden_states: Any, **_: Any) -> Tensor:
        text, _pictures = encoder_hidden_states
        q, k, v = (
            t.unflatten(-1, (attn.heads, -1)).transpose(1, 2)
            for t in (attn.to_q(hidden_states), attn.to_k(text), attn.to_v(text))
        )
        out = (q @ k.mT * q.shape[-1] ** -0.5).softmax(-1) @ v
        return attn.to_out[0](out.transpose(1, 2).flatten(2))


def test_beside_an_ip_adapter_of_diffusers() -> None:
    host, given = Diffusers("sd15"), tiny.inputs("sd15", (COND, UNCOND))
    with torch.no_grad():
        expected = host(with_person(given, 0, *WORD))

        def paired(_module: Any, args: Any, kwargs: dict[str, Any]) -> Any:
            return args, {**kwargs, "encoder_hidden_states": (kwargs["encoder_hidden_states"], [])}

        for index in range(16):
            attn2: Any = host.block(index).get_submodule("attn2")
            attn2.set_processor(OfPair())
            attn2.register_forward_pre_hook(paired, with_kwargs=True)
        with host.attached(Injection((by_word(),)), (COND, UNCOND), words=WORDS):
            out = host(given)
    torch.testing.assert_close(out, expected, atol=1e-5, rtol=0)


def test_forge_couple() -> None:
    """Its regions' rows with the prompt's own text have the word, those with texts of their own are refused."""
    host, given = Forge("sd15"), tiny.inputs("sd15", (UNCOND, COND))
    with torch.inference_mode():
        for texts, known in (([given.context[1]] * 2, True), (extensions.foreign_texts(2), False)):
            host.unet = Patcher(Model(host.model))
            expected = host(with_person(given, 1, *WORD), marks=(1, 0))
            extensions.put_forge_couple(host.unet, texts, extensions.couple_masks(2))
            with forge.attach(host.unet, Injection((by_word(),)), sampler_rows(1), words=WORDS):
                if known:
                    torch.testing.assert_close(host(given, marks=(1, 0)), expected, atol=1e-5, rtol=0)
                else:
                    with pytest.raises(HostError, match="Forge Couple"):
                        host(given, marks=(1, 0))
