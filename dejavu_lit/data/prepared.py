"""Where prepared data lies and which part of it is used: what ``data=`` means to training and evaluation."""

from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from dejavu_lit.data.epoch import Repeat
from dejavu_lit.data.exclude import keys_fingerprint, read_keys, tell_unknown
from dejavu_lit.data.remote import fetch_objects, is_remote, mirror
from dejavu_lit.data.shards import ShardSet
from dejavu_lit.utils.config import build, check_fields
from dejavu_lit.utils.errors import UserError, suggest
from dejavu_lit.utils.io import fingerprint, read_object

MANIFEST = "manifest.json"
SCHEMA = 1  # of the manifest
TRAINED_ON = {"target": "A", "reference": "B"}  # who trains on what


@dataclass(frozen=True)
class DataSpec:
    """A prepared data folder and the choices within it. ``reader`` and ``extra`` only matter to ``prepare``."""

    name: str
    dir: str | None = None
    train_size: int | None = None
    repeat: dict[str, Any] = field(default_factory=dict)
    exclude: str | None = None  # a file of keys, one a line: pairs not trained on, not measured and not searched
    exclude_fingerprint: str | None = None  # of those keys, kept in config.yaml: other keys are another run
    public: str = "P"  # a name of public_sets, or a folder of shards
    public_sets: dict[str, str] = field(default_factory=lambda: {"P": "P"})
    labelled: str | None = None  # the set with class labels, for zero-shot accuracy and the linear probe
    classes: Any = None  # class names of the labelled set: None (its labels), imagenet, a file, or the names
    templates: Any = ("a photo of a {}.",)  # prompts of zero-shot classification, or imagenet for open_clip's 80
    objects: str | None = None  # a name below objects/, or a folder with a folder a set
    seed: int = 0
    sizes: dict[str, float | None] = field(default_factory=dict)
    near_duplicates: int | None = 6
    automatic: bool = False  # prepare by itself where the folder does not exist
    reader: dict[str, Any] | None = None
    extra: dict[str, Any] = field(default_factory=dict)

    @property
    def folder(self) -> Path:
        """The data folder: the mirror of one that lies elsewhere, or one below outputs/data where ``data.dir`` is null."""
        if self.dir is not None and is_remote(self.dir):
            return mirror(self.dir)
        if self.dir is not None:
            return Path(self.dir)
        identity = [self.name, self.reader, self.extra, self.sizes, self.seed, self.near_duplicates]
        return Path("outputs/data") / f"{self.name}-{fingerprint(identity)}"

    def check(self) -> None:
        """Raise UserError where the folder was not prepared, or by a version that wrote it otherwise."""
        if not (self.folder / MANIFEST).is_file():
            raise UserError(f"data.dir={self.folder} holds no {MANIFEST}; make it with dejavu prepare data=…")
        read_object(self.folder / MANIFEST, SCHEMA)

    @cached_property
    def excluded(self) -> frozenset[str]:
        """The keys in ``exclude``; raises UserError where the file can't be read or holds others than it did."""
        keys = frozenset(read_keys(self.exclude, "data.exclude")) if self.exclude is not None else frozenset()
        if self.exclude_fingerprint not in (None, keys_fingerprint(keys)):
            raise UserError(
                f"data.exclude={self.exclude} holds other keys than when the run began; restore the file, or train anew"
            )
        return keys

    def tell_unknown(self) -> None:
        """Warn where keys in ``exclude`` are in no set; of data that lie elsewhere nothing is known without copying it."""
        if not self.excluded or (self.dir is not None and is_remote(self.dir)):
            return
        folders = dict.fromkeys(path.parent for path in sorted(self.folder.glob("*/*.tar")))
        elsewhere = [Path(self.public)] if self.public not in self.public_sets and Path(self.public).is_dir() else []
        tell_unknown(f"data.exclude={self.exclude}", self.excluded, [*folders, *elsewhere])

    def repeats(self) -> Repeat:
        """The planted repetitions as a value."""
        return Repeat(**self.repeat)

    def shards(self, name: str) -> ShardSet:
        """The set A, B, H, V or P, or another folder of shards below the data folder."""
        return ShardSet.open(self.folder / name)

    def public_folder(self) -> Path:
        """The shards of the public set chosen by ``data.public``."""
        if self.public in self.public_sets:
            return self.folder / self.public_sets[self.public]
        if Path(self.public).is_dir():
            return Path(self.public)
        raise UserError(
            f"data.public={self.public} is neither one of {', '.join(self.public_sets)}"
            f"{suggest(self.public, self.public_sets)} nor a folder of shards"
        )

    def check_labelled(self) -> None:
        """Raise UserError where the labelled set is not there."""
        if self.labelled and not (self.folder / self.labelled).is_dir():
            raise UserError(
                f"data.labelled={self.labelled} is no set of {self.folder}; name one, or give data.labelled=null"
            )

    def objects_folder(self, choice: str | None = None) -> Path:
        """The object artifact chosen by ``objects=`` (a name or a folder), or the data's own."""
        name = choice or self.objects
        if name is None:
            raise UserError(
                "this data brings no objects; find them with dejavu annotate, and give objects=NAME or FOLDER"
            )
        fetch_objects(self.folder, name)
        for folder in (self.folder / "objects" / name, Path(name)):
            if folder.is_dir():
                return folder
        known = sorted(p.name for p in (self.folder / "objects").glob("*"))
        raise UserError(
            f"objects={name} is neither one of {', '.join(known) or 'none'}{suggest(name, known)} nor a folder"
        )


def data_spec(config: dict[str, Any]) -> DataSpec:
    """The DataSpec, its reader left as a description; data that needs no source is prepared where it is absent."""
    spec: DataSpec = build({**pinned(config), "_recursive_": False}, "data")
    check_fields(Repeat, spec.repeat, "data.repeat")
    if spec.automatic and not (spec.folder / "manifest.json").is_file():
        prepare_data(spec)
    return spec


def pinned(config: dict[str, Any]) -> dict[str, Any]:
    """The data's settings with the fingerprint of the keys in ``exclude``, so that other keys are other settings."""
    if config.get("exclude") is None:
        return config
    from dejavu_lit.data.exclude import keys_fingerprint, read_keys

    return {**config, "exclude_fingerprint": keys_fingerprint(read_keys(config["exclude"], "data.exclude"))}


def prepare_data(spec: DataSpec, wait: bool = True, **how: Any) -> None:
    from dejavu_lit.data.prepare import prepare as run
    from dejavu_lit.utils.io import locked

    if spec.reader is None:
        raise UserError(f"data={spec.name} has no reader; choose data=coco, folder, table or shards to prepare from")
    if spec.dir is not None and is_remote(spec.dir):
        raise UserError(f"data.dir={spec.dir} is elsewhere; prepare into a local folder and copy it there")
    spec.folder.parent.mkdir(parents=True, exist_ok=True)
    lock = spec.folder.parent / f".{spec.folder.name}.lock"
    with locked(lock, wait):  # of ranks and jobs that start together, one prepares
        run(
            reader=build(spec.reader, "data.reader"),
            out=spec.folder,
            sizes=spec.sizes,
            seed=spec.seed,
            near_duplicates=spec.near_duplicates,
            extra={name: build(reader, f"data.extra.{name}") for name, reader in spec.extra.items()},
            **how,
        )
