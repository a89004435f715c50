"""The scoreboard of membership scores as rows of text, for the terminal and the model card."""

from collections.abc import Mapping
from typing import Any

from dejavu_lit.measure.figures import MEMBERSHIP

MEMBERSHIP_HEADERS = (
    "AUC [95 %]",
    "TPR at 1 % FPR",
    "at 0.1 %",
    "both directions",
    "B against H",
    "Spearman with hits",
)


def membership_rows(board: Mapping[str, Any]) -> list[tuple[str, ...]]:
    """(score, then one cell per header of ``MEMBERSHIP_HEADERS``) of the scores that were measured."""
    rows = []
    for name, score in MEMBERSHIP.items():
        if entry := board[name]:
            auc, symmetric, unseen, rank = (entry[part] for part in ("auc", "symmetric", "unseen", "spearman"))
            tprs = [entry["tpr_at_fpr"][fpr] for fpr in ("0.01", "0.001")]
            figures = [_number(figure) for figure in (*tprs, symmetric, unseen)]
            rows.append((score.label, _with_interval(auc), *figures, _number(rank)))
    return rows


def epsilon_sentence(board: Mapping[str, Any]) -> str | None:
    """What the one-run audit shows, as a sentence; None if it could not be made."""
    if (audit := board["epsilon"]) is None:
        return None
    bound = f"ε is at least {audit['epsilon']:.2f}" if audit["epsilon"] else "no ε is refuted"
    return (
        f"Audit of one run: {bound} ({audit['right']} of {audit['guesses']} guesses right among {audit['pairs']} pairs of A and "
        "B in equal numbers; 95 % confidence). It refutes claims of privacy; it proves none."
    )


def memorization_sentences(memorization: Mapping[str, Any] | None) -> list[str]:
    """What several halves show of single pairs, and the attacks with shadow models; nothing without halves."""
    if memorization is None:
        return []
    repeats = {name: value for name, value in memorization["reliability"].items() if value is not None}
    lines = []
    if repeats:
        ranks = ", ".join(f"{value:.2f} in {name}" for name, value in repeats.items())
        lines.append(
            f"counterfactual memorization of {memorization['pairs']} pairs: reliability of the ranking {ranks}"
        )
    for name, label in (("lira", "LiRA"), ("rmia", "RMIA")):
        if attack := memorization[name]:
            tpr = attack["tpr_at_fpr"]["0.01"]
            at = f", TPR at 1 % FPR {tpr['mean']:.3f}" if tpr else ""
            lines.append(f"{label} over {memorization['halves']} halves: AUC {_mean(attack['auc'])}{at}")
    return lines


def _mean(figure: Mapping[str, Any]) -> str:
    low, high = figure["ci95"]
    return f"{figure['mean']:.3f} [{low:.3f}, {high:.3f}]"


def _number(figure: Mapping[str, Any] | None) -> str:
    return "–" if figure is None else f"{figure['value']:.3f}"


def _with_interval(figure: Mapping[str, Any] | None) -> str:
    if figure is None or figure["ci95"] is None:
        return _number(figure)
    return f"{figure['value']:.3f} [{figure['ci95'][0]:.3f}, {figure['ci95'][1]:.3f}]"
