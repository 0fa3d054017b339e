"""Latents as files: every container, and nothing but one latent."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from dp_adapter.errors import WeightsError
from dp_adapter.weights.w_plus_latents import read_latent

LATENT = torch.randn(1, 18, 512, generator=torch.Generator().manual_seed(0))


def saved(path: Path, latent: Tensor) -> Path:
    if path.suffix in {".pt", ".pth", ".bin"}:
        torch.save(latent.clone().requires_grad_(), path)  # as the official encoder's files are
    elif path.suffix == ".npy":
        np.save(path, latent.numpy())
    elif path.suffix == ".npz":
        np.savez(path, w=latent.numpy(), seed=np.array(3))
    else:
        from safetensors.torch import save_file

        save_file({"latent": latent, "seed": torch.tensor(3)}, str(path))
    return path


@pytest.mark.parametrize("batched", [True, False])
@pytest.mark.parametrize("suffix", [".pt", ".pth", ".bin", ".npy", ".npz", ".safetensors"])
def test_every_container(tmp_path: Path, suffix: str, batched: bool) -> None:
    read = read_latent(saved(tmp_path / f"w{suffix}", LATENT if batched else LATENT[0]))
    assert torch.equal(read, LATENT) and read.dtype == torch.float32 and not read.requires_grad


def test_half_and_double_precision(tmp_path: Path) -> None:
    np.save(tmp_path / "double.npy", LATENT.double().numpy())
    torch.save({"w": LATENT.half()}, tmp_path / "half.pt")
    assert torch.equal(read_latent(tmp_path / "double.npy"), LATENT)
    assert torch.equal(read_latent(tmp_path / "half.pt"), LATENT.half().float())


class Runs:
    def __reduce__(self) -> tuple[object, ...]:
        return os.mkdir, ("executed",)


def test_what_is_no_latent_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    broken = LATENT.clone()
    broken[0, 3, 5] = torch.nan
    saved(tmp_path / "nan.npy", broken)
    torch.save(LATENT[:, :14], tmp_path / "short.pt")
    torch.save([LATENT, LATENT], tmp_path / "list.pt")
    torch.save({"a": LATENT, "b": LATENT}, tmp_path / "two.pt")
    torch.save(Runs(), tmp_path / "code.pt")
    np.save(tmp_path / "code.npy", np.array([Runs()], object), allow_pickle=True)
    np.save(tmp_path / "words.npy", np.full((18, 512), "a"))
    whole = saved(tmp_path / "whole.npy", LATENT).read_bytes()
    (tmp_path / "cut.npy").write_bytes(whole[:-5])
    (tmp_path / "cut.npz").write_bytes(saved(tmp_path / "whole.npz", LATENT).read_bytes()[:-50])
    (tmp_path / "empty.npy").write_bytes(b"")
    (tmp_path / "empty.pt").write_bytes(b"")
    (tmp_path / "text.txt").write_text("w")
    (tmp_path / "large.npy").write_bytes(b"\0" * (64 * 2**20 + 1))
    for name, words in {
        "nan.npy": "NaN or infinite",
        "short.pt": r"holds \[1, 14, 512\], not one latent",
        "list.pt": "holds nothing, not one latent",
        "two.pt": r"holds \[1, 18, 512\], \[1, 18, 512\], not one",
        "code.pt": "contains code",
        "code.npy": "damaged or no array of numbers",
        "words.npy": "holds nothing",
        "cut.npy": "damaged or no array",
        "cut.npz": "damaged or no array",
        "empty.npy": "damaged or no array",
        "empty.pt": "empty|damaged|no weight file",
        "text.txt": "is no file of arrays. Known are .bin, .npy",
        "large.npy": "larger than 64 MiB",
        "absent.npy": "There is no file",
    }.items():
        with pytest.raises(WeightsError, match=words):
            read_latent(tmp_path / name)
    assert not (tmp_path / "executed").exists()
