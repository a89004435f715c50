"""What a wandb run really wrote offline, read back from its ``.wandb`` file."""

import json
from pathlib import Path
from typing import Any


class Offline:
    """One offline run: its identity and config, the rows of its history by step, its summary, and its media files."""

    def __init__(self, path: Path) -> None:
        from wandb.proto import wandb_internal_pb2
        from wandb.sdk.internal.datastore import DataStore

        self.path = path
        self.run: Any = None
        self.config: dict[str, Any] = {}
        self.history: list[dict[str, Any]] = []
        self.summary: dict[str, Any] = {}
        self.ended = False
        store = DataStore()
        store.open_for_scan(str(path))
        while (data := store.scan_data()) is not None:
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
            elif kind == "exit":
                self.ended = True

    @staticmethod
    def _items(items: Any) -> dict[str, Any]:
        return {"/".join(i.nested_key) if i.nested_key else i.key: json.loads(i.value_json) for i in items}

    def values(self, name: str) -> list[Any]:
        """Every value that the history has for a name, in order."""
        return [row[name] for row in self.history if name in row]

    def media(self, value: Any) -> Path:
        """The file of a logged image or table."""
        return self.path.parent / "files" / str(value["path"])


def runs(folder: Path) -> list[Offline]:
    """The offline runs below a folder, oldest first."""
    return [Offline(path) for path in sorted(folder.rglob("*.wandb"))]
