"""The settings of a study, composed and checked before anything is trained."""

import json
import logging
from collections.abc import Container, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dejavu_lit.cli.app import settings as compose_settings
from dejavu_lit.cli.options import Mitigate
from dejavu_lit.data.prepared import DataSpec, ready
from dejavu_lit.data.remote import is_remote
from dejavu_lit.evaluation.run import check_evaluation
from dejavu_lit.evaluation.settings import DataChanges, EvaluationSettings
from dejavu_lit.models.settings import ModelSpec
from dejavu_lit.training.resume import check_data, check_device, check_models
from dejavu_lit.training.settings import TrainingRun
from dejavu_lit.utils.config import take, to_plain
from dejavu_lit.utils.errors import UserError, check_choice, check_range
from dejavu_lit.utils.progress import progress
from dejavu_lit.utils.run_directory import PARTNER, RunDirectory
from dejavu_lit.utils.wandb import with_tags

if TYPE_CHECKING:
    from dejavu_lit.study.plan import PlannedRow

log = logging.getLogger(__name__)

MAX_HALVES = 1000  # each trains two models per setting: a larger number is a typing mistake
# Options of the whole study, which a setting may not override.
STUDY_OPTIONS = (
    "settings", "series", "sizes", "seeds", "halves", "launcher", "slurm", "utility_loss", "plan_only", "out", "experiment",
    "hydra", "trainer",  # a run is identified by what it computes, not by where and how
    "evaluate.report",
)  # fmt: skip


def check_options(settings: Mitigate) -> None:
    """Raise UserError for the first of the study's own options that has the wrong form."""
    if not settings.settings:
        raise UserError(
            "there are no settings; choose experiment=NAME, or add some, e.g. \"settings.mask=['mitigation.text_mask=0.5']\""
        )
    for name, overrides in settings.settings.items():
        _check_overrides(f"settings.{name}", overrides)
    _check_values("seeds", settings.seeds, 0)
    _check_values("sizes", settings.sizes, 1, " (null: all pairs)")
    check_range(settings, "", f"[1, {MAX_HALVES}]", "halves")
    if settings.halves > 1 and len(settings.seeds) > 1:
        raise UserError(
            f"halves={settings.halves} gives every half its own seed, starting from a single one; keep one of "
            f"seeds={list(settings.seeds)}"
        )
    check_choice("launcher", settings.launcher, ("local", "slurm"))
    _check_series(settings.series, settings.sizes)
    check_range(settings, "", "[0, 1]", "utility_loss")


def planned_rows(study: Mitigate, out: Path) -> list["PlannedRow"]:
    """Every row of the study in ``out``, with the settings of its runs and its evaluation.

    Data that need no source are prepared if they are missing, unless only the plan is shown; nothing is trained.

    Raises:
        UserError: a wrong option, an unknown override or an invalid value, with the name of the setting.
    """
    from dejavu_lit.measure.records import SIDES
    from dejavu_lit.study.plan import PlannedRow

    settings = list(_settings(study))
    _check_folder_names((name, size) for name, _, _, size in settings)
    checked: set[str] = set()
    files = list((out / "runs").glob("*/config.yaml"))
    directories = (RunDirectory(file.parent) for file in progress(files, "looking at earlier runs", unit="run"))
    started = {directory.read(ModelSpec, "model").init for directory in directories if directory.started} - {None}
    rows: list[PlannedRow] = []
    for name, series, overrides, size in progress(settings, "checking settings", unit="setting"):
        with _prefixed(f"settings.{name}"):
            setting = compose_settings("mitigate", *study.typed, *overrides)
            if size is not None and any(override.lstrip("+~").startswith("data.train_size=") for override in overrides):
                raise UserError(f"data.train_size is set here and by sizes={list(study.sizes)}; set it in one place")
            if setting.data.half:
                raise UserError(f"data.half={setting.data.half} is not for one setting; halves=R trains random halves")
            runs = {side: _run(setting, side, overrides, size) for side in SIDES}
            evaluation = setting.evaluate
            address, given = setting.data.dir, evaluation.data
            if is_remote(str(address)) and isinstance(given, DataChanges) and given.dir is None:
                # given here, so evaluations may open it
                evaluation = replace(evaluation, data=replace(given, dir=address))
            runs = _checked(study, runs, setting.evaluate, checked, started)
            if size is None:
                _check_all_pairs(study, runs["target"].data)
            for half, seed in product(range(study.halves), study.seeds):
                if half and not isinstance(evaluation.data, DataChanges):  # given data are dealt likewise
                    evaluation = replace(evaluation, data=replace(evaluation.data, half=half))
                row = PlannedRow(
                    name=name,
                    overrides=overrides,
                    train_size=size,
                    seed=seed + half,
                    series=series,
                    half=half,
                    evaluation=evaluation,
                    runs={
                        side: replace(run, seed=seed + half, data=replace(run.data, half=half))
                        for side, run in runs.items()
                    },
                )
                rows.append(row)
            if study.halves > 1:
                _check_half(rows[-1].runs["target"], evaluation)
    return rows


def _check_all_pairs(study: Mitigate, data: DataSpec) -> None:
    """Raise UserError if the size null, which means all pairs, is also in ``sizes`` as a number: copies are no seed pairs."""
    if len(study.sizes) > 1 and not data.to_be_prepared and (every := data.training_pairs("target")) in study.sizes:
        raise UserError(f"sizes={list(study.sizes)} lists one size twice (null means all {every} pairs); remove one")


def _check_half(run: TrainingRun, evaluation: EvaluationSettings) -> None:
    """Refuse halves of data whose members were listed, of runs that measure their gaps while training, and of listed keys."""
    if run.gaps.reference is not None:
        raise UserError(
            "halves= cannot measure gaps while training; set gaps.reference=null and mitigation.gap_budget=null"
        )
    if evaluation.keys is not None:
        raise UserError(
            f"evaluate.keys={evaluation.keys} lists pairs of A, and every half deals them to both sides; set evaluate.keys=null "
            "and look up the pairs in memorization.parquet"
        )
    if run.data.shards is not None:
        raise UserError("halves= needs prepared data; prepare the shards with dejavu prepare data=shards")
    if not run.data.to_be_prepared:
        run.data.shard_set("A")


def _settings(study: Mitigate) -> Iterator[tuple[str, str | None, tuple[str, ...], int | None]]:
    """(name, series, overrides, size) of every setting, in the order in which they are compared: the default first."""
    every: list[tuple[str | None, Any]] = [*study.series.items()]
    for series, by_size in every or [(None, {})]:
        size_overrides: dict[int | None, Any] = {int(size): overrides for size, overrides in (by_size or {}).items()}
        for name, overrides in study.settings.items():
            for size in study.sizes:
                full_name = name if series is None else f"{name}, {series}"
                yield full_name, series, (*overrides, *size_overrides.get(size, ())), size


def _run(setting: Mitigate, side: str, overrides: Sequence[str], size: int | None) -> TrainingRun:
    """A setting's run of one side. The reference is not watched; a gap budget implies ``gaps.reference=partner``."""
    reference = setting.gaps.reference
    if setting.mitigation.gap_budget is not None and reference is None:
        reference = PARTNER
    return take(
        TrainingRun,
        setting,
        side=side,
        seed=0,
        data=setting.data if size is None else replace(setting.data, train_size=size),
        logger=with_tags(setting.logger, overrides),
        gaps=replace(setting.gaps, reference=reference if side == "target" else None),
    )


def _check_series(series: Mapping[str, Any], sizes: Sequence[int | None]) -> None:
    listed = {str(size) for size in sizes if size is not None}
    for name, by_size in series.items():
        if not isinstance(by_size, dict | None):
            raise UserError(f"series.{name}={by_size} must be {{size: overrides}}, e.g. {{500: ['recipe.epochs=100']}}")
        for size, overrides in (by_size or {}).items():
            if str(size) not in listed:
                raise UserError(f"series.{name} names the size {size}, which is not in sizes={sizes}")
            _check_overrides(f"series.{name}.{size}", overrides)


def _check_overrides(where: str, overrides: Any) -> None:
    if not isinstance(overrides, list) or not all(isinstance(override, str) for override in overrides):
        raise UserError(f"{where}={overrides} must be a list of overrides, e.g. ['mitigation.text_mask=0.5']")
    for override in overrides:
        name = override.lstrip("+~").partition("=")[0].partition("@")[0].replace("/", ".")
        if any(f"{name}.".startswith(f"{option}.") for option in STUDY_OPTIONS):
            raise UserError(f"{where}: {override} is an option of the whole study; set it outside the settings")


def _check_values(name: str, values: Sequence[int | None], least: int, note: str = "") -> None:
    if not values or len(set(values)) < len(values) or any(value is not None and value < least for value in values):
        raise UserError(f"{name}={list(values)} must be a list of different whole numbers, at least {least}{note}")


def _check_folder_names(settings: Iterable[tuple[str, int | None]]) -> None:
    """Refuse settings that share a folder at two sizes, or differ only in case or in characters that folder names cannot have."""
    from dejavu_lit.study.cells import folder_name

    owners: dict[str, str] = {}
    for name, size in settings:
        if (owner := owners.setdefault(folder_name(name, size, 0).casefold(), name)) != name:  # some disks ignore case
            raise UserError(f"settings {owner!r} and {name!r} would share a folder; rename one")


def _checked(
    study: Mitigate,
    runs: Mapping[str, TrainingRun],
    evaluation: EvaluationSettings,
    checked: set[str],
    started: Container[str | None],
) -> dict[str, TrainingRun]:
    """A setting's runs with their data ready, once checked for all settings that share them.

    For a plan alone nothing is generated, and data that would be is not checked. Initial weights from which a run of this
    study has ``started`` may be gone; a run that still needs them is refused by its own training.
    """
    for run in runs.values():
        run.data.check_options()
        check_models(run, run.model.init in started)
    missing = [d for d in (runs["target"].data, evaluation.data) if isinstance(d, DataSpec) and d.to_be_prepared]
    if study.plan_only and missing:
        if _is_new(str(missing[0].folder), checked):
            log.info("data=%s would be generated first, in %s", missing[0].name, missing[0].folder)
        return dict(runs)
    if missing:  # generating them would be in vain without the devices
        _check_devices(study, evaluation)
    runs = {side: replace(run, data=ready(run.data)) for side, run in runs.items()}
    for run in runs.values():
        if _is_new([to_plain(run.data), run.side, run.recipe.batch, to_plain(run.trainer)], checked):
            check_data(run)
    if not study.plan_only:
        _check_devices(study, evaluation)
    data = runs["target"].data
    if _is_new([to_plain(evaluation), to_plain(data)], checked):
        check_evaluation(evaluation, data)
    return runs


def _check_devices(study: Mitigate, evaluation: EvaluationSettings) -> None:
    """Raise UserError if this machine lacks a device that is used here: evaluations are never jobs of a launcher."""
    if study.launcher == "local":
        check_device(study.trainer)
    if evaluation.device not in (None, "cpu"):
        from dejavu_lit.models.encoder import torch_device

        torch_device(str(evaluation.device))


def _is_new(value: Any, checked: set[str]) -> bool:
    """Whether ``checked`` lacks a value, which is added."""
    text = json.dumps(value, sort_keys=True)
    new = text not in checked
    checked.add(text)
    return new


@contextmanager
def _prefixed(where: str) -> Iterator[None]:
    try:
        yield
    except UserError as error:
        raise UserError(f"{where}: {error}") from None
