"""One side of an evaluation: a model, a run of ours or finished embeddings, and what is known of its training."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from dejavu_lit.data.epoch import epoch_plan, exposures
from dejavu_lit.data.exclude import later_duplicates, positions_of
from dejavu_lit.data.prepared import MANIFEST, TRAINED_ON, DataSpec
from dejavu_lit.data.shards import ShardSet
from dejavu_lit.evaluation.embeddings import Embeddings
from dejavu_lit.utils.errors import UserError
from dejavu_lit.utils.io import file_sha256, read_object
from dejavu_lit.utils.run_directory import RUN_SCHEMA, identity, read_config

if TYPE_CHECKING:
    from dejavu_lit.models.encoder import Encoder

Modality = Literal["image", "text"]


@dataclass(frozen=True)
class Side:
    """``target=`` or ``reference=`` as the user gave it: RUN[@EPOCH] | MODEL | embeddings:DIR | text:MODEL."""

    name: str
    store: Path  # embeddings of models that are no run of ours go below this folder
    device: str = "cpu"
    workers: int = 2

    @cached_property
    def run(self) -> Path | None:
        """The run directory, None for anything else."""
        for text in (self.name, self.name.rpartition("@")[0]):
            if text and (Path(text).expanduser() / "config.yaml").is_file():
                return Path(text).expanduser()
        return None

    @cached_property
    def given(self) -> Path | None:
        """The folder of ``embeddings:DIR``, None for anything else."""
        return Path(self.name.removeprefix("embeddings:")).expanduser() if self.name.startswith("embeddings:") else None

    @property
    def captions_only(self) -> bool:
        """Whether this is a sentence-embedding model, the reference of the one-model test."""
        return self.name.startswith("text:")

    @cached_property
    def config(self) -> dict[str, Any]:
        """The run's settings; empty for anything else."""
        return read_config(self.run) if self.run else {}

    @cached_property
    def data(self) -> DataSpec | None:
        """The data that the run was trained on; None for anything else."""
        if not self.run:
            return None
        try:  # a description and no more: nothing that it names is called
            return DataSpec(**{k: v for k, v in self.config["data"].items() if k != "_target_"})
        except (KeyError, TypeError, AttributeError) as error:
            raise UserError(
                f"{self.run}/config.yaml says of its data what this version does not know ({error})"
            ) from None

    @property
    def identity(self) -> str:
        """What decides the model whatever folder it lies in: a run's settings and epoch, else the name."""
        if not self.run:
            return self.name
        return f"run {identity(self.config)} epoch {self.epoch or 'last'}"

    @property
    def epoch(self) -> int | None:
        """The epoch of RUN@EPOCH; None for the end of the run."""
        text = self.name.rpartition("@")[2]
        return int(text) if self.run != Path(self.name).expanduser() and text.isdigit() else None

    @property
    def weights(self) -> dict[str, Path]:
        """{name: file} of what holds its weights, or the vectors of ``embeddings:DIR``; {} where no path is known."""
        return weight_files(self.name, self.run, self.epoch)

    @cached_property
    def record(self) -> dict[str, Any]:
        """What the run wrote when it ended; empty for anything else.

        Raises:
            UserError: the run is not finished and no epoch of it was asked for.
        """
        if not self.run:
            return {}
        path = self.run / "run.json"
        if not path.is_file():
            if "@" in self.name:
                return {}
            raise UserError(f"{self.run} is not finished; start dejavu train again in it, or evaluate {self.run}@EPOCH")
        return read_object(path, RUN_SCHEMA)

    @property
    def trained_on(self) -> str | None:
        """The set that the run trained on, A or B; None where it is not known."""
        return TRAINED_ON.get(self.config.get("side", ""))

    @cached_property
    def encoder(self) -> "Encoder":
        """The model, loaded when it is first needed."""
        from dejavu_lit.models.zoo import load_encoder

        return load_encoder(self.name, self.device)

    def embeddings(self, shards: ShardSet, name: str, modality: Modality, limit: int | None = None) -> Embeddings:
        """The embeddings of one set, made where they are missing."""
        if self.given:
            return Embeddings.open(self.given / name / modality)
        from dejavu_lit.evaluation.embed import embed

        return embed(self.encoder, shards, modality, self._folder(name, modality), limit, self.workers)

    def embed_share(
        self, shards: ShardSet, name: str, modality: Modality, limit: int | None, share: tuple[int, int]
    ) -> None:
        """Make what is missing of every n-th shard from the i-th on, for ``share`` = (i, n)."""
        if not self.given:
            from dejavu_lit.evaluation.embed import write_missing

            write_missing(
                self.encoder, shards, modality, self._folder(name, modality), limit, self.workers, share=share
            )

    def saved(self, shards: ShardSet, name: str, modality: Modality) -> Embeddings | None:
        """The embeddings of a whole set where they are there already, else None."""
        if self.given:
            return Embeddings.open(self.given / name / modality)
        folder = self._folder(name, modality)
        whole = all((folder / f"{Path(shard).stem}.npy").is_file() for shard in shards.names)
        return self.embeddings(shards, name, modality) if whole else None

    def _folder(self, name: str, modality: Modality) -> Path:
        root = self.run / "embeddings" if self.run else self.store
        return root / f"{Path(self.name).name}-{self.encoder.fingerprint[:8]}" / f"{name}-{modality}"

    def at(self, epoch: int, device: str) -> "Side":
        """The run as it was after ``epoch`` epochs where it kept that checkpoint, else this side; its model not yet loaded."""
        name = self.name
        if (
            self.run is not None
            and self.epoch is None
            and (self.run / "checkpoints" / f"epoch={epoch:04d}.ckpt").is_file()
        ):
            name = f"{self.run}@{epoch}"
        return replace(self, name=name, device=device)

    def exposure(self, shards: ShardSet) -> np.ndarray | None:
        """How often each pair of the training set was seen, int64 [pairs not excluded]; None where it is not known."""
        if self.data is None or not self.record or self.trained_on is None:
            return None
        given = self.record["plan"]
        excluded = positions_of(shards, self.data.excluded)
        removed = None
        if self.config.get("mitigation", {}).get("dedup"):
            manifest = self.data.folder / MANIFEST
            removed = later_duplicates(manifest, self.trained_on, shards, self.data.train_size, excluded)
        plan = epoch_plan(
            shards.sizes,
            given["seed"],
            0,
            given["world"],
            given["workers"],
            given["batch"],
            self.data.train_size,
            self.data.repeats(),
            excluded,
            removed,
        )
        return exposures(plan, plan.steps * self.epoch if self.epoch else int(self.record["batches"]))


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
