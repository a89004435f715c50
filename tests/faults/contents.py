"""What artifacts hold, read to their ends: whether all of a folder are whole, and whether two folders hold the same."""

import io
import json
import re
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import yaml
from PIL import Image

# What differs between any two runs: times, and what is told of the machine. Everything else must be equal.
# The last two are of files that hold times: checkpoints, and what a report is made of.
TIMES = {"provenance", "seconds", "pairs_per_second", "mtime_ns", "sha256", "made_of"}
# Of who is at work, what was said meanwhile, and what a killed process was writing: hidden, never read, and left behind.
NOTES = (".lock", ".log", ".part")


def check_whole(folder: Path) -> None:
    """Every file under its final name can be read to its end; names that begin with a dot are unfinished ones' and locks'."""
    for path in sorted(folder.rglob("*")):
        if path.is_file() and not any(part.startswith(".") for part in path.relative_to(folder).parts):
            try:
                content(path)
            except Exception as error:
                raise AssertionError(f"{path} is not whole: {error!r}") from error


def check_equal(folder: Path, other: Path) -> None:
    """Both folders hold the same files of the same contents."""
    names = [{str(p.relative_to(f)) for p in f.rglob("*") if _counts(p)} for f in (folder, other)]
    assert names[0] == names[1], f"files that only one run has: {sorted(names[0] ^ names[1])}"
    for name in sorted(names[0]):
        assert content(folder / name) == content(other / name), f"{name} differs from the undisturbed run's"


def _counts(path: Path) -> bool:
    return path.is_file() and not path.name.endswith(NOTES)


def content(path: Path) -> Any:
    """What an artifact holds, read to its end, without times: comparable by ==."""
    data = path.read_bytes()
    match path.suffix:
        case ".json":
            return _timeless(json.loads(data))
        case ".yaml":
            return yaml.safe_load(data)
        case ".parquet":
            table = pq.read_table(io.BytesIO(data))
            kept = [name for name in table.column_names if not TIMES & set(name.split("."))]
            return table.select(kept).to_pylist(), table.schema.metadata
        case ".ckpt":
            return _checkpoint(data)
        case ".safetensors":
            import safetensors.torch

            assert safetensors.torch.load(data)
        case ".npy" | ".npz":
            assert np.load(io.BytesIO(data)) is not None
        case ".tar":
            assert data.endswith(bytes(1024))
            with tarfile.open(fileobj=io.BytesIO(data)) as tar:
                for member in tar:
                    assert tar.extractfile(member) is not None
        case ".png" | ".webp" | ".jpg":
            with Image.open(io.BytesIO(data)) as image:
                image.load()
        case ".html":
            assert data.rstrip().endswith(b"</html>")
            return _timeless_text(data)
        case ".csv":
            return _timeless_text(data)
    return data


def _timeless(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _timeless(item) for key, item in value.items() if key not in TIMES}
    return [_timeless(item) for item in value] if isinstance(value, list) else value


def _timeless_text(data: bytes) -> str:
    """A table without its rows of throughputs, a page without times, dates, and digests of files that hold times."""
    passing = ("pairs/s", *(f"&quot;{name}&quot;: " for name in TIMES))
    lines = [line for line in data.decode().splitlines() if not any(word in line for word in passing)]
    return re.sub(r"\b[0-9a-f]{64}\b|\d{4}-\d\d-\d\dT[\d:]+Z", "", "\n".join(lines))


def _checkpoint(data: bytes) -> Any:
    """Weights and optimizer bit for bit, schedule and step."""
    import torch

    state = torch.load(io.BytesIO(data), weights_only=True)

    def plain(value: Any) -> Any:
        if isinstance(value, torch.Tensor):
            return value.dtype, tuple(value.shape), value.contiguous().view(-1).view(torch.uint8).numpy().tobytes()
        if isinstance(value, dict):
            return {key: plain(item) for key, item in value.items()}
        return [plain(item) for item in value] if isinstance(value, list | tuple) else value

    names = ("state_dict", "optimizer_states", "lr_schedulers", "global_step", "epoch")
    return {name: plain(state[name]) for name in names if name in state}
