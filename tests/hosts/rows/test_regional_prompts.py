"""Extensions for prompts by region around us: the identity's term is the one without them.

Their patterns of calls, read from the sources; no code of theirs is here.

* Regional Prompter, hako-mikan/sd-webui-regional-prompter at be62345. Attention mode (scripts/attention.py): ``attn2``
  gets an instance ``forward`` that calls ``to_q``, ``to_k``, ``to_v``, ``to_out`` once for each region with a slice of
  77 tokens, for all rows where prompt and negative prompt are divided alike (``eq``), else for each half of them
  (:434-462), and puts the regions' outputs together by columns or masks. Latent mode (scripts/latent.py): regions are
  ANDed prompts in calls of their own; it sorts the rows by region and mixes what comes out (:151-221).
* Forge Couple, Haoming02/sd-forge-couple at 7a396d8 (lib_couple/attention_couple.py:38-101): the conditional rows are
  repeated for each region before the attention, an empty row makes their number even, outputs are summed by mask.
* Latent Couple, opparco/stable-diffusion-webui-two-shot at 9936c52 and its fork by ashen-sensored at 6b55dd5: ANDed
  prompts, mixed by mask in ``cfg_denoised``, outside of the UNet.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from typing import Any, cast

import pytest
import torch
from torch import Tensor, nn

from dp_adapter.core.injection import Form, Identity, Injection, TextPathway
from dp_adapter.core.schedule import Schedule
from dp_adapter.core.types import Row
from dp_adapter.errors import HostError
from dp_adapter.hosts.attach import forge
from dp_adapter.hosts.attach import ldm as ldm_host
from dp_adapter.hosts.attach.forge_options import sampler_rows
from dp_adapter.hosts.rows.a1111_rows import CfgRows
from tests import tiny
from tests.hosts.forge_host import Forge, Model, Patcher
from tests.hosts.protocol import Ldm

COND, UNCOND = Row("cond"), Row("uncond")
SIZE = (16, 16)
FACE = tiny.box(0.25, 0.125, 0.75, 0.625)
FORMS: list[Form] = ["folded", "half", "plain"]
TOKENS = tiny.TEXT_TOKENS
REGIONS = 2


def injection(form: Form = "auto", **changes: Any) -> Injection:
    return Injection((Identity(tiny.adapter("sd15"), tiny.tokens(), mask=FACE),), form=form, **changes)


def only(site: int, form: Form, **changes: Any) -> Injection:
    return injection(form, schedule=Schedule(sites={i: float(i == site) for i in range(16)}), **changes)


@pytest.fixture
def ldm() -> Any:
    host = Ldm("sd15")
    with torch.no_grad():
        yield host


def largest(difference: Tensor) -> float:
    return difference.abs().max().item()


# Regional Prompter, attention mode, in A1111.


def put_regional_prompter(block: nn.Module, split: bool, side_by_side: bool = True) -> None:
    """The instance ``forward`` of one attn2, two columns; ``split``: halves of the rows in calls of their own."""
    module = cast(Any, block.get_submodule("attn2"))

    def attend(x: Tensor, context: Tensor) -> Tensor:
        q, k, v = (
            t.unflatten(-1, (module.heads, -1)).transpose(1, 2)
            for t in (module.to_q(x), module.to_k(context), module.to_v(context))
        )
        out = (q @ k.mT * q.shape[-1] ** -0.5).softmax(-1) @ v
        return module.to_out(out.transpose(1, 2).flatten(2))

    def regions(x: Tensor, contexts: Tensor) -> Tensor:
        side = round(x.shape[1] ** 0.5)
        outs = [
            attend(x, contexts[:, i * TOKENS : (i + 1) * TOKENS]).unflatten(1, (side, side)) for i in range(REGIONS)
        ]
        if side_by_side:
            half = side // 2
            return torch.cat([outs[0][:, :, :half], outs[1][:, :, half:]], 2).flatten(1, 2)
        mask = (torch.arange(side) % 2)[:, None, None]
        return (outs[0] * mask + outs[1] * (1 - mask)).flatten(1, 2)

    def forward(x: Tensor, context: Tensor, mask: Any = None) -> Tensor:
        if not split:
            return regions(x, context)
        halves = zip(x.chunk(2), context.chunk(2), strict=True)
        return torch.cat([regions(part, texts) for part, texts in halves])

    module.forward = forward


def regional(given: tiny.Inputs) -> tiny.Inputs:
    """Texts of two chunks: of two regions."""
    return tiny.Inputs(given.latents, torch.cat([given.context, 0.3 * given.context.flip(1)], 1))


def stream(host: Any, site: int, call: Callable[[], object]) -> Tensor:
    """What comes out of a site's text attention, in the residual stream: [R, N, C]."""
    seen: list[Tensor] = []
    norm = host.block(site).get_submodule("norm3")

    def keep(_module: nn.Module, args: tuple[Tensor, ...]) -> None:
        seen.append(args[0].clone())

    handle = norm.register_forward_pre_hook(keep)
    call()
    handle.remove()
    return seen[0]


ROWS = (COND, UNCOND)
FOUR = (Row("cond", 0), Row("cond", 1), Row("uncond", 0), Row("uncond", 1))


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("split", [True, False], ids=["halves", "all rows"])
@pytest.mark.parametrize("rows", [ROWS, FOUR], ids=["one", "two pictures"])
@pytest.mark.parametrize("columns", [True, False], ids=["columns", "masks"])
def test_regional_prompter_leaves_the_term_as_it_is(
    ldm: Ldm, form: Form, split: bool, rows: Sequence[Row], columns: bool
) -> None:
    """At the first site, whose input is the same with and without the extension."""
    given = tiny.inputs("sd15", rows)

    def term(call: tiny.Inputs, form: Form) -> Tensor:
        bare = stream(ldm, 0, lambda: ldm(call))
        with ldm.attached(only(0, form), rows):
            return stream(ldm, 0, lambda: ldm(call)) - bare

    expected = term(given, "folded")
    assert largest(expected) > 1e-2
    for index in range(16):
        put_regional_prompter(ldm.block(index), split, columns)
    torch.testing.assert_close(term(regional(given), form), expected, atol=2e-6, rtol=0)


@pytest.mark.parametrize("split", [True, False], ids=["halves", "all rows"])
def test_all_forms_are_the_same_with_regional_prompter(ldm: Ldm, split: bool) -> None:
    for index in range(16):
        put_regional_prompter(ldm.block(index), split)
    given = regional(tiny.inputs("sd15", ROWS))
    outs: list[Tensor] = []
    for form in FORMS:
        with ldm.attached(injection(form), ROWS):
            outs.append(ldm(given))
    for out in outs[1:]:
        torch.testing.assert_close(outs[0], out, atol=1e-5, rtol=0)


def test_trained_pathways_and_emphasis_act_in_each_region(ldm: Ldm) -> None:
    """Text that is divided by region, but the same in both, must give what the text alone gives."""
    given = tiny.inputs("sd15", ROWS)
    person = Identity(tiny.adapter("sd15", text=True, blending=True), tiny.tokens(), mask=FACE)
    what = Injection((person,), text=TextPathway(emphasis=1.5))
    with ldm.attached(what, ROWS):
        expected = ldm(given)
    for index in range(16):
        put_regional_prompter(ldm.block(index), split=True)
    with ldm.attached(what, ROWS):
        out = ldm(tiny.Inputs(given.latents, given.context.repeat(1, REGIONS, 1)))
    torch.testing.assert_close(out, expected, atol=1e-5, rtol=0)


@pytest.mark.parametrize("form", FORMS)
def test_a_strict_text_region_refuses_halves(ldm: Ldm, form: Form) -> None:
    """It would take the text-only twins, the second half of the rows, for those with the negative prompt."""
    given = regional(tiny.inputs("sd15", ROWS))
    what = injection(form, text=TextPathway(strict=True))
    for index in range(16):
        put_regional_prompter(ldm.block(index), split=True)
    with ldm.attached(what, ROWS), pytest.raises(HostError, match="Regional Prompter in attention mode"):
        ldm(given)
    for index in range(16):
        put_regional_prompter(ldm.block(index), split=False)
    with ldm.attached(what, ROWS):
        ldm(given)


# Regional Prompter, latent mode, and Latent Couple, in A1111.


def test_rows_that_are_sorted_by_region_keep_their_pictures() -> None:
    """Two pictures, "a AND b" each: p0 a, p0 b, p1 a, p1 b become p0 a, p1 a, p0 b, p1 b, in place, behind our hook or
    before it; the UNet is called for a, for b, and for the negative prompt.
    """
    for hook_first in (True, False):
        rows = CfgRows()
        pictures = torch.randn(2, 4, *SIZE, generator=torch.Generator().manual_seed(0))
        x = torch.cat([pictures[[0, 0, 1, 1]], pictures])
        a, b, negative = torch.randn(3, TOKENS, 8, generator=torch.Generator().manual_seed(1))
        cond = torch.stack([a, b, a, b])
        conds_list = [[(0, 1.0), (1, 1.0)], [(2, 1.0), (3, 1.0)]]
        if hook_first:
            rows.announce(conds_list, x, cond, torch.stack([negative, negative]))
        x[:4], cond[:] = x[[0, 2, 1, 3]].clone(), cond[[0, 2, 1, 3]].clone()
        if not hook_first:
            rows.announce(conds_list, x, cond, torch.stack([negative, negative]))
        seen = [rows.of(x[i : i + 2], text.expand(2, -1, -1)) for i, text in ((0, a), (2, b), (4, negative))]
        assert [[(row.kind, row.sample) for row in known.rows] for known in seen if known] == [
            [("cond", 0), ("cond", 1)],
            [("cond", 0), ("cond", 1)],
            [("uncond", 0), ("uncond", 1)],
        ]


def test_anded_prompts_have_the_term_each(ldm: Ldm) -> None:
    """Latent Couple only mixes what the UNet gave: every ANDed row has the identity, so that any mix of them has."""
    rows = (COND, COND, UNCOND)
    given = tiny.inputs("sd15", rows)
    told = CfgRows()
    told.announce([[(0, 0.2), (1, 0.8)]], given.latents, given.context[:2], given.context[2:])
    with ldm_host.attach(ldm.model, injection(), told):
        out = ldm(given)
    for i, row in enumerate(rows):
        with ldm.attached(injection(), [row]):
            torch.testing.assert_close(out[i : i + 1], ldm(given.rows([i])), atol=1e-5, rtol=0)


# Forge Couple.


def put_forge_couple(unet: Any, texts: Sequence[Tensor], masks: Tensor) -> None:
    """Patches as AttentionCouple's; masks [1 + regions, h, w] of the latents, which sum to 1."""
    batch: list[int] = []

    @torch.inference_mode()
    def split(q: Tensor, k: Tensor, _value: Tensor, extra: dict[str, Any]) -> tuple[Tensor, ...]:
        kinds = extra["cond_or_uncond"]
        batch[:] = [len(q) // len(kinds)]
        qs: list[Tensor] = []
        ks: list[Tensor] = []
        for kind, rows, context in zip(kinds, q.chunk(len(kinds)), k.chunk(len(kinds)), strict=True):
            more = [text[None].repeat(batch[0], 1, 1) for text in texts] if kind == 0 else []
            qs.append(rows.repeat(1 + len(more), 1, 1))
            ks.append(torch.cat([context, *more]))
        rows, context = torch.cat(qs), torch.cat(ks)
        if len(rows) % 2:
            rows, context = (torch.cat([x, torch.zeros_like(x[:1])]) for x in (rows, context))
        return rows, context, context

    @torch.inference_mode()
    def join(n: Tensor, extra: dict[str, Any]) -> Tensor:
        parts = 1 + len(texts)
        side = round(n.shape[1] ** 0.5)
        small = nn.functional.interpolate(masks[:, None], (side, side)).flatten(2).mT  # [1 + regions, N, 1]
        outs: list[Tensor] = []
        first = 0
        for kind in extra["cond_or_uncond"]:
            count = batch[0] * (1 if kind else parts)
            rows = n[first : first + count]
            first += count
            outs.append(rows if kind else (rows.unflatten(0, (parts, -1)) * small[:, None]).sum(0))
        return torch.cat(outs)

    unet.set_model_patch(split, "attn2_patch")
    unet.set_model_patch(join, "attn2_output_patch")


def couple_masks(regions: int) -> Tensor:
    masks = torch.rand(1 + regions, *SIZE, generator=torch.Generator().manual_seed(5))
    return masks / masks.sum(0)


@pytest.fixture
def couple() -> Any:
    host = Forge("sd15")
    host.unet = Patcher(Model(host.model))
    with torch.inference_mode():  # as processing.py:911
        yield host


def attached(host: Forge, what: Injection, batch: int = 1) -> AbstractContextManager[object]:
    return forge.attach(host.unet, what, sampler_rows(batch))


def foreign_texts(count: int) -> list[Tensor]:
    return list(torch.randn(count, TOKENS, tiny.CONTEXT, generator=torch.Generator().manual_seed(8)))


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize(("marks", "batch"), [((1, 0), 1), ((1, 0), 2), ((0,), 1), ((1, 0, 0), 1)])
@pytest.mark.parametrize("regions", [1, 2])
def test_forge_couple_leaves_the_term_as_it_is(
    couple: Forge, form: Form, marks: tuple[int, ...], batch: int, regions: int
) -> None:
    rows = [Row("uncond" if mark else "cond", picture) for mark in marks for picture in range(batch)]
    given = tiny.inputs("sd15", rows)

    def term(form: Form) -> Tensor:
        bare = stream(couple, 0, lambda: couple(given, marks=marks))
        with attached(couple, only(0, form), batch):
            return stream(couple, 0, lambda: couple(given, marks=marks)) - bare

    expected = term("folded")
    assert largest(expected) > 1e-2
    put_forge_couple(couple.unet, foreign_texts(regions), couple_masks(regions))
    torch.testing.assert_close(term(form), expected, atol=2e-6, rtol=0)


@pytest.mark.parametrize("strict", [False, True])
def test_all_forms_are_the_same_with_forge_couple(couple: Forge, strict: bool) -> None:
    put_forge_couple(couple.unet, foreign_texts(2), couple_masks(2))
    given = tiny.inputs("sd15", (UNCOND, COND))
    bare = couple(given, marks=(1, 0))
    outs: list[Tensor] = []
    for form in FORMS:
        with attached(couple, injection(form, text=TextPathway(strict=strict))):
            outs.append(couple(given, marks=(1, 0)))
    for out in outs[1:]:
        torch.testing.assert_close(outs[0], out, atol=1e-5, rtol=0)
    assert largest(outs[0] - bare) > 1e-2


def test_trained_pathways_act_in_each_region_of_forge_couple(couple: Forge) -> None:
    """Regions with the prompt's own text, whatever their masks, must give what the prompt alone gives."""
    given = tiny.inputs("sd15", (UNCOND, COND))
    person = Identity(tiny.adapter("sd15", text=True, blending=True), tiny.tokens(), mask=FACE)
    what = Injection((person,), text=TextPathway(emphasis=1.5, strict=True))
    with attached(couple, what):
        expected = couple(given, marks=(1, 0))
    put_forge_couple(couple.unet, [given.context[1]] * 2, couple_masks(2))
    with attached(couple, what):
        torch.testing.assert_close(couple(given, marks=(1, 0)), expected, atol=1e-5, rtol=0)


def test_identity_guidance_with_forge_couple(couple: Forge) -> None:
    """Behind the output projection rows are the call's own; inside, nobody says which of them are twins."""
    given = tiny.inputs("sd15", (UNCOND, COND))
    put_forge_couple(couple.unet, foreign_texts(2), couple_masks(2))
    bare = couple(given, marks=(1, 0))
    with attached(couple, injection("folded", guidance=1.0)):
        out = couple(given, marks=(1, 0))
    with attached(couple, injection("folded", text=TextPathway(strict=True))):
        strict = couple(given, marks=(1, 0))
    torch.testing.assert_close(out[1], strict[1], atol=1e-5, rtol=0)
    torch.testing.assert_close(out[0], bare[0], atol=1e-5, rtol=0)
    with attached(couple, injection("plain", guidance=1.0)), pytest.raises(HostError, match="the identity guidance"):
        couple(given, marks=(1, 0))


def test_rows_that_nobody_announced_are_refused(couple: Forge) -> None:
    """Rows are recognised by their content; what an extension changes inside the attention is nobody's."""

    def add(n: Tensor, context: Tensor, value: Tensor, _extra: Any) -> tuple[Tensor, ...]:
        return torch.cat([n, n + 1]), context.repeat(2, 1, 1), value.repeat(2, 1, 1)

    def drop(n: Tensor, _extra: Any) -> Tensor:
        return n.chunk(2)[0]

    couple.unet.set_model_patch(add, "attn2_patch")
    couple.unet.set_model_patch(drop, "attn2_output_patch")
    given = tiny.inputs("sd15", (UNCOND, COND))
    for form in ("folded", "half"):
        with attached(couple, injection(form)):
            couple(given, marks=(1, 0))
    with (
        attached(couple, injection("plain")),
        pytest.raises(HostError, match="rows that the model was not called with"),
    ):
        couple(given, marks=(1, 0))


# Regional Prompter in Forge.


@pytest.mark.parametrize("form", FORMS)
def test_regional_prompter_in_forge(couple: Forge, form: Form) -> None:
    """The same instance ``forward``; Forge's rows begin with the negative prompt's."""
    given = tiny.inputs("sd15", (UNCOND, COND))

    def term(call: tiny.Inputs, form: Form) -> Tensor:
        bare = stream(couple, 0, lambda: couple(call, marks=(1, 0)))
        with attached(couple, only(0, form)):
            return stream(couple, 0, lambda: couple(call, marks=(1, 0))) - bare

    expected = term(given, "folded")
    for index in range(16):
        put_regional_prompter(couple.block(index), split=True)
        attn2 = cast(Any, couple.block(index).get_submodule("attn2"))
        attn2.forward = _with_value(attn2.forward)
    torch.testing.assert_close(term(regional(given), form), expected, atol=2e-6, rtol=0)
    for further in (injection(text=TextPathway(strict=True)), injection(guidance=1.0)):
        with attached(couple, further), pytest.raises(HostError, match="Regional Prompter in attention mode"):
            couple(regional(given), marks=(1, 0))


def _with_value(forward: Callable[..., Tensor]) -> Callable[..., Tensor]:
    def with_value(x: Tensor, context: Tensor, value: Tensor | None = None, **_: Any) -> Tensor:
        return forward(x, context)

    return with_value


def test_latent_mode_in_forge_is_refused(couple: Forge) -> None:
    """It calls ``apply_model`` once for each of the rows, each time with the marks of them all (latent.py:236-250)."""

    def apart(model_function: Callable[..., Tensor], call: dict[str, Any]) -> Tensor:
        x, c = call["input"], call["c"]
        outs = [
            model_function(
                x[i : i + 1], call["timestep"][i : i + 1], **{**c, "c_crossattn": c["c_crossattn"][i : i + 1]}
            )
            for i in range(len(x))
        ]
        return torch.cat(outs)

    couple.unet.model_options["model_function_wrapper"] = apart
    with attached(couple, injection()), pytest.raises(HostError, match="Regional Prompter's latent mode"):
        couple(tiny.inputs("sd15", (UNCOND, COND, COND)), marks=(1, 0, 0))
