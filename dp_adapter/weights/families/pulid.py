"""PuLID files for SDXL: v1, v1.1, and repacks of either under IP-Adapter's names.

``id_adapter.*`` or ``image_proj.*``, and ``id_adapter_attn_layers.N.id_to_{k,v}.weight`` or
``ip_adapter.N.to_{k,v}_ip.weight`` with N odd; down, up, middle.

Source: ToTheBeginning/PuLID@1aa2fc7 ``pulid/encoders.py`` (IDEncoder, v1) and ``pulid/encoders_transformer.py``
(IDFormer, v1.1); parameter names are theirs.
Shapes: n photos, e width of ArcFace's and EVA's vectors together, S hidden states of L tokens of width c (the first is
the class token), T identity tokens, D width of the text context.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from types import MappingProxyType

import torch
from torch import Tensor, nn
from torch.nn import functional

from dp_adapter.core.adapter import Adapter, SiteAdapter
from dp_adapter.core.projection import PerceiverAttention, State, count_layers, feed_forward, strip_prefix
from dp_adapter.core.types import BlendMode, Features, Tokens
from dp_adapter.errors import WeightsError
from dp_adapter.weights.build_modules import build_projection, build_site
from dp_adapter.weights.checkpoint import SITES, Checkpoint, RecipeOptions, require
from dp_adapter.weights.files import WeightFile

_PREFIX = "image_proj."
_SITE = re.compile(r"ip_adapter\.(\d+)\.to_([kv])_ip\.weight")
_V1, _V1_1 = "body.0.weight", "id_embedding_mapping.0.weight"
_ARCFACE = 512  # the file tells only the width of ArcFace's and EVA's vectors together
# app.py: fidelity and "extremely style"; app_v1_1.py's ortho "off" with num_zero 0.
METHODS: Mapping[str, BlendMode] = MappingProxyType(
    {"fidelity": "orthogonal_v2", "style": "orthogonal", "neutral": "add"}
)
ZERO_TOKENS: Mapping[BlendMode, int] = MappingProxyType({"orthogonal_v2": 8, "orthogonal": 16})
SCALES = 5  # hidden states, each with a mapping of its own


class IdEncoder(nn.Module):
    """PuLID v1, each photo by itself: [n, e] and [n, S, L, c] -> [n, T, D]; T is 5 and one a hidden state."""

    def __init__(self, state: State) -> None:
        super().__init__()
        self.context = state["mapping_0.6.weight"].shape[0]
        self.body = _build_mlp(state, "body.")
        for number in range(SCALES):
            self.add_module(f"mapping_{number}", _build_mlp(state, f"mapping_{number}."))
            self.add_module(f"mapping_patch_{number}", _build_mlp(state, f"mapping_patch_{number}."))

    @property
    def tokens(self) -> int:
        """T."""
        return _output_width(self.body) // self.context + SCALES

    @property
    def face_width(self) -> int:
        """e."""
        return _input_width(self.body)

    @property
    def hidden_width(self) -> int:
        """c."""
        return _input_width(self.get_submodule("mapping_0"))

    def forward(self, face: Tensor, hidden: Tensor) -> Tensor:
        tokens = [self.body(face).unflatten(-1, (-1, self.context))]  # [n, T - S, D]
        for number in range(SCALES):
            whole, patches = hidden[:, number, :1], hidden[:, number, 1:]
            mapped = self.get_submodule(f"mapping_patch_{number}")(patches).mean(1, keepdim=True)
            tokens.append(self.get_submodule(f"mapping_{number}")(whole) + mapped)  # [n, 1, D]
        return torch.cat(tokens, 1)


class IdFormer(nn.Module):
    """PuLID v1.1: all photos of a person together, [n, e] and [n, S, L, c] -> [T, D], whatever n is."""

    def __init__(self, state: State) -> None:
        super().__init__()
        self.latents = nn.Parameter(torch.empty_like(state["latents"], dtype=torch.float32))  # [1, T, width]
        self.proj_out = nn.Parameter(torch.empty_like(state["proj_out"], dtype=torch.float32))  # [width, D]
        self.id_embedding_mapping = _build_mlp(state, "id_embedding_mapping.")
        for number in range(SCALES):
            self.add_module(f"mapping_{number}", _build_mlp(state, f"mapping_{number}."))
        width = self.latents.shape[-1]
        depth = count_layers(state, "layers.")
        if depth % SCALES:
            raise ValueError(f"{depth} layers cannot be shared among {SCALES} hidden states")
        inner, wide = state["layers.0.0.to_q.weight"].shape[0], state["layers.0.1.1.weight"].shape[0]
        self.layers = nn.ModuleList(
            nn.ModuleList([PerceiverAttention(width, inner), feed_forward(width, wide)]) for _ in range(depth)
        )

    @property
    def tokens(self) -> int:
        """T."""
        return self.latents.shape[1]

    @property
    def face_width(self) -> int:
        """e."""
        return _input_width(self.id_embedding_mapping)

    @property
    def hidden_width(self) -> int:
        """c."""
        return _input_width(self.get_submodule("mapping_0"))

    def forward(self, face: Tensor, hidden: Tensor) -> Tensor:
        width = self.latents.shape[-1]
        own = self.id_embedding_mapping(face).reshape(1, -1, width)  # [1, n * tokens of the face, width]
        latents = torch.cat([self.latents, own], 1)
        each = len(self.layers) // SCALES
        for number in range(SCALES):
            seen = hidden[:, number].flatten(0, 1)[None]  # [1, n * L, c]
            x = torch.cat([own, self.get_submodule(f"mapping_{number}")(seen)], 1)
            for layer in list(self.layers)[number * each : (number + 1) * each]:
                attention, forward = layer.children()
                latents = attention(x, latents) + latents
                latents = forward(latents) + latents
        return latents[0, : self.tokens] @ self.proj_out


def _build_mlp(state: State, prefix: str) -> nn.Sequential:
    """Linear, normalisation and LeakyReLU twice, and a last linear layer."""
    first, second, last = (state[f"{prefix}{number}.weight"] for number in (0, 3, 6))
    return nn.Sequential(
        nn.Linear(first.shape[1], first.shape[0]),
        nn.LayerNorm(first.shape[0]),
        nn.LeakyReLU(),
        nn.Linear(second.shape[1], second.shape[0]),
        nn.LayerNorm(second.shape[0]),
        nn.LeakyReLU(),
        nn.Linear(last.shape[1], last.shape[0]),
    )


def _input_width(mlp: nn.Module) -> int:
    return mlp.get_parameter("0.weight").shape[1]


def _output_width(mlp: nn.Module) -> int:
    return mlp.get_parameter("6.weight").shape[0]


def recognise(file: WeightFile) -> bool:
    encoder = f"{_PREFIX}mapping_0.0.weight" in file.tensors
    version = {f"{_PREFIX}{_V1}", f"{_PREFIX}{_V1_1}"} & file.tensors.keys()
    return encoder and bool(version) and any(_SITE.fullmatch(key) for key in file.tensors)


def read(file: WeightFile, family: str, title: str) -> Checkpoint:
    state = strip_prefix(file.tensors, _PREFIX)
    first = _V1 in state
    net = build_projection(IdEncoder if first else IdFormer, state, file)
    return Checkpoint(
        path=file.path,
        family=family,
        title=f"{title} {'v1' if first else 'v1.1'}",
        base="sdxl",
        adapter=Adapter(net, _read_sites(file, _token_width(net))),
        encoders=("arcface-raw", "eva"),
        recipe=_make_tokens,
        tokens_per_photo=net.tokens,
        features_width={"arcface-raw": _ARCFACE, "eva": net.hidden_width},
        shapes={"eva_pooled": (net.face_width - _ARCFACE,)},
        combine="concatenate",
        mode="orthogonal_v2",
        methods=METHODS,
        zero_tokens=ZERO_TOKENS,
        pack="antelopev2",
    )


def _token_width(net: IdEncoder | IdFormer) -> int:
    return net.context if isinstance(net, IdEncoder) else net.proj_out.shape[1]


def _read_sites(file: WeightFile, context: int) -> list[SiteAdapter]:
    layers: dict[int, dict[str, Tensor]] = {}
    for key, tensor in file.tensors.items():
        if match := _SITE.fullmatch(key):
            layers.setdefault(int(match[1]), {})[match[2]] = tensor
    if len(layers) != SITES["sdxl"]:
        raise WeightsError(
            f"{file.path.name} has {len(layers)} attention layers; PuLID for SDXL has {SITES['sdxl']}",
            "It is incomplete, or made for another base model.",
        )
    sites: list[SiteAdapter] = []
    for number in sorted(layers):
        k, v = layers[number].get("k"), layers[number].get("v")
        if k is None or v is None or k.shape != v.shape or k.ndim != 2 or k.shape[1] != context:
            problem = f"{file.path.name}: layer {number} lacks a matching pair of K and V for tokens of width {context}"
            raise WeightsError(problem, "The file is incomplete, or was put together from different models.")
        sites.append(build_site(k, v))
    return sites


def _make_tokens(adapter: Adapter, features: Features, _options: RecipeOptions) -> Tokens:
    """v1: the photos' tokens one after another; v1.1: the same number for any number of photos.

    The unconditional tokens are the encoder's for zeros; v1.1 takes one photo of them
    (``pipeline_v1_1.py``, ToTheBeginning/PuLID@1aa2fc7).
    """
    net = adapter.projection
    assert isinstance(net, IdEncoder | IdFormer)
    if features.faceid is None or features.eva_pooled is None:
        missing = "raw ArcFace embeddings" if features.faceid is None else "EVA02-CLIP's image embeddings"
        raise WeightsError(f"This checkpoint needs {missing}, and none was computed")
    pooled = functional.normalize(features.eva_pooled.float(), dim=-1)
    face = torch.cat([features.faceid.float(), pooled], -1)  # [n, e]
    face = require(face, "raw ArcFace embeddings with EVA02-CLIP's image embeddings", net.face_width)
    hidden = require(features.eva_hidden, "EVA02-CLIP's hidden states", net.hidden_width)
    if isinstance(net, IdFormer):
        return Tokens(net(face, hidden), net(torch.zeros_like(face[:1]), torch.zeros_like(hidden[:1])))
    return Tokens(net(face, hidden).flatten(0, 1), net(torch.zeros_like(face), torch.zeros_like(hidden)).flatten(0, 1))
