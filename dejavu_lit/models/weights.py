"""Weights in files: read without running any code in them, hashed, and named as the plain model names them."""

import hashlib
import logging
import warnings
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from dejavu_lit.utils.errors import UserError, has_remedy

log = logging.getLogger(__name__)

SUFFIXES = (".safetensors", ".bin", ".pth")  # of the weights that open_clip looks for in a folder
OPENAI_SIZES = ("input_resolution", "context_length", "vocab_size")  # in the state dicts of its TorchScript archives


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


def plain_state(state: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """A state dict without OPENAI_SIZES and the prefixes of DDP and torch.compile (``module.``, ``_orig_mod.``)."""
    plain = {entry.replace("_orig_mod.", "").removeprefix("module."): value for entry, value in state.items()}
    return {entry: value for entry, value in plain.items() if entry not in OPENAI_SIZES}


def checkpoint_state(path: Path) -> dict[str, torch.Tensor]:
    """The model's state dict in a Lightning checkpoint of a run, without the prefixes; raises many kinds of errors."""
    state, prefix = load_tensors(path)["state_dict"], "model."
    return plain_state({k.removeprefix(prefix): value for k, value in state.items() if k.startswith(prefix)})


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
    except Exception as error:  # torch's message would recommend to run the code
        if has_remedy(error):
            raise
        raise UserError(
            f"{path} is not a file of weights: it is damaged, has another format, or has code or Python objects beside the "
            "tensors, as a TorchScript archive has, which are never loaded; check the path, or save its state_dict() with "
            "safetensors.torch.save_file"
        ) from None


def warn_of_interpolation(name: str, model: torch.nn.Module, stored: Mapping[str, torch.Tensor]) -> None:
    """Warn if the state dict ``stored`` was trained with images or captions of another size than those of ``model``."""
    stored = plain_state(stored)
    for entry, value in model.state_dict().items():
        own = stored.get(entry, stored.get(entry.removeprefix("text.")))
        if entry.endswith("positional_embedding") and own is not None and len(own) != len(value):
            log.warning(
                "%s: %s has %d positions in the weights and %d in the model, so open_clip interpolated it, which lowers every "
                "figure; give the architecture or config that the weights were trained with",
                *(name, entry, len(own), len(value)),
            )
