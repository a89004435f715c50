"""The gaps over the epochs of training, from the target run's metrics.csv, where ``gaps.reference=`` had them measured."""

import csv
from collections.abc import Mapping
from pathlib import Path
from typing import Any

GAPS = "gap/"
BESIDE = ("val_accuracy", "val_loss")  # of the same epochs


def run_and_epoch(name: str) -> tuple[Path, int]:
    """The folder and the epoch of RUN[@EPOCH], 0 for the end of the run; a folder may have an @ in its path."""
    run, at, epoch = name.rpartition("@")
    if not (at and epoch.isdecimal()) or (Path(name).expanduser() / "config.yaml").is_file():
        run, epoch = name, "0"
    return Path(run).expanduser(), int(epoch)


def gaps_over_epochs(evaluation: Path, settings: Mapping[str, Any]) -> list[dict[str, float]]:
    """One row an epoch that was measured: epoch (counted from 1), ppg, ppg_low, ppg_high, prg, aucg, null_ppg, corrected_ppg.

    Args:
        evaluation: its folder; a study's runs lie beside it.
        settings: of metrics.json; ``target`` names the run, whose epochs up to that of RUN@EPOCH are given.

    Returns:
        The rows in order, [] where the run is not at hand or nothing was measured in it.
    """
    run, last = run_and_epoch(str(settings.get("target", "")))
    study = evaluation.parent.parent
    places = [run, *([study / "runs" / run.name] if (study / "study.json").is_file() else [])]
    path = next((place / "metrics.csv" for place in places if run.name and (place / "metrics.csv").is_file()), None)
    if path is None:
        return []
    rows: dict[int, dict[str, float]] = {}
    beside: dict[int, dict[str, float]] = {}
    with open(path, newline="", encoding="utf-8", errors="replace") as file:
        for line in csv.DictReader(file):
            try:
                epoch, metric, value = int(line["epoch"]) + 1, line["metric"], float(line["value"])
            except (KeyError, TypeError, ValueError):
                continue  # a line cut short when the run was killed
            if metric.startswith(GAPS):
                rows.setdefault(epoch, {"epoch": epoch})[metric.removeprefix(GAPS)] = value
            elif metric in BESIDE:
                beside.setdefault(epoch, {})[metric] = value
    end = last or max(rows, default=0)
    return [rows[epoch] | beside.get(epoch, {}) for epoch in sorted(rows) if epoch <= end and "ppg" in rows[epoch]]
