"""The scoreboard of membership scores as rows of text, for the page, the terminal and the model card."""

from collections.abc import Mapping
from math import floor
from typing import Any

from dejavu_lit.measure.controls import FEW_RECORDS
from dejavu_lit.measure.figures import MEMBERSHIP, decimal

MEMBERSHIP_HEADERS = (
    "AUC [95 %]",
    "TPR at 1 % FPR",
    "at 0.1 %",
    "both directions",
    "B against H",
    "H against H",
    "Spearman with hits",
)
POOLED_HEADERS = ("AUC [95 %]", "TPR at 1 % FPR", "at 0.1 %")  # mean over halves and both directions
REASONED = {  # the figures of a score that may be missing, as the columns call them
    "auc": "AUC",
    "auc.ci95": "Interval of AUC",
    "tpr_at_fpr": "TPR",
    "tpr_at_fpr.0.01": "TPR at 1 % FPR",
    "tpr_at_fpr.0.001": "TPR at 0.1 % FPR",
    "symmetric": "both directions",
    "unseen": "B against H",
    "control": "H against H",
    "spearman": "Spearman with hits",
}


def membership_rows(board: Mapping[str, Any], short: bool = False) -> list[tuple[str, ...]]:
    """(score, then one cell per header of ``MEMBERSHIP_HEADERS``) of every score; ``short``: the AUC alone has an interval."""
    rows = []
    for name, score in MEMBERSHIP.items():
        entry = board[name] or {}
        tprs = [entry.get("tpr_at_fpr", {}).get(fpr) for fpr in ("0.01", "0.001")]
        figures = [*tprs, *(entry.get(part) for part in ("symmetric", "unseen", "control", "spearman"))]
        rows.append((score.label, _text(entry.get("auc")), *(_text(figure, not short) for figure in figures)))
    return rows


def pooled_boards(study: Mapping[str, Any]) -> list[dict[str, Any]]:
    """{title, headers, rows} of every setting that has several halves."""
    boards = []
    for pooled in study.get("pooled", []):
        if memorization := pooled.get("memorization"):
            title = f"Membership under {pooled['name']}, over {memorization['halves']} halves and both directions"
            boards.append({"title": title, "headers": POOLED_HEADERS, "rows": _pooled_rows(pooled)})
    return boards


def _pooled_rows(pooled: Mapping[str, Any]) -> list[tuple[str, ...]]:
    """(score or attack, then one cell per header of ``POOLED_HEADERS``) over the halves of a setting."""
    memorization = pooled["memorization"]
    boards = {score.label: pooled.get("membership", {}).get(name) for name, score in MEMBERSHIP.items()}
    boards |= {"LiRA": memorization["lira"], "RMIA": memorization["rmia"]}
    rows = []
    for label, board in boards.items():
        figure = (board or {}).get("auc", board)  # of the attacks; a score's own mean is that of its AUC
        tprs = [((board or {}).get("tpr_at_fpr") or {}).get(fpr) for fpr in ("0.01", "0.001")]
        rows.append((label, *(_text(_within_0_and_1(part), value="mean") for part in (figure, *tprs))))
    return rows


def _within_0_and_1(figure: Mapping[str, Any] | None) -> Mapping[str, Any] | None:
    """A share whose t interval, which is symmetric, ends where shares do."""
    return figure and {**figure, "ci95": figure["ci95"] and [min(max(end, 0.0), 1.0) for end in figure["ci95"]]}


def missing_sentences(board: Mapping[str, Any]) -> list[str]:
    """Why figures of the scoreboard are missing: one sentence per figure and reason, with the scores concerned."""
    scores: dict[tuple[str, str], list[str]] = {}
    for name, score in MEMBERSHIP.items():
        reasons = board[name]["reasons"] if board[name] else {"auc": board["reasons"][name]}
        for figure, reason in reasons.items():
            if figure in REASONED:
                scores.setdefault((REASONED[figure], reason), []).append(score.label)
    sentences = [f"{figure} of {', '.join(names)}: {reason}." for (figure, reason), names in scores.items()]
    if (reason := board["reasons"].get("epsilon")) is not None:
        sentences.append(f"The bound on ε: {reason}.")
    return sentences


def epsilon_sentence(board: Mapping[str, Any]) -> str | None:
    """What the one-run audit shows, as a sentence; None if it could not be made."""
    if (audit := board["epsilon"]) is None:
        return None
    lower = floor(100 * audit["epsilon"] + 1e-9) / 100  # a bound that is rounded up would not hold
    bound = f"ε is at least {lower:.2f}" if lower else "no ε is refuted"
    return (
        f"Audit of one run for differential privacy: {bound} ({audit['right']:,} of {audit['guesses']:,} guesses were right, "
        f"among {audit['pairs']:,} pairs of A and B in equal numbers; 95 % confidence). Such an audit can refute a claim of "
        "privacy; it cannot prove one."
    )


def membership_sentence(board: Mapping[str, Any] | None) -> str:
    """What the cosine, the score of a study's table, says of membership; "" if it says nothing or of fewer than 20 pairs."""
    cosine = (board or {}).get("cosine") or {}
    if not board or not cosine.get("auc") or min(board["pairs"][name] for name in "AH") < FEW_RECORDS:
        return ""
    # An AUC of 1 has no interval.
    auc, *controls = (
        figure["ci95"] or [figure["value"]] * 2 for name in ("auc", "control", "unseen") if (figure := cosine.get(name))
    )
    if any(not low <= 0.5 <= high for low, high in controls):
        return "A control of the membership scores is not 0.5: the sets may differ otherwise, so do not rely on these scores."
    if auc[0] <= 0.5:
        return ""
    return (
        "Membership is another question: given image and caption, one can tell better than by guessing whether a pair was "
        f"trained on (AUC of the cosine {_text(cosine['auc'])}; guessing is 0.5)."
    )


def memorization_sentences(memorization: Mapping[str, Any] | None) -> list[str]:
    """What several halves show of single pairs, and why an attack with shadow models is missing; nothing without halves."""
    if memorization is None:
        return []
    repeats = {name: value for name, value in memorization["reliability"].items() if value is not None}
    lines = []
    if repeats:
        ranks = ", ".join(f"{decimal(value, 2)} in {name}" for name, value in repeats.items())
        lines.append(
            f"counterfactual memorization of {memorization['pairs']} pairs: reliability of the ranking {ranks}"
        )
    reasons = memorization.get("reasons", {})
    lines += [f"no {label}: {reasons[name]}" for name, label in (("lira", "LiRA"), ("rmia", "RMIA")) if name in reasons]
    return lines


def _text(figure: Mapping[str, Any] | None, interval: bool = True, value: str = "value") -> str:
    """A figure as a cell: three digits and its interval; a dash for None."""
    if figure is None:
        return "–"
    ends = " [{}, {}]".format(*map(decimal, figure["ci95"])) if interval and figure["ci95"] else ""
    return decimal(figure[value]) + ends
