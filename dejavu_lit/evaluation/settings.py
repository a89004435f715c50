"""The settings of an evaluation; nothing heavy is imported."""

from dataclasses import dataclass, field, fields
from typing import Any

from dejavu_lit.measure.settings import MainSettings, MembershipSettings, Settings, Statistics
from dejavu_lit.utils.config import take, to_plain
from dejavu_lit.utils.errors import check_choice


@dataclass(frozen=True)
class DataChanges:
    """The data that the target run was trained on; an option given here replaces the run's."""

    dir: str | None = None
    """Another folder with the same data; must be given if the run's is remote."""
    public: str | None = None
    """Another public set."""
    labelled: str | None = None
    """Another labelled set; empty (data.labelled=): none."""
    classes: Any = None
    """Class names of the labelled set."""
    classes_by: str | None = None
    """How its labels are matched with classes."""
    templates: Any = None
    """Prompts of zero-shot classification."""
    train_size: int | None = None
    """Number of pairs of A and of B that are measured, a prefix of those trained on; null: all of them."""
    exclude: str | None = None
    """A file of keys, one per line: pairs left out of measuring and searching."""


@dataclass(frozen=True)
class ReportSettings:
    """The report beside the figures."""

    write: bool = True
    """Write report/index.html."""
    redact: bool = False
    """Leave out images, captions and objects of single pairs."""


@dataclass(frozen=True)
class EvaluationSettings(MainSettings):
    """What is measured, whatever the models."""

    data: Any = None
    """The data: the target run's by default, changed by the options given here; or another data=…"""
    objects: str | None = None
    """A name below data.dir/objects, or a folder; null: the data's own, or the only one there."""
    by_objects: tuple[str, ...] = ()
    """More artifacts, [NAME, …], whose gaps are shown beside the main ones, from the same neighbors."""
    index: str = "flat"
    """How faiss searches: flat is exact; gpu too, and needs faiss-gpu; ivf is approximate, its recall is measured."""
    public_modality: str = "image"
    """What the target's captions are compared with: images of P, or text: its captions."""
    swapped: bool | None = None
    """Measure B with the roles exchanged; null: if the reference is a run that trained on B, or embeddings of B."""
    allow_overlap: bool = False
    """Allow overlaps: both sides trained on the same pairs or exchanged, runs of other data, measured pairs that are public."""
    device: str | None = None
    """cpu, cuda, cuda:1, …; null: what trainer says."""
    workers: int = 2
    """Threads that read and decode."""
    embeddings: str | None = None
    """The folder for all embeddings; null: a run's own if it can be written, else below out."""
    statistics: Statistics = field(default_factory=Statistics)
    """The statistics that are computed from the records."""
    base: str | None = None
    """The model that target and reference were fine-tuned from: the target's gap against it, beside the others."""
    group: str | None = None
    """An entry of the pairs' JSON, such as the owner: each group's gap and its p-value against H, in groups.csv."""
    membership: MembershipSettings | None = field(default_factory=MembershipSettings)
    """Membership scores beside the gaps; null: none."""
    keys: str | None = None
    """A file of keys of A, one per line: each pair's gap and its p-value against H, in persons.csv."""
    report: ReportSettings = field(default_factory=ReportSettings)
    """What the report shows, and whether it is written."""

    def __post_init__(self) -> None:
        if self.data is None:
            object.__setattr__(self, "data", DataChanges())
        check_choice("public_modality", self.public_modality, ("image", "text"))
        _ = self.measurement

    @property
    def measurement(self) -> Settings:
        """The settings of the statistics; raises UserError for values out of range."""
        ks = tuple(self.ks) if self.k in self.ks else tuple(sorted((*self.ks, self.k)))
        return take(Settings, self, ks=ks, **vars(self.statistics))


def saved_settings(settings: EvaluationSettings) -> dict[str, Any]:
    """The settings that figures depend on, as plain values."""
    names = [field.name for field in fields(PairEvaluation) if field.name != "report" and hasattr(settings, field.name)]
    return {name: to_plain(getattr(settings, name)) for name in names}


@dataclass(frozen=True)
class PairEvaluation(EvaluationSettings):
    """An evaluation of two models."""

    target: str | None = None
    """RUN, RUN@EPOCH, ARCH@TAG, ARCH@FILE, hf-hub:…, local-dir:…, or embeddings:DIR."""
    reference: str | None = None
    """The same, or text:MODEL for the one-model test."""
