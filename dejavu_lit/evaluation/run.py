"""From the settings of an evaluation to its result: find the data, check, evaluate in a directory.

Heavy modules are imported when they are used, so that the commands start quickly.
"""

from contextlib import ExitStack
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

from dejavu_lit.data.manifest import SIZES
from dejavu_lit.data.prepared import DataSpec, pinned, ready
from dejavu_lit.data.remote import is_remote
from dejavu_lit.evaluation.audited_model import AuditedModel
from dejavu_lit.evaluation.settings import DataChanges, EvaluationSettings, PairEvaluation
from dejavu_lit.models.model_name import ModelName, text_model_folder
from dejavu_lit.utils.distributed import SINGLE_PROCESS, Ranks
from dejavu_lit.utils.errors import UserError
from dejavu_lit.utils.io import locked


def run_evaluation(evaluation: PairEvaluation, out: Path | str, ranks: Ranks = SINGLE_PROCESS) -> dict[str, Any]:
    """Evaluate one pair of models in ``out``: the contents of metrics.json; {} on all ranks but the first.

    Raises UserError if settings, models, data or objects do not fit together, or another process is using ``out``.
    """
    out = Path(out)
    with ExitStack() as lock:
        with ranks.step():
            for role in ("target", "reference"):
                check_model(role, getattr(evaluation, role))
            _check_files(evaluation)
            data = measured_data(evaluation)
            data.check()
            _check_objects(evaluation, data)
            if ranks.rank == 0:
                out.mkdir(parents=True, exist_ok=True)
                lock.enter_context(locked(out / ".lock", wait=False))
        from dejavu_lit.evaluation.context import EvaluationSpec
        from dejavu_lit.evaluation.evaluate import evaluate

        return evaluate(EvaluationSpec(out, evaluation, data), ranks)


def check_evaluation(evaluation: EvaluationSettings, data: DataSpec) -> None:
    """Raise UserError if an evaluation of models yet to be trained on ``data`` must fail.

    It does for a missing model, set, file or object artifact, too large a k, or an index that cannot be used here.
    """
    from dejavu_lit.evaluation.class_names import check_labelled
    from dejavu_lit.evaluation.comparison import open_public
    from dejavu_lit.evaluation.search import load_faiss

    load_faiss(evaluation.index)
    _check_files(evaluation)
    measured = (
        changed_data(data, evaluation.data) if isinstance(evaluation.data, DataChanges) else ready(evaluation.data)
    )
    if (measured.public_folder() / SIZES).is_file():  # else its pairs would be counted for every setting
        open_public(measured, max(evaluation.measurement.ks))
    _check_objects(evaluation, measured)
    check_labelled(measured)


def _check_files(evaluation: EvaluationSettings) -> None:
    """Raise UserError for a missing base, or a list of keys that is missing or empty: both can be told before data are made."""
    if evaluation.base is not None:
        check_model("base", evaluation.base)
    if evaluation.keys is not None:
        from dejavu_lit.data.key_lists import read_keys

        if not read_keys(evaluation.keys, "keys"):
            raise UserError(f"keys={evaluation.keys} has no keys; write one key per line")


def _check_objects(evaluation: EvaluationSettings, data: DataSpec) -> None:
    """Raise UserError for missing objects."""
    for name in (evaluation.objects, *evaluation.by_objects):
        data.objects_folder(name)


def check_model(role: str, name: str | None) -> None:
    """Raise UserError if a model's name is missing, or a path or a package that does not exist."""
    if not name:  # empty: a variable of the shell that is not set
        raise UserError(f"{role} is missing; give {role}=RUN or a model")
    model = ModelName.parse(name)
    if model.kind == "text":
        text_model_folder(model.rest)
    if (path := model.missing_path) is not None:
        raise UserError(
            f"{role}={name}: {path} does not exist; give a run of dejavu train, or a model such as ARCH@TAG"
        )


def measured_data(evaluation: PairEvaluation) -> DataSpec:
    """The data of ``data=…``; by default the target run's own, changed by the given ``data.`` options.

    Raises UserError for a target that is not a run, or whose data is remote and not given here.
    """
    if not isinstance(evaluation.data, DataChanges):
        return ready(evaluation.data)
    target = evaluation.target
    data = AuditedModel(str(target), Path()).data
    if data is None:
        raise UserError(f"target={target} is not a run of dejavu train; give one, or also data=prepared data.dir=…")
    if data.dir is not None and is_remote(data.dir) and evaluation.data.dir is None:
        raise UserError(
            f"target={target} was trained on data.dir={data.dir}; an address in a run's settings is not "
            "opened; give data.dir=…"
        )
    return changed_data(data, evaluation.data)


def changed_data(data: DataSpec, changes: DataChanges) -> DataSpec:
    """``data`` with the options that are given, in the folder that it has: other excluded keys would name another one."""
    given = {field.name: getattr(changes, field.name) for field in fields(DataChanges)}
    data = replace(data, dir=data.dir or str(data.folder))
    return pinned(replace(data, **{name: value for name, value in given.items() if value is not None}))
