"""The controls behind a gap: null, swapped, symmetric, corrected, seed pairs, the blind baseline, and the verdict.

population = A, target against reference; null = the same models on H; swapped = B with the roles exchanged;
symmetric  = (population + swapped) / 2, in which a difference in the models' utility cancels to first order: the headline;
corrected  = population − null, for evaluations with one direction only.
The sets are resampled independently and then combined. Over s ≥ 3 seed pairs the uncertainty is a t interval.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from scipy.special import stdtrit

from dejavu_lit.measure.figures import BLOCK_SETS, BLOCKS, FIGURES, decimal
from dejavu_lit.measure.gaps import Estimate, Outcomes, estimate, outcomes
from dejavu_lit.measure.records import SIDES, Records
from dejavu_lit.measure.scores import Scores
from dejavu_lit.measure.settings import Resampling
from dejavu_lit.utils.errors import UserError

FEW_RECORDS = 20  # below it the intervals are too narrow, as docs/statistics.md says
LISTED_LABELS = 20  # of the blind baseline's objects, enough to recognize them


def blocks(
    population: Outcomes, null: Outcomes | None, swapped: Outcomes | None, resampling: Resampling
) -> dict[str, Estimate | None]:
    """The five blocks of one evaluation, from the outcomes on A, H and B.

    A block that needs a missing set, or one without records that have objects, is None. On B, the target is the model trained on
    B. Raises UserError if no record of A has objects.
    """
    a = estimate(population, resampling, stream=0)
    h = estimate(null, resampling, stream=1) if null else None
    b = estimate(swapped, resampling, stream=2) if swapped else None
    return {
        "population": a,
        "null": h,
        "swapped": b,
        "symmetric": a.combine(b, 0.5, 0.5) if b else None,
        "corrected": a.combine(h, 1.0, -1.0) if h else None,
    }


def pool_blocks(evaluations: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Pool the blocks of several seed pairs of one setting, with the spread due to training apart from that of sampling.

    Args:
        evaluations: the contents of metrics.json (or rows of study.json), at least one, one per seed pair.

    Returns:
        {block: {figure: {values, mean, sd, ci95, sampling_sd, training_sd}}}: sd with ddof 1; ci95 a t interval with
        s − 1 degrees of freedom, None below 3 seed pairs; sampling_sd the root mean square of the pairs' standard errors;
        training_sd = √max(0, sd² − sampling_sd²). A block that is missing in any evaluation is None.
    """
    return {
        name: None if any(e[name] is None for e in evaluations) else {f: _pooled(evaluations, name, f) for f in FIGURES}
        for name in BLOCKS
    }


def _pooled(evaluations: Sequence[Mapping[str, Any]], block: str, figure: str) -> dict[str, Any]:
    values = [float(e[block][figure]["value"]) for e in evaluations]
    pooled = pool_seeds(values)
    sampling = float(np.sqrt(np.mean([e[block][figure]["se"] ** 2 for e in evaluations])))
    training = None if pooled["sd"] is None else float(np.sqrt(max(0.0, pooled["sd"] ** 2 - sampling**2)))
    return {"values": values, **pooled, "sampling_sd": sampling, "training_sd": training}


def pool_seeds(values: Sequence[float], intervals: Sequence[Sequence[float]] = ()) -> dict[str, Any]:
    """{mean, sd, ci95} of the values that one figure has with s training seeds.

    sd: with ddof 1, None with one seed; ci95: the t interval of the mean with s − 1 degrees of freedom, and for fewer than 3
    seeds the span of their ``intervals`` [low, high], None without them.
    """
    array = np.array(values)
    mean, s = float(array.mean()), len(array)
    sd = float(array.std(ddof=1)) if s > 1 else None
    ci95 = None
    if sd is not None and s >= 3:
        half = float(stdtrit(s - 1, 0.975)) * sd / np.sqrt(s)
        ci95 = [float(mean - half), float(mean + half)]
    elif intervals:
        lows, highs = zip(*intervals, strict=True)
        ci95 = [float(min(lows)), float(max(highs))]
    return {"mean": mean, "sd": sd, "ci95": ci95}


def memorization_found(evaluations: Sequence[Mapping[str, Any]], unit: str = "seed pair") -> dict[str, Any]:
    """Whether memorization was found, by the rule of docs/definitions.md, and the sentence that says so.

    It was found if the lower 95 % bound of symmetric PPG is above 0, both directions have the same sign, and corrected
    PPG is above 0. With s ≥ 3 seed pairs the bound is that of the t interval. With one seed pair it is that of the records'
    bootstrap, which does not include training noise, and the sentence says "one seed pair". With two, each pair must pass
    alone. It cannot be said where |null PPG| is at least |symmetric PPG|, unless the null's interval contains 0 and nothing
    was found anyway: then it was not shown. ``unit`` says what the evaluations differ in: a seed pair, or a half, which is
    dealt again with its own seed.

    Returns:
        {found: true|false|null, words, seed_pairs, interval: [low, high] or null, above_zero, one_sign, corrected}; the
        last three are the conditions of the rule. found is null if it cannot be said, or if one of the blocks is missing.
    """
    s, pooled = len(evaluations), pool_blocks(evaluations)
    several, seeds = ("halves", "halves") if unit == "half" else (f"{unit}s", "seeds")
    counts = {1: f"one {unit}", 2: f"two {several}, too few for an interval over {seeds}"}
    pairs = counts.get(s, f"{s} {several}")
    missing = [name for name in ("swapped", "null") if pooled[name] is None]
    if missing:
        set_names = {"swapped": "the reference model's set B", "null": "the holdout set H"}
        sets = " and ".join(set_names[name] for name in missing)
        words = f"Whether memorization was found cannot be said without a figure for {sets} ({pairs})."
        unknown = dict.fromkeys(("interval", "above_zero", "one_sign", "corrected"))
        return {"found": None, "words": words, "seed_pairs": s, **unknown}
    ppg = {block: pooled[block]["ppg"]["mean"] for block in BLOCKS}
    if s >= 3:
        low, high = pooled["symmetric"]["ppg"]["ci95"]
    else:  # both of two pairs must be above 0, so the lower of the lower bounds decides
        low, high = min(e["symmetric"]["ppg"]["ci95"] for e in evaluations)
    # Two pairs are judged separately, any other number by the means.
    gaps = [{block: e[block]["ppg"]["value"] for block in BLOCKS} for e in evaluations] if s == 2 else [ppg]
    above_zero = bool(low > 0)
    one_sign, corrected = all(map(_agrees, gaps)), all(gap["corrected"] > 0 for gap in gaps)
    found: bool | None = above_zero and one_sign and corrected
    verdict = _verdict(above_zero, gaps)
    as_large = [gap["null"] for gap in gaps if abs(gap["null"]) >= abs(gap["symmetric"])]
    nulls = [pooled["null"]] if s >= 3 else [e["null"] for e in evaluations]
    if as_large and (found or all(excludes_zero(null["ppg"]["ci95"]) for null in nulls)):
        found = None
        verdict = (
            "Whether memorization was found cannot be said, because the models differ as much on the holdout, which neither was "
            f"trained on (null PPG {decimal(as_large[0])})"
        )
    values = " and ".join(decimal(gap["symmetric"]) for gap in gaps)
    which = "the lower of two 95 % intervals" if s == 2 else "95 % interval"
    return {
        "found": found,
        "words": f"{verdict}: symmetric PPG {values}, {which} {decimal(low)} to {decimal(high)}, {pairs}.",
        "seed_pairs": s,
        "interval": [float(low), float(high)],
        "above_zero": above_zero,
        "one_sign": one_sign,
        "corrected": bool(corrected),
    }


def excludes_zero(interval: Sequence[float]) -> bool:
    """Whether [low, high] lies on one side of 0."""
    return interval[0] > 0 or interval[1] < 0


def _agrees(gap: Mapping[str, float]) -> bool:
    """Whether both directions have the same sign."""
    return gap["population"] * gap["swapped"] > 0


def _verdict(above_zero: bool, gaps: Sequence[Mapping[str, float]]) -> str:
    """The verdict, with the conditions that failed; gaps: the PPG of each block, of each pair of models that is judged."""
    failures = []
    if not above_zero:
        failures.append("the interval is not entirely above 0")
    if (gap := next((gap for gap in gaps if not _agrees(gap)), None)) is not None:
        disagree = "disagree" if gap["population"] and gap["swapped"] else "do not both have a gap"
        failures.append(f"the two directions {disagree} ({decimal(gap['population'])} and {decimal(gap['swapped'])})")
    if (least := min(gap["corrected"] for gap in gaps)) <= 0:
        failures.append(f"the gap is no larger than the holdout's (corrected {decimal(least)})")
    if failures:
        return f"Memorization was not shown, because {', and '.join(failures)}"
    return "Memorization was found"


def differences_sentence(differences: Mapping[str, Sequence[Any]]) -> str:
    """{option: (target's value, reference's)} of how two models were trained, as one sentence."""
    listed = ", ".join(f"{name} {a} and {b}" for name, (a, b) in differences.items())
    return (
        f"Target and reference were trained differently ({listed}), so their gap partly reflects utility; train both with the "
        "same options, or rely only on the symmetric gap and its null."
    )


def few_records_sentence(counts: Mapping[str, Any]) -> str:
    """Which measured sets have too few records for their intervals, from ``counts`` of metrics.json; "" if none has."""
    sets = {"A": counts} | {BLOCK_SETS[block]: counts[block] for block in ("swapped", "null") if counts.get(block)}
    few = [f"{count['records']} in {name}" for name, count in sets.items() if 0 < count["records"] < FEW_RECORDS]
    if not few:
        return ""
    return (
        f"Records with objects: {', '.join(few)}. Below about {FEW_RECORDS}, intervals are too narrow: measure more pairs before "
        "you rely on this evaluation."
    )


def blind_baseline(records: Records, target: Scores, reference: Scores, k: int) -> dict[str, Any]:
    """The blind baseline: predict the most frequent objects of the public set for every record, ignoring its caption.

    It predicts M objects, ties in label order; M is the mean |Ô| over both models and the records with objects, rounded, at
    least 1.

    Returns:
        {objects: M, labels (the first 20 of them), blind, target, reference: {precision, recall, f1}, beaten, words}: means
        over the records with objects, f1 of these two means; ``beaten`` and ``words`` as in ``beats_blind``.
    """
    rows, column = target.has_objects, target.column(k)
    predicted = np.concatenate([s.predicted[rows, column] for s in (target, reference)])
    frequency = np.bincount(records.public.codes, minlength=len(records.public.labels))
    ranked = np.argsort(-frequency, kind="stable")[: np.count_nonzero(frequency)]
    guess = ranked[: max(1, round(float(predicted.mean())))]
    is_guessed = np.zeros(len(frequency), bool)
    is_guessed[guess] = True
    truth = records.truth
    right = np.concatenate([[0], np.cumsum(is_guessed[truth.codes])])
    hits = (right[truth.starts[1:]] - right[truth.starts[:-1]])[rows]
    baseline = {
        "objects": len(guess),
        "labels": [truth.labels[code] for code in guess[:LISTED_LABELS]],
        "blind": _means(hits / max(1, len(guess)), hits / target.truth[rows]),
        "target": _means(target.precision(k)[rows], target.recall(k)[rows]),
        "reference": _means(reference.precision(k)[rows], reference.recall(k)[rows]),
    }
    beaten, words = beats_blind(baseline)
    return baseline | {"beaten": beaten, "words": words}


def beats_blind(baseline: Mapping[str, Any]) -> tuple[bool, str]:
    """Whether both models exceed the blind baseline in precision and in recall, and a sentence with the numbers."""
    rates = ("precision", "recall")
    below = {
        name: " and ".join(rate for rate in rates if baseline[name][rate] <= baseline["blind"][rate]) for name in SIDES
    }
    numbers = ", ".join(
        f"{rate} {baseline['target'][rate]:.3f} and {baseline['reference'][rate]:.3f} against {baseline['blind'][rate]:.3f}"
        for rate in rates
    )
    compared = f"naming the {baseline['objects']} most frequent objects"
    if not any(below.values()):
        return True, f"Target and reference are better than {compared}: {numbers}."
    worse = "; ".join(f"the {name} is not better in {which}" for name, which in below.items() if which)
    return False, (
        f"Target and reference do not both beat the blind baseline ({compared}): {worse} (target and reference: {numbers}). "
        "Such weak models say little about memorization; train longer, or on more pairs, before you rely on the verdict."
    )


def _means(precision: np.ndarray, recall: np.ndarray) -> dict[str, float]:
    p, r = float(precision.mean()), float(recall.mean())
    return {"precision": p, "recall": r, "f1": 2 * p * r / (p + r) if p + r else 0.0}


def compare_settings(
    first: tuple[Records, Records | None],
    second: tuple[Records, Records | None],
    k: int,
    top_m: int | None = None,
    resampling: Resampling | None = None,
) -> dict[str, Any]:
    """Compare two settings pair by pair: the first's gaps minus the second's, with their own intervals.

    Args:
        first, second: the records of A and of B (or None) under each setting; joined by key.

    Returns:
        {basis: symmetric|population, records: {A, B}, ppg|prg|aucg: {value, mean, std, ci95, …}}; basis is population
        if B is missing under either setting. Raises UserError without common records that have the same objects.
    """
    a = _difference(first[0], second[0], k, top_m)
    difference = estimate(a, resampling, stream=0)
    if first[1] is None or second[1] is None:
        return {"basis": "population", "records": {"A": len(a)}, **difference.block()}
    b = _difference(first[1], second[1], k, top_m)
    symmetric = difference.combine(estimate(b, resampling, stream=2), 0.5, 0.5)
    return {"basis": "symmetric", "records": {"A": len(a), "B": len(b)}, **symmetric.block()}


def _difference(first: Records, second: Records, k: int, top_m: int | None) -> Outcomes:
    """The outcomes of the common records under ``first`` minus those under ``second``."""
    common = np.array([(row, second.truth.rows[key]) for row, key in enumerate(first.keys) if key in second.truth.rows])
    if not len(common):
        raise UserError("the two settings share no records; compare evaluations of the same data")

    def under(records: Records, rows: np.ndarray) -> Outcomes:
        target, reference = records.scores([k], top_m)
        return outcomes(target[rows], reference[rows], k)

    return under(first, common[:, 0]) - under(second, common[:, 1])
