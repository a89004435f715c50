"""Weights in files: read without running any code in them, hashed, and named as the plain model names them."""

import hashlib
import warnings
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from dejavu_lit.utils.errors import UserError, has_remedy

SUFFIXES = (".safetensors", ".bin", ".pth")  # of the weights that open_clip looks for in a folder


def load_tensors(path: Path) -> Any:
    """The content of a file of weights, .safetensors or torch's own, on the CPU; raises many kinds of errors."""
    if path.suffix == ".safetensors":
        from safetensors.torch import load_file

        return load_file(path)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that a TorchScript archive looks like one, before it is refused
        return torch.load(path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path))


def weights_hash(state: Mapping[str, torch.Tensor]) -> str:
    """SHA-256 over names, types, shapes and bytes of a state dict, independent of the order of its entries."""
    digest = hashlib.sha256()
    for name in sorted(state):
        tensor = state[name].detach().cpu().contiguous()
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def without_prefixes(state: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """A state dict without the prefixes of DistributedDataParallel (``module.``) and torch.compile (``_orig_mod.``)."""
    return {entry.replace("_orig_mod.", "").removeprefix("module."): value for entry, value in state.items()}


def compiled_state(path: Path) -> dict[str, torch.Tensor] | None:
    """The state dict without the prefixes; None if it has none of torch.compile: open_clip itself removes ``module.``."""
    state = stored_state(path)
    return without_prefixes(state) if any("_orig_mod." in entry for entry in state) else None


def stored_state(path: Path) -> dict[str, torch.Tensor]:
    """The state dict in a file of weights, or in that of a folder; {} for big_vision's arrays.

    Raises UserError if the file is not one of weights.
    """
    if path.is_dir():
        from open_clip.factory import _find_checkpoint_in_dir

        path = Path(_find_checkpoint_in_dir(path) or path)
    if path.suffix in (".npz", ".npy"):
        return {}
    try:
        content = load_tensors(path)
        return dict(content.get("state_dict", content))
    except Exception as error:
        if has_remedy(error):
            raise
        raise UserError(
            f"{path} is not a file of weights: it is damaged, has another format, or has code or Python objects beside the "
            "tensors, as a TorchScript archive has, which are never loaded; check the path, or save its state_dict() with "
            "safetensors.torch.save_file"
        ) from None
