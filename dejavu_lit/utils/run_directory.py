"""The run directory: config.yaml, checkpoints/, model/, run.json, its lock, and what identifies the run in it."""

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from shutil import rmtree
from typing import Any, TypeVar

import yaml

from dejavu_lit.utils.config import as_typed, read, to_plain
from dejavu_lit.utils.distributed import rank
from dejavu_lit.utils.errors import UserError, explained
from dejavu_lit.utils.io import fingerprint, locked, parse_json, read_json_object, write_text

T = TypeVar("T")
# Settings that may change when a run is continued: they change where and how it is computed, not what.
NOT_IDENTIFYING = ("out", "trainer", "logger", "gaps")
CONFIG_SCHEMA = 2  # of config.yaml; version 1 had no entry for it, and named classes to be called
RUN_SCHEMA = 1  # of run.json
METRICS = "metrics.csv"  # of a training
PARTNER = "partner"  # gaps.reference of a study: the reference run of the same setting


@dataclass(frozen=True)
class RunDirectory:
    """The directory of one run (or of another command that keeps its settings in config.yaml)."""

    path: Path

    @property
    def config_file(self) -> Path:
        return self.path / "config.yaml"

    @property
    def record_file(self) -> Path:
        """run.json, written last: a directory with this file is finished."""
        return self.path / "run.json"

    @property
    def last_checkpoint(self) -> Path:
        return self.checkpoint("last")

    @property
    def model(self) -> Path:
        return self.path / "model"

    def checkpoint(self, epoch: int | str) -> Path:
        """The weights after an epoch, counted from 1."""
        return self.path / "checkpoints" / (f"epoch={epoch:04d}.ckpt" if isinstance(epoch, int) else f"{epoch}.ckpt")

    def saved_epochs(self) -> list[int]:
        """The epochs whose weights were kept, ascending."""
        names = (path.stem.removeprefix("epoch=") for path in self.last_checkpoint.parent.glob("epoch=*.ckpt"))
        return sorted(int(name) for name in names if name.isdecimal())

    @property
    def exists(self) -> bool:
        return self.config_file.is_file()

    @property
    def finished(self) -> bool:
        return self.record_file.is_file()

    @property
    def started(self) -> bool:
        """Whether there is anything that other settings would contradict; a run that failed before is taken over."""
        return self.finished or self.last_checkpoint.exists()

    def record(self) -> dict[str, Any]:
        """run.json; raises UserError if it is missing or damaged."""
        record = read_json_object(self.record_file, RUN_SCHEMA)
        if wrong := [
            name for name in ("epochs", "train_size", "seconds") if not isinstance(record.get(name, 0), int | float)
        ]:
            raise UserError(
                f"{self.record_file} is damaged: its entry {wrong[0]} is not a number; restore it, or train again"
            )
        return record

    def config(self) -> dict[str, Any]:
        """The saved settings as a mapping; raises UserError if there are none, or none of this version."""
        if not self.exists:
            raise UserError(
                f"{self.path} is not a run directory (it has no config.yaml); give the out= of dejavu train"
            )
        remedy = "restore it, or start over in another directory"
        with explained(f"{self.config_file} cannot be read as settings", remedy):
            # Through JSON, in which its values are saved elsewhere: it has no dates, NaN or references of a value to itself.
            config = parse_json(json.dumps(yaml.safe_load(self.config_file.read_text(encoding="utf-8"))))
        if not isinstance(config, dict) or not isinstance(config.get("mitigation", {}), dict):
            raise UserError(f"{self.config_file} is not a mapping of settings; {remedy}")
        if (version := config.pop("schema", 1)) != CONFIG_SCHEMA:
            raise UserError(
                f"{self.config_file} has version {version} of the settings, and this is version {CONFIG_SCHEMA}; use the "
                "dejavu-lit that wrote it, or start over in another directory"
            )
        return config

    def read(self, settings: type[T], section: str = "") -> T:
        """The saved settings, all or those of a section, as a dataclass.

        Raises UserError for unknown names, wrong types and missing values.
        """
        config = self.config()
        values = config.get(section) if section else config
        if not isinstance(values, Mapping):
            raise UserError(f"{self.config_file}: {section} is missing; restore it, or start over in another directory")
        try:
            return read(settings, values, section)
        except (UserError, RecursionError) as error:  # it may refer to itself
            raise UserError(f"{self.config_file} does not fit this version: {error}") from None

    def save(self, settings: Any) -> None:
        """Save a dataclass (or a mapping) as the settings.

        If they replace those of a run without a checkpoint, its weights are removed, and the dashboards get a run of their own.
        A config.yaml of another program raises UserError: its files are not ours to remove.
        """
        if self.exists and not self.started and first_difference(self.config(), to_plain(settings)):
            for path in self._replaced:
                path.unlink()
            rmtree(self.path / "tensorboard", ignore_errors=True)
        values = {"schema": CONFIG_SCHEMA, **to_plain(settings)}
        write_text(self.config_file, yaml.safe_dump(values, sort_keys=False, allow_unicode=True))

    @property
    def _replaced(self) -> list[Path]:
        """The files of a run without a checkpoint that other settings would not fit."""
        weights = [*map(self.checkpoint, self.saved_epochs()), *self.model.glob("*.safetensors")]
        return [path for path in (*weights, self.path / "wandb" / "id.json") if path.exists()]

    def refuse_training(self) -> None:
        """Raise UserError if a training has this directory: another command would continue or replace its dashboards."""
        try:
            is_training = self.exists and "side" in self.config()
        except UserError:  # of another version, or another program's file
            is_training = self.started
        if is_training:
            raise UserError(f"out={self.path} is the directory of a training; choose another folder")

    def check(self, settings: Any, take_over: bool = True) -> None:
        """Raise UserError for files of another program, and for a run with other ``settings`` that may not be taken over."""
        if not self.exists:
            weights = self.model / "open_clip_model.safetensors"  # not its config: another rank may have written that
            written = (self.path / METRICS, self.record_file, self.last_checkpoint, weights)
            if other := next((path for path in written if path.exists()), None):
                raise UserError(
                    f"{other} would be replaced, and {self.path} is not a run directory (it has no config.yaml); choose another "
                    "out="
                )
        elif changed := first_difference(self.config(), to_plain(settings)):
            if self.started or not take_over:
                raise UserError(
                    f"{self.path} has a run with other settings ({changed}); choose another out= or remove it"
                )
            if link := next((path.parent for path in self._replaced if path.parent.is_symlink()), None):
                raise UserError(
                    f"{link} is a link to files of a run with other settings ({changed}), which are not removed there; choose "
                    "another out= or remove the link"
                )

    @contextmanager
    def opened(self, settings: Any, take_over: bool = True) -> Iterator[None]:
        """Lock the directory for the time of a run and save its settings; with several ranks, rank 0 does so for all.

        Every rank checks the directory before it writes there. ``take_over``: replace settings of a run without a checkpoint.
        Raises UserError if another process works there, or it has a run with other settings.
        """
        self.path.mkdir(parents=True, exist_ok=True)
        if rank() > 0:
            self.check(settings, take_over)  # rank 0 may have saved the same settings already
            yield
            return
        with locked(self.path / ".lock", wait=False):
            self.check(settings, take_over)
            if not self.exists or (take_over and not self.started):
                self.save(settings)
            yield


def first_difference(old: Any, new: Any, path: str = "") -> str | None:
    """The first setting in which two configs differ, as ``a.b: old → new``; None if they agree."""
    if isinstance(old, list) and isinstance(new, list) and len(old) == len(new):
        old, new = dict(enumerate(old)), dict(enumerate(new))
    if isinstance(old, Mapping) and isinstance(new, Mapping):
        if not path:
            old, new = identifying_settings(old), identifying_settings(new)
        for key in dict.fromkeys([*old, *new]):
            if change := first_difference(old.get(key), new.get(key), f"{path}.{key}" if path else str(key)):
                return change
        return None
    return None if old == new else f"{path}: {as_typed(old)} → {as_typed(new)}"


def identity(settings: Any) -> str:
    """Fingerprint of what a run computes, whatever its directory, machine and loggers."""
    return fingerprint(identifying_settings(to_plain(settings)))


def identifying_settings(config: Mapping[str, Any]) -> dict[str, Any]:
    """The settings that decide what a run computes; with a gap budget, how gaps are measured is one of them."""
    kept = {key: value for key, value in config.items() if key not in NOT_IDENTIFYING}
    mitigation, gaps = (
        part if isinstance(part := config.get(name), Mapping) else {} for name in ("mitigation", "gaps")
    )
    if mitigation.get("gap_budget") is None:
        return kept
    if config.get("side") == "reference" and gaps.get("reference") is None:  # nothing is measured, so nothing stops it
        return kept | {"mitigation": {**mitigation, "gap_budget": None}}
    return kept | {"gaps": {key: value for key, value in gaps.items() if key != "reference"}}
