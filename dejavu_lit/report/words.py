"""The words for an evaluation's numbers: names of blocks and figures, formatted values, the controls as sentences.

No sentence is stronger than the interval behind it: the verdict is that of ``measure.controls.found``.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

FIGURES = {"ppg": "PPG", "prg": "PRG", "aucg": "AUCG"}
MEANINGS = {
    "ppg": "population precision gap: share of records with a higher precision under the target, minus the reverse",
    "prg": "population recall gap: the same with recall",
    "aucg": "AUC gap: mean recall of the target minus that of the reference",
}
BLOCKS = {
    "population": "A: target − reference",
    "swapped": "B: roles exchanged",
    "symmetric": "symmetric: mean of A and B (headline)",
    "null": "H: null control",
    "corrected": "corrected: A − H",
}
UTILITY = {
    "zeroshot_top1": "zero-shot top-1",
    "zeroshot_top5": "zero-shot top-5",
    "i2t_r1": "image→text R@1",
    "i2t_r5": "image→text R@5",
    "i2t_r10": "image→text R@10",
    "t2i_r1": "text→image R@1",
    "t2i_r5": "text→image R@5",
    "t2i_r10": "text→image R@10",
    "linear_probe": "linear probe",
}
RANKINGS = {
    "gap": "gap: hits of the target − hits of the reference",
    "hits": "hits of the target",
    "distance": "distance of caption and nearest image under the target",
}
State = Literal["yes", "no", "unknown"]


@dataclass(frozen=True)
class Control:
    """One control: whether it holds, its name, and the numbers in a sentence."""

    state: State
    name: str
    words: str


def signed(value: float, digits: int = 3) -> str:
    """+0.575 or −0.046, with a true minus sign; what rounds to 0 has no sign."""
    text = f"{abs(value):.{digits}f}"
    sign = "" if float(text) == 0 else "+" if value > 0 else "−"
    return sign + text


def interval(ci: Any, digits: int = 3) -> str:
    """``+0.550 to +0.601``."""
    return f"{signed(ci[0], digits)} to {signed(ci[1], digits)}"


def state(found: bool | None) -> State:
    """yes, no or unknown."""
    return "unknown" if found is None else "yes" if found else "no"


VERDICTS: dict[State, str] = {
    "yes": "Memorization was found",
    "no": "Memorization was not shown",
    "unknown": "It cannot be said",
}


def in_words(metrics: Mapping[str, Any]) -> str:
    """What was compared, and on how many records the target was better, as one would say it aloud."""
    counts, k, settings = metrics["counts"], metrics["k"], metrics["settings"]
    captions = settings.get("public_modality") == "text"
    reference = str(settings.get("reference", ""))
    text = (
        f"For {counts['records']:,} training pairs whose images hold objects, the caption alone was used to look up the "
        f"{k} nearest of {counts['public']:,} public {'captions' if captions else 'images'}, once with the target model, "
    )
    if reference.startswith("text:"):
        text += (
            f"and once, among their captions, with the text model {reference.removeprefix('text:')}, which has seen none of "
            "the images and knows only what a caption says (the one-model test). "
        )
    else:
        text += "which was trained on these pairs, and once with the reference model, which was not. "
    sign = metrics["population"]["ppg"].get("sign_test")
    if sign:
        text += (
            f"The target's images named the objects of the training image more precisely for {sign['wins']:,} pairs, "
            f"the reference's for {sign['losses']:,}."
        )
    return text


def controls(metrics: Mapping[str, Any]) -> list[Control]:
    """The conditions under which a gap is believed, each with its numbers, and null beside symmetric."""
    blocks = {name: (metrics.get(name) or {}).get("ppg") for name in BLOCKS}
    reasons = metrics.get("reasons", {})
    made = []
    for name, title in (("symmetric", "Symmetric gap above 0"), ("corrected", "Corrected gap above 0")):
        ppg = blocks[name]
        if ppg is None:
            made.append(Control("unknown", title, f"Not measured: {reasons.get(name, 'no reason given')}."))
            continue
        words = f"{name} PPG {signed(ppg['value'])}, 95 % interval {interval(ppg['ci95'])}"
        if ppg["ci95"][0] <= 0:
            words += ", which does not stay above 0"
        made.append(Control(state(ppg["ci95"][0] > 0), title, f"{words}."))
    there, back = blocks["population"], blocks["swapped"]
    if there is None or back is None:
        made.insert(1, Control("unknown", "Both directions of one sign", "Only one direction was measured."))
    else:
        words = f"PPG is {signed(there['value'])} on A and {signed(back['value'])} on B with the roles exchanged."
        made.insert(1, Control(state(there["value"] * back["value"] > 0), "Both directions of one sign", words))
    made.append(_null(blocks["null"], blocks["symmetric"] or there, reasons))
    return made


def _null(null: Any, gap: Any, reasons: Mapping[str, str]) -> Control:
    title = "Null smaller than the gap"
    if null is None or gap is None:
        return Control("unknown", title, f"Not measured: {reasons.get('null', 'no reason given')}.")
    words = (
        f"On the holdout, where there is nothing to remember, PPG is {signed(null['value'])} ({interval(null['ci95'])})"
    )
    if null["ci95"][0] > 0 or null["ci95"][1] < 0:
        words += ", so the two models differ in quality; the symmetric gap cancels this to first order"
    return Control(state(abs(null["value"]) < gap["value"]), title, f"{words}; the gap is {signed(gap['value'])}.")


def seen(metrics: Mapping[str, Any]) -> str:
    """How often training saw each pair, or that it is not known."""
    parts = []
    for side, name in (("target", "A"), ("reference", "B")):
        span = (metrics.get("exposure") or {}).get(side)
        if span:
            parts.append(
                f"the {side} saw each pair of {name} {span['mean']:.1f} times ({span['min']} to {span['max']})"
            )
    if not parts:
        return "Exposure: it is not known how often training saw each pair."
    return f"Exposure: {' and '.join(parts)}. An epoch is one pass, without replacement."
