"""Weights whose entries have the prefixes of DistributedDataParallel (``module.``) or torch.compile (``_orig_mod.``)."""

import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

import torch

SUFFIXES = (".safetensors", ".bin", ".pth")  # of the weights that open_clip looks for in a folder


def plain_name(entry: str) -> str:
    """The name of an entry of a state dict without the prefixes."""
    return entry.replace("_orig_mod.", "").removeprefix("module.")


@contextmanager
def without_prefixes(path: Path) -> Iterator[Path]:
    """``path``, a file of weights or a folder with some; if entries have prefixes, a temporary copy in which none has."""
    files = [path] if path.is_file() else sorted(file for file in path.iterdir() if file.suffix in SUFFIXES)
    states = {file: state for file in files if (state := _prefixed_state(file)) is not None}
    if not states:
        yield path
        return
    with TemporaryDirectory() as temporary:
        copy = Path(temporary, f"weights{path.suffix}")
        if path.is_dir():
            copy.mkdir()
            for file in set(path.iterdir()) - set(states):
                (copy / file.name).symlink_to(file.absolute())
        for file, state in states.items():
            plain = {plain_name(entry): value for entry, value in state.items()}
            _save(plain, copy if file == path else copy / file.name)
        yield copy


def _prefixed_state(file: Path) -> dict[str, torch.Tensor] | None:
    """The state dict in ``file`` if an entry has a prefix; None if none has, or if the file cannot be read."""
    try:
        if file.suffix == ".safetensors":
            from safetensors import safe_open

            with safe_open(file, "pt") as weights:
                entries = list(weights.keys())
                return {e: weights.get_tensor(e) for e in entries} if _has_prefix(entries) else None
        content = torch.load(file, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(file))
        state: dict[str, torch.Tensor] = content.get("state_dict", content)
        return state if _has_prefix(list(state)) else None
    except Exception:  # whatever is wrong with the file, loading it says so
        return None


def _has_prefix(entries: list[str]) -> bool:
    return any(plain_name(entry) != entry for entry in entries)


def _save(state: dict[str, torch.Tensor], path: Path) -> None:
    if path.suffix == ".safetensors":
        from safetensors.torch import save_file

        save_file(state, path)
    else:
        torch.save(state, path)
