"""The settings of a study, composed and checked before anything is trained."""

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import hydra
from hydra.core.hydra_config import HydraConfig
from hydra.errors import HydraException
from omegaconf.errors import OmegaConfBaseException

from dejavu_lit.cli.app import explain, plain
from dejavu_lit.data.prepared import data_spec, pinned
from dejavu_lit.data.remote import is_remote
from dejavu_lit.evaluation.run import OUTPUT_OPTIONS, check_evaluation
from dejavu_lit.utils.config import build
from dejavu_lit.utils.errors import UserError
from dejavu_lit.utils.run_directory import PARTNER
from dejavu_lit.utils.wandb import with_tags

if TYPE_CHECKING:
    from dejavu_lit.study.plan import PlannedRow

EXAMPLE = "+settings.mask=['mitigation.text_mask=0.5']"
RUN_PARTS = ("mitigation", "model", "recipe", "trainer", "logger", "gaps")  # of a run's configuration, beside its data
# Options of the whole study, which a setting may not override.
STUDY_OPTIONS = (
    "settings", "series", "sizes", "seeds", "halves", "launcher", "slurm", "utility_loss", "plan_only", "out", "experiment",
    "hydra", "trainer",  # a run is identified by what it computes, not by where and how
)  # fmt: skip


def check_options(config: Mapping[str, Any]) -> None:
    """Raise UserError for the first of the study's own options that has the wrong form."""
    _check_settings(config["settings"])
    _check_list(config, "seeds", 0, "seeds=[0,1,2]", allow_null=False)
    _check_list(config, "sizes", 1, "sizes=[500,1000], or sizes=[null] for all pairs", allow_null=True)
    _check_halves(config)
    _check_series(config["series"], config["sizes"])
    check_utility_loss(config["utility_loss"])
    if not isinstance(config["plan_only"], bool):
        raise UserError(f"plan_only={config['plan_only']} must be true or false")


def check_utility_loss(loss: Any) -> None:
    """Raise UserError if ``utility_loss`` is not a share."""
    if isinstance(loss, bool) or not isinstance(loss, int | float) or not 0 <= loss <= 1:
        raise UserError(f"utility_loss={loss} must be a share from 0 to 1, e.g. utility_loss=0.02 for two points")


def planned_rows(config: Mapping[str, Any]) -> list["PlannedRow"]:
    """Every row of the study, with the configurations of its runs and its evaluation.

    Data that need no source are prepared if they are missing; nothing is trained.

    Raises:
        UserError: a wrong option, an unknown override or an invalid value, with the name of the setting.
    """
    from dejavu_lit.study.plan import PlannedRow
    from dejavu_lit.study.table import SIDES

    settings = list(_settings(config))
    _check_folder_names(name for name, *_ in settings)
    composed: dict[tuple[str, ...], dict[str, Any]] = {}
    checked: set[str] = set()
    _compose((), "the settings of all", composed)
    rows = []
    for name, series, overrides, size in settings:
        where = f"settings.{name}"
        setting = _compose(overrides, where, composed)
        if size is not None and any(override.lstrip("+~").startswith("data.train_size=") for override in overrides):
            raise UserError(f"{where} sets data.train_size, and so does sizes={config['sizes']}; set it in one place")
        runs = {side: _run_config(setting, overrides, size) | {"side": side} for side in SIDES}
        runs["target"]["gaps"], runs["reference"]["gaps"] = _gap_settings(setting)
        evaluation = {key: value for key, value in setting["evaluate"].items() if key not in OUTPUT_OPTIONS}
        if is_remote(str(address := runs["target"]["data"].get("dir"))) and evaluation["data"].get("_target_") is None:
            evaluation["data"] = {**evaluation["data"], "dir": address}  # given here, so evaluations may open it
        with _prefixed(where):
            _check_setting(runs, setting["evaluate"], checked)
        if size is None and len(config["sizes"]) > 1 and (pairs := _all_pairs(runs["target"])) in config["sizes"]:
            raise UserError(
                f"sizes={config['sizes']} lists one size twice: null is all {pairs} pairs of {where}; remove one"
            )
        for half in range(config["halves"]):
            for seed in config["seeds"]:
                dealt = {side: _of_half(run, half) | {"seed": seed + half} for side, run in runs.items()}
                rows.append(
                    PlannedRow(name, overrides, size, seed + half, dealt, _of_half(evaluation, half), series, half)
                )
        if config["halves"] > 1 and _is_new({"half": rows[-1].runs["target"]["data"]}, checked):
            with _prefixed(where):
                _check_half(rows[-1].runs["target"], runs["target"]["gaps"])
    return rows


def _of_half(config: Mapping[str, Any], half: int) -> dict[str, Any]:
    """A run's or an evaluation's configuration on a random half; that of half 0 is unchanged."""
    return {**config, "data": {**config["data"], "half": half}} if half else dict(config)


def _check_half(run: Mapping[str, Any], gaps: Mapping[str, Any]) -> None:
    """Refuse halves of data whose members were listed, and of runs that measure their gaps while training."""
    if gaps["reference"] is not None:
        raise UserError(
            "halves= cannot measure gaps while training; set gaps.reference=null and mitigation.gap_budget=null"
        )
    data_spec(run["data"]).shards("A")


def _check_halves(config: Mapping[str, Any]) -> None:
    halves = config["halves"]
    if isinstance(halves, bool) or not isinstance(halves, int) or halves < 1:
        raise UserError(f"halves={halves} must be a whole number from 1, e.g. halves=4")
    if halves > 1 and len(config["seeds"]) > 1:
        raise UserError(
            f"halves={halves} gives every half its own seed; give one of seeds={config['seeds']}, from which they count"
        )


def _settings(config: Mapping[str, Any]) -> Iterator[tuple[str, str | None, tuple[str, ...], int | None]]:
    """(name, series, overrides, size) of every setting, in the order in which they are compared: the default first."""
    for series, by_size in (config["series"] or {None: {}}).items():
        size_overrides = {int(size): overrides for size, overrides in (by_size or {}).items()}
        for name, overrides in config["settings"].items():
            for size in config["sizes"]:
                full_name = name if series is None else f"{name}, {series}"
                yield full_name, series, (*overrides, *size_overrides.get(size, ())), size


def _compose(overrides: tuple[str, ...], where: str, composed: dict[tuple[str, ...], dict[str, Any]]) -> dict[str, Any]:
    """This command's own configuration with a setting's overrides on top; ``composed`` caches the results."""
    if overrides not in composed:
        try:
            composed[overrides] = plain(hydra.compose("mitigate", [*HydraConfig.get().overrides.task, *overrides]))
        except (HydraException, OmegaConfBaseException) as error:
            raise UserError(f"{where}: {explain(error, 'mitigate', overrides)}") from None
    return composed[overrides]


def _run_config(setting: Mapping[str, Any], overrides: Sequence[str], size: int | None) -> dict[str, Any]:
    """The configuration of a setting's runs, without side and seed."""
    run = {name: setting[name] for name in ("data", *RUN_PARTS)}
    run["data"] = {**pinned(run["data"]), "train_size": size if size is not None else run["data"]["train_size"]}
    run["logger"] = with_tags(run["logger"], overrides)
    return run


def _gap_settings(setting: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """``gaps`` of a target and of its reference, which is not watched; a gap budget implies ``reference: partner``."""
    target, reference = ({**setting["gaps"]} for _ in range(2))
    if setting["mitigation"].get("gap_budget") is not None and target["reference"] is None:
        target["reference"] = PARTNER
    reference["reference"] = None
    return target, reference


def _all_pairs(run: Mapping[str, Any]) -> int:
    """The training size of a run if ``sizes`` does not set one."""
    from dejavu_lit.data.prepared import TRAINED_ON

    data = data_spec(run["data"])
    return data.train_size if data.train_size is not None else sum(data.shards(TRAINED_ON[run["side"]]).sizes)


def _check_settings(settings: Any) -> None:
    if not isinstance(settings, dict):
        raise UserError(f"settings={settings} must be a mapping of names to lists of overrides, e.g. {EXAMPLE}")
    if not settings:
        raise UserError(f"there are no settings; choose experiment=NAME, or add some, e.g. {EXAMPLE}")
    for name, overrides in settings.items():
        if not isinstance(name, str):
            raise UserError(f"settings={settings}: the name {name} must be a string, e.g. {EXAMPLE}")
        _check_overrides(f"settings.{name}", overrides)


def _check_series(series: Any, sizes: Sequence[int | None]) -> None:
    if not isinstance(series, dict) or not all(isinstance(by_size, dict | None) for by_size in series.values()):
        raise UserError(
            f"series={series} must be a mapping of names to overrides by training size, e.g. "
            "+series.equal_pairs='{500: [\"recipe.epochs=100\"]}'"
        )
    for name, by_size in series.items():
        if not isinstance(name, str):
            raise UserError(f"series={series}: the name {name} must be a string")
        for size, overrides in (by_size or {}).items():
            if not str(size).isdecimal():
                raise UserError(f"series.{name}: {size} must be a training size from sizes={sizes}")
            if int(size) not in sizes:
                raise UserError(f"series.{name} names the size {size}, which is not in sizes={sizes}")
            _check_overrides(f"series.{name}.{size}", overrides)


def _check_overrides(where: str, overrides: Any) -> None:
    if not isinstance(overrides, list) or not all(isinstance(override, str) for override in overrides):
        raise UserError(f"{where}={overrides} must be a list of overrides, e.g. ['mitigation.text_mask=0.5']")
    for override in overrides:
        name = override.lstrip("+~").partition("=")[0].partition("@")[0]
        if name.split(".")[0].split("/")[0] in STUDY_OPTIONS:
            raise UserError(f"{where}: {override} is an option of the whole study; set it outside the settings")


def _check_list(config: Mapping[str, Any], name: str, least: int, example: str, allow_null: bool) -> None:
    values = config[name]
    if not isinstance(values, list) or not values:
        raise UserError(f"{name}={values} must be a list, e.g. {example}")
    for value in values:
        if allow_null and value is None:
            continue
        if isinstance(value, bool) or not isinstance(value, int) or value < least:
            raise UserError(f"{name}={values}: {value} must be a whole number, at least {least}, e.g. {example}")
    if len(set(values)) < len(values):
        raise UserError(f"{name}={values} lists a value twice; each setting is trained once per value")


def _check_folder_names(names: Iterable[str]) -> None:
    """Refuse two settings whose names differ only in characters that folder names cannot have."""
    from dejavu_lit.study.table import label

    owners: dict[str, str] = {}
    for name in names:
        if (owner := owners.setdefault(label(name, None, 0), name)) != name:
            raise UserError(f"settings {owner!r} and {name!r} would share a folder; rename one")


def _check_setting(runs: Mapping[str, Mapping[str, Any]], evaluation: dict[str, Any], checked: set[str]) -> None:
    """Build a setting's small parts and check them against its data, once for all settings that share them."""
    for side, run in runs.items():
        if missing := [name for name, value in run["data"].items() if value == "???"]:
            raise UserError(f"data.{missing[0]} is missing; give data.{missing[0]}=…, as written by dejavu prepare")
        for name in RUN_PARTS:
            if _is_new(run[name], checked):
                build(run[name], name)
        key = {"data": run["data"], "side": side, "batch": run["recipe"]["batch"]}
        if _is_new(key, checked):
            _check_size(run, side)
    if _is_new({"evaluation": evaluation, "data": run["data"]}, checked):
        check_evaluation(evaluation, data_spec(run["data"]))


def _is_new(value: Any, checked: set[str]) -> bool:
    """Whether ``checked`` lacks a value, which is added."""
    text = json.dumps(value, sort_keys=True, default=str)
    new = text not in checked
    checked.add(text)
    return new


def _check_size(run: Mapping[str, Any], side: str) -> None:
    """Refuse training sizes and batches that the data cannot fill."""
    from dejavu_lit.data.epoch import epoch_plan
    from dejavu_lit.data.prepared import TRAINED_ON

    data = data_spec(run["data"])
    data.check()
    sizes = data.shards(TRAINED_ON[side]).sizes
    epoch_plan(sizes, 0, 0, 1, 1, run["recipe"]["batch"], data.train_size, data.repeats())


@contextmanager
def _prefixed(where: str) -> Iterator[None]:
    """Put the name of a setting before the message of a UserError."""
    try:
        yield
    except UserError as error:
        raise UserError(f"{where}: {error}") from None
