"""The number of records and seed pairs needed to detect a gap, from the variances measured in earlier evaluations.

The symmetric gap of one seed pair with n records per side has the variance  v(n) = training² + sampling² / n,  where sampling²
is the records' variance and training² the additional variance between seed pairs. With s seed pairs the gap is detected when
the t interval's lower bound is above 0, so the power is  P(T'_{s−1}(gap / √(v(n) / s)) > t_{s−1, 0.975})  with the noncentral
t distribution. With one seed pair the interval comes from the records alone, and the power follows from the normal
distribution.
"""

from bisect import bisect_left
from collections import defaultdict
from collections.abc import Mapping, Sequence
from math import isfinite, sqrt
from pathlib import Path
from typing import Any

import numpy as np
from scipy.special import nctdtr, ndtr, ndtri, stdtrit

from dejavu_lit.measure.figures import FIGURES
from dejavu_lit.utils.errors import UserError, check_choice, explained
from dejavu_lit.utils.io import read_json

# The sd of symmetric PPG between seed pairs on the scenes data, with the same seed for both models of a pair. Other figures are
# assumed to vary as much in units of their own record sd.
ASSUMED_TRAINING_SD = 0.04
SEED_PAIRS = (1, 3, 4, 5, 7, 10)
MOST_RECORDS = 10_000_000


def required_sample(
    metrics: Path | str | Sequence[Path | str], gap: float = 0.1, power: float = 0.8, figure: str = "ppg"
) -> dict[str, Any]:
    """How many records per side and seed pairs detect a symmetric gap of ``gap`` with probability ``power``.

    Args:
        metrics: one or several metrics.json or study.json.
        gap: above 0 and below 1; power: above 0.05 and below 1; figure: ppg, prg or aucg.

    Returns:
        {figure, gap, power, variances, rows: [{seed_pairs, records (None if no number is enough), power_now: the power with
        the records of the earlier evaluations}], words}.

    Raises:
        UserError: values outside their range, an unreadable file, or evaluations without the set B.
    """
    if not 0 < gap < 1:
        raise UserError(f"gap={gap} must be above 0 and below 1, e.g. gap=0.1 for a symmetric PPG of 0.1")
    if not 0.05 < power < 1:
        raise UserError(f"power={power} must be above 0.05 and below 1, e.g. power=0.8")
    check_choice("figure", figure, FIGURES)
    paths = [metrics] if isinstance(metrics, str | Path) else metrics
    if not isinstance(paths, Sequence) or not paths or not all(isinstance(path, str | Path) for path in paths):
        raise UserError(f"metrics={metrics} must be one path or a list of paths of earlier evaluations or studies")
    damage = f"metrics={metrics} is damaged: a figure is missing or not a number"
    with explained(damage, "evaluate again", errors=(KeyError, TypeError, ArithmeticError)):
        measured = variances(read_measurements(paths), figure)
    noise = (measured["sampling_sd"], measured["training_sd"])
    rows = [
        {
            "seed_pairs": s,
            "records": _fewest_records(gap, power, s, *noise),
            "power_now": power_of(gap, measured["records"], s, *noise),
        }
        for s in SEED_PAIRS
    ]
    return {
        "figure": figure,
        "gap": gap,
        "power": power,
        "variances": measured,
        "rows": rows,
        "words": _summary(rows, measured),
    }


def read_measurements(paths: Sequence[Path | str]) -> list[tuple[str, dict[str, Any]]]:
    """(setting, contents of metrics.json) of every evaluation in the files; raises UserError if one has no symmetric gap.

    A metrics.json is one seed pair; several of them count as seed pairs of one setting. A study.json stands for the
    metrics.json of all its rows, with one setting per (name, train_size).
    """
    evaluations: list[tuple[str, dict[str, Any]]] = []
    for path in map(Path, paths):
        if path.is_dir():
            path = next((path / name for name in ("study.json", "metrics.json") if (path / name).is_file()), path)
        content = read_json(path)
        if not isinstance(content, dict) or "settings" not in content:
            raise UserError(
                f"{path} is neither a metrics.json nor a study.json; give metrics=EVALUATION or its metrics.json"
            )
        if isinstance(content["settings"], list):
            rows = [(f"{row['name']} {row['train_size']}", path.parent / row["metrics"]) for row in content["settings"]]
            named = [(setting, file, read_json(file)) for setting, file in rows]
        else:
            named = [("given", path, content)]
        for setting, file, metrics in named:
            if not metrics.get("symmetric"):
                raise UserError(f"{file} has no symmetric gap, whose variance is needed; evaluate the set B as well")
            evaluations.append((setting, metrics))
    return evaluations


def variances(evaluations: Sequence[tuple[str, Mapping[str, Any]]], figure: str = "ppg") -> dict[str, Any]:
    """The spread of the symmetric gap: {sampling_sd, training_sd, assumed, seed_pairs, records}.

    sampling_sd is √n times the symmetric gap's standard error (root mean square over the evaluations), with n the records of
    one side (harmonic mean of A and B). training_sd is the spread between seed pairs of one setting beyond sampling noise,
    pooled over the settings; if no setting has two seed pairs it is assumed: PPG's ASSUMED_TRAINING_SD times the ratio of the
    figure's sampling_sd to PPG's.
    """
    groups: dict[str, list[tuple[float, ...]]] = defaultdict(list)
    for setting, metrics in evaluations:
        counts, gap, ppg = metrics["counts"], metrics["symmetric"][figure], metrics["symmetric"]["ppg"]
        n = 2 / (1 / counts["records"] + 1 / counts["swapped"]["records"])
        groups[setting].append((n, gap["value"], gap["se"] ** 2, ppg["se"] ** 2))
    settings = [np.array(seeds).T for seeds in groups.values()]
    records, _, squares, of_ppg = np.concatenate(settings, axis=1)
    if freedom := len(evaluations) - len(settings):
        repeated = [(value.var(ddof=1) - se2.mean(), len(value) - 1) for _, value, se2, _ in settings if len(value) > 1]
        training = sqrt(max(0.0, sum(excess * weight for excess, weight in repeated) / freedom))
    else:
        ratio = sqrt((squares * records).sum() / (of_ppg * records).sum()) if of_ppg.any() else 1.0
        training = ASSUMED_TRAINING_SD * ratio
    return {
        "sampling_sd": sqrt((squares * records).mean()),
        "training_sd": training,
        "assumed": not freedom,
        "seed_pairs": len(evaluations),
        "records": round(records.mean()),
    }


def power_of(gap: float, records: float, pairs: int, sampling_sd: float, training_sd: float) -> float:
    """The probability that the lower 95 % bound is above 0 if the symmetric gap is ``gap``."""
    if pairs == 1:
        se = sampling_sd / sqrt(records)
        # The interval covers only the records' noise; training noise moves the gap that it is centered on.
        return float(ndtr((gap - ndtri(0.975) * se) / sqrt(se**2 + training_sd**2))) if se + training_sd else 1.0
    spread = sqrt((training_sd**2 + sampling_sd**2 / records) / pairs)
    missed = nctdtr(pairs - 1, gap / spread, stdtrit(pairs - 1, 0.975)) if spread else 0.0
    return float(1 - missed) if isfinite(missed) else 1.0  # scipy gives nan for a noncentrality of about 38 to 63


def _fewest_records(gap: float, power: float, pairs: int, sampling_sd: float, training_sd: float) -> int | None:
    records = range(1, MOST_RECORDS + 1)
    place = bisect_left(records, power, key=lambda n: power_of(gap, n, pairs, sampling_sd, training_sd))
    return records[place] if place < MOST_RECORDS else None


def _summary(rows: Sequence[Mapping[str, Any]], measured: Mapping[str, Any]) -> str:
    """One sentence with the fewest seed pairs, from 3 on, that are enough."""
    possible = [row for row in rows if row["seed_pairs"] >= 3 and row["records"] is not None]
    already = [row for row in possible if row["records"] <= measured["records"]]
    assumed = ", assumed because one seed pair has no spread" if measured["assumed"] else ""
    spread = f"seed pairs differ by {measured['training_sd']:.3f} beyond sampling noise{assumed}"
    if not possible:
        return f"No number of records is enough with up to {SEED_PAIRS[-1]} seed pairs; {spread}."
    before = f"the {measured['records']} records per side measured before"
    records = before if already else f"{possible[0]['records']} records per side"
    return f"{(already or possible)[0]['seed_pairs']} seed pairs with {records} are enough; {spread}."


def format_sample(sample: Mapping[str, Any]) -> str:
    measured = sample["variances"]
    assumed = " (assumed)" if measured["assumed"] else ""
    lines = [
        f"To detect a symmetric {sample['figure'].upper()} of {sample['gap']:g} with {100 * sample['power']:.0f} % power",
        f"  evaluations measured: {measured['seed_pairs']}, of {measured['records']} records per side, "
        f"record sd {measured['sampling_sd']:.3f}, seed-pair sd {measured['training_sd']:.3f}{assumed}",
        "",
        f"  {'seed pairs':>10}  {'records per side':>16}  {'power now':>9}",
    ]
    for row in sample["rows"]:
        records = "none suffices" if row["records"] is None else f"{row['records']:,}"
        note = "  (interval over records only)" if row["seed_pairs"] == 1 else ""
        lines.append(f"  {row['seed_pairs']:>10}  {records:>16}  {100 * row['power_now']:>7.0f} %{note}")
    return "\n".join([*lines, "", sample["words"]])
