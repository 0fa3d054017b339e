"""Host Forge (main and neo, also reForge and Forge classic): puts an injection into the UNet of a ``UnetPatcher``.

Each call of the UNet gets our patches in its own copy of ``transformer_options``, around those of other extensions:
the first to see the attention's input, the last to see its output. So extensions that split rows inside the attention
(regional prompts) and foreign replace patches (the built-in IP-Adapter) keep working whatever the load order, nothing
of ours is in ``model_options``, which ``clone()`` copies deeply, and no wrapper of ours can be overwritten.
Where patches do not reach, torch hooks do: at the UNet's own call, and at q, k, v and the text attention, whose
projections Forge calls as modules both with and without a replace patch.
"""

from __future__ import annotations

from collections.abc import Callable, Generator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from typing import Any, cast

from torch import Tensor, nn

from dp_adapter.core import twins
from dp_adapter.core.adapter import LowRank
from dp_adapter.core.injection import Injection
from dp_adapter.core.pathways import SitePathways
from dp_adapter.core.regions.region_cache import RegionCache
from dp_adapter.core.text.site_text import SiteText
from dp_adapter.core.text.text_side import PersonWords
from dp_adapter.core.types import Captured, Grid, Row, Site, Step
from dp_adapter.errors import HostError
from dp_adapter.hosts.attach.bypass_check import Acting
from dp_adapter.hosts.attach.calls import doubled, follow_loads, linear_shape, require_fit, text_side_of
from dp_adapter.hosts.attach.forge_options import (
    Options,
    Patch,
    Place,
    Rows,
    doubled_options,
    extended_options,
    noise_level_of,
    place_in,
    place_of,
    progress_of,
    with_patches,
)
from dp_adapter.hosts.attach.ldm import base_of
from dp_adapter.hosts.attach.lora import apply_lora
from dp_adapter.hosts.attach.queries import Queries
from dp_adapter.hosts.attach.res_adapter import apply_companion, ldm_place
from dp_adapter.hosts.attach.sites import SiteName, site_names
from dp_adapter.hosts.attach.torch_compile import original_of, uncompiled
from dp_adapter.hosts.attach.word_maps import WordMaps
from dp_adapter.hosts.rows import tiles
from dp_adapter.hosts.rows.reference_rows import PhotoRows
from dp_adapter.hosts.rows.regional_prompt_rows import AttentionInputs, require_whole, step_inside


@dataclass
class Attached:
    """What the injection met so far.

    Attributes:
        acting: the sampler's calls of the UNet, and whether the identity acts in them where it has to.
        progress: of the latest of these calls.
        pictures: [B, c, H, W], the step's latents if they were announced.
    """

    acting: Acting = field(default_factory=Acting)
    progress: float = 0.0
    pictures: Tensor | None = None

    def announce(self, pictures: Tensor) -> None:
        """To be called at each step with what the denoiser gets, so that tiles are found in it."""
        self.pictures = pictures


@contextmanager
def attach(
    unet: Any,
    injection: Injection,
    rows: Rows,
    latent: Grid | None = None,
    *,
    maps: WordMaps | None = None,
    words: PersonWords | None = None,
) -> Generator[Attached]:
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
    attached = Attached()
    with ExitStack() as stack:
        if injection.active:
            _Attachment(unet.model, injection.drop_idle(), rows, latent, attached, maps, words).register(stack)
        yield attached
        attached.acting.require()


class _Attachment:
    """The hooks of one ``with``. The step is set when the UNet is entered and read by the sites below it."""

    def __init__(
        self,
        model: Any,
        injection: Injection,
        rows: Rows,
        latent: Grid | None,
        attached: Attached,
        maps: WordMaps | None,
        words: PersonWords | None,
    ) -> None:
        self._unet = original_of(model.diffusion_model)
        self._injection = injection
        self._rows = rows
        self._latent = latent
        self._attached = attached
        self._maps = maps
        self._names = site_names(base_of(self._unet))
        self._sites = [self._site(name) for name in self._names]
        for identity in injection.identities:
            require_fit(self._sites, identity.adapter, self._widths)
        schedule = model.predictor if hasattr(model, "predictor") else model.model_sampling
        self._progress = progress_of(schedule)
        self._cache = RegionCache(injection)
        self._photos = PhotoRows(injection, self._cache, noise_level_of(schedule), ("x", "timesteps"))
        self._side = text_side_of(injection, words)
        self._step: Step | None = None
        self._twinned = False
        self._grid = Grid(0, 0)  # of the transformer that runs
        self._input: AttentionInputs | None = None  # of the attn2 that runs
        self._queries = Queries()
        self._pathways: dict[Place, SitePathways] = {}

    def register(self, stack: ExitStack) -> None:
        stack.enter_context(uncompiled(self._unet))
        # Not merged, because Forge's own LoRA loader writes to the weights.
        apply_lora(stack, self._injection.lora, self._linear, merge=False)
        apply_companion(stack, self._injection.companion, self._unet, ldm_place(self._unet))
        for name, site in zip(self._names, self._sites, strict=True):
            attn2 = self._unet.get_submodule(name.ldm + ".attn2")
            to_q, to_out, to_k = (attn2.get_submodule(path) for path in ("to_q", "to_out.0", "to_k"))
            text = None
            if self._side is not None:
                text = SiteText(self._side, site.heads, to_k, attn2.get_submodule("to_v"))
            pathways = SitePathways(self._injection, site, self._cache, to_q, to_out, to_k, text)
            self._pathways[place_in(name.ldm)] = pathways
            if not self._injection.gated and not self._injection.folded:
                self._register_plain(stack, attn2, pathways)
            if self._injection.form_used == "half":
                self._queries.listen(stack, to_q)
            follow_loads(stack, attn2, pathways)
            attn1 = self._unet.get_submodule(name.ldm + ".attn1")
            self._photos.listen(stack, site, attn1, self._on_grid(site), self._attached.acting)
            if self._injection.text.strict or self._injection.text.free or self._photos.uses_photo:
                stack.callback(to_q.register_forward_pre_hook(self._require_twins).remove)
        if self._maps is not None:
            self._maps.listen(stack, self._sites, self._attn2)
        for path in {name.ldm.rsplit(".transformer_blocks", 1)[0] for name in self._names}:
            transformer = self._unet.get_submodule(path)
            stack.callback(transformer.register_forward_pre_hook(self._enter_transformer).remove)
        stack.callback(self._unet.register_forward_pre_hook(self._enter, with_kwargs=True).remove)
        # In front, so that of two attachments the one that entered last leaves first.
        stack.callback(self._unet.register_forward_hook(self._leave, prepend=True).remove)

    def _site(self, name: SiteName) -> Site:
        attn2 = self._unet.get_submodule(name.ldm + ".attn2")
        channels = linear_shape(attn2.get_submodule("to_q"))[1]
        return Site(name.index, name.diffusers, name.level, name.halvings, channels, cast(int, attn2.heads))

    def _attn2(self, site: Site) -> nn.Module:
        return self._unet.get_submodule(self._names[site.index].ldm + ".attn2")

    def _widths(self, site: Site) -> tuple[int, int]:
        attn2 = self._attn2(site)
        inner = cast(int, attn2.heads) * cast(int, attn2.dim_head)
        return inner, linear_shape(attn2.get_submodule("to_k"))[1]

    def _linear(self, entry: LowRank) -> nn.Module:
        attention = "attn2" if entry.layer % 2 else "attn1"
        linear = "to_out.0" if entry.linear == "to_out" else entry.linear
        return self._unet.get_submodule(f"{self._names[entry.layer // 2].ldm}.{attention}.{linear}")

    def _enter(self, _module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Makes the step of this call and gives it our patches; twins and photos are added behind its rows."""
        self._step, self._input, self._twinned = None, None, False
        self._listen(None)
        if self._side is not None:
            self._side.enter()
        options: Options = kwargs.get("transformer_options") or {}
        if "cond_or_uncond" not in options:
            return None
        self._attached.acting.enter()
        x: Tensor = args[0] if args else kwargs["x"]
        timesteps: Tensor = args[1] if len(args) > 1 else kwargs["timesteps"]
        step = Step(self._progress(timesteps), self._rows_of(options, len(x)), Grid(*x.shape[-2:]))
        step = self._located(step, x)
        self._attached.progress = step.progress
        if not self._cache.enter(step) or not self._acts(step):
            self._listen(step)
            return None
        if any(row.kind != "text" for row in step.rows):
            self._attached.acting.expect()
        self._twinned = self._cache.twinned
        chunk = max(1, len(x) // max(1, len(options["cond_or_uncond"])))
        self._step = self._photos.added(step.twinned() if self._twinned else step, chunk)
        self._listen(self._step)
        kwargs = {name: value for name, value in kwargs.items() if name != "transformer_options"}
        if self._twinned:
            options = doubled_options(options, len(x))
            args, kwargs = doubled(args, len(x)), doubled(kwargs, len(x))
        if self._step.references:
            options = extended_options(options, len(self._step.rows), len(self._step.references), chunk)
            args, kwargs = self._photos.extended(args, kwargs, self._step)
        return args, {**kwargs, "transformer_options": self._with_patches(options)}

    def _acts(self, step: Step) -> bool:
        return self._photos.acts(step) or any(pathways.acts(step) for pathways in self._pathways.values())

    def _listen(self, step: Step | None) -> None:
        if self._maps is not None:
            self._maps.enter(step)

    def _rows_of(self, options: Options, count: int) -> tuple[Row, ...]:
        rows = tuple(self._rows(options, count) if callable(self._rows) else self._rows)
        if len(rows) != count:
            raise HostError(f"The UNet was called with {count} rows, but {len(rows)} were announced")
        return rows

    def _located(self, step: Step, x: Tensor) -> Step:
        """The same step, with the places of tiles where that matters."""
        pictures = self._attached.pictures
        whole = self._latent if pictures is None else Grid(*pictures.shape[-2:])
        if whole in (None, step.latent) or not any(identity.placed for identity in self._injection.identities):
            return step
        places = None if pictures is None else tiles.find(x, pictures)
        if places is None:
            raise tiles.not_found()
        rows = tuple(replace(row, sample=place.picture) for row, place in zip(step.rows, places, strict=True))
        return replace(step, rows=rows, tiles=tuple(place.window(step.latent, whole) for place in places))

    def _leave(self, _module: nn.Module, _args: Any, output: Tensor) -> Tensor | None:
        """Drops the text-only twins and the photos."""
        self._listen(None)
        step, self._step, self._input = self._step, None, None
        if step is None:
            return None
        self._attached.acting.leave()
        if not (self._twinned or step.references):
            return None
        return twins.drop_twins(self._cache, step, output, self._twinned)

    def _with_patches(self, options: Options) -> dict[str, Any]:
        first: dict[str, Patch] = {}
        last: dict[str, Patch] = {}
        if self._injection.gated:
            last["middle_patch"] = self._before_text
        else:
            first["attn2_patch"] = self._before_attention
            if self._injection.folded:
                last["attn2_output_patch"] = self._after_attention
        if self._twinned:
            last["attn1_output_patch"] = self._after_self_attention
        return with_patches(options, first, last)

    def _enter_transformer(self, _module: nn.Module, args: tuple[Tensor, ...]) -> None:
        self._grid = Grid(*args[0].shape[-2:])

    def _at(self, site: Site, hidden_states: Tensor, inside: Step | None = None) -> Step:
        """The step as a site sees it; for latents of its size where an extension resizes the grid (Kohya's HRFix).

        Args:
            inside: the step for the rows inside of an attention, where they are not those of the call.
        """
        assert self._step is not None
        step, rows, positions = inside or self._step, *hidden_states.shape[:2]
        masked = any(identity.placed for identity in self._injection.identities)
        if rows != len(step.rows) or (masked and positions != len(self._grid)):
            raise HostError(
                f"Inside the attention at {site.name} there are {rows} rows of {positions} positions instead of "
                f"{len(step.rows)} of {len(self._grid)}",
                "Another extension splits prompts or merges tokens; switch it off, or use the blend mode 'add' without "
                "trained pathways and text emphasis.",
            )
        return self._resized(site, step)

    def _resized(self, site: Site, step: Step) -> Step:
        if self._grid == step.latent.halved(site.halvings):
            return step
        side = 2**site.halvings
        return replace(step, latent=Grid(self._grid.height * side, self._grid.width * side))

    def _on_grid(self, site: Site) -> Callable[[], Step | None]:
        return lambda: None if self._step is None else self._resized(site, self._step)

    def _require_twins(self, _module: nn.Module, args: tuple[Tensor, ...]) -> None:
        if self._step is not None and (self._twinned or self._step.references):
            require_whole(self._step, args[0])

    def _before_attention(
        self, n: Tensor, context: Tensor, value: Tensor, _extra: Options
    ) -> tuple[Tensor, Tensor, Tensor]:
        self._input = AttentionInputs(n, context)
        self._queries.enter(n)
        return n, context, value

    def _after_attention(self, n: Tensor, extra: Options) -> Tensor:
        given, self._input = self._input, None
        q = self._queries.leave()
        pathways = self._pathways[place_of(extra)]
        if given is None:
            return n  # a step cache handed on an earlier output, which has our term
        hidden_states = given.hidden_states
        output = n.contiguous()  # in place from here: what to_out or the last foreign patch gave belongs to nobody else
        pathways.add_folded(self._at(pathways.site, hidden_states), hidden_states.to(output.dtype), output, q)
        self._mark(pathways)
        return output

    def _mark(self, pathways: SitePathways) -> None:
        """A site runs, and says whether an identity acts there."""
        acting = self._attached.acting
        if not acting.acted and self._step is not None:
            acting.acted = pathways.acts(self._step)

    def _before_text(self, x: Tensor, extra: Options) -> Tensor:
        """FACT acts on the residual stream after attn1."""
        pathways = self._pathways[place_of(extra)]
        step = self._at(pathways.site, x)
        self._mark(pathways)
        return x + pathways.before_text(step, x) if pathways.acts(step) else x

    def _after_self_attention(self, n: Tensor, extra: Options) -> Tensor:
        site = self._pathways[place_of(extra)].site
        return twins.mix_self_attention(self._cache, site, self._at(site, n), n)

    def _register_plain(self, stack: ExitStack, attn2: nn.Module, pathways: SitePathways) -> None:
        """Takes q, k, v and the text attention where the layer computes them; F goes on to ``to_out`` in its place."""
        seen: dict[str, Tensor] = {}

        def capture(name: str) -> Callable[..., None]:
            def hook(_module: nn.Module, args: tuple[Tensor, ...], output: Tensor) -> None:
                if args[0].ndim == 3:  # else a call of an attachment's own
                    seen[name], seen["to_" + name] = output, args[0]

            return hook

        def exchange(_module: nn.Module, args: tuple[Tensor, ...]) -> tuple[Tensor, ...] | None:
            complete = {"q", "k", "v"} <= seen.keys()  # not while another attachment folds the layer
            if not complete or self._step is None or self._input is None:
                seen.clear()
                return None
            captured = Captured(seen["q"], args[0], seen["k"], seen["v"], seen["to_k"])
            inner = AttentionInputs(seen["to_q"], captured.context)
            seen.clear()
            inside = step_inside(self._step, self._input, inner, self._twinned)
            if self._side is not None:
                self._side.note_texts(self._step.rows, self._input.context)
            self._mark(pathways)
            return (pathways.blended(self._at(pathways.site, captured.q, inside), captured), *args[1:])

        for name in ("q", "k", "v"):
            stack.callback(attn2.get_submodule(f"to_{name}").register_forward_hook(capture(name)).remove)
        stack.callback(attn2.get_submodule("to_out.0").register_forward_pre_hook(exchange).remove)
