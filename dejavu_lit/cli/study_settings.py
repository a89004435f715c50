"""The settings of a study as ``dejavu mitigate`` gets them: composed, and known to be right before anything is trained."""

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import hydra
from hydra.core.hydra_config import HydraConfig
from hydra.errors import HydraException
from omegaconf.errors import OmegaConfBaseException

from dejavu_lit.cli.app import explain, plain
from dejavu_lit.data.prepared import data_spec, pinned
from dejavu_lit.evaluation.run import AFTER, check_evaluation
from dejavu_lit.utils.config import build
from dejavu_lit.utils.errors import UserError
from dejavu_lit.utils.run_directory import PARTNER
from dejavu_lit.utils.wandb import tagged

if TYPE_CHECKING:
    from dejavu_lit.study.plan import Wanted

EXAMPLE = "+settings.mask=['mitigation.text_mask=0.5']"
PARTS = ("mitigation", "model", "recipe", "trainer", "logger", "gaps")
STUDY = (
    "settings", "series", "sizes", "seeds", "launcher", "slurm", "utility_loss", "plan_only", "out", "experiment", "hydra",
    "trainer",  # runs are known by what they compute, not by where and how
)  # fmt: skip


def check_options(config: Mapping[str, Any]) -> None:
    """Raise UserError for the first of the study's own options that has the wrong form."""
    settings = config["settings"]
    if not isinstance(settings, dict):
        raise UserError(f"settings={settings} must be a mapping of names to lists of overrides, e.g. {EXAMPLE}")
    if not settings:
        raise UserError(f"there are no settings; choose experiment=NAME, or name some: {EXAMPLE}")
    for name, overrides in settings.items():
        if not isinstance(name, str):
            raise UserError(f"settings={settings}: the name {name} must be a text, e.g. {EXAMPLE}")
        _check_overrides(f"settings.{name}", overrides)
    _check_list(config, "seeds", 0, "seeds=[0,1,2]", empty=False)
    _check_list(config, "sizes", 1, "sizes=[500,1000], or sizes=[null] for all pairs", empty=True)
    series = config["series"]
    if not isinstance(series, dict) or not all(isinstance(one, dict | None) for one in series.values()):
        raise UserError(
            f"series={series} must be a mapping of names to overrides by training size, e.g. "
            "+series.equal_pairs='{500: [\"recipe.epochs=100\"]}'"
        )
    for name, by_size in series.items():
        if not isinstance(name, str):
            raise UserError(f"series={series}: the name {name} must be a text")
        for size, overrides in (by_size or {}).items():
            if not str(size).isdecimal():
                raise UserError(f"series.{name}: {size} must be a training size that sizes={config['sizes']} holds")
            if int(size) not in config["sizes"]:
                raise UserError(f"series.{name} names the size {size}, which sizes={config['sizes']} does not hold")
            _check_overrides(f"series.{name}.{size}", overrides)
    check_loss(config["utility_loss"])
    if not isinstance(config["plan_only"], bool):
        raise UserError(f"plan_only={config['plan_only']} must be true or false")


def check_loss(loss: Any) -> None:
    """Raise UserError where ``utility_loss`` is no share."""
    if isinstance(loss, bool) or not isinstance(loss, int | float) or not 0 <= loss <= 1:
        raise UserError(f"utility_loss={loss} must be a share from 0 to 1, e.g. utility_loss=0.02 for two points")


def _check_overrides(where: str, overrides: Any) -> None:
    if not isinstance(overrides, list) or not all(isinstance(one, str) for one in overrides):
        raise UserError(f"{where}={overrides} must be a list of overrides, e.g. ['mitigation.text_mask=0.5']")
    for one in overrides:
        name = one.lstrip("+~").partition("=")[0].partition("@")[0]
        if name.split(".")[0].split("/")[0] in STUDY:
            raise UserError(f"{where}: {one} is an option of the whole study; give it beside the settings, not in one")


def _check_list(config: Mapping[str, Any], name: str, least: int, example: str, empty: bool) -> None:
    values = config[name]
    if not isinstance(values, list) or not values:
        raise UserError(f"{name}={values} must be a list, e.g. {example}")
    for value in values:
        if not (empty and value is None) and (isinstance(value, bool) or not isinstance(value, int) or value < least):
            raise UserError(f"{name}={values}: {value} must be a whole number, at least {least}, e.g. {example}")
    if len(set(values)) < len(values):
        raise UserError(f"{name}={values} names one twice; every setting is trained once for each")


def wanted(config: Mapping[str, Any]) -> list["Wanted"]:
    """Every row that the study is to have, with the configurations of its runs and its evaluation.

    Data that need no source are prepared where they are absent; nothing is trained.

    Raises:
        UserError: a wrong option, unknown override or value that cannot hold, with the name of the setting.
    """
    from dejavu_lit.study.plan import Wanted
    from dejavu_lit.study.table import SIDES, label

    rows = list(_rows(config))
    folders: dict[str, str] = {}
    for name, *_ in rows:
        if folders.setdefault(label(name, None, 0), name) != name:
            raise UserError(f"settings {folders[label(name, None, 0)]!r} and {name!r} would share a folder; rename one")
    composed: dict[tuple[str, ...], dict[str, Any]] = {}
    checked: set[str] = set()
    _composed((), "the settings of all", composed)
    found = []
    for name, series, overrides, size in rows:
        where = f"settings.{name}"
        whole = _composed(overrides, where, composed)
        if size is not None and any(one.lstrip("+~").startswith("data.train_size=") for one in overrides):
            raise UserError(f"{where} sets data.train_size beside sizes={config['sizes']}; give it in one place")
        runs = {side: _run(whole, overrides, size) | {"side": side} for side in SIDES}
        runs["target"]["gaps"], runs["reference"]["gaps"] = _watched(whole)
        evaluation = {key: value for key, value in whole["evaluate"].items() if key not in AFTER}
        with _named(where):
            _check(runs, whole["evaluate"], checked)
        if size is None and len(config["sizes"]) > 1 and (every := _all(runs["target"])) in config["sizes"]:
            raise UserError(f"sizes={config['sizes']} names one twice: null is all {every} pairs of {where}; drop one")
        found += [
            Wanted(
                name,
                overrides,
                size,
                seed,
                {side: run | {"seed": seed} for side, run in runs.items()},
                evaluation,
                series,
            )
            for seed in config["seeds"]
        ]
    return found


def _rows(config: Mapping[str, Any]) -> Iterator[tuple[str, str | None, tuple[str, ...], int | None]]:
    """(name, series, overrides, size) of every setting, in the order in which they are compared: the default first."""
    for series, by_size in (config["series"] or {None: {}}).items():
        further = {int(size): overrides for size, overrides in (by_size or {}).items()}
        for name, overrides in config["settings"].items():
            for size in config["sizes"]:
                whole = (*overrides, *further.get(size, ()))
                yield name if series is None else f"{name}, {series}", series, whole, size


def _composed(overrides: tuple[str, ...], where: str, known: dict[tuple[str, ...], dict[str, Any]]) -> dict[str, Any]:
    """This command's own configuration with a setting's overrides on top."""
    if overrides not in known:
        try:
            known[overrides] = plain(hydra.compose("mitigate", [*HydraConfig.get().overrides.task, *overrides]))
        except (HydraException, OmegaConfBaseException) as error:
            raise UserError(f"{where}: {explain(error, 'mitigate', overrides)}") from None
    return known[overrides]


def _run(whole: Mapping[str, Any], overrides: Sequence[str], size: int | None) -> dict[str, Any]:
    """The configuration of a setting's runs, without side and seed."""
    own = {name: whole[name] for name in ("data", *PARTS)}
    own["data"] = {**pinned(own["data"]), "train_size": size if size is not None else own["data"]["train_size"]}
    own["logger"] = tagged(own["logger"], overrides)
    return own


def _watched(whole: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """``gaps`` of a target and of its reference, which is not watched; a budget asks for the partner by itself."""
    target, reference = ({**whole["gaps"]} for _ in range(2))
    if whole["mitigation"].get("gap_budget") is not None and target["reference"] is None:
        target["reference"] = PARTNER
    reference["reference"] = None
    return target, reference


@contextmanager
def _named(where: str) -> Iterator[None]:
    try:
        yield
    except UserError as error:
        raise UserError(f"{where}: {error}") from None


def _check(runs: Mapping[str, Mapping[str, Any]], evaluation: dict[str, Any], checked: set[str]) -> None:
    """Build the small parts of a setting and hold them against its data, once for all settings that share them."""
    for side, run in runs.items():
        if missing := [name for name, value in run["data"].items() if value == "???"]:
            raise UserError(f"data.{missing[0]} is missing; give data.{missing[0]}=…, as dejavu prepare made it")
        for name in PARTS:
            if _first(run[name], checked):
                build(run[name], name)
        key = {"data": run["data"], "side": side, "batch": run["recipe"]["batch"]}
        if _first(key, checked):
            _check_size(run, side)
    if _first({"evaluation": evaluation, "data": run["data"]}, checked):
        check_evaluation(evaluation, data_spec(run["data"]))


def _all(run: Mapping[str, Any]) -> int:
    """The training size of a run for which ``sizes`` chooses none."""
    from dejavu_lit.data.prepared import TRAINED_ON

    data = data_spec(run["data"])
    return data.train_size if data.train_size is not None else sum(data.shards(TRAINED_ON[run["side"]]).sizes)


def _first(value: Any, checked: set[str]) -> bool:
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
