"""The two pathways at one site: what a host calls from its hooks.

Shapes: R rows, N positions, C hidden channels, I inner channels, L text tokens, D token width.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dp_adapter.core.adapter import GatedSiteAdapter, SiteAdapter, TextQuerySiteAdapter
from dp_adapter.core.attention import Linear, attend
from dp_adapter.core.blend import (
    FeatureBlending,
    TextAttention,
    TextConsistency,
    identity_term,
    join_pathways,
    text_emphasis,
)
from dp_adapter.core.folding import Folds, Key
from dp_adapter.core.injection import Identity, Injection
from dp_adapter.core.regions.region_cache import RegionCache
from dp_adapter.core.regions.region_masks import FlatRegion, RowRegion
from dp_adapter.core.text.sharing_by_words import SiteSharing, text_weight
from dp_adapter.core.text.site_text import SiteText
from dp_adapter.core.types import Captured, RowKind, Site, Step

_KINDS: tuple[RowKind, ...] = ("cond", "uncond")


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
        self._words = SiteSharing([identity.entity for identity in injection.identities], to_k, site.heads)
        self._text = text
        self._keys_values: dict[Key, tuple[Tensor, Tensor]] = {}
        self._folds = Folds(injection.form_used == "half", site, to_q, to_out)
        self._modules: dict[str, nn.Module] = {}

    def forget(self) -> None:
        """Other weights were loaded into the site: what was made from them is made anew."""
        self._folds.forget()
        self._words.forget()
        if self._text is not None:
            self._text.forget()

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
        for number, kind, where, strength in self._active_regions(step, hidden_states):
            self._folds.require(self._keys(step), lambda key: self._project_tokens(*key, hidden_states))
            term = self._folds.term((number, kind), flat_in, flat_q, where.positions)
            _add(flat_out, where, strength, term)

    def _keys(self, step: Step) -> list[Key]:
        """Every identity with each kind of these rows that has one."""
        present = {row.kind for row in step.rows}
        return [
            (number, kind) for number in range(len(self.injection.identities)) for kind in _KINDS if kind in present
        ]

    def _active_regions(self, step: Step, like: Tensor) -> Iterator[tuple[int, RowKind, FlatRegion, float]]:
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
        weights = self._two_pathway_weights()
        text = weights is not None and weights.text is not None
        trained = weights is not None and weights.blending is not None
        two_pathways = text or trained or self.injection.text.emphasis > 0
        if not two_pathways and self._only_added(weights):
            return self._add_plain(step, captured)
        regions = self._cache.row_regions(self.site, step, captured.z, trained)
        rows: list[Tensor] = []
        for row, z in enumerate(captured.z):
            here = [[p for p in identity if p.row == row] for identity in regions]
            if not any(here):
                rows.append(z)
                continue
            added, gate = self._sum_identities(step, row, here, captured)
            rows.append(self._join(step, row, z, added, gate, captured) if two_pathways else z + added)
        return torch.stack(rows)

    def _only_added(self, weights: SiteAdapter | None) -> bool:
        """Whether every identity's own attention is added as it is, and nothing else."""
        plain = not self.injection.by_words and (weights is None or weights.text_to_weight is None)
        return plain and all(one.mode == "add" and one.on_text is None for one in self.injection.identities)

    def _add_plain(self, step: Step, captured: Captured) -> Tensor:
        """Z_t plus G s Z_id of every identity, [R, N, I]: as ``add_folded``, before W_o."""
        z, q = captured.z.flatten(0, 1), captured.q.flatten(0, 1)
        out = z.clone()
        for number, kind, where, strength in self._active_regions(step, captured.z):
            k, v = self._keys_values_of(number, kind, captured.z)
            _add(out, where, strength, attend(q[where.positions], k, v, self.site.heads))
        return out.view_as(captured.z)

    def before_text(self, step: Step, hidden_states: Tensor) -> Tensor:
        """FACT's term [R, N, C] to add to the hidden states [R, N, C] between self-attention and text attention."""
        total = torch.zeros_like(hidden_states)
        regions = self._cache.row_regions(self.site, step, hidden_states)
        for number, identity in enumerate(self.injection.identities):
            strength = self.strength(identity, step)
            for region in regions[number] if strength else []:
                module = self._move_module(f"gated{number}", identity.adapter.site(self.site.index), hidden_states)
                assert isinstance(module, GatedSiteAdapter)
                weight = strength * _dense_gate(region, hidden_states[region.row])
                tokens = identity.tokens.of(region.kind).to(hidden_states)
                total[region.row] += module(hidden_states[region.row], tokens, weight, self.site.heads)
        return total

    def _two_pathway_weights(self) -> SiteAdapter | None:
        """The weights in which TCA and FFB may be: of the first identity that acts at sites at all."""
        first = next((one for one in self.injection.identities if one.adapter.sites), None)
        weights = None if first is None else first.adapter.site(self.site.index)
        assert weights is None or isinstance(weights, SiteAdapter)
        return weights

    def _sum_identities(
        self, step: Step, row: int, here: Sequence[Sequence[RowRegion]], captured: Captured
    ) -> tuple[Tensor, Tensor]:
        """Sum over identities of G_k (s_k B_k + s'_k (Z'_t - Z_t)) [N, I], and the summed gate [N, 1], in one row."""
        q, z = captured.q[row], captured.z[row]
        added, gate = torch.zeros_like(z), torch.zeros_like(z[:, :1])
        words = self._words.shares(q, step.rows[row].kind, captured.context) if self.injection.by_words else None
        demand = self._identity_demand(z)
        for number, (identity, regions) in enumerate(zip(self.injection.identities, here, strict=True)):
            strength, on_text = self.strength(identity, step), self.text_strength(identity, step)
            for region in regions:
                positions = slice(None) if region.positions is None else region.positions
                gain = torch.ones_like(gate[positions]) if region.gain is None else region.gain
                gain = gain if words is None else gain * words[number][positions]
                gate[positions] += gain
                if self._text is not None and on_text and region.kind == "cond":
                    term = self._text.term(number, step.rows[row], captured, row, positions)
                    added[positions] += 0 if term is None else on_text * gain * term
                if strength == 0:
                    continue
                k, v = self._keys_values_of(number, region.kind, z)
                text = TextAttention(z[positions], captured.k[row], captured.v[row])
                queries = self._make_queries(number, q[positions], text.z)
                term = identity_term(identity.mode, queries, k, v, text, self.site.heads)
                term = term if demand is None else term * demand[positions]
                added[positions] += strength * gain * term
        return added, gate

    def _identity_demand(self, z: Tensor) -> Tensor | None:
        """How much each position takes of the identities [N, 1], where a checkpoint tells by the text's z [N, I]."""
        weights = self._two_pathway_weights()
        if weights is None or weights.text_to_weight is None:
            return None
        return text_weight(z, weights.text_to_weight.weight.to(z.device)).to(z)

    def _make_queries(self, number: int, q: Tensor, z: Tensor) -> Tensor:
        """What an identity is asked with: the model's own queries q, or those a W+ adapter makes of Z_t; all [n, I]."""
        weights = self.injection.identities[number].adapter.site(self.site.index)
        if not isinstance(weights, TextQuerySiteAdapter):
            return q
        return self._move_module(f"query{number}", weights.to_q, z)(z)

    def _join(self, step: Step, row: int, z: Tensor, added: Tensor, gate: Tensor, captured: Captured) -> Tensor:
        """FFB: joins the identity pathway F_v and the text pathway F_t in one row, all [N, I]; gate [N, 1]."""
        weights = self._two_pathway_weights()
        text = self.injection.text
        f_v, f_t = z + added / gate.clamp(min=torch.finfo(gate.dtype).tiny), z
        if weights is not None and weights.text is not None:
            tca = cast(TextConsistency, self._move_module("text", weights.text, z))
            k, v, context = captured.k[row], captured.v[row], captured.context[row]
            f_t = tca(captured.q[row], context, k, v, self.site.heads, text.weight)
        if text.emphasis and step.rows[row].kind == "cond":
            f_t = f_t * text_emphasis(gate, text.emphasis)
        trained = None if weights is None else weights.blending
        ffb = None if trained is None else cast(FeatureBlending, self._move_module("blending", trained, z))
        return join_pathways(f_v, f_t, gate, ffb, step.latent.halved(self.site.halvings), step.progress)

    def _keys_values_of(self, number: int, kind: RowKind, like: Tensor) -> tuple[Tensor, Tensor]:
        """The identity's K and V [T, I] in the dtype and on the device of ``like``."""
        if (number, kind) not in self._keys_values:
            self._keys_values[number, kind] = self._project_tokens(number, kind, like)
        return self._keys_values[number, kind]

    def _project_tokens(self, number: int, kind: RowKind, like: Tensor) -> tuple[Tensor, Tensor]:
        identity = self.injection.identities[number]
        weights = identity.adapter.site(self.site.index)
        assert isinstance(weights, SiteAdapter)
        tokens = identity.tokens.of(kind).float()
        tokens = F.pad(tokens, (0, 0, 0, identity.zero_tokens))
        k, v = (F.linear(tokens, w.weight.float().to(tokens.device)) for w in (weights.to_k, weights.to_v))
        return k.to(like), v.to(like)

    def _move_module(self, name: str, module: nn.Module, like: Tensor) -> nn.Module:
        """A trained module where the hidden states are: itself if it is there (then gradients reach it), or a copy."""
        if name not in self._modules:
            there = all(p.device == like.device and p.dtype == like.dtype for p in module.parameters())
            self._modules[name] = module if there else copy.deepcopy(module).to(like.device, like.dtype)
        return self._modules[name]


def _add(out: Tensor, where: FlatRegion, strength: float, term: Tensor) -> None:
    """Adds G s times a term [n, C] to the rows of [R * N, C] where an identity acts, in place."""
    term = term * (strength if where.gain is None else strength * where.gain)
    if isinstance(where.positions, slice):
        out[where.positions] += term
    else:
        out.index_add_(0, where.positions, term)


def _dense_gate(region: RowRegion, x: Tensor) -> Tensor:
    """The gate of one row over all its positions: [N, 1]."""
    if region.positions is None or region.gain is None:
        return torch.ones_like(x[:, :1])
    return torch.zeros_like(x[:, :1]).index_copy(0, region.positions, region.gain)
