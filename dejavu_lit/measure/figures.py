"""The one table of figures and blocks: name in the JSON files, label, meaning, unit, and which direction is better.

    FIGURES["ppg"].label                 "PPG"; iterating over a table gives the names in the order of the JSON files
    BLOCKS["symmetric"].sets             ("A", "B")

Reports, dashboards and tables take their words from here.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal, TypeVar

GAP = "difference of shares, −1 to 1"
SHARE = "share, 0 to 1"


@dataclass(frozen=True)
class Figure:
    """One number that an evaluation reports."""

    name: str
    """The key in metrics.json and study.json."""
    label: str
    """The short form for tables and axes."""
    meaning: str
    """The definition in words."""
    unit: str
    """What the value counts, with its range."""
    better: Literal["lower", "higher"]
    """The direction that a mitigation should move it in."""


@dataclass(frozen=True)
class Block:
    """One group of the population-level figures: the sets that it is measured on and how they are combined."""

    name: str
    """The key in metrics.json and study.json."""
    label: str
    """The short form for tables and axes."""
    sets: tuple[str, ...]
    """The sets that the block needs."""
    meaning: str
    """The definition in one sentence."""


Row = TypeVar("Row", Figure, Block)


def _by_name(rows: Iterable[Row]) -> dict[str, Row]:
    return {row.name: row for row in rows}


# The population level. The order is also that of the columns in every [n, 3] array.
FIGURES = _by_name(
    [
        Figure(
            "ppg",
            "PPG",
            "share of pairs for which the target is the more precise, minus the share for which the reference is",
            GAP,
            "lower",
        ),
        Figure("prg", "PRG", "the same with recall in place of precision", GAP, "lower"),
        Figure("aucg", "AUCG", "mean recall of the target minus that of the reference", GAP, "lower"),
    ]
)

# The sample level: on the L most memorized records.
SAMPLE_GAPS = _by_name(
    [
        Figure(
            "precision_gap", "precision gap", "mean precision of the target minus that of the reference", GAP, "lower"
        ),
        Figure("recall_gap", "recall gap", "mean recall of the target minus that of the reference", GAP, "lower"),
        Figure(
            "f1_gap",
            "F1 gap",
            "F1 of the mean precision and mean recall, target minus reference",
            GAP,
            "lower",
        ),
    ]
)

# The utility of one model.
UTILITY = _by_name(
    [
        Figure(
            "zeroshot_top1",
            "zero-shot top-1",
            "zero-shot accuracy: images whose class has the most similar prompt",
            SHARE,
            "higher",
        ),
        Figure(
            "zeroshot_top5",
            "zero-shot top-5",
            "zero-shot accuracy: images whose class is among the five with the most similar prompts",
            SHARE,
            "higher",
        ),
        *(
            Figure(
                f"i2t_r{k}",
                f"image→text R@{k}",
                f"retrieval: holdout images whose own caption is among the {k} nearest",
                SHARE,
                "higher",
            )
            for k in (1, 5, 10)
        ),
        *(
            Figure(
                f"t2i_r{k}",
                f"text→image R@{k}",
                f"retrieval: holdout captions whose own image is among the {k} nearest",
                SHARE,
                "higher",
            )
            for k in (1, 5, 10)
        ),
        Figure(
            "linear_probe",
            "linear probe",
            "accuracy of a linear classifier on the frozen image embeddings",
            SHARE,
            "higher",
        ),
    ]
)

# The membership scores; the attack figures of each are in metrics.json under ``membership``.
MEMBERSHIP = _by_name(
    [
        Figure("cosine", "cosine", "cosine of image and caption under the target", "cosine, −1 to 1", "lower"),
        Figure(
            "alignment",
            "alignment",
            "cosine of image and caption minus their mean cosine with other captions and images of H",
            "difference of cosines, −2 to 2",
            "lower",
        ),
        Figure(
            "loss",
            "loss",
            "mean log-probability of the right caption and of the right image among 512 of H",
            "log-probability, at most 0",
            "lower",
        ),
        Figure(
            "cosine_calibrated",
            "calibrated cosine",
            "cosine under the target minus that under the reference",
            "difference of cosines, −2 to 2",
            "lower",
        ),
        Figure("clipmem", "CLIPMem", "alignment under the target minus that under the reference", "−4 to 4", "lower"),
        Figure(
            "dejavu",
            "gap in hits",
            "objects that the target predicts right minus those of the reference",
            "count",
            "lower",
        ),
    ]
)

BLOCKS = _by_name(
    [
        Block(
            "population",
            "A: target − reference",
            ("A",),
            "The target model against the reference model on A, the target's training set.",
        ),
        Block(
            "null",
            "H: null control",
            ("H",),
            "The same two models on the holdout set H, which neither trained on: a gap here is a difference in utility.",
        ),
        Block(
            "swapped",
            "B: roles exchanged",
            ("B",),
            "The roles exchanged: the reference model against the target model on B, the reference's training set.",
        ),
        Block(
            "symmetric",
            "symmetric: mean of A and B (headline)",
            ("A", "B"),
            "The mean of population and swapped, in which a difference in utility cancels to first order.",
        ),
        Block(
            "corrected",
            "corrected: A − H",
            ("A", "H"),
            "Population minus null, for evaluations that have one direction only.",
        ),
    ]
)

# The order in which tables and plots show the blocks: both directions, their mean, then the control.
DISPLAY_ORDER = ("population", "swapped", "symmetric", "null", "corrected")

# The blocks that are measured on one set; the others combine them.
BLOCK_SETS = {name: block.sets[0] for name, block in BLOCKS.items() if len(block.sets) == 1}
