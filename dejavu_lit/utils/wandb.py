"""Weights & Biases: project, group and id of a run, an evaluation or a study. Nothing heavy is imported."""

import os
import re
import secrets
import signal
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from dejavu_lit.utils.errors import UserError, explained
from dejavu_lit.utils.io import read_json, read_json_object, write_json

FOLDER = "wandb"  # below a run, an evaluation or a study
STUDY_PARTS = ("runs", "evaluations")  # folders of a study, in which its runs and evaluations lie
TAG_LENGTH = 64  # of wandb


@dataclass  # not frozen: OmegaConf cannot fill a frozen one that is null by default
class Wandb:
    """Settings of Weights & Biases; offline runs are uploaded later by ``wandb sync DIR``."""

    project: str = field(default_factory=lambda: os.environ.get("WANDB_PROJECT") or "dejavu-lit")
    """Project of the runs; by default that of WANDB_PROJECT, if it is set."""
    group: str | None = None
    """Group; null: that of the evaluated runs, or the name of the folder that they lie in."""
    tags: list[str] = field(default_factory=list)
    """Tags; []: the overrides as typed."""
    offline: bool = True
    """Write to disk only; upload later by ``wandb sync DIR``."""


@dataclass(frozen=True)
class LoggerSettings:
    """Which dashboards get the numbers; ``metrics.csv`` is always written."""

    wandb: Wandb | None = None
    """Log to Weights & Biases; null: off."""
    tensorboard: bool = False
    """Write TensorBoard event files."""

    def __post_init__(self) -> None:
        for enabled, module in ((self.wandb is not None, "wandb"), (self.tensorboard, "tensorboard")):
            if enabled and find_spec(module) is None:
                raise UserError(f"logger={module} needs the package: pip install 'dejavu-lit[{module}]'")


def with_tags(logger: LoggerSettings, overrides: Iterable[str]) -> LoggerSettings:
    """``logger`` with the overrides as wandb's tags, unless tags were given; without paths and logger options."""
    if logger.wandb is None or logger.wandb.tags:
        return logger
    typed = (override.lstrip("+~") for override in overrides)
    excluded = ("out=", "data.dir=", "logger", "target=", "reference=")
    tags = list(dict.fromkeys(o[:TAG_LENGTH] for o in typed if not o.startswith(excluded)))
    return replace(logger, wandb=replace(logger.wandb, tags=tags))


def wandb_options(out: Path, settings: Wandb, job_type: str, beside: Path | None = None) -> dict[str, Any]:
    """The keywords of ``wandb.init`` for what lies in ``out``: the same id each time, so that runs resume.

    ``job_type`` is target, reference, evaluation or study. The group is by default that of the run ``beside``.
    Raises UserError if id.json is damaged.
    """
    path = out / FOLDER / "id.json"
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        theirs = beside / FOLDER / "id.json" if beside else None
        group = settings.group or (read_json(theirs).get("group") if theirs and theirs.is_file() else None)
        home = out.resolve() if job_type == "study" else out.resolve().parent
        home = home.parent if home.name in STUDY_PARTS else home
        agents = os.environ.get("WANDB_RUN_ID") if "WANDB_SWEEP_ID" in os.environ else None  # it insists on its own
        write_json(path, {"id": agents or secrets.token_hex(4), "group": group or home.name})
    known = read_json_object(path)
    id = known.get("id")  # a part of paths, some of which are deleted
    if not isinstance(id, str) or not re.fullmatch(r"[^/*?[\]]+", id):
        raise UserError(f"{path} has no id of a wandb run; remove it to log as a new run")
    name = out.name if not out.name.isdecimal() else f"{out.resolve().parent.name}-{out.name}"  # a job of a multirun
    return {
        "name": name,
        "project": settings.project,
        "group": known.get("group"),
        "id": id,
        "job_type": job_type,
        "tags": settings.tags or None,
    }


@contextmanager
def starting(offline: bool) -> Iterator[None]:
    """A block that starts a wandb run, whose process blocks the warning signals: they reach all processes of a job.

    Raises UserError if it cannot begin: nobody is logged in, or the server does not answer.
    """
    online = "check `wandb login`, WANDB_BASE_URL and the network, or use logger.wandb.offline=true"
    remedy = "continue without it by logger=csv" if offline else online
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, (signal.SIGUSR1, signal.SIGUSR2))
    try:
        with explained("wandb failed to start", remedy, "wandb"):
            yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)


def quiet() -> bool:
    """Whether to silence wandb's own messages: unless stderr is a terminal."""
    return not sys.stderr.isatty()
