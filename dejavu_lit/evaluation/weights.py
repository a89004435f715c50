"""Which weights an evaluation measured, so that others put in their place later are noticed: size, time and SHA-256 a file."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from dejavu_lit.utils.io import file_sha256

SUFFIXES = (".safetensors", ".bin", ".pt", ".pth", ".ckpt", ".npy")


def weight_files(name: str, run: Path | None = None, epoch: int | None = None) -> dict[str, Path]:
    """{name: file} of what holds the weights of a side (of ``embeddings:DIR`` the vectors); {} where no path is named.

    Args:
        name: the side as the user gave it; run: its run directory, None for anything else; epoch: of RUN@EPOCH.
    """
    if run is not None:
        pattern = "model/*.safetensors" if epoch is None else f"checkpoints/epoch={epoch:04d}.ckpt"
        return {path.name: path for path in sorted(run.glob(pattern))}
    for prefix in ("embeddings:", "text:", "local-dir:"):
        name = name.removeprefix(prefix)
    folder = Path(name).expanduser()
    if folder.is_dir():
        files = sorted(file for file in folder.rglob("*") if file.suffix in SUFFIXES and file.is_file())
        return {str(file.relative_to(folder)): file for file in files}
    arch, _, weights = name.partition("@")
    return {Path(weights).name: Path(weights)} if Path(weights).is_file() and not _released(arch, weights) else {}


def _released(arch: str, weights: str) -> bool:
    """Whether ``ARCH@…`` names a released tag, which open_clip prefers to a file of that name."""
    from open_clip.pretrained import get_pretrained_cfg  # takes torch in, so only where it may be a file

    return bool(get_pretrained_cfg(arch.replace("/", "-"), weights))


def weight_states(files: Mapping[str, Path]) -> dict[str, Any]:
    """{name: {bytes, mtime_ns, sha256}} of files of weights."""
    found = {}
    for name, file in files.items():
        state = file.stat()
        found[name] = {"bytes": state.st_size, "mtime_ns": state.st_mtime_ns, "sha256": file_sha256(file)}
    return found


def changed_weights(files: Mapping[str, Path], known: Mapping[str, Any]) -> Path | None:
    """The first file whose contents are others than ``known``; None where none is.

    A file of the same size and time is not read again, and a copy of the same contents is no change. Files that are gone,
    and such as were not known, do not count.
    """
    for name, file in files.items():
        if (then := known.get(name)) is None:
            continue
        state = file.stat()
        same = state.st_size == then["bytes"]
        if not same or (state.st_mtime_ns != then["mtime_ns"] and file_sha256(file) != then["sha256"]):
            return file
    return None
