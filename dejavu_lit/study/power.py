"""How many records and seed pairs are needed to see a gap of x, from the variances measured in earlier evaluations.

The symmetric gap of one seed pair with n records on each side varies by  v(n) = training² + sampling² / n,  where sampling²
is the records' variance and training² what seed pairs differ by beyond it. With s seed pairs the gap is found when the t
interval's lower bound is above 0, so the power is  P(T'_{s−1}(gap / √(v(n) / s)) > t_{s−1, 0.975})  with the noncentral t.
With one seed pair the interval comes from the records alone, and the power is the normal one for it.
"""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from math import sqrt
from pathlib import Path
from typing import Any

import numpy as np
from scipy.special import nctdtr, ndtr, ndtri, stdtrit

from dejavu_lit.measure.population import FIGURES
from dejavu_lit.utils.errors import UserError
from dejavu_lit.utils.io import read_json

ASSUMED_TRAINING_SD = (
    0.04  # of symmetric PPG between seed pairs, both models of a pair with one seed, on the scenes data
)
SEED_PAIRS = (1, 3, 4, 5, 7, 10)
MOST_RECORDS = 10_000_000


def read_evaluations(paths: Sequence[Path | str]) -> list[tuple[str, dict[str, Any]]]:
    """(setting, contents of metrics.json) for each evaluation that the files name.

    A metrics.json is one seed pair; files of one evaluation setting given together count as seed pairs of one setting. A
    study.json stands for the metrics.json of all of its rows, one setting a (name, train_size).

    Raises:
        UserError: no such file, or one without a symmetric gap.
    """
    found: list[tuple[str, dict[str, Any]]] = []
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
                raise UserError(
                    f"{file} has no symmetric gap, whose variance is needed; evaluate with the set B as well"
                )
            found.append((setting, metrics))
    return found


def variances(evaluations: Sequence[tuple[str, Mapping[str, Any]]], figure: str = "ppg") -> dict[str, Any]:
    """What the symmetric gap varies by: {sampling_sd, training_sd, assumed, seed_pairs, records}.

    sampling_sd is √n times the symmetric gap's standard error, the root mean square over the evaluations, n the records of
    one side (the harmonic mean of A and B); training_sd is the spread between seed pairs of one setting beyond the sampling
    one, pooled over the settings; with fewer than two seed pairs of any setting it is assumed.
    """
    groups: dict[str, list[tuple[float, float]]] = defaultdict(list)
    sampling, records = [], []
    for setting, metrics in evaluations:
        counts = metrics["counts"]
        n = 2 / (1 / counts["records"] + 1 / counts["swapped"]["records"])
        se = metrics["symmetric"][figure]["se"]
        groups[setting].append((metrics["symmetric"][figure]["value"], se**2))
        sampling.append(se**2 * n)
        records.append(n)
    squares = freedom = noise = 0.0
    for pairs in groups.values():
        values, ses = np.array(pairs).T
        squares += float(((values - values.mean()) ** 2).sum())
        freedom += len(values) - 1
        noise += float(ses.mean()) * (len(values) - 1)
    training = sqrt(max(0.0, (squares - noise) / freedom)) if freedom else ASSUMED_TRAINING_SD
    return {
        "sampling_sd": sqrt(float(np.mean(sampling))),
        "training_sd": training,
        "assumed": not freedom,
        "seed_pairs": len(evaluations),
        "records": round(float(np.mean(records))),
    }


def power_of(gap: float, records: float, pairs: int, sampling_sd: float, training_sd: float) -> float:
    """The probability that the lower 95 % bound is above 0 when the symmetric gap is ``gap``."""
    if pairs == 1:
        se = sampling_sd / sqrt(records)
        # The interval knows the records' noise only; training noise moves the gap it is drawn around.
        return float(ndtr((gap - ndtri(0.975) * se) / sqrt(se**2 + training_sd**2))) if se + training_sd else 1.0
    spread = sqrt((training_sd**2 + sampling_sd**2 / records) / pairs)
    return float(1 - nctdtr(pairs - 1, gap / spread, stdtrit(pairs - 1, 0.975))) if spread else 1.0


def plan(
    metrics: Path | str | Sequence[Path | str], gap: float = 0.1, power: float = 0.8, figure: str = "ppg"
) -> dict[str, Any]:
    """How many records a side and how many seed pairs show a symmetric gap of ``gap`` with probability ``power``.

    Args:
        metrics: one or several metrics.json or study.json; gap: the gap to be seen, above 0 and below 1; power: between
            0.05 and 1; figure: ppg, prg or aucg.

    Returns:
        {figure, gap, power, variances, rows: [{seed_pairs, records or None where no number suffices, power_now: with the
        records of the earlier evaluations}], words}.

    Raises:
        UserError: values outside their range, an unreadable file, or evaluations without the set B.
    """
    if not isinstance(gap, int | float) or not 0 < gap < 1:
        raise UserError(f"gap={gap} must be above 0 and below 1, e.g. gap=0.1 for a symmetric PPG of 0.1")
    if not isinstance(power, int | float) or not 0.05 < power < 1:
        raise UserError(f"power={power} must be above 0.05 and below 1, e.g. power=0.8")
    if figure not in FIGURES:
        raise UserError(f"figure={figure!r} is unknown; choose one of {', '.join(FIGURES)}")
    paths = [metrics] if isinstance(metrics, str | Path) else metrics
    if not isinstance(paths, Sequence) or not paths or not all(isinstance(path, str | Path) for path in paths):
        raise UserError(f"metrics={metrics} must be one path or a list of paths of earlier evaluations or studies")
    found = variances(read_evaluations(paths), figure)
    noise = (found["sampling_sd"], found["training_sd"])
    rows = [
        {
            "seed_pairs": s,
            "records": _records(gap, power, s, *noise),
            "power_now": power_of(gap, found["records"], s, *noise),
        }
        for s in SEED_PAIRS
    ]
    return {
        "figure": figure,
        "gap": gap,
        "power": power,
        "variances": found,
        "rows": rows,
        "words": _words(rows, found),
    }


def _records(gap: float, power: float, pairs: int, sampling_sd: float, training_sd: float) -> int | None:
    """The fewest records with which the power is reached, or None."""
    low, high = 1, MOST_RECORDS
    if power_of(gap, high, pairs, sampling_sd, training_sd) < power:
        return None
    while low < high:
        middle = (low + high) // 2
        if power_of(gap, middle, pairs, sampling_sd, training_sd) >= power:
            high = middle
        else:
            low = middle + 1
    return low


def _words(rows: Sequence[Mapping[str, Any]], found: Mapping[str, Any]) -> str:
    possible = [row for row in rows if row["seed_pairs"] >= 3 and row["records"] is not None]
    within = [row for row in possible if row["records"] <= found["records"]]
    assumed = ", assumed because one seed pair shows no spread" if found["assumed"] else ""
    spread = f"seed pairs differ by {found['training_sd']:.3f} beyond sampling noise{assumed}"
    if within:
        pairs = within[0]["seed_pairs"]
        return f"{pairs} seed pairs of the {found['records']} records measured before suffice; {spread}."
    if possible:
        return f"{possible[0]['seed_pairs']} seed pairs of {possible[0]['records']} records a side suffice; {spread}."
    return f"No number of records suffices with up to {SEED_PAIRS[-1]} seed pairs; {spread}."


def show(made: Mapping[str, Any]) -> str:
    """The plan as a table for the screen."""
    found = made["variances"]
    assumed = " (assumed)" if found["assumed"] else ""
    lines = [
        f"To see a symmetric {made['figure'].upper()} of {made['gap']:g} with {made['power']:.0%} power",
        f"  measured: {found['seed_pairs']} evaluation(s) of {found['records']} records a side, "
        f"record sd {found['sampling_sd']:.3f}, seed-pair sd {found['training_sd']:.3f}{assumed}",
        "",
        f"  {'seed pairs':>10}  {'records a side':>14}  {'power now':>9}",
    ]
    for row in made["rows"]:
        records = "none suffices" if row["records"] is None else f"{row['records']:,}"
        note = "  (interval over records only)" if row["seed_pairs"] == 1 else ""
        lines.append(f"  {row['seed_pairs']:>10}  {records:>14}  {row['power_now']:>9.0%}{note}")
    return "\n".join([*lines, "", made["words"]])
