"""From the settings of an evaluation to its result: build the typed parts, check them, evaluate in a directory."""

from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dejavu_lit.data.prepared import data_spec, pinned
from dejavu_lit.utils.config import check_fields
from dejavu_lit.utils.distributed import ALONE, Ranks
from dejavu_lit.utils.errors import UserError

if TYPE_CHECKING:
    from dejavu_lit.data.prepared import DataSpec
    from dejavu_lit.evaluation.comparison import Comparison
    from dejavu_lit.measure.metrics import Settings


# Settings of an evaluation that no figure depends on.
AFTER = ("out", "sweep", "utility_loss", "report", "logger", "trainer", "fail_if")


def run_evaluation(config: dict[str, Any], out: Path, ranks: Ranks = ALONE) -> Any:
    """Evaluate one pair of models in ``out``: the contents of metrics.json; {} on all ranks but the first."""
    from dejavu_lit.evaluation.evaluate import evaluate as run
    from dejavu_lit.utils.io import locked

    with ExitStack() as held:
        with ranks.step():
            comparison, settings = _comparison(config), _statistics(config)
            data = _evaluated_data(config["data"], comparison)
            if ranks.rank == 0:
                out.mkdir(parents=True, exist_ok=True)
                held.enter_context(locked(out / ".lock", wait=False))
        saved = _settings(config, data)
        return run(out, comparison, data, config["objects"], settings, saved, config.get("keys"), ranks)


def check_evaluation(config: dict[str, Any], data: "DataSpec") -> None:
    """Refuse settings of an evaluation that cannot hold for models trained on ``data``, before there are any.

    Raises:
        UserError: a value of the wrong type or out of its range, or no such public set, labelled set or objects.
    """
    from dataclasses import replace

    from dejavu_lit.evaluation.search_index import check_index

    comparison = _comparison(config | {"target": "target", "reference": "reference"})
    _statistics(config)
    if comparison.index != "ivf":
        check_index(comparison.index)
    given = config["data"]
    measured = data_spec(given) if given.get("_target_") else replace(data, **pinned(_given(given)))
    measured.public_folder()
    measured.objects_folder(config["objects"])
    measured.check_labelled()


def _comparison(config: dict[str, Any]) -> "Comparison":
    from dataclasses import fields

    from dejavu_lit.evaluation.comparison import Comparison

    check_fields(Comparison, config, "")
    return Comparison(**{field.name: config[field.name] for field in fields(Comparison)})


def _statistics(config: dict[str, Any]) -> "Settings":
    from dejavu_lit.measure.metrics import Settings

    values = {name: config[name] for name in ("k", "ks", "threshold", "top_m")} | config["statistics"]
    check_fields(Settings, values, "")
    try:
        if values["k"] not in values["ks"]:
            values["ks"] = sorted([*values["ks"], values["k"]])
        return Settings(**values)
    except (TypeError, ValueError) as error:
        raise UserError(f"k, ks, threshold, top_m or statistics has a value of the wrong type ({error})") from None


def _settings(config: dict[str, Any], data: Any) -> dict[str, Any]:
    """The settings that are saved: the data as they turned out, and nothing of where or how."""
    from dataclasses import asdict

    return {k: v for k, v in config.items() if k not in AFTER} | {"data": asdict(data) | {"dir": str(data.folder)}}


def _evaluated_data(config: dict[str, Any], comparison: Any) -> Any:
    """The data of ``data=…``; by default the target run's own, with the options given beside it."""
    if config.get("_target_"):
        return data_spec(config)
    from dataclasses import replace

    from dejavu_lit.evaluation.audited_model import Side

    data = Side(comparison.target, Path()).data
    if data is None:
        raise UserError(
            f"target={comparison.target} is no run of dejavu train; say which data: data=scenes|coco|prepared …"
        )
    return replace(data, **pinned(_given(config)))


def _given(config: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in config.items() if value is not None}
