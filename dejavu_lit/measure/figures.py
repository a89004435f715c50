"""The one table of figures and blocks: {name in the JSON files: label and meaning}, in the order of the files.

Reports, dashboards and tables take their words from here, and sentences and tables for people write numbers as ``decimal``
and ``signed`` do.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Figure:
    """A figure, or a block of figures: its short form for tables and axes, and for a figure its definition."""

    label: str
    meaning: str = ""


# The population level. The order is also that of the columns in every [n, 3] array.
FIGURES = {
    "ppg": Figure(
        "PPG", "share of pairs for which the target is the more precise, minus the share for which the reference is"
    ),
    "prg": Figure("PRG", "the same with recall in place of precision"),
    "aucg": Figure("AUCG", "mean recall of the target minus that of the reference"),
}

# The sample level: on the L most memorized records, target minus reference.
SAMPLE_GAPS = {
    "precision_gap": Figure("precision gap"),
    "recall_gap": Figure("recall gap"),
    "f1_gap": Figure("F1 gap"),
}

# The utility of one model: zero-shot accuracy, retrieval on the holdout, a linear classifier on frozen image embeddings.
UTILITY = {
    "zeroshot_top1": Figure("zero-shot top-1"),
    "zeroshot_top5": Figure("zero-shot top-5"),
    **{f"i2t_r{k}": Figure(f"image→text R@{k}") for k in (1, 5, 10)},
    **{f"t2i_r{k}": Figure(f"text→image R@{k}") for k in (1, 5, 10)},
    "linear_probe": Figure("linear probe"),
}

# The membership scores, as membership.py defines them.
MEMBERSHIP = {
    "cosine": Figure("cosine", "cosine of a pair's image and caption under the target"),
    "alignment": Figure("alignment", "the cosine minus the mean cosine with other captions and images of H"),
    "loss": Figure(
        "loss", "log-probability of the right caption and image among these and the other captions and images of H"
    ),
    "cosine_calibrated": Figure("calibrated cosine", "the cosine under the target minus that under the reference"),
    "clipmem": Figure("CLIPMem", "the alignment under the target minus that under the reference"),
    "dejavu": Figure("gap in hits", "objects of the image that its caption's neighbors share, target minus reference"),
}

# The blocks, as controls.py defines them.
BLOCKS = {
    "population": Figure("A: target − reference"),
    "null": Figure("H: null control"),
    "swapped": Figure("B: roles exchanged"),
    "symmetric": Figure("symmetric: mean of A and B (headline)"),
    "corrected": Figure("corrected: A − H"),
}

# The order in which tables and plots show the blocks: both directions, their mean, then the control.
DISPLAY_ORDER = ("population", "swapped", "symmetric", "null", "corrected")

# The blocks that are measured on one set; the others combine them.
BLOCK_SETS = {"population": "A", "null": "H", "swapped": "B"}


def headline(blocks: Mapping[str, Any]) -> str:
    """The block that is shown first: symmetric, or of one direction alone, if H was measured, the gap beyond that on H."""
    return next((name for name in ("symmetric", "corrected") if blocks.get(name)), "population")


def decimal(value: float, digits: int = 3) -> str:
    """0.575 or −0.046, with a true minus sign; a value that rounds to 0 has no sign."""
    text = f"{abs(value):.{digits}f}"
    return f"−{text}" if value < 0 and float(text) else text


def signed(value: float, digits: int = 3) -> str:
    """+0.575 or −0.046; a value that rounds to 0 has no sign."""
    text = decimal(value, digits)
    return f"+{text}" if value > 0 and float(text) else text
