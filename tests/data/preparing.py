from pathlib import Path
from typing import Any

from dejavu_lit.data.prepare import Preparation
from dejavu_lit.data.readers.base import Reader


def prepare(
    reader: Reader, out: Path | str, *options: Any, workers: int = 2, max_skipped: float = 0.05, **more: Any
) -> dict[str, Any]:
    """The manifest of the data that are prepared."""
    return Preparation(reader, Path(out), *options, **more).run(workers, max_skipped)
