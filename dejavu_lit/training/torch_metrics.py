"""The gaps as torchmetrics, for training loops and for many processes: bounded states that merge exactly.

They keep counts that add up. On any number of processes they equal ``measure.gaps.estimate`` on all records at once, bit for
bit, as long as each record is updated on one process only (a sampler that pads the last batch with repeated records breaks
this).
"""

from typing import Any

import numpy as np
import torch
from torch import Tensor
from torchmetrics import Metric

from dejavu_lit.measure.gaps import mean_recall_gap


class _Gap(Metric):
    is_differentiable = False
    higher_is_better = False  # the gap is what a mitigation lowers
    full_state_update = False
    records: Tensor


class _PopulationGap(_Gap):
    """(wins − losses) / n over the records that have objects."""

    wins: Tensor
    losses: Tensor

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        for name in ("wins", "losses", "records"):
            self.add_state(name, torch.zeros((), dtype=torch.int64), dist_reduce_fx="sum")
        # An unused state of another name for each class: a MetricCollection updates only one of several metrics whose states
        # have the same names and, after the first batch, the same values.
        self.add_state(type(self).__name__, torch.zeros((), dtype=torch.int64), dist_reduce_fx="sum")

    def _count(self, difference: Tensor, truth: Tensor) -> None:
        has_objects = truth > 0
        self.wins += (has_objects & (difference > 0)).sum()
        self.losses += (has_objects & (difference < 0)).sum()
        self.records += has_objects.sum()

    def compute(self) -> Tensor:
        """The gap, float64; NaN before the first record with objects."""
        return (self.wins - self.losses).cpu().double() / self.records.cpu()  # not every device has float64


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


class AUCG(_Gap):
    """The area between the models' recall curves, mean(recall_T) − mean(recall_R), from sums of hits_T − hits_R per |G|.

    The state is ``max_objects``, the largest number of objects per image, + 2 integers.
    """

    hits: Tensor

    def __init__(self, max_objects: int = 128, **options: Any) -> None:
        super().__init__(**options)
        self.max_objects = max_objects
        self.add_state("hits", torch.zeros(max_objects + 1, dtype=torch.int64), dist_reduce_fx="sum")
        self.add_state("records", torch.zeros((), dtype=torch.int64), dist_reduce_fx="sum")

    def update(self, target_hits: Tensor, reference_hits: Tensor, truth: Tensor) -> None:
        """Add n records, as to PRG; raises ValueError for an image with more than ``max_objects`` objects."""
        truth = truth.long()
        if truth.numel() and int(truth.max()) > self.max_objects:
            raise ValueError(f"an image has {int(truth.max())} objects; set AUCG(max_objects=…) to at least that")
        self.hits.index_add_(0, truth, target_hits.long() - reference_hits.long())
        self.records += (truth > 0).sum()

    def compute(self) -> Tensor:
        """The gap, float64; NaN before the first record with objects."""
        if (records := int(self.records)) == 0:
            return torch.tensor(torch.nan, dtype=torch.float64)
        hits, sizes = self.hits[1:].cpu().numpy(), np.arange(1, self.max_objects + 1)
        return torch.tensor(mean_recall_gap(hits, sizes, records), dtype=torch.float64)
