"""Whether a run's gaps are measured while it trains, and against which reference: what ``gaps.*`` means to dejavu train."""

import logging
from pathlib import Path

from dejavu_lit.data.prepared import MANIFEST, SETS, DataSpec
from dejavu_lit.evaluation.audited_model import Side
from dejavu_lit.training.epoch_gaps import GapCallback
from dejavu_lit.training.gap_sample import GapSettings
from dejavu_lit.utils.errors import UserError
from dejavu_lit.utils.io import file_sha256
from dejavu_lit.utils.run_directory import PARTNER, rank

log = logging.getLogger(__name__)


def gap_callback(
    out: Path, side: str, data: DataSpec, settings: GapSettings, budget: float | None, epochs: int
) -> GapCallback | None:
    """The callback of the run in ``out``; None where no gaps are asked for.

    Args:
        side: of the run: its own set is measured, A or B; budget: ``mitigation.gap_budget``.
        epochs: that the run trains; a measurement must fall into them.

    Raises:
        UserError: a budget without a reference, or a reference that is not there, not finished, or trained on this data.
    """
    if settings.reference is None:
        if budget is not None and side == "target":
            raise UserError(
                f"mitigation.gap_budget={budget} needs a reference to measure against; give gaps.reference=RUN, a finished "
                "run with side=reference"
            )
        if budget is not None:
            log.info("mitigation.gap_budget=%g stops the target; this reference trains to its end", budget)
        return None
    if settings.reference == PARTNER:
        raise UserError("gaps.reference=partner is for dejavu mitigate, which knows the partner; give a finished run")
    if settings.every > epochs:
        raise UserError(f"gaps.every={settings.every} is more than the {epochs} epochs that are trained; lower it")
    reference = Side(settings.reference, out / "embeddings")
    _check(reference, side, data)
    return GapCallback(data, side, settings, reference, reference.identity, budget)


def _check(reference: Side, side: str, data: DataSpec) -> None:
    what = f"gaps.reference={reference.name}"
    if reference.run is None:
        if reference.given is not None and not reference.given.is_dir():
            raise UserError(f"{what}: there is no folder {reference.given}")
        if reference.given is None and rank() == 0:
            _ = reference.encoder
        return
    if not (reference.run / "run.json").is_file():
        raise UserError(f"{what} is not finished; start dejavu train again in it, and then this run")
    if reference.trained_on == SETS[side]:
        raise UserError(f"{what} was trained on {SETS[side]} as this run is; give a run of the other side")
    if reference.record.get("data") != file_sha256(data.folder / MANIFEST):
        raise UserError(f"{what} was trained on other data than {data.folder}; give a run on the same data")
