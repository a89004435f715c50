"""The model on one side of an evaluation: a run, another model or finished embeddings, and how it was trained."""

import os
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from shlex import quote
from typing import TYPE_CHECKING, Any

import numpy as np

from dejavu_lit.data.epoch import epoch_plan, exposures
from dejavu_lit.data.halves import POOL
from dejavu_lit.data.key_lists import later_duplicates, positions_of
from dejavu_lit.data.manifest import MANIFEST
from dejavu_lit.data.prepared import PREPARED_SPLIT, TRAINED_ON, DataSpec
from dejavu_lit.data.shards import ShardSet
from dejavu_lit.evaluation.embeddings import Embeddings, Modality
from dejavu_lit.models.model_name import ModelName
from dejavu_lit.utils.errors import UserError, explained
from dejavu_lit.utils.io import file_sha256, fingerprint
from dejavu_lit.utils.run_directory import RunDirectory, identity

if TYPE_CHECKING:
    from dejavu_lit.models.encoder import Encoder

# Of the files in a folder, those with weights or embeddings, and those that say how images and captions are read.
SUFFIXES = (
    *(".safetensors", ".bin", ".pt", ".pth", ".ckpt", ".npy"),
    *("config.json", "tokenizer.json", "_tokens.json", "_tokens_map.json"),
    *("vocab.json", "vocab.txt", "merges.txt", ".model"),
)


@dataclass(frozen=True)
class AuditedModel:
    """``target=`` or ``reference=`` as the user gave it: RUN[@EPOCH] | MODEL | embeddings:DIR | text:MODEL."""

    name: str
    store: Path  # the folder for embeddings, except for those that are kept in a run
    device: str = "cpu"
    workers: int = 2
    keep_in_run: bool = True  # whether a run's embeddings are kept in the run, if it can be written
    measured: DataSpec | None = None  # the data that is measured

    @cached_property
    def model_name(self) -> ModelName:
        """The parts of ``name``."""
        return ModelName.parse(self.name)

    @property
    def run(self) -> Path | None:
        """The run directory; None for anything else."""
        return self.model_name.run

    @property
    def embeddings_folder(self) -> Path | None:
        """The folder of ``embeddings:DIR``; None for anything else."""
        return self.model_name.path if self.model_name.kind == "embeddings" else None

    @property
    def captions_only(self) -> bool:
        """Whether this is a sentence-embedding model, the reference of the one-model test."""
        return self.model_name.kind == "text"

    @cached_property
    def config(self) -> dict[str, Any]:
        """The run's settings; empty for anything else."""
        return RunDirectory(self.run).config() if self.run else {}

    @cached_property
    def data(self) -> DataSpec | None:
        """The data that the run was trained on; None for anything else.

        If the measured data excludes the same keys, its file counts: the run's own may have been moved since.
        """
        if not self.run:
            return None
        data, measured = RunDirectory(self.run).read(DataSpec, "data"), self.measured
        keys = data.exclude_fingerprint
        if keys is not None and measured is not None and measured.exclude_fingerprint == keys:
            return replace(data, exclude=measured.exclude)
        return data

    @property
    def identity(self) -> str:
        """What determines the model, wherever it is stored: a run's settings and epoch, else the name."""
        if not self.run:
            return self.name
        return f"run {identity(self.config)} epoch {self.model_name.epoch_number or 'last'}"

    @property
    def weights(self) -> dict[str, Path]:
        """{name: file} of its weights, or of the vectors of ``embeddings:DIR``; {} if the name gives no local path."""
        name = self.model_name
        if name.run is not None:
            if name.epoch_number is None:
                return {path.name: path for path in sorted(name.run.glob("model/*.safetensors"))}
            checkpoint = RunDirectory(name.run).checkpoint(name.epoch_number)
            return {checkpoint.name: checkpoint} if checkpoint.exists() else {}
        if name.path is not None and name.epoch is None and name.path.is_dir():
            files = sorted(file for file in name.path.rglob("*") if file.name.endswith(SUFFIXES) and file.is_file())
            return {str(file.relative_to(name.path)): file for file in files}
        if name.kind == "released" and Path(name.weights).is_file():
            from open_clip.pretrained import get_pretrained_cfg  # imports torch

            # open_clip prefers a released tag to a file of that name.
            if not get_pretrained_cfg(name.architecture, name.weights):
                return {Path(name.weights).name: Path(name.weights)}
        return {}

    @cached_property
    def run_json(self) -> dict[str, Any]:
        """What the run wrote when it finished; empty for anything else, and for an epoch of an unfinished run.

        Raises UserError if the run is not finished and the name gives no epoch.
        """
        if not self.run:
            return {}
        if not RunDirectory(self.run).finished:
            if self.model_name.epoch is not None:
                return {}
            raise UserError(
                f"{self.run} is not finished; run dejavu resume {quote(str(self.run))}, or evaluate {self.run}@EPOCH"
            )
        return RunDirectory(self.run).record()

    @property
    def trained_on(self) -> str | None:
        """The set that the run trained on, A or B; None if unknown."""
        return TRAINED_ON.get(self.config.get("side", ""))

    @cached_property
    def encoder(self) -> "Encoder":
        """The model, loaded on first use."""
        from dejavu_lit.models.zoo import load_encoder

        return load_encoder(self.name, self.device)

    def embeddings(self, shards: ShardSet, name: str, modality: Modality, limit: int | None = None) -> Embeddings:
        """The embeddings of the set ``name``, computed if missing; ``limit``: of at least its first pairs."""
        self.embed(shards, name, modality, limit)
        return Embeddings.open(self._folder(name, modality))

    def embed(
        self, shards: ShardSet, name: str, modality: Modality, limit: int | None = None, share: tuple[int, int] = (0, 1)
    ) -> None:
        """Compute the missing embeddings, of every n-th shard from the i-th on for ``share`` = (i, n)."""
        if not self.embeddings_folder:
            from dejavu_lit.evaluation.embed import embed

            embed(self.encoder, shards, modality, self._folder(name, modality), limit, self.workers, share)

    def saved(self, shards: ShardSet, name: str, modality: Modality) -> Embeddings | None:
        """The embeddings of a set if all of them exist already, else None."""
        folder = self._folder(name, modality)
        parts = [folder / f"{Path(shard).stem}.npy" for shard in shards.names]
        is_complete = self.embeddings_folder is not None or all(part.is_file() for part in parts)
        return self.embeddings(shards, name, modality) if is_complete else None

    def _folder(self, name: str, modality: Modality) -> Path:
        """The folder for the embeddings of the set ``name``; loads the model for its fingerprint."""
        if self.embeddings_folder:
            return self.embeddings_folder / name / modality
        own, deal = (data.deal if data else PREPARED_SPLIT for data in (self.data, self.measured))
        # A base is measured on the pairs of every half.
        other_deal = f"-h{deal[0]}-{fingerprint(deal)[:6]}" if name in POOL and deal != own else ""
        folder = Path(f"{Path(self.name).name}-{self.encoder.fingerprint[:8]}", f"{name}-{modality}{other_deal}")
        if self.run and self.keep_in_run:
            kept = self.run / "embeddings" / folder
            nearest = next(path for path in (kept, *kept.absolute().parents) if path.exists())
            if os.access(nearest, os.W_OK):
                return kept
        return self.store / folder

    def at(self, epoch: int, device: str) -> "AuditedModel":
        """The run's checkpoint of ``epoch`` if it exists, else this model; not yet loaded."""
        run = self.run if self.model_name.epoch_number is None else None
        if run is not None and RunDirectory(run).checkpoint(epoch).is_file():
            return replace(self, name=f"{run}@{epoch}", device=device)
        return replace(self, device=device)

    def exposure(self, shards: ShardSet) -> np.ndarray | None:
        """How often training saw each pair of its set, int64 [pairs not excluded]; None if unknown: raw shards, other sets."""
        if self.data is None or self.data.shards is not None or not self.run_json:
            return None
        if self.trained_on != shards.folder.name:
            return None
        manifest = shards.folder.parent / MANIFEST
        if self.run_json.get("data") not in (None, file_sha256(manifest)):
            return None
        excluded, epochs = positions_of(shards, self.data.excluded), self.config["recipe"]["epochs"]
        removed = None
        if self.config.get("mitigation", {}).get("dedup"):
            removed = later_duplicates(manifest, shards, self.data.prefix, excluded)
        damage = f"{self.run}/run.json is damaged: plan or batches"
        with explained(damage, "restore it, or train again", errors=(ArithmeticError, KeyError, TypeError, ValueError)):
            saved_plan, batches = self.run_json["plan"], int(self.run_json["batches"])
            seed, world, workers, batch = (int(saved_plan[name]) for name in ("seed", "world", "workers", "batch"))
            plan = epoch_plan(
                shards.sizes, seed, 0, world, workers, batch, self.data.prefix, self.data.repeat, excluded, removed
            )
            if batches > plan.steps * epochs:  # counting them might take forever
                raise ValueError(f"{batches} batches of {plan.steps} per epoch are more than {epochs} epochs")
            epoch = self.model_name.epoch_number
            return exposures(plan, plan.steps * epoch if epoch else batches)


def weight_states(files: Mapping[str, Path]) -> dict[str, Any]:
    """{name: {sha256}} of weight files."""
    return {name: {"sha256": file_sha256(file)} for name, file in files.items()}


def changed_weights(files: Mapping[str, Path], known: Mapping[str, Any]) -> Path | None:
    """The first file whose contents differ from ``known``, the states of an earlier call; None if there is none.

    Files that are missing now, or were not known then, do not count.
    """
    seen = (name for name in files if name in known)
    return next((files[name] for name in seen if file_sha256(files[name]) != known[name]["sha256"]), None)
