"""What a wandb run really wrote offline, read back from its ``.wandb`` file."""

import json
import struct
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

BLOCK, HEADER = 32768, 7
WHOLE, LAST = 1, 4
PATIENCE = 15  # seconds


class Offline:
    """One offline run: its identity and config, the rows of its history by step, its summary, and its media files."""

    def __init__(self, path: Path) -> None:
        from wandb.proto import wandb_internal_pb2

        self.path = path
        self.run: Any = None
        self.config: dict[str, Any] = {}
        self.history: list[dict[str, Any]] = []
        self.summary: dict[str, Any] = {}
        self.artifacts: dict[str, dict[str, Path]] = {}  # name -> {path in it: file that is waiting for the upload}
        self.ended = False
        for data in entries(path.read_bytes()):
            record = wandb_internal_pb2.Record()
            record.ParseFromString(data)
            kind = record.WhichOneof("record_type")
            if kind == "run":
                self.run = record.run
                self.config |= {item.key: json.loads(item.value_json) for item in record.run.config.update}
            elif kind == "config":
                self.config |= {item.key: json.loads(item.value_json) for item in record.config.update}
            elif kind == "history":
                self.history.append(self._items(record.history.item))
            elif kind == "summary":
                self.summary |= self._items(record.summary.update)
            elif kind == "artifact":
                self._artifact(record.artifact)
            elif kind == "request" and record.request.WhichOneof("request_type") == "log_artifact":
                self._artifact(record.request.log_artifact.artifact)
            elif kind == "exit":
                self.ended = True

    def _artifact(self, artifact: Any) -> None:
        contents = artifact.manifest.contents
        self.artifacts[artifact.name] = {entry.path: Path(entry.local_path) for entry in contents}

    @staticmethod
    def _items(items: Any) -> dict[str, Any]:
        found: dict[str, Any] = {}
        for item in items:
            *outer, name = list(item.nested_key) or [item.key]
            place = found
            for key in outer:
                place = place.setdefault(key, {})
            place[name] = json.loads(item.value_json)
        return found

    def values(self, name: str) -> list[Any]:
        """Every value that the history has for a name, in order."""
        return [row[name] for row in self.history if name in row]

    def image(self, value: Any) -> bytes:
        """The file of a logged image."""
        return (self.path.parent / "files" / str(value["path"])).read_bytes()

    def table(self, name: str) -> list[dict[str, Any]]:
        """A logged table as rows; its images as the bytes of their files."""
        (value,) = self.values(name)
        (files,) = (files for files in self.artifacts.values() if f"{name}.table.json" in files)
        found = json.loads(files[f"{name}.table.json"].read_text())
        assert [value["ncols"], value["nrows"]] == [len(found["columns"]), len(found["data"])]

        def cell(value: Any) -> Any:
            return files[value["path"]].read_bytes() if isinstance(value, dict) and "path" in value else value

        return [dict(zip(found["columns"], map(cell, row), strict=True)) for row in found["data"]]


def entries(data: bytes) -> Iterator[bytes]:
    """The entries of a ``.wandb`` file: LevelDB's log format behind a header of 7 bytes.

    Blocks of 32 KiB hold pieces, each with a checksum (4 bytes), length (2) and kind (1 whole, 2 first, 3 middle, 4 last);
    what is left of a block that has no room for a piece's head is padding.
    """
    assert data[:4] == b":W&B"
    place, entry = HEADER, b""
    while place + HEADER <= len(data):
        if BLOCK - place % BLOCK < HEADER:
            place += BLOCK - place % BLOCK
            continue
        length, kind = struct.unpack_from("<HB", data, place + 4)
        entry += data[place + HEADER : place + HEADER + length]
        place += HEADER + length
        if kind in (WHOLE, LAST):
            yield entry
            entry = b""


def runs(folder: Path) -> list[Offline]:
    """The offline runs below a folder, oldest first.

    wandb's own process writes the end of one a moment after ``finish`` has returned; one that was killed has no end.
    """
    until = time.monotonic() + PATIENCE
    while True:
        found = [Offline(path) for path in sorted(folder.rglob("*.wandb"))]
        if all(run.ended for run in found) or time.monotonic() > until:
            return found
        time.sleep(0.2)
