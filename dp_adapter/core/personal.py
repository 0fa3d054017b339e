"""A personalised identity: ID-EA's ID-Enhancer and ID-Adapter (arXiv 2507.11990), trained for one person.

    E_f = Linear(MHA(q = W_q Linear(f), k = v = W_kv E_a))      ID-Enhancer, f the face embedding, E_a the anchor
    p   = Linear(E_f)
    S   = SelfMHA([y; p]), the text's part of it
    y'  = y + beta * tanh(gamma) * S                            ID-Adapter, y one chunk of the text's context

Source: Whslee/ID-EA@9481a95 ``train.py`` CrossAttentionFusion and AdapterLayer; parameter names are theirs. The
released code trains the adapter but saves only two words for the text encoder's input; here the whole is kept and
applied. Those words are ``learned``: vectors in place of the person's word at the text encoder's input.
Shapes: k anchor tokens (two), D width of the text context, e of the face embedding, d of the encoder's input (with two
encoders their widths together; in Stable Diffusion d = D).
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

HEADS = 8
CHUNK = 77  # tokens that a text encoder sees at once
BETA = 0.4


class IdentityEnhancer(nn.Module):
    """Face embedding [e] and anchor [k, D] -> the identity's embedding E_f [k, 2 D]."""

    def __init__(self, face: int, context: int) -> None:
        super().__init__()
        self.arcface_dim_expander = nn.Linear(face, context)
        self.query_projection = nn.Linear(context, context)
        self.key_value_projection = nn.Linear(context, context)
        self.cross_attention = nn.MultiheadAttention(context, HEADS, batch_first=True)
        self.linear_projection = nn.Linear(context, 2 * context)

    def forward(self, faceid: Tensor, anchor: Tensor) -> Tensor:
        query = self.query_projection(self.arcface_dim_expander(faceid).expand(len(anchor), -1))  # [k, D]
        keys = self.key_value_projection(anchor)
        return self.linear_projection(self.cross_attention(query, keys, keys)[0])


class IdentityAdapter(nn.Module):
    """Context of chunks [n, L, D] and E_f [k, 2 D] -> [n, L, D]; equal to the context as initialised (gamma = 0)."""

    def __init__(self, context: int, beta: float = BETA) -> None:
        super().__init__()
        self.fc1 = nn.Linear(2 * context, context)
        self.self_attention = nn.MultiheadAttention(context, HEADS, batch_first=True)
        self.gamma = nn.Parameter(torch.zeros(1))
        self.register_buffer("beta", torch.tensor(beta))

    def forward(self, context: Tensor, fused: Tensor) -> Tensor:
        person = self.fc1(fused).expand(len(context), -1, -1)
        joined = torch.cat([context, person], dim=1)  # [n, L + k, D]
        attended = self.self_attention(joined, joined, joined, need_weights=False)[0]
        return context + self.get_buffer("beta") * torch.tanh(self.gamma) * attended[:, : context.shape[1]]


class Personal(nn.Module):
    """Everything of one person.

    Args:
        faceid: the person's face embedding [e]; anchor: mean embedding of well-known names [k, D].
        learned: vectors at the text encoder's input [k, d]; None for a person without words of their own.
    """

    def __init__(self, faceid: Tensor, anchor: Tensor, beta: float = BETA, learned: Tensor | None = None) -> None:
        super().__init__()
        self.context = anchor.shape[1]
        self.enhancer = IdentityEnhancer(len(faceid), self.context)
        self.adapter = IdentityAdapter(self.context, beta)
        self.register_buffer("faceid", faceid)
        self.register_buffer("anchor", anchor)
        self.learned = None if learned is None else nn.Parameter(learned.clone())

    def fused(self) -> Tensor:
        """The identity's embedding E_f [k, 2 D]."""
        return self.enhancer(self.get_buffer("faceid"), self.get_buffer("anchor"))

    def forward(self, context: Tensor) -> Tensor:
        """The context [L, D] of one row with the person in it, chunk by chunk of 77 tokens."""
        fused = self.fused()
        starts = range(0, len(context), CHUNK)
        return torch.cat([self.adapter(context[None, at : at + CHUNK], fused)[0] for at in starts])
