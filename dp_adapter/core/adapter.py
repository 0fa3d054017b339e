"""The trainable module: one projection, and per site the identity's K and V, with TCA and FFB where trained."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from dp_adapter.core.attention import attend
from dp_adapter.core.blend import FeatureBlending, TextConsistency
from dp_adapter.core.latent_gate import LatentGate


class SiteAdapter(nn.Module):
    """The adapter's weights at one site.

    Attributes:
        to_k, to_v: the identity's projections, [I, D] each.
        text: trained TCA, or None.
        blending: trained FFB, or None.
        text_to_weight: what says from the text's features how much a position takes of the identities [1, I]
            (MIP-Adapter), or None.
    """

    def __init__(
        self,
        context: int,
        width: int,
        text: TextConsistency | None = None,
        blending: FeatureBlending | None = None,
        text_to_weight: nn.Linear | None = None,
    ) -> None:
        super().__init__()
        self.to_k = nn.Linear(context, width, bias=False)
        self.to_v = nn.Linear(context, width, bias=False)
        self.context, self.width = context, width
        self.text = text
        self.blending = blending
        self.text_to_weight = text_to_weight

    @property
    def bare(self) -> bool:
        """Whether there is nothing but keys and values, so that the identity's term needs nothing of the text's."""
        return self.text is None and self.blending is None and self.text_to_weight is None


class TextQuerySiteAdapter(SiteAdapter):
    """W+ adapter's site: the identity is looked up by what the text attention found, not by the hidden states.

    Source: csxmli2016/w-plus-adapter@c649408 ``w_plus_adapter/attention_processor.py`` (arXiv 2311.17461).

    Attributes:
        to_q: [I, I], applied to the text attention Z_t before W_o.
    """

    def __init__(self, context: int, width: int) -> None:
        super().__init__(context, width)
        self.to_q = nn.Linear(width, width, bias=False)


class GatedSiteAdapter(nn.Module):
    """FaceChain-FACT's gated self-attention before the text attention (arXiv 2410.12312).

    Source: modelscope/facechain@7bc7119 ``face_adapter/face_attention_processor_v1.py``; parameter names as there.
    """

    def __init__(self, context: int, width: int, hidden: int) -> None:
        super().__init__()
        self.linear = nn.Linear(context, width)
        self.context, self.width = context, width
        self.attn = nn.ModuleDict(
            {name: nn.Linear(width, width, bias=False) for name in ("to_q", "to_k", "to_v")}
            | {"to_out": nn.Sequential(nn.Linear(width, width))}
        )
        self.ff = nn.ModuleDict({"net": nn.Sequential(_GEGLU(width, hidden), nn.Identity(), nn.Linear(hidden, width))})
        self.norm1 = nn.LayerNorm(width)
        self.norm2 = nn.LayerNorm(width)
        self.alpha_attn = nn.Parameter(torch.zeros(()))
        self.alpha_dense = nn.Parameter(torch.zeros(()))

    def forward(self, x: Tensor, tokens: Tensor, weight: float | Tensor, heads: int) -> Tensor:
        """The term to add to the hidden states between self-attention and text attention.

        Args:
            x: [..., N, C]; tokens: [..., T, D]; weight: a number or a gate [..., N, 1].

        Returns:
            [..., N, C]
        """
        joined = self.norm1(torch.cat([x, self.linear(tokens)], dim=-2))  # [..., N + T, C]
        q, k, v = (self.attn[name](joined) for name in ("to_q", "to_k", "to_v"))
        attended = self.attn["to_out"](attend(q[..., : x.shape[-2], :], k, v, heads))
        first = weight * torch.tanh(self.alpha_attn) * attended
        return first + weight * torch.tanh(self.alpha_dense) * self.ff["net"](self.norm2(x + first))


class _GEGLU(nn.Module):
    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.proj = nn.Linear(width, 2 * hidden)

    def forward(self, x: Tensor) -> Tensor:
        x, gate = self.proj(x).chunk(2, dim=-1)
        return x * nn.functional.gelu(gate)


class Adapter(nn.Module):
    """Projection and site weights of one checkpoint, sites in checkpoint order (down, up, middle).

    A family that acts on the text side alone has no sites.

    Attributes:
        gate: trained FFB over the whole picture, or None.
    """

    def __init__(
        self,
        projection: nn.Module,
        sites: Sequence[SiteAdapter | GatedSiteAdapter],
        gate: LatentGate | None = None,
    ) -> None:
        super().__init__()
        self.projection = projection
        self.sites = nn.ModuleList(sites)
        self.gate = gate

    @property
    def context(self) -> int:
        """Width D of the text's context."""
        context = self.site(0).context if len(self.sites) else getattr(self.projection, "context", None)
        assert isinstance(context, int)
        return context

    def site(self, index: int) -> SiteAdapter | GatedSiteAdapter:
        module = self.sites[index]
        assert isinstance(module, SiteAdapter | GatedSiteAdapter)
        return module


@dataclass(frozen=True)
class LowRank:
    """A LoRA that belongs to an adapter: W += weight * up @ down for one linear layer of the UNet.

    Attributes:
        layer: number in checkpoint order, even for attn1 and odd for attn2.
        linear: ``to_q``, ``to_k``, ``to_v`` or ``to_out``.
        down: [r, in]; up: [out, r].
    """

    layer: int
    linear: str
    down: Tensor
    up: Tensor
