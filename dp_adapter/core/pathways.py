"""The two pathways at one site: what a host calls from its hooks.

Shapes: R rows, N positions, C hidden channels, I inner channels, L text tokens, D token width.
"""

from __future__ import annotations

import copy
import functools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dp_adapter.core import regions
from dp_adapter.core.adapter import GatedSiteAdapter, SiteAdapter, TextQuerySiteAdapter
from dp_adapter.core.attention import Linear, attend
from dp_adapter.core.blend import FeatureBlending, TextAttention, TextConsistency, blend, identity_term, text_emphasis
from dp_adapter.core.folding import Folds, Key
from dp_adapter.core.injection import Identity, Injection
from dp_adapter.core.regions import FlatPlacement, Placement
from dp_adapter.core.sharing import SharedSite, text_weight
from dp_adapter.core.site_text import SiteText
from dp_adapter.core.types import Level, Row, RowKind, Site, Step, Window
from dp_adapter.errors import HostError

_KINDS: tuple[RowKind, ...] = ("cond", "uncond")
_NO_POWERS: Mapping[Level, float] = {"down": 1.0, "middle": 1.0, "up": 1.0}


@dataclass(frozen=True)
class _Seen:
    """What the rows of a call see of the masks.

    Attributes:
        views: the distinct parts of pictures among tiles, by sample; None where rows show whole pictures.
        rows: the call's rows, each with the number of its mask as sample.
        masks: per identity [S, H, W], or [V, h, w] by view; None for the whole picture.
        freed: likewise, what each identity leaves free; None for nothing.
        anywhere: whether a mask has a place in them at all; frees: whether anything is left free there.
    """

    views: tuple[tuple[int, Window], ...] | None
    rows: tuple[Row, ...]
    masks: list[Tensor | None]
    freed: list[Tensor | None]
    anywhere: bool
    frees: bool


class RegionCache:
    """Gates and placements, computed once per grid, level and row layout, and shared by the sites.

    They are kept until a track moves.
    """

    def __init__(self, injection: Injection) -> None:
        self._injection = injection
        self._versions: tuple[int, ...] = ()
        self._views: dict[object, _Seen] = {}
        self._gains: dict[object, list[Tensor | None]] = {}
        self._placements: dict[object, list[list[Placement]]] = {}
        self._flat: dict[object, FlatPlacement | None] = {}
        self._freed: dict[object, Tensor | None] = {}
        self._frees = False

    def enter(self, step: Step) -> bool:
        """To be called when the UNet is; returns whether any region has a place at all in what its rows show.

        Raises:
            HostError: a row belongs to a picture that an identity's mask [S, H, W] does not have.
        """
        regions_now = [identity.region for identity in self._injection.identities]
        freed_now = [identity.freed for identity in self._injection.identities] if self._injection.text.free else []
        versions = tuple(one.track.version for one in self._injection.identities if one.track is not None)
        if versions != self._versions:
            self._versions = versions
            for kept in (self._views, self._gains, self._placements, self._flat, self._freed):
                kept.clear()
        pictures = 1 + max(row.sample for row in step.rows)
        for mask in (*regions_now, *freed_now):
            if mask is not None and 1 < len(mask) < pictures:
                raise HostError(
                    f"The UNet was called for {pictures} pictures, but a mask is for {len(mask)}",
                    "Give one mask for all pictures, or one for each.",
                )
        seen = self._seen(step)
        self._frees = seen.frees
        return seen.anywhere

    def gains(self, step: Step, halvings: int, level: Level, trained: bool = False) -> list[Tensor | None]:
        """Per identity G [S, N] before FFB; a trained gate starts from the mask itself, without powers."""
        seen = self._seen(step)
        key = (seen.views, step.latent, halvings, level, trained)
        if key not in self._gains:
            powers = _NO_POWERS if trained else self._injection.powers
            if self._injection.by_words:  # which divides the positions itself
                each = [regions.gains([mask], step.latent, halvings, level, powers) for mask in seen.masks]
                self._gains[key] = [gain for (gain,) in each]
            else:
                self._gains[key] = regions.gains(seen.masks, step.latent, halvings, level, powers)
        return self._gains[key]

    @property
    def strict(self) -> bool:
        """Whether the picture outside the regions is that of the twins."""
        return self._injection.text.strict

    @property
    def twinned(self) -> bool:
        """Whether rows need their text-only twins now."""
        return self.strict or self._frees

    def own_share(self, step: Step, halvings: int, level: Level) -> Tensor | None:
        """How far each row keeps its own self-attention instead of its twin's, [R, N]; None for 1 everywhere."""
        inside = self.total(step, halvings, level) if self.strict else None
        freed = self._free_share(step, halvings) if self._frees else None
        if freed is None:
            return inside
        return 1 - freed if inside is None else inside * (1 - freed)

    def _free_share(self, step: Step, halvings: int) -> Tensor | None:
        """The free parts of all identities together for each row, [R, N]."""
        key = (*_layout(step), halvings)
        if key not in self._freed:
            seen = self._seen(step)
            masks = [mask for mask in seen.freed if mask is not None]
            shares = [regions.on_grid(mask, step.latent, halvings).flatten(1) for mask in masks]
            share = regions.summed(shares).clamp(max=1.0) if shares else None
            self._freed[key] = None if share is None else _by_row(share, seen.rows)
        return self._freed[key]

    def total(self, step: Step, halvings: int, level: Level) -> Tensor | None:
        """The gates of all identities together for each row, [R, N]; None where that is 1 everywhere."""
        gains = self.gains(step, halvings, level)
        present = [gain for gain in gains if gain is not None]
        if len(present) < len(gains) or not present:
            return None
        # Shares by words depend on the site; all of them together are what the regions leave.
        joined = functools.reduce(torch.maximum, present) if self._injection.by_words else regions.summed(present)
        return _by_row(joined, self._seen(step).rows)

    def placements(self, site: Site, step: Step, like: Tensor, trained: bool = False) -> list[list[Placement]]:
        """Per identity, where it acts in each row."""
        key = (*_layout(step), site.halvings, site.level, trained, like.dtype, like.device)
        if key not in self._placements:
            gains = self.gains(step, site.halvings, site.level, trained)
            self._placements[key] = [regions.place(self._seen(step).rows, gain, like) for gain in gains]
        return self._placements[key]

    def flat(self, site: Site, step: Step, number: int, kind: RowKind, like: Tensor) -> FlatPlacement | None:
        """Where identity ``number`` acts in all rows of one kind, or None; ``like`` is [R, N, C]."""
        key = (number, kind, *_layout(step), site.halvings, site.level, like.dtype, like.device)
        if key not in self._flat:
            where = [p for p in self.placements(site, step, like)[number] if p.kind == kind]
            self._flat[key] = regions.flatten(where, like.shape[1], like.device) if where else None
        return self._flat[key]

    def _seen(self, step: Step) -> _Seen:
        key = (step.rows, step.windows)
        if key not in self._views:
            masks = [identity.region for identity in self._injection.identities]
            freed = [identity.freed if self._injection.text.free else None for identity in self._injection.identities]
            views, rows = None, step.rows
            if step.windows is not None:
                shared = all(mask is None or len(mask) == 1 for mask in (*masks, *freed))
                of_rows = [
                    (0 if shared else row.sample, window) for row, window in zip(step.rows, step.windows, strict=True)
                ]
                views = tuple(dict.fromkeys(of_rows))
                rows = tuple(Row(row.kind, views.index(view)) for row, view in zip(rows, of_rows, strict=True))
                masks, freed = (
                    [mask if mask is None else regions.seen_through(mask, views) for mask in several]
                    for several in (masks, freed)
                )
            anywhere = any(mask is None or bool((mask > 0).any()) for mask in masks)
            frees = any(mask is not None and bool((mask > 0).any()) for mask in freed)
            self._views[key] = _Seen(views, rows, masks, freed, anywhere, frees)
        return self._views[key]


def _by_row(share: Tensor, rows: Sequence[Row]) -> Tensor:
    """[S, N], S = 1 or one per sample, -> [R, N]."""
    return share[[row.sample if len(share) > 1 else 0 for row in rows]]


def _layout(step: Step) -> tuple[object, ...]:
    """What of a call the places of its rows depend on."""
    return step.latent, step.rows, step.windows


@dataclass(frozen=True)
class Captured:
    """What the host's own attention computed in one call.

    Attributes:
        q: [R, N, I]; z: [R, N, I], the text attention before W_o; k, v: [R, L, I]; context: [R, L, D].
    """

    q: Tensor
    z: Tensor
    k: Tensor
    v: Tensor
    context: Tensor


class SitePathways:
    """Both pathways of one generation at one site. Caches keys, values and folds; holds no state of a step."""

    def __init__(
        self,
        injection: Injection,
        site: Site,
        cache: RegionCache,
        to_q: Linear,
        to_out: Linear,
        to_k: Linear,
        text: SiteText | None = None,
    ) -> None:
        self.injection = injection
        self.site = site
        self._cache = cache
        self._words = SharedSite([identity.entity for identity in injection.identities], to_k, site.heads)
        self._text = text
        self._keys_values: dict[Key, tuple[Tensor, Tensor]] = {}
        self._folds = Folds(injection.form_used == "half", site, to_q, to_out)
        self._modules: dict[str, nn.Module] = {}

    def strength(self, identity: Identity, step: Step) -> float:
        """s(site, progress) of one identity's own attention."""
        return identity.weight * self._scheduled(step) if identity.adapter.sites else 0.0

    def text_strength(self, identity: Identity, step: Step) -> float:
        """The same of what it does on the text side."""
        text = identity.on_text
        return 0.0 if text is None or step.progress < text.start else text.weight * self._scheduled(step)

    def _scheduled(self, step: Step) -> float:
        return self.injection.schedule.of(self.site) * self.injection.schedule.at(step.progress)

    def acts(self, step: Step) -> bool:
        """Whether any identity has a strength other than 0 here and now."""
        identities = self.injection.identities
        return any(self.strength(one, step) or self.text_strength(one, step) for one in identities)

    def add_folded(self, step: Step, hidden_states: Tensor, output: Tensor, q: Tensor | None = None) -> None:
        """Adds G s Z_id W_o to the site's output in place, computing only the rows and positions inside the region.

        Args:
            hidden_states: [R, N, C], input of the attention; output: [R, N, C], what it returned.
            q: [R, N, I], the host's queries, for the half-folded form; where it has none they are computed anew.
        """
        flat_in, flat_out = hidden_states.flatten(0, 1), output.view(-1, output.shape[-1])
        flat_q = None if q is None else q.flatten(0, 1)
        for number, kind, where, strength in self._acting(step, hidden_states):
            self._folds.require(self._keys(step), lambda key: self._fresh_key_value(*key, hidden_states))
            term = self._folds.term((number, kind), flat_in, flat_q, where.positions)
            term *= strength if where.gain is None else strength * where.gain
            if isinstance(where.positions, slice):
                flat_out[where.positions] += term
            else:
                flat_out.index_add_(0, where.positions, term)

    def _keys(self, step: Step) -> list[Key]:
        """Every identity with each kind of these rows that has one."""
        present = {row.kind for row in step.rows}
        return [
            (number, kind) for number in range(len(self.injection.identities)) for kind in _KINDS if kind in present
        ]

    def _acting(self, step: Step, like: Tensor) -> Iterator[tuple[int, RowKind, FlatPlacement, float]]:
        """Where each identity acts over the rows [R, N, C] of one kind, and its strength."""
        for number, identity in enumerate(self.injection.identities):
            strength = self.strength(identity, step)
            for kind in _KINDS if strength else ():
                where = self._cache.flat(self.site, step, number, kind, like)
                if where is not None:
                    yield number, kind, where, strength

    def blended(self, step: Step, captured: Captured) -> Tensor:
        """F, which replaces the text attention Z_t before W_o: [R, N, I]. ``captured.z`` itself if unchanged."""
        if not self.acts(step):
            return captured.z
        weights = self._two_pathways()
        text = weights is not None and weights.text is not None
        trained = weights is not None and weights.blending is not None
        two_pathways = text or trained or self.injection.text.emphasis > 0
        if not two_pathways and self._only_added(weights):
            return self._sum(step, captured)
        placements = self._cache.placements(self.site, step, captured.z, trained)
        rows: list[Tensor] = []
        for row, z in enumerate(captured.z):
            here = [[p for p in identity if p.row == row] for identity in placements]
            if not any(here):
                rows.append(z)
                continue
            added, gate = self._identity_pathway(step, row, here, captured)
            rows.append(self._join(step, row, z, added, gate, captured) if two_pathways else z + added)
        return torch.stack(rows)

    def _only_added(self, weights: SiteAdapter | None) -> bool:
        """Whether every identity's own attention is added as it is, and nothing else."""
        plain = not self.injection.by_words and (weights is None or weights.text_to_weight is None)
        return plain and all(one.mode == "add" and one.on_text is None for one in self.injection.identities)

    def _sum(self, step: Step, captured: Captured) -> Tensor:
        """Z_t plus G s Z_id of every identity, [R, N, I]: as ``add_folded``, before W_o."""
        z, q = captured.z.flatten(0, 1), captured.q.flatten(0, 1)
        out = z.clone()
        for number, kind, where, strength in self._acting(step, captured.z):
            k, v = self._key_value(number, kind, captured.z)
            term = attend(q[where.positions], k, v, self.site.heads)
            term = term * (strength if where.gain is None else strength * where.gain)
            if isinstance(where.positions, slice):
                out[where.positions] += term
            else:
                out.index_add_(0, where.positions, term)
        return out.view_as(captured.z)

    def before_text(self, step: Step, hidden_states: Tensor) -> Tensor:
        """FACT's term [R, N, C] to add to the hidden states [R, N, C] between self-attention and text attention."""
        total = torch.zeros_like(hidden_states)
        placements = self._cache.placements(self.site, step, hidden_states)
        for number, identity in enumerate(self.injection.identities):
            strength = self.strength(identity, step)
            for placement in placements[number] if strength else []:
                module = self._module(f"gated{number}", identity.adapter.site(self.site.index), hidden_states)
                assert isinstance(module, GatedSiteAdapter)
                weight = strength * _full_gain(placement, hidden_states[placement.row])
                tokens = identity.tokens.of(placement.kind).to(hidden_states)
                total[placement.row] += module(hidden_states[placement.row], tokens, weight, self.site.heads)
        return total

    def _two_pathways(self) -> SiteAdapter | None:
        """The weights in which TCA and FFB may be: of the first identity that acts at sites at all."""
        first = next((one for one in self.injection.identities if one.adapter.sites), None)
        weights = None if first is None else first.adapter.site(self.site.index)
        assert weights is None or isinstance(weights, SiteAdapter)
        return weights

    def _identity_pathway(
        self, step: Step, row: int, here: Sequence[Sequence[Placement]], captured: Captured
    ) -> tuple[Tensor, Tensor]:
        """Sum over identities of G_k (s_k B_k + s'_k (Z'_t - Z_t)) [N, I], and the summed gate [N, 1], in one row."""
        q, z = captured.q[row], captured.z[row]
        added, gate = torch.zeros_like(z), torch.zeros_like(z[:, :1])
        words = self._words.shares(q, step.rows[row].kind, captured.context) if self.injection.by_words else None
        wanted = self._wanted(z)
        for number, (identity, placements) in enumerate(zip(self.injection.identities, here, strict=True)):
            strength, on_text = self.strength(identity, step), self.text_strength(identity, step)
            for placement in placements:
                positions = slice(None) if placement.positions is None else placement.positions
                gain = torch.ones_like(gate[positions]) if placement.gain is None else placement.gain
                gain = gain if words is None else gain * words[number][positions]
                gate[positions] += gain
                if self._text is not None and on_text and placement.kind == "cond":
                    term = self._text.term(number, step.rows[row], captured, row, positions)
                    added[positions] += 0 if term is None else on_text * gain * term
                if strength == 0:
                    continue
                k, v = self._key_value(number, placement.kind, z)
                text = TextAttention(z[positions], captured.k[row], captured.v[row])
                queries = self._queries(number, q[positions], text.z)
                term = identity_term(identity.mode, queries, k, v, text, self.site.heads)
                term = term if wanted is None else term * wanted[positions]
                added[positions] += strength * gain * term
        return added, gate

    def _wanted(self, z: Tensor) -> Tensor | None:
        """How much each position takes of the identities [N, 1], where a checkpoint tells by the text's z [N, I]."""
        weights = self._two_pathways()
        if weights is None or weights.text_to_weight is None:
            return None
        return text_weight(z, weights.text_to_weight.weight.to(z.device)).to(z)

    def _queries(self, number: int, q: Tensor, z: Tensor) -> Tensor:
        """What an identity is asked with: the model's own queries q, or those a W+ adapter makes of Z_t; all [n, I]."""
        weights = self.injection.identities[number].adapter.site(self.site.index)
        if not isinstance(weights, TextQuerySiteAdapter):
            return q
        return self._module(f"query{number}", weights.to_q, z)(z)

    def _join(self, step: Step, row: int, z: Tensor, added: Tensor, gate: Tensor, captured: Captured) -> Tensor:
        """FFB: joins the identity pathway F_v and the text pathway F_t in one row, all [N, I]; gate [N, 1]."""
        weights = self._two_pathways()
        text = self.injection.text
        f_v, f_t = z + added / gate.clamp(min=torch.finfo(gate.dtype).tiny), z
        if weights is not None and weights.text is not None:
            tca = cast(TextConsistency, self._module("text", weights.text, z))
            k, v, context = captured.k[row], captured.v[row], captured.context[row]
            f_t = tca(captured.q[row], context, k, v, self.site.heads, text.weight)
        if text.emphasis and step.rows[row].kind == "cond":
            emphasis = text_emphasis(gate, text.emphasis)
            f_v, f_t = f_v + (emphasis - 1) * z, f_t * emphasis
        if weights is None or weights.blending is None:
            return blend(f_v, f_t, gate)
        ffb = cast(FeatureBlending, self._module("blending", weights.blending, z))
        grid = step.latent.halved(self.site.halvings)
        learned = ffb.gate(f_v, f_t, gate, grid, step.progress)
        return blend(f_v, f_t, learned) + ffb.seam_term(f_v, f_t, gate)

    def _key_value(self, number: int, kind: RowKind, like: Tensor) -> tuple[Tensor, Tensor]:
        """The identity's K and V [T, I] in the dtype and on the device of ``like``."""
        if (number, kind) not in self._keys_values:
            self._keys_values[number, kind] = self._fresh_key_value(number, kind, like)
        return self._keys_values[number, kind]

    def _fresh_key_value(self, number: int, kind: RowKind, like: Tensor) -> tuple[Tensor, Tensor]:
        identity = self.injection.identities[number]
        weights = identity.adapter.site(self.site.index)
        assert isinstance(weights, SiteAdapter)
        tokens = identity.tokens.of(kind).float()
        tokens = F.pad(tokens, (0, 0, 0, identity.zero_tokens))
        k, v = (F.linear(tokens, w.weight.float().to(tokens.device)) for w in (weights.to_k, weights.to_v))
        return k.to(like), v.to(like)

    def _module(self, name: str, module: nn.Module, like: Tensor) -> nn.Module:
        """A trained module where the hidden states are: itself if it is there (then gradients reach it), or a copy."""
        if name not in self._modules:
            there = all(p.device == like.device and p.dtype == like.dtype for p in module.parameters())
            self._modules[name] = module if there else copy.deepcopy(module).to(like.device, like.dtype)
        return self._modules[name]


def _full_gain(placement: Placement, x: Tensor) -> Tensor:
    """The gate of one row over all its positions: [N, 1]."""
    if placement.positions is None or placement.gain is None:
        return torch.ones_like(x[:, :1])
    return torch.zeros_like(x[:, :1]).index_copy(0, placement.positions, placement.gain)
