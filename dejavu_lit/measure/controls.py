"""The controls that make a gap believable: null, swapped, symmetric, corrected, seed pairs, a blind guess, and "found".

population = A, target against reference; null = the same models on H; swapped = B with the roles exchanged;
symmetric  = (population + swapped) / 2, in which a difference in the models' quality cancels to first order: the headline;
corrected  = population − null, for when only one direction can be had.
The sets are resampled independently and then combined. Over s ≥ 3 seed pairs the uncertainty is a t interval.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from scipy.special import stdtrit

from dejavu_lit.measure.population import FIGURES, Estimate, Outcomes, Resampling, estimate, outcomes
from dejavu_lit.measure.records import Records
from dejavu_lit.measure.scores import Scores
from dejavu_lit.utils.errors import UserError

BLOCKS = ("population", "null", "swapped", "symmetric", "corrected")


def blocks(
    population: Outcomes, null: Outcomes | None, swapped: Outcomes | None, resampling: Resampling
) -> dict[str, Estimate | None]:
    """The five blocks of one evaluation; what needs a missing set is None.

    Args:
        population, null, swapped: the outcomes on A, H and B (target = the model trained on B there).

    Raises:
        UserError: a set without a single record that has objects.
    """
    a = estimate(population, resampling, stream=0)
    h = estimate(null, resampling, stream=1) if null is not None else None
    b = estimate(swapped, resampling, stream=2) if swapped is not None else None
    return {
        "population": a,
        "null": h,
        "swapped": b,
        "symmetric": a.combine(b, 0.5, 0.5) if b else None,
        "corrected": a.combine(h, 1.0, -1.0) if h else None,
    }


def pool(evaluations: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Pool the blocks of several seed pairs of one setting: the spread of training apart from that of sampling.

    Args:
        evaluations: the contents of metrics.json (or rows of study.json), one a seed pair.

    Returns:
        {block: {figure: {values, mean, sd, ci95, sampling_sd, training_sd}}}: sd with ddof 1; ci95 a t interval with
        s − 1 degrees of freedom, None below 3 seed pairs; sampling_sd the root mean square of the pairs' standard errors;
        training_sd = √max(0, sd² − sampling_sd²). A block that some evaluation lacks is None.
    """
    if not evaluations:
        raise UserError("there is no evaluation to pool; train and evaluate at least one seed pair")
    return {
        name: None if any(e[name] is None for e in evaluations) else {f: _pooled(evaluations, name, f) for f in FIGURES}
        for name in BLOCKS
    }


def _pooled(evaluations: Sequence[Mapping[str, Any]], block: str, figure: str) -> dict[str, Any]:
    values = np.array([e[block][figure]["value"] for e in evaluations])
    mean, s = float(values.mean()), len(values)
    sd = float(values.std(ddof=1)) if s > 1 else None
    sampling = float(np.sqrt(np.mean([e[block][figure]["se"] ** 2 for e in evaluations])))
    half = float(stdtrit(s - 1, 0.975)) * sd / np.sqrt(s) if sd is not None and s >= 3 else None
    return {
        "values": values.tolist(),
        "mean": mean,
        "sd": sd,
        "ci95": None if half is None else [float(mean - half), float(mean + half)],
        "sampling_sd": sampling,
        "training_sd": None if sd is None else float(np.sqrt(max(0.0, sd**2 - sampling**2))),
    }


def found(evaluations: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Whether memorization was found, by the rule of the definitions, and the sentence that says so.

    Found only when the lower 95 % bound of symmetric PPG is above 0, both directions have one sign, and corrected PPG is
    above 0. The bound is the t interval's over s ≥ 3 seed pairs; with one seed pair it is the records' bootstrap, which
    knows nothing of training noise, and the words say "one seed pair"; with two each pair must pass alone.

    Returns:
        {found: true|false|null, words, seed_pairs, interval: [low, high] or null, above_zero, one_sign, corrected}; the
        last three are the rule's conditions. found is null where one of the blocks is missing.
    """
    s, pooled = len(evaluations), pool(evaluations)
    pairs = {1: "one seed pair", 2: "two seed pairs, too few for an interval over seeds"}.get(s, f"{s} seed pairs")
    missing = [name for name in ("swapped", "null") if pooled[name] is None]
    if missing:
        needs = " and ".join(
            {"swapped": "the reference model's set B", "null": "the holdout set H"}[m] for m in missing
        )
        words = f"Whether memorization was found cannot be said: {needs} was not measured ({pairs})."
        conditions = dict.fromkeys(("interval", "above_zero", "one_sign", "corrected"))
        return {"found": None, "words": words, "seed_pairs": s, **conditions}
    value, there, back, corrected = (
        pooled[b]["ppg"]["mean"] for b in ("symmetric", "population", "swapped", "corrected")
    )
    if s >= 3:
        low, high = pooled["symmetric"]["ppg"]["ci95"]
    else:  # of two pairs both must be above 0, so the lower of the lower bounds decides
        low, high = min(e["symmetric"]["ppg"]["ci95"] for e in evaluations)
    each = evaluations if s == 2 else [{b: {"ppg": {"value": pooled[b]["ppg"]["mean"]}} for b in BLOCKS}]
    above = low > 0
    one_sign = all(e["population"]["ppg"]["value"] * e["swapped"]["ppg"]["value"] > 0 for e in each)
    beyond = all(e["corrected"]["ppg"]["value"] > 0 for e in each)
    against = []
    if not above:
        against.append("the interval does not stay above 0")
    if not one_sign:
        against.append(f"the two directions disagree ({there:.3f} and {back:.3f})")
    if not beyond:
        against.append(f"the gap is no larger than the holdout's (corrected {corrected:.3f})")
    verdict = (
        "Memorization was found" if not against else f"Memorization was not shown, because {', and '.join(against)}"
    )
    words = f"{verdict}: symmetric PPG {value:.3f}, 95 % interval {low:.3f} to {high:.3f}, {pairs}."
    return {
        "found": not against,
        "words": words,
        "seed_pairs": s,
        "interval": [float(low), float(high)],
        "above_zero": bool(above),
        "one_sign": bool(one_sign),
        "corrected": bool(beyond),
    }


def blind(records: Records, target: Scores, reference: Scores, k: int) -> dict[str, Any]:
    """The blind baseline: for every record the objects most frequent in the public set, whatever its caption says.

    It names M objects, ties in label order; M is the mean |Ô| over the kept records and both models, rounded, at least 1.

    Returns:
        {objects: M, labels (the first 20 of them), blind, target, reference: {precision, recall, f1}}: means over the
        kept records, f1 of these two means.
    """
    kept, column = target.kept, target.column(k)
    predicted = np.concatenate([s.predicted[kept, column] for s in (target, reference)])
    frequency = np.bincount(records.public.codes, minlength=len(records.public.labels))
    ranked = np.argsort(-frequency, kind="stable")[: np.count_nonzero(frequency)]
    guess = ranked[: max(1, round(float(predicted.mean())))]
    guessed = np.zeros(len(frequency), bool)
    guessed[guess] = True
    truth = records.truth
    right = np.concatenate([[0], np.cumsum(guessed[truth.codes])])
    hits = (right[truth.starts[1:]] - right[truth.starts[:-1]])[kept]
    return {
        "objects": len(guess),
        "labels": [truth.labels[code] for code in guess[:20]],
        "blind": _means(hits / max(1, len(guess)), hits / target.truth[kept]),
        **{
            name: _means(s.precision(k)[kept], s.recall(k)[kept])
            for name, s in (("target", target), ("reference", reference))
        },
    }


def _means(precision: np.ndarray, recall: np.ndarray) -> dict[str, float]:
    p, r = float(precision.mean()), float(recall.mean())
    return {"precision": p, "recall": r, "f1": 2 * p * r / (p + r) if p + r else 0.0}


def compare(
    first: tuple[Records, Records | None],
    second: tuple[Records, Records | None],
    k: int,
    top_m: int | None = None,
    resampling: Resampling | None = None,
) -> dict[str, Any]:
    """Compare two settings pair by pair: the first's gaps minus the second's, with an interval of its own.

    Args:
        first, second: the records of A and of B (or None) under each setting; joined by key.
        k, top_m: as in ``score``.

    Returns:
        {basis: symmetric|population, records: {A, B}, ppg|prg|aucg: {value, mean, std, ci95, …}}; basis is population
        where B is missing on either side.

    Raises:
        UserError: no common records with objects, or different objects for the same records.
    """
    resampling = resampling or Resampling()
    both = first[1] is not None and second[1] is not None
    a = _difference(first[0], second[0], k, top_m)
    found, counts = estimate(a, resampling, stream=0), {"A": len(a)}
    if first[1] is not None and second[1] is not None:
        b = _difference(first[1], second[1], k, top_m)
        found, counts = found.combine(estimate(b, resampling, stream=2), 0.5, 0.5), {"A": len(a), "B": len(b)}
    return {"basis": "symmetric" if both else "population", "records": counts, **found.block()}


def _difference(first: Records, second: Records, k: int, top_m: int | None) -> Outcomes:
    place = {key: row for row, key in enumerate(second.keys)}
    rows = [row for row, key in enumerate(first.keys) if key in place]
    if not rows:
        raise UserError("the two settings share no records; compare evaluations of the same data")
    others = [place[first.keys[row]] for row in rows]
    (t1, r1), (t2, r2) = first.scores([k], top_m), second.scores([k], top_m)
    return outcomes(_rows(t1, rows), _rows(r1, rows), k) - outcomes(_rows(t2, others), _rows(r2, others), k)


def _rows(scores: Scores, rows: list[int]) -> Scores:
    return Scores(scores.ks, scores.hits[rows], scores.predicted[rows], scores.truth[rows])
