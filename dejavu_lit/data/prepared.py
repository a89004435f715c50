"""A prepared data folder and which part of it is used: what ``data=`` means to training and evaluation."""

import logging
import os
from contextlib import suppress
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from dejavu_lit.data.halves import POOL, open_half
from dejavu_lit.data.key_lists import excluded_keys, keys_fingerprint, positions_of, possible_keys, read_keys
from dejavu_lit.data.manifest import MANIFEST, read_manifest
from dejavu_lit.data.raw_shards import RawShards, write_samples
from dejavu_lit.data.readers import READERS
from dejavu_lit.data.remote import fetch_objects, is_remote, mirror
from dejavu_lit.data.settings import Repeat
from dejavu_lit.data.shard_index import index_shard
from dejavu_lit.data.shards import ShardSet
from dejavu_lit.utils.errors import UserError, explained, suggest
from dejavu_lit.utils.io import fingerprint, locked, read_json_object, visible_files

log = logging.getLogger(__name__)

# Options that act only if ``shards`` is given, or only if it is not.
OF_RAW_SHARDS: tuple[str, ...] = ("fractions", "pairs", "shuffle", "resampled")
OF_PREPARED_DATA = ("train_size", "repeat", "half", "near_duplicates", "reader", "extra")
PREPARED_SPLIT = (0,)  # ``DataSpec.deal`` of everything but random halves
TRAINED_ON = {"target": "A", "reference": "B"}  # the set that each side trains on


@dataclass(frozen=True)
class DataSpec:
    """A prepared data folder and the choices within it; ``reader``, ``extra`` and ``sizes`` only matter to ``prepare``."""

    name: str
    """What the data is called in figures and settings."""
    dir: str | None = None
    """The data folder, local or remote (s3://…, http://… or 'pipe:COMMAND {}', whose shards are copied to the node on first
    read); null, for generated data: outputs/data/NAME-FINGERPRINT."""
    train_size: int | None = None
    """Number of pairs of A (of B) to train on, a prefix, so that sizes are nested; null: all."""
    repeat: Repeat = field(default_factory=Repeat)
    """Planted memorization: the first pairs of the training set occur several times per epoch."""
    exclude: str | None = None
    """A text file with one key per line: pairs left out of preparing, training, measuring and searching."""
    exclude_fingerprint: str | None = None
    """Fingerprint of the keys in exclude, saved in config.yaml: other keys make another run."""
    public: str = "P"
    """The public set that is searched: a name in public_sets, another set of the data folder, or a folder of shards."""
    public_sets: dict[str, str] = field(default_factory=lambda: {"P": "P"})
    """{name: a set of the data folder, or a folder of shards}: the choices for ``public``."""
    labelled: str | None = None
    """The set with class labels, or a folder of shards with labels: for zero-shot accuracy and the linear probe; null: none."""
    classes: Any = None
    """Class names of the labelled set: null (its labels), imagenet, a file with one per line, or a list."""
    classes_by: str | None = None
    """How its labels are matched with classes: null (by name, or by number), or order (sorted, as ImageNet's folders)."""
    templates: Any = field(default_factory=lambda: ["a photo of a {}."])
    """Prompts of zero-shot classification, or imagenet for open_clip's 80."""
    objects: str | None = None
    """The object artifact: a name in the folder objects/, or a folder with one folder per set; evaluation needs it."""
    seed: int = 0
    """Seed of the splits, independent of the training seed."""
    half: int = 0
    """Which random half: 0 is the prepared split; half j deals the pairs of A and B to the two sides at random."""
    sizes: dict[str, int | float | None] = field(default_factory=dict)
    """{set: number of pairs, share of all (1.0: all), or null for all that its list in keys names}."""
    near_duplicates: int | None = 6
    """Images whose perceptual hashes differ in at most this many of 64 bits stay in one set; null: exact copies only."""
    automatic: bool = False
    """Whether the data is prepared on first use if its folder does not exist."""
    shards: Any = None
    """Raw shards to train on as they are: a path, address or pattern ({000..999}), or a list of them; null: prepared data."""
    fractions: dict[str, float] = field(default_factory=dict)
    """{set: share of the pairs of raw shards}, by the hash of the key."""
    pairs: int | None = None
    """Number of pairs in all raw shards, from which the steps of an epoch follow; null: estimated from the sampled shards."""
    shuffle: int = 1000
    """Encoded pairs in webdataset's shuffle buffer, per loader process; of raw shards."""
    resampled: bool = False
    """Draw raw shards with replacement, instead of one pass over them per epoch."""
    reader: Any = None
    """What prepare reads, {type: NAME, …}; set by the other files of this group."""
    extra: dict[str, Any] = field(default_factory=dict)
    """{set: reader}: additional sets for prepare, e.g. a labelled one."""

    def __post_init__(self) -> None:
        for name, meaning in (("dir", "the folder"), ("shards", "their path, address or pattern")):
            if getattr(self, name) == "":  # a variable of the shell that is not set would mean the current folder
                raise UserError(f"data.{name}= is empty; give {meaning}")

    @property
    def is_remote(self) -> bool:
        return self.dir is not None and is_remote(self.dir)

    @property
    def folder(self) -> Path:
        """The data folder: ``data.dir``, the local mirror if that is remote, or a folder in outputs/data if it is null."""
        if self.dir is not None:
            return mirror(self.dir) if self.is_remote else Path(self.dir)
        identity = [self.name, self.reader, self.extra, self.sizes, self.seed, self.near_duplicates]
        if self.shards is not None:
            identity += [self.shards, self.fractions, self.exclude_fingerprint or pinned(self).exclude_fingerprint]
        return Path("outputs/data") / f"{self.name}-{fingerprint(identity)}"

    @property
    def prefix(self) -> int | None:
        """How many of the first pairs of ``shard_set`` are trained on, None: all; a random half was dealt with its size."""
        return None if self.half else self.train_size

    @property
    def deal(self) -> tuple[Any, ...]:
        """What decides which pairs of a folder are A and which are B: the same for all but random halves."""
        return (self.half, self.seed, self.train_size, self.exclude_fingerprint) if self.half else PREPARED_SPLIT

    def dealt_as(self, run: "DataSpec") -> "DataSpec":
        """This data with its half dealt as for ``run``: another seed, training size or list of keys would deal other sets."""
        if not self.half:
            return self
        deal = {name: getattr(run, name) for name in ("seed", "train_size", "exclude", "exclude_fingerprint")}
        return replace(self, **deal)

    @property
    def to_be_prepared(self) -> bool:
        """Whether this is ``automatic`` data that does not exist yet."""
        return self.automatic and not (self.folder / MANIFEST).is_file()

    def check_options(self) -> None:
        """Raise UserError for an option that has no effect: one of raw shards for prepared data, or the other way round."""
        defaults = DataSpec(self.name)
        names, needed = OF_RAW_SHARDS, "raw shards; give data.shards=, or drop the option"
        if self.shards is not None:
            instead = "give data.exclude or other fractions, or run dejavu prepare data=shards"
            names, needed = OF_PREPARED_DATA, f"prepared data; with raw shards (data.shards) {instead}"
        for name in names:
            if getattr(self, name) != getattr(defaults, name):
                raise UserError(f"data.{name} needs {needed}")

    def check(self) -> None:
        """Raise UserError if the folder is not given, was not prepared, or with another schema or from another source."""
        self.check_dir()
        if not (self.folder / MANIFEST).is_file():
            where = "" if self.folder.is_absolute() else f" in {Path.cwd()}"
            absent = f"has no {MANIFEST}" if self.folder.is_dir() else f"does not exist{where}"
            raise UserError(f"data.dir={self.folder} {absent}; create it with dejavu prepare data=…")
        manifest = read_manifest(self.folder / MANIFEST)
        if self.shards is not None and "raw_shards" not in manifest:
            raise UserError(f"data.dir={self.folder} was not drawn from raw shards; give the folder of their samples")
        if self.automatic and self.reader:
            # The settings of generated data do not fit others: their objects, their prompts.
            with explained(f"{self.folder / MANIFEST} is damaged", "prepare the data again"):
                source = manifest["settings"].get("reader", {}).get("reader", "stream")
            if source != self.reader["type"]:
                raise UserError(f"data.dir={self.folder} was prepared with data={source}; give data=prepared")

    def check_dir(self) -> None:
        """Raise UserError if ``dir`` is missing; only generated data has a folder by default."""
        if self.dir is None and not self.automatic:
            raise UserError("data.dir is missing; give data.dir=…: the folder of dejavu prepare")

    @cached_property
    def excluded(self) -> frozenset[str]:
        """The keys in exclude, also those that readers make from a name or a path there.

        Raises UserError if the file cannot be read, or if its keys changed.
        """
        keys = excluded_keys(self.listed)
        if self.exclude_fingerprint not in (None, keys_fingerprint(keys)):
            raise UserError(
                f"data.exclude={self.exclude} lists other keys than when the run started; restore the file, or train again"
            )
        return keys

    @cached_property
    def listed(self) -> frozenset[str]:
        """The lines of exclude; raises UserError if the file cannot be read."""
        return frozenset(read_keys(self.exclude, "data.exclude")) if self.exclude is not None else frozenset()

    def warn_of_unknown_keys(self) -> None:
        """Warn if keys in ``exclude`` are in no set; remote data is not checked, since that would copy all of it."""
        if not self.excluded or self.shards is not None or self.is_remote:
            return
        named = (*self.public_sets.values(), self.public_set, self.labelled)
        elsewhere = [path for name in named if name for path in visible_files(self.set_folder(name), "*.tar")]
        present = set[str]()
        for path in dict.fromkeys((*visible_files(self.folder, "*/*.tar"), *elsewhere)):
            with suppress(UserError):  # a damaged shard is named where it is needed
                present.update(self.excluded.intersection(index_shard(path).keys))
        if unknown := [line for line in self.listed if present.isdisjoint(possible_keys(line))]:
            log.warning(
                "%d of %d keys in data.exclude=%s are in no set of the data; the first is %r",
                *(len(unknown), len(self.listed), self.exclude, min(unknown)),
            )

    def training_pairs(self, side: str) -> int:
        """The number of pairs that a side trains on; of raw shards given by ``pairs``, or known or estimated since sampling.

        Of remote data pairs in ``exclude`` count, too.
        """
        if self.shards is None:
            if self.prefix is not None:
                return self.prefix
            shards = self.shard_set(TRAINED_ON[side])
            return len(shards) - sum(map(len, self.local_exclusions(shards).values()))
        if (name := TRAINED_ON[side]) not in self.fractions:
            raise UserError(
                f"side={side} trains on {name}, of which data.fractions has no share; give data.fractions.{name}="
            )
        if self.pairs is not None:
            return int(self.pairs * self.fractions[name])
        return int(read_json_object(self.folder / MANIFEST)["raw_shards"]["pairs"][name])

    def local_exclusions(self, shards: ShardSet) -> dict[int, tuple[int, ...]]:
        """{shard: positions} of excluded pairs; none of remote data, since looking for keys would copy all shards."""
        return {} if self.is_remote else positions_of(shards, self.excluded)

    def raw_shards(self) -> RawShards:
        """The raw shards, of which ``folder`` has samples; raises UserError if these were drawn from others, or otherwise."""
        raw = RawShards(self.shards, self.fractions, self.seed, self.excluded)
        if (self.folder / MANIFEST).is_file():
            raw.check_samples(self.folder)
        return raw

    def shard_set(self, name: str) -> ShardSet:
        """The set A, B, H, V or P, another set of the data folder, or a folder of shards elsewhere."""
        if self.half and name in POOL:
            return open_half(self.folder, name, self.seed, self.half, self.train_size, self.excluded)
        return ShardSet.open(self.set_folder(name))

    def set_folder(self, name: str) -> Path:
        """The folder of a set of the data folder, or of a set elsewhere that is given by its path."""
        own = self.folder / name
        return own if own.is_dir() or not Path(name).is_dir() else Path(name)

    def set_name(self, name: str) -> str:
        """The name by which results of a set are kept: its folder's, or PARENT-NAME-DIGITS for a set elsewhere."""
        folder = Path(os.path.abspath(self.set_folder(name)))
        if folder.parent.resolve() == self.folder.resolve():
            return folder.name
        # Two folders may share the last two names, but not the whole path.
        return "-".join([*folder.parts[1:][-2:], fingerprint(str(folder.resolve()))[:6]])

    @property
    def public_set(self) -> str:
        """The set that ``public`` chooses: of the data folder, or a folder of shards."""
        return self.public_sets.get(self.public, self.public)

    @property
    def public_name(self) -> str:
        """The name by which results of the public set are kept, such as its objects."""
        return self.set_name(self.public_set)

    def public_folder(self) -> Path:
        """The shards of the public set chosen by ``data.public``; raises UserError for an unknown one."""
        folder = self.set_folder(self.public_set)
        if self.public in self.public_sets or folder.is_dir():
            return folder
        raise UserError(
            f"data.public={self.public} is neither one of {', '.join(self.public_sets)}"
            f"{suggest(self.public, self.public_sets)} nor another set of {self.folder} nor a folder of shards"
        )

    def objects_folder(self, choice: str | None = None, option: str = "objects") -> Path:
        """The object artifact chosen by ``option`` (a name or a folder), else the data's own, else the only one there is."""
        known, name = self._object_names(), choice or self.objects
        if not name:
            if not known:
                raise UserError(
                    "this data has no objects of its own; detect them with dejavu annotate, and give objects=NAME or FOLDER"
                )
            if len(known) > 1:
                raise UserError(f"objects is missing; give objects=NAME, one of {', '.join(known)}")
            name = known[0]
            log.info("objects=%s: the only object artifact of %s", name, self.folder)
        fetch_objects(self.folder, name)
        for folder in (self.folder / "objects" / name, Path(name)):
            if folder.is_dir():
                return folder
        raise UserError(
            f"{option}={name} is neither one of {', '.join(known) or 'none'}{suggest(name, known)} nor a folder"
        )

    def _object_names(self) -> list[str]:
        """The names of the object artifacts in the data folder that have a part; of remote data also that which came with it."""
        names = {path.parent.parent.name for path in visible_files(self.folder / "objects", "*/*/*.parquet")}
        if self.is_remote:
            about = read_json_object(self.folder / MANIFEST)["sets"].values()
            names |= {entry["objects"] for entry in about if entry.get("objects")}
        return sorted(names)


def ready(data: DataSpec) -> DataSpec:
    """``data`` with the fingerprint of the keys in exclude; ``automatic`` data is prepared if it is missing."""
    if data.to_be_prepared:
        prepare_data(data)
    return pinned(data)


def pinned(data: DataSpec) -> DataSpec:
    """``data`` with the fingerprint of the keys in exclude, so that other keys are other settings."""
    if data.exclude is None:
        return data
    return replace(data, exclude_fingerprint=keys_fingerprint(excluded_keys(data.listed)))


def prepare_data(
    spec: DataSpec, wait: bool = True, workers: int = 2, max_skipped: float = 0.05, **options: Any
) -> None:
    """Prepare the data of ``spec``; of processes that start together, one does and the others wait.

    Args:
        wait: whether to wait for a process that works in the folder, or to raise UserError.
        workers, max_skipped, options: as ``Preparation`` and its ``run`` take them.

    Raises UserError without a reader, for a remote folder, and as these do.
    """
    from dejavu_lit.data.prepare import Preparation  # loads scipy, which nothing else here needs

    spec.check_options()
    if spec.reader is None and spec.shards is None:
        raise UserError(f"data={spec.name} has no reader; choose data=coco, folder, table or shards to prepare from")
    spec.check_dir()
    if spec.is_remote:
        raise UserError(f"data.dir={spec.dir} is remote; prepare into a local folder and copy it there")
    with locked(spec.folder / ".lock", wait):
        if spec.shards is not None:
            write_samples(spec.raw_shards(), spec.sizes, spec.folder)
            return
        extra = {name: READERS.build(reader, f"data.extra.{name}") for name, reader in spec.extra.items()}
        source = READERS.build(spec.reader), spec.folder, spec.sizes, spec.seed, spec.near_duplicates
        Preparation(*source, extra=extra, **options).run(workers, max_skipped)
