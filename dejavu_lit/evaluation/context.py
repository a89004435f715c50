"""context.json of an evaluation's directory, by which a later call resumes, recomputes or is refused.

context.schema.json describes its entries.
"""

import logging
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from dejavu_lit.data.prepared import DataSpec
from dejavu_lit.evaluation.audited_model import AuditedModel, changed_weights
from dejavu_lit.evaluation.settings import PairEvaluation, saved_settings
from dejavu_lit.measure.recompute import MODEL_FREE_OPTIONS, PLACEMENT_OPTIONS, read_metrics, schema_error
from dejavu_lit.measure.settings import Settings
from dejavu_lit.utils.config import to_plain
from dejavu_lit.utils.errors import UserError
from dejavu_lit.utils.io import fingerprint, read_json_object, visible_files
from dejavu_lit.utils.run_directory import first_difference

log = logging.getLogger(__name__)

CONTEXT = "context.json"
METRICS = "metrics.json"


@dataclass(frozen=True)
class EvaluationSpec:
    """One evaluation: its directory, its settings, and the data that is measured."""

    out: Path
    evaluation: PairEvaluation
    data: DataSpec
    is_against_base: bool = False

    @cached_property
    def settings(self) -> Settings:
        """The settings of the statistics."""
        return self.evaluation.measurement

    @cached_property
    def config(self) -> dict[str, Any]:
        """The settings to save: those that figures depend on, with the data as resolved."""
        return saved_settings(self.evaluation) | {"data": to_plain(self.data) | {"dir": str(self.data.folder)}}

    @cached_property
    def objects(self) -> Path:
        """The folder of the object artifact."""
        return self.data.objects_folder(self.evaluation.objects)

    @cached_property
    def further_objects(self) -> dict[str, Path]:
        """{name: folder} of the artifacts in ``by_objects``."""
        return {name: self.data.objects_folder(name) for name in self.evaluation.by_objects}

    @property
    def against_base(self) -> "EvaluationSpec | None":
        """The target against the model that it was fine-tuned from, in the folder base/; None without ``base``.

        There is no third set of pairs that the base alone was trained on, so nothing is swapped.
        """
        if (base := self.evaluation.base) is None:
            return None
        alone = replace(self.evaluation, base=None, by_objects=(), keys=None, group=None)
        against = replace(alone, reference=base, swapped=False, allow_overlap=True)
        return replace(self, out=self.out / "base", evaluation=against, is_against_base=True)


def fixed_settings(spec: EvaluationSpec, models: Mapping[str, AuditedModel]) -> dict[str, Any]:
    """What cannot change in an evaluation's directory: what is searched, but not where it is computed."""
    return _without_recomputable(spec.config) | {role: model.identity for role, model in models.items()}


def read_context(
    spec: EvaluationSpec, fixed: Mapping[str, Any], models: Mapping[str, AuditedModel], data: str
) -> dict[str, Any] | None:
    """The context of an earlier call in the same directory; None if there was none.

    Raises UserError if it is damaged, that call had other settings, or a model or the data have changed since.
    """
    out = spec.out
    if not (out / CONTEXT).is_file():
        return None
    context = read_json_object(out / CONTEXT)
    if (damage := schema_error(context, "dejavu_lit.evaluation", "context.schema.json")) is not None:
        raise UserError(
            f"{out / CONTEXT} is damaged or of another version ({damage}); choose another out= or remove {out}"
        )
    if changed := first_difference(_without_recomputable(context["config"]), fixed):
        raise UserError(f"{out} has an evaluation with other settings ({changed}); choose another out= or remove it")
    for role, model in models.items():
        if (file := changed_weights(model.weights, context["weights"][role])) is not None:
            raise UserError(
                f"{file} of the model changed since {out} was measured; choose another out= or remove {out}"
            )
    if context["data"] != data:
        raise UserError(
            f"{spec.data.folder} was prepared again since {out} was measured; choose another out= or remove it"
        )
    return context


def statistics_of(spec: EvaluationSpec) -> dict[str, Any]:
    """What the figures depend on beside the records: the settings, and the states of the object and key files."""
    artifacts = (spec.objects, *spec.further_objects.values())
    files = [part for artifact in artifacts for part in visible_files(artifact, "*/*.parquet")]
    statistics = {key: spec.config[key] for key in MODEL_FREE_OPTIONS if key in spec.config}
    if spec.evaluation.keys:
        files.append(Path(spec.evaluation.keys))
    # Names alone do not tell that a file was rewritten.
    states = [(str(p), p.stat().st_size, p.stat().st_mtime_ns) for p in sorted(files) if p.exists()]
    return statistics | {"files": fingerprint(states)}


def finished_metrics(out: Path, context: Mapping[str, Any], statistics: Mapping[str, Any]) -> dict[str, Any] | None:
    """metrics.json if it has the figures for ``statistics`` already; None if it is to be written."""
    if context.get("statistics") == statistics and (out / METRICS).is_file():
        with suppress(UserError):  # damaged, or of another schema
            metrics = read_metrics(out)
            log.info("%s is finished; nothing to do", out)
            return metrics
    return None


def _without_recomputable(config: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in config.items() if key not in (*MODEL_FREE_OPTIONS, *PLACEMENT_OPTIONS)}
