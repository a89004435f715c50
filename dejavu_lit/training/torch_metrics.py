"""The gaps as torchmetrics, for training loops and for many processes: bounded states that merge exactly.

PPG, PRG and AUCG keep counts that add up; SampleLevelGap keeps the first L records of its ranking. On any number of processes
they equal ``population`` and ``sample`` on all records at once, bit for bit, as long as each record is updated on one process
only (a sampler that pads the last batch with repeated records breaks this).
"""

from typing import Any

import torch
from torch import Tensor
from torchmetrics import Metric

from dejavu_lit.measure.population import mean_recall_gap
from dejavu_lit.measure.sample import RANKINGS


def _keep_apart(metric: Metric, name: str) -> None:
    """Add an unused state with this name, so that a MetricCollection updates the metric itself.

    A collection updates only one of several metrics whose states have the same names and, after the first batch, the same
    values, as those of PPG and PRG may have.
    """
    metric.add_state(name, torch.zeros((), dtype=torch.int64), dist_reduce_fx="sum")


class _PopulationGap(Metric):
    """(wins − losses) / n over the records that have objects."""

    is_differentiable = False
    higher_is_better = False  # the gap is what a mitigation lowers
    full_state_update = False
    wins: Tensor
    losses: Tensor
    records: Tensor

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        for name in ("wins", "losses", "records"):
            self.add_state(name, torch.zeros((), dtype=torch.int64), dist_reduce_fx="sum")
        _keep_apart(self, type(self).__name__)

    def _count(self, difference: Tensor, truth: Tensor) -> None:
        has_objects = truth > 0
        self.wins += (has_objects & (difference > 0)).sum()
        self.losses += (has_objects & (difference < 0)).sum()
        self.records += has_objects.sum()

    def compute(self) -> Tensor:
        """The gap, float64; NaN before the first record with objects."""
        return (self.wins - self.losses).double() / self.records.double()


class PPG(_PopulationGap):
    """The population precision gap, ( #{prec_T > prec_R} − #{prec_T < prec_R} ) / n."""

    def update(
        self, target_hits: Tensor, target_predicted: Tensor, reference_hits: Tensor, reference_predicted: Tensor,
        truth: Tensor,
    ) -> None:  # fmt: skip
        """Add n records: |G ∩ Ô| and |Ô| per model, and |G|, all integers [n]."""
        target = target_hits.long() * reference_predicted.long().clamp(min=1)
        reference = reference_hits.long() * target_predicted.long().clamp(min=1)
        self._count(target - reference, truth)


class PRG(_PopulationGap):
    """The population recall gap, ( #{rec_T > rec_R} − #{rec_T < rec_R} ) / n."""

    def update(self, target_hits: Tensor, reference_hits: Tensor, truth: Tensor) -> None:
        """Add n records: |G ∩ Ô| per model, and |G|, all integers [n]."""
        self._count(target_hits.long() - reference_hits.long(), truth)


class AUCG(Metric):
    """The area between the models' recall curves, mean(recall_T) − mean(recall_R), from counts per (hits, |G|).

    Args:
        max_objects: the largest number of objects per image; the state is 2 × (max_objects + 1)² integers.
    """

    is_differentiable = False
    higher_is_better = False
    full_state_update = False
    counts: Tensor

    def __init__(self, max_objects: int = 128, **options: Any) -> None:
        super().__init__(**options)
        self.max_objects = max_objects
        size = max_objects + 1
        self.add_state("counts", torch.zeros((2, size, size), dtype=torch.int64), dist_reduce_fx="sum")

    def update(self, target_hits: Tensor, reference_hits: Tensor, truth: Tensor) -> None:
        """Add n records: |G ∩ Ô| per model, and |G|, all integers [n].

        Raises:
            ValueError: an image with more than ``max_objects`` objects.
        """
        truth, size = truth.long(), self.max_objects + 1
        if truth.numel() and int(truth.max()) >= size:
            raise ValueError(f"an image has {int(truth.max())} objects; set AUCG(max_objects=…) to at least that")
        has_objects = truth > 0
        for model, hits in enumerate((target_hits, reference_hits)):
            cell = truth[has_objects] * size + hits.long()[has_objects]
            self.counts[model] += torch.bincount(cell, minlength=size * size).reshape(size, size)

    def compute(self) -> Tensor:
        """The gap, float64; NaN before the first record with objects."""
        counts = self.counts.cpu()
        records = int(counts[0].sum())
        if records == 0:
            return torch.tensor(torch.nan, dtype=torch.float64)
        hits = ((counts[0] - counts[1]) * torch.arange(self.max_objects + 1)).sum(dim=1)
        sizes = torch.arange(1, self.max_objects + 1)
        return torch.tensor(mean_recall_gap(hits[1:].numpy(), sizes.numpy(), records), dtype=torch.float64)


# Columns of SampleLevelGap's state.
_ORDER, _RECORD, _TARGET_HITS, _TARGET_PREDICTED, _REFERENCE_HITS, _REFERENCE_PREDICTED, _TRUTH = range(7)


class SampleLevelGap(Metric):
    """The gaps of precision, recall and F1 on the ``top`` most memorized records; ties go to the smaller record number.

    Args:
        top: L, the number of records.
        by: the ranking, ``distance``, ``hits`` or ``gap``, as in ``sample``.
    """

    is_differentiable = False
    higher_is_better = False
    full_state_update = False
    first: Tensor

    def __init__(self, top: int, by: str = "distance", **options: Any) -> None:
        super().__init__(**options)
        if top < 1 or by not in RANKINGS:
            raise ValueError(f"SampleLevelGap(top={top}, by={by!r}): top must be at least 1, and by one of {RANKINGS}")
        self.top, self.by = top, by
        # Unused rows have |G| = 0.
        self.add_state("first", torch.zeros((top, 7), dtype=torch.int64), dist_reduce_fx=self._merge)
        _keep_apart(self, f"{by}_{top}")

    def _merge(self, stacked: Tensor) -> Tensor:
        """The first ``top`` records of states [..., 7], in order; exact, however the records were split."""
        rows = stacked.reshape(-1, 7)
        rows = rows[rows[:, _TRUTH] > 0]
        rows = rows[torch.argsort(rows[:, _RECORD], stable=True)]
        rows = rows[torch.argsort(rows[:, _ORDER], stable=True)][: self.top]
        return torch.cat([rows, rows.new_zeros((self.top - len(rows), 7))])

    def update(
        self, record: Tensor, distance: Tensor, target_hits: Tensor, target_predicted: Tensor, reference_hits: Tensor,
        reference_predicted: Tensor, truth: Tensor,
    ) -> None:  # fmt: skip
        """Add n records.

        Args:
            record: the numbers of the records over all processes, int [n].
            distance: the distance to the nearest public image under the target, float32 [n].
            target_hits, target_predicted, reference_hits, reference_predicted, truth: |G ∩ Ô| and |Ô| per model, and |G|,
                int [n].
        """
        if self.by == "distance":
            # The bits of a float32 as an integer with the same order; adding 0 makes −0 and 0 equal.
            bits = (distance.float() + 0.0).contiguous().view(torch.int32)
            order = torch.where(bits >= 0, bits, bits ^ 0x7FFFFFFF).long()
        else:
            order = -target_hits.long() + (reference_hits.long() if self.by == "gap" else 0)
        columns = (record, target_hits, target_predicted, reference_hits, reference_predicted, truth)
        rows = torch.stack([order, *(column.long() for column in columns)], dim=1)
        self.first = self._merge(torch.cat([self.first, rows]))

    def compute(self) -> dict[str, Tensor]:
        """{precision_gap, recall_gap, f1_gap}, float64; NaN before the first record with objects."""
        rows = self.first[self.first[:, _TRUTH] > 0].double()
        figures = []
        for hits, predicted in ((_TARGET_HITS, _TARGET_PREDICTED), (_REFERENCE_HITS, _REFERENCE_PREDICTED)):
            precision = (rows[:, hits] / rows[:, predicted].clamp(min=1)).mean()
            recall = (rows[:, hits] / rows[:, _TRUTH]).mean()
            total = precision + recall
            f1 = torch.where(total == 0, torch.zeros_like(total), 2 * precision * recall / total)
            figures.append(torch.stack([precision, recall, f1]))
        gaps = figures[0] - figures[1]
        return dict(zip(("precision_gap", "recall_gap", "f1_gap"), gaps, strict=True))
