"""Host Forge (main and neo, also reForge and Forge classic): puts an injection into the UNet of a ``UnetPatcher``.

Each call of the UNet gets our patches in its own copy of ``transformer_options``, around those of other extensions:
the first to see the attention's input, the last to see its output. So extensions that split rows inside the attention
(regional prompts) and foreign replace patches (the built-in IP-Adapter) keep working whatever the load order, nothing
of ours is in ``model_options``, which ``clone()`` copies deeply, and no wrapper of ours can be overwritten.
Where patches do not reach, torch hooks do: at the UNet's own call, and at q, k, v and the text attention, whose
projections Forge calls as modules both with and without a replace patch.
"""

from __future__ import annotations

from contextlib import AbstractContextManager, ExitStack
from dataclasses import replace
from typing import Any, cast

from torch import Tensor, nn

from dp_adapter.core.injection import Injection
from dp_adapter.core.text.text_side import PersonWords
from dp_adapter.core.types import Grid, Site, Step
from dp_adapter.errors import HostError
from dp_adapter.hosts.attach.adapter_fit import linear_shape
from dp_adapter.hosts.attach.attachment import Attachment, attached
from dp_adapter.hosts.attach.forge_options import (
    Options,
    Patch,
    Rows,
    block_in,
    block_of,
    extended_options,
    noise_level_of,
    progress_of,
    repeated_options,
    with_patches,
)
from dp_adapter.hosts.attach.host_unet import (
    AfterAttention,
    BeforeAttention,
    ChangeOutput,
    HostUNet,
    StreamTerm,
    UNetCall,
)
from dp_adapter.hosts.attach.ldm import base_of, sites_of
from dp_adapter.hosts.attach.parts.res_adapter import ldm_layer_path
from dp_adapter.hosts.attach.sites import site_names
from dp_adapter.hosts.attach.torch_compile import original_of
from dp_adapter.hosts.attach.word_maps import WordMaps
from dp_adapter.hosts.rows import tiles
from dp_adapter.hosts.rows.added_rows import require_rows

OPTIONS = "transformer_options"


def attach(
    unet: Any,
    injection: Injection,
    rows: Rows,
    latent: Grid | None = None,
    *,
    maps: WordMaps | None = None,
    words: PersonWords | None = None,
) -> AbstractContextManager[Attachment]:
    """Inside the ``with``, the UNet's cross-attentions carry the injection; clones of ``unet`` do, too.

    Args:
        unet: a ``UnetPatcher``, such as ``p.sd_model.forge_objects.unet``; it is not changed.
        rows: what every batch element is, in the batch's order; or a function of the call's ``transformer_options``
            and row count that says it, see ``sampler_rows``. It is not asked about calls that carry no
            ``cond_or_uncond``, which are not the sampler's and stay as they are.
        latent: size of the whole picture's latents, so that sampling in tiles is noticed. Where their place matters,
            the steps' latents have to be announced to what is yielded.
        maps: sees the text attention meanwhile, also where the identity has no place yet.
        words: where the persons' words stand, for identities on the text side.

    Raises:
        HostError: the model is of another kind, or the adapter's shapes do not fit it. At the end, or out of a call:
            the UNet was called past the layers in which the identity had to act.
    """

    def host_of(attachment: Attachment, visible: Injection) -> PatchedUNet:
        return PatchedUNet(unet.model, visible, rows, latent, attachment)

    return attached(injection, host_of, maps, words)


class PatchedUNet(HostUNet):
    """The UNet of a ``UnetPatcher``'s model, with patches in the calls in which identities act."""

    def __init__(
        self, model: Any, injection: Injection, rows: Rows, latent: Grid | None, attachment: Attachment
    ) -> None:
        unet = original_of(model.diffusion_model)
        sites, paths = sites_of(unet), [name.ldm for name in site_names(base_of(unet))]
        schedule = model.predictor if hasattr(model, "predictor") else model.model_sampling
        attentions = [unet.get_submodule(path + ".attn2") for path in paths]
        widths = [
            (cast(int, attn2.heads) * cast(int, attn2.dim_head), linear_shape(attn2.get_submodule("to_k"))[1])
            for attn2 in attentions
        ]
        super().__init__(unet, sites, paths, widths, ("x", "timesteps"), noise_level_of(schedule))
        self.layer_path = ldm_layer_path(unet)
        self._paths = paths
        self._site_at = {block_in(path): site for path, site in zip(paths, sites, strict=True)}
        self._regional = any(identity.is_regional for identity in injection.identities)
        self._rows, self._latent, self._attachment = rows, latent, attachment
        self._progress = progress_of(schedule)
        self._grid = Grid(0, 0)  # of the transformer that runs
        self._inputs: list[Tensor] = []  # hidden states of the attn2 that runs
        self._first: dict[str, Patch] = {}
        self._last: dict[str, Patch] = {}

    def register(self, stack: ExitStack) -> None:
        for path in {path.rsplit(".transformer_blocks", 1)[0] for path in self._paths}:
            transformer = self.unet.get_submodule(path)
            stack.callback(transformer.register_forward_pre_hook(self._enter_transformer).remove)

    def read_call(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> UNetCall | None:
        self._inputs.clear()
        options: Options = kwargs.get(OPTIONS) or {}
        if "cond_or_uncond" not in options:
            return None
        x: Tensor = args[0] if args else kwargs["x"]
        timesteps: Tensor = args[1] if len(args) > 1 else kwargs["timesteps"]
        rows = require_rows(self._rows(options, len(x)) if callable(self._rows) else self._rows, len(x))
        step = self._located(Step(self._progress(timesteps), rows, Grid(*x.shape[-2:])), x)
        return UNetCall(step, args, {name: one for name, one in kwargs.items() if name != OPTIONS}, options)

    def arguments(self, call: UNetCall) -> tuple[tuple[Any, ...], dict[str, Any]]:
        last = {name: patch for name, patch in self._last.items() if call.step.twins or name != "attn1_output_patch"}
        return call.args, {**call.kwargs, OPTIONS: with_patches(call.options or {}, self._first, last)}

    def add_twins(self, call: UNetCall) -> UNetCall:
        more = super().add_twins(call)
        return replace(more, options=repeated_options(call.options or {}, len(call.step.rows), more.step.twins))

    def describe_photos(self, call: UNetCall) -> UNetCall:
        counts = len(call.step.rows), len(call.step.references), self.rows_at_once(call)
        return replace(call, options=extended_options(call.options or {}, *counts))

    def rows_at_once(self, call: UNetCall) -> int:
        entries = len((call.options or {})["cond_or_uncond"])
        return max(1, len(call.step.without_references().rows) // max(1, entries))

    def before_attention(self, stack: ExitStack, listen: BeforeAttention) -> None:
        def patch(n: Tensor, context: Tensor, value: Tensor, _extra: Options) -> tuple[Tensor, Tensor, Tensor]:
            listen(n, context)
            return n, context, value

        self._put(stack, self._first, "attn2_patch", patch)

    def after_attention(self, stack: ExitStack, change: AfterAttention) -> None:
        inputs, before = self._inputs, self._first.get("attn2_patch")

        def enter(n: Tensor, context: Tensor, value: Tensor, extra: Options) -> tuple[Tensor, Tensor, Tensor]:
            inputs[:] = [n]
            return (n, context, value) if before is None else before(n, context, value, extra)

        def leave(n: Tensor, extra: Options) -> Tensor:
            if not inputs:
                return n  # a step cache handed on an earlier output, which has our term
            output = n.contiguous()  # in place from here: what to_out or the last foreign patch gave is nobody else's
            change(self._site_at[block_of(extra)], inputs.pop(), output)
            return output

        self._put(stack, self._first, "attn2_patch", enter)
        self._put(stack, self._last, "attn2_output_patch", leave)

    def between_attentions(self, stack: ExitStack, term: StreamTerm) -> None:
        def patch(x: Tensor, extra: Options) -> Tensor:
            more = term(self._site_at[block_of(extra)], x)
            return x if more is None else x + more

        self._put(stack, self._last, "middle_patch", patch)

    def after_self_attention(self, stack: ExitStack, change: ChangeOutput) -> None:
        def patch(n: Tensor, extra: Options) -> Tensor:
            return change(self._site_at[block_of(extra)], n)

        self._put(stack, self._last, "attn1_output_patch", patch)

    def step_at(self, site: Site, step: Step) -> Step:
        """The step for latents of the site's size where an extension resizes the grid (Kohya's HRFix)."""
        if self._grid == step.latent.halved(site.halvings):
            return step
        side = 2**site.halvings
        return replace(step, latent=Grid(self._grid.height * side, self._grid.width * side))

    def require_shape(self, site: Site, step: Step, hidden_states: Tensor) -> None:
        rows, positions = hidden_states.shape[:2]
        if rows != len(step.rows) or (self._regional and positions != len(self._grid)):
            raise HostError(
                f"Inside the attention at {site.name} there are {rows} rows of {positions} positions instead of "
                f"{len(step.rows)} of {len(self._grid)}",
                "Another extension splits prompts or merges tokens; switch it off, or use the blend mode 'add' without "
                "trained pathways and text emphasis.",
            )

    @staticmethod
    def _put(stack: ExitStack, patches: dict[str, Patch], name: str, patch: Patch) -> None:
        patches[name] = patch
        stack.callback(patches.pop, name, None)

    def _enter_transformer(self, _module: nn.Module, args: tuple[Tensor, ...]) -> None:
        self._grid = Grid(*args[0].shape[-2:])

    def _located(self, step: Step, x: Tensor) -> Step:
        """The same step, with where its tiles lie where that matters."""
        pictures = self._attachment.pictures
        whole = self._latent if pictures is None else Grid(*pictures.shape[-2:])
        if whole in (None, step.latent) or not self._regional:
            return step
        positions = None if pictures is None else tiles.find(x, pictures)
        if positions is None:
            raise tiles.not_found()
        rows = tuple(replace(row, sample=one.picture) for row, one in zip(step.rows, positions, strict=True))
        return replace(step, rows=rows, tiles=tuple(one.window(step.latent, whole) for one in positions))
