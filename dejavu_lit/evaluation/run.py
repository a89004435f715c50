"""From the settings of an evaluation to its result: build the typed values, check them, evaluate in a directory.

Heavy modules are imported when they are used, so that the commands start quickly.
"""

from contextlib import ExitStack
from dataclasses import asdict, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dejavu_lit.data.prepared import DataSpec, data_spec, pinned
from dejavu_lit.data.remote import is_remote
from dejavu_lit.utils.config import check_fields
from dejavu_lit.utils.distributed import SINGLE_PROCESS, Ranks
from dejavu_lit.utils.errors import UserError
from dejavu_lit.utils.io import locked

if TYPE_CHECKING:
    from dejavu_lit.evaluation.comparison import Comparison
    from dejavu_lit.measure.membership import MembershipSettings
    from dejavu_lit.measure.metrics import Settings

# The options that no figure depends on: they are not saved with an evaluation.
OUTPUT_OPTIONS = ("out", "sweep", "utility_loss", "report", "logger", "trainer", "fail_if")


def run_evaluation(config: dict[str, Any], out: Path, ranks: Ranks = SINGLE_PROCESS) -> dict[str, Any]:
    """Evaluate one pair of models in ``out``: the contents of metrics.json; {} on all ranks but the first.

    Args:
        config: the resolved settings of ``dejavu evaluate``.

    Raises:
        UserError: settings, models, data or objects that do not fit together, or another process works in ``out``.
    """
    from dejavu_lit.evaluation.context import EvaluationSpec
    from dejavu_lit.evaluation.evaluate import evaluate

    with ExitStack() as lock:
        with ranks.step():
            comparison, settings, membership = _comparison(config), _settings(config), _membership(config)
            data = _data(config["data"], comparison)
            if ranks.rank == 0:
                out.mkdir(parents=True, exist_ok=True)
                lock.enter_context(locked(out / ".lock", wait=False))
        saved = _saved_config(config, data)
        return evaluate(EvaluationSpec(out, comparison, data, settings, saved, membership), ranks)


def check_evaluation(config: dict[str, Any], data: DataSpec) -> None:
    """Check the settings of an evaluation of models yet to be trained on ``data``.

    Raises:
        UserError: a value of the wrong type or out of range, or a missing public set, labelled set or object artifact.
    """
    from dejavu_lit.evaluation.search import check_index

    comparison = _comparison(config | {"target": "target", "reference": "reference"})
    _settings(config)
    _membership(config)
    if comparison.index != "ivf":
        check_index(comparison.index)
    measured = data_spec(config["data"]) if config["data"].get("_target_") else _with_options(data, config["data"])
    measured.public_folder()
    measured.objects_folder(config["objects"])
    measured.check_labelled()


def _comparison(config: dict[str, Any]) -> "Comparison":
    from dejavu_lit.evaluation.comparison import Comparison

    check_fields(Comparison, config, "")
    return Comparison(**{field.name: config[field.name] for field in fields(Comparison)})


def _settings(config: dict[str, Any]) -> "Settings":
    from dejavu_lit.measure.metrics import Settings

    values = {name: config[name] for name in ("k", "ks", "threshold", "top_m")} | config["statistics"]
    check_fields(Settings, values, "")
    try:
        if values["k"] not in values["ks"]:
            values["ks"] = sorted([*values["ks"], values["k"]])
        return Settings(**values)
    except (TypeError, ValueError) as error:
        raise UserError(
            f"k, ks, threshold, top_m or statistics has a value of the wrong type ({error}); correct it"
        ) from None


def _membership(config: dict[str, Any]) -> "MembershipSettings | None":
    from dejavu_lit.measure.membership import MembershipSettings

    values = config.get("membership")
    if values is None:
        return None
    if not isinstance(values, dict) or set(values) - {field.name for field in fields(MembershipSettings)}:
        raise UserError(f"membership={values} must be null or {{pairs: …}}, e.g. membership.pairs=10000")
    check_fields(MembershipSettings, values, "membership")
    return MembershipSettings(**values)


def _data(config: dict[str, Any], comparison: "Comparison") -> DataSpec:
    """The data of ``data=…``; by default the target run's own, changed by the given ``data.`` options."""
    if config.get("_target_"):
        return data_spec(config)
    from dejavu_lit.evaluation.audited_model import AuditedModel

    data = AuditedModel(comparison.target, Path()).data
    if data is None:
        raise UserError(
            f"target={comparison.target} is not a run of dejavu train; say which data: data=scenes|coco|prepared …"
        )
    data = _with_options(data, config)
    if data.dir is not None and is_remote(data.dir) and config.get("dir") is None:
        raise UserError(
            f"target={comparison.target} was trained on data.dir={data.dir}; an address is not opened because a run names "
            "it, so give it yourself: data.dir=…"
        )
    return data


def _with_options(data: DataSpec, options: dict[str, Any]) -> DataSpec:
    return replace(data, **pinned({name: value for name, value in options.items() if value is not None}))


def _saved_config(config: dict[str, Any], data: DataSpec) -> dict[str, Any]:
    """The settings to save: those that figures depend on, with the data as resolved."""
    saved = {name: value for name, value in config.items() if name not in OUTPUT_OPTIONS}
    return saved | {"data": asdict(data) | {"dir": str(data.folder)}}
