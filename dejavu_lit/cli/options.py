"""The options of every command: dataclasses, and their configs for Hydra."""

from dataclasses import dataclass, field
from functools import cache
from typing import Any

from hydra.core.config_store import ConfigStore

from dejavu_lit.data.prepared import DataSpec
from dejavu_lit.data.readers import READERS
from dejavu_lit.data.splits import SETS
from dejavu_lit.duplicates.settings import DuplicateCriteria
from dejavu_lit.evaluation.settings import DataChanges, EvaluationSettings, PairEvaluation
from dejavu_lit.objects.annotators import ANNOTATORS
from dejavu_lit.study.slurm import SlurmSettings
from dejavu_lit.training.settings import TrainerSettings, TrainingRun, TrainingSettings
from dejavu_lit.utils.config import schema
from dejavu_lit.utils.wandb import LoggerSettings


@dataclass(frozen=True, kw_only=True)
class Train(TrainingRun):
    """Options of ``dejavu train``."""

    out: str | None = None
    """Run directory; an existing run continues. null: a new one below outputs/train."""


@dataclass(frozen=True)
class Evaluate(PairEvaluation):
    """Options of ``dejavu evaluate``."""

    fail_if: str | None = None
    """A condition such as "symmetric.ppg.ci95[0] > 0.05": exit with code 3 if it is true, for a release gate."""
    sweep: str | None = None
    """A folder of runs of dejavu train -m: every two runs that differ only in side are evaluated."""
    utility_loss: float = 0.02
    """Largest loss of zero-shot accuracy of a recommended setting."""
    trainer: TrainerSettings = field(default_factory=TrainerSettings)
    """Devices: only accelerator, devices and num_nodes are used; trainer=ddp shares the work."""
    logger: LoggerSettings = field(default_factory=LoggerSettings)
    """The dashboards."""
    out: str | None = None
    """Where the figures go; an existing evaluation continues. null: a new folder below outputs/evaluate."""


@dataclass(frozen=True, kw_only=True)
class Mitigate(TrainingSettings):
    """Options of ``dejavu mitigate``."""

    evaluate: EvaluationSettings = field(default_factory=EvaluationSettings)
    """What is measured."""
    settings: dict[str, list[str]] = field(default_factory=dict)
    """{name: [override, …]}, each trained on both sides and evaluated: settings.mask=['mitigation.text_mask=0.5']."""
    sizes: tuple[int | None, ...] = (None,)
    """data.train_size of each setting; null: all pairs."""
    series: dict[str, Any] = field(default_factory=dict)
    """{name: {size: [override, …]}}: every setting once in each, with additional overrides by size."""
    seeds: tuple[int, ...] = (0,)
    """Training seeds, the same for both sides; each setting is trained once for each."""
    halves: int = 1
    """Number of random splits of A ∪ B, the prepared one included; half j has the seed + j."""
    launcher: str = "local"
    """local, or slurm: each training is a job."""
    slurm: SlurmSettings = field(default_factory=SlurmSettings)
    """Resources of the jobs; tasks, GPUs and CPUs follow from trainer."""
    plan_only: bool = False
    """Show what would be trained, reused and evaluated, and exit."""
    utility_loss: float = 0.02
    """Largest loss of zero-shot accuracy of a recommended setting."""
    out: str | None = None
    """The study's folder; an existing study continues. null: a new one below outputs/mitigate."""
    typed: tuple[str, ...] = field(default=(), metadata={"omegaconf_ignore": True})
    """The options as typed, on top of which each setting's overrides are composed."""


@dataclass(frozen=True)
class Prepare:
    """Options of ``dejavu prepare``."""

    data: DataSpec
    """What is prepared."""
    workers: int = 2
    """Processes that read, hash and write."""
    pairs_per_shard: int = 1000
    """Pairs per shard; 1,000 to 10,000 suit most file systems."""
    max_skipped: float = 0.05
    """Stop if more than this share of the pairs cannot be used."""
    keys: dict[str, str | None] = field(default_factory=lambda: dict.fromkeys(SETS))
    """{set: a file of keys, one per line}: only these pairs go into that set, and into no other."""


@dataclass(frozen=True)
class Annotate:
    """Options of ``dejavu annotate``."""

    data: DataSpec
    """The prepared data."""
    annotator: Any = None
    """How objects are found, {type: NAME, …}."""
    trainer: TrainerSettings = field(default_factory=TrainerSettings)
    """Devices: only accelerator, devices and num_nodes are used; trainer=ddp shares the shards."""
    name: str | None = None
    """Name of the artifact, OUT/objects/NAME; null: the annotator's own name."""
    sets: list[str] | None = None
    """E.g. [A,P]; a folder of shards elsewhere counts as a set too; null: all of OUT."""
    part: str | None = None
    """3/10: the fourth tenth of the shards; null: from the SLURM array and the ranks of torchrun or srun, else all."""
    max_failed: float = 0.05
    """Stop if more than this share of a shard's images, and more than ten, cannot be annotated; or all, if this is below 1."""
    compare: list[str] | None = None
    """[NAME, NAME]: report how two artifacts differ instead."""
    show: str | None = None
    """NAME: draw an artifact's objects on images of sets instead."""
    pictures: int = 24
    """Number of images that show draws."""
    threshold: float = 0.5
    """Lowest score that counts in compare, show and the summary."""
    out: str | None = None
    """Where compare and show write."""


@dataclass(frozen=True, kw_only=True)
class Dedup(DuplicateCriteria):
    """Options of ``dejavu dedup``."""

    data: DataSpec
    """The prepared data."""
    within: bool = False
    """Also leave out duplicates within a set, except one of each group."""
    force: bool = False
    """Write the list even if one group has more than half of a set; such groups are usually look-alikes, not copies."""
    sets: list[str] | None = None
    """E.g. [A,B,P], or a folder of shards elsewhere; duplicates stay in the set named first; null: A, B, H, V, P, others."""
    out: str | None = None
    """Where the results go; an existing search continues. null: a new folder below outputs/dedup."""


@dataclass(frozen=True)
class Power:
    """Options of ``dejavu power``."""

    metrics: Any
    """A metrics.json or study.json of earlier evaluations, or a list of them, for their variances."""
    gap: float = 0.1
    """The gap to detect."""
    power: float = 0.8
    """Probability of detecting it."""
    figure: str = "ppg"
    """ppg, prg or aucg."""


COMMANDS: dict[str, type] = {
    "train": Train,
    "evaluate": Evaluate,
    "mitigate": Mitigate,
    "prepare": Prepare,
    "annotate": Annotate,
    "dedup": Dedup,
    "power": Power,
}


@cache
def register(command: str) -> None:
    """Let Hydra know the schemas of a command: its own, both of ``data``, and the choices of readers or annotators."""
    store = ConfigStore.instance()
    store.store(group="schema", name=command, package="_global_", node=schema(COMMANDS[command]))
    store.store(group="schema", name="data", node=schema(DataSpec))
    store.store(group="schema", name="of_target", node=schema(DataChanges))
    choices = {"reader": READERS} | ({"annotator": ANNOTATORS} if command == "annotate" else {})
    for group, table in choices.items():
        for name in table.places:
            store.store(group=group, name=name, node=table.node(name))
