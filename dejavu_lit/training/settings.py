"""The settings of a training run; nothing heavy is imported."""

from dataclasses import dataclass, field

from dejavu_lit.data.prepared import TRAINED_ON, DataSpec
from dejavu_lit.data.settings import LoaderSettings
from dejavu_lit.mitigation import Mitigation
from dejavu_lit.models.settings import ModelSpec
from dejavu_lit.utils.errors import UserError, check_at_least, check_choice, check_range
from dejavu_lit.utils.wandb import LoggerSettings


@dataclass(frozen=True)
class Recipe:
    """How a model is trained, mitigations apart."""

    epochs: int
    """Epochs to train; also the horizon of the learning-rate schedule."""
    batch: int
    """Pairs per step, over all ranks."""
    lr: float
    """AdamW's largest learning rate; it falls along a cosine to 0."""
    warmup_steps: int = 0
    """Steps over which the learning rate rises."""
    beta1: float = 0.9
    """AdamW's decay of the mean of the gradients."""
    beta2: float = 0.98
    """AdamW's decay of the mean of the squared gradients."""
    eps: float = 1e-6
    """AdamW's epsilon."""
    weight_decay: float = 0.2
    """AdamW's weight decay, of matrices only."""
    logit_scale_max: float = 100.0
    """The learned multiplier 1/τ is clamped to this after every step."""
    gradient_clip: float | None = None
    """Largest norm of all gradients together; null: gradients are not clipped."""
    accumulate: int = 1
    """Parts in which the batch of a rank is computed, to save memory; the loss is still that of the complete batch."""

    def __post_init__(self) -> None:
        check_at_least(self, "recipe.", epochs=1, batch=1, accumulate=1, warmup_steps=0)
        check_range(self, "recipe.", "(0, inf)", "lr", "logit_scale_max", "gradient_clip")
        check_range(self, "recipe.", "[0, inf)", "eps", "weight_decay")
        check_range(self, "recipe.", "[0, 1)", "beta1", "beta2")


ACCELERATORS = ("cpu", "gpu", "cuda", "mps", "auto")  # Lightning's names of what torch can train on here
PRECISIONS = ("32-true", "16-mixed", "bf16-mixed", "16-true", "bf16-true", "64-true", "16", "32", "64", "bf16")


@dataclass(frozen=True)
class TrainerSettings:
    """Where and how a run is computed. ``loader.workers`` and the number of devices also fix the order of the pairs."""

    accelerator: str = "cpu"
    """cpu or gpu."""
    devices: int = 1
    """Devices per node; -1 for all."""
    num_nodes: int = 1
    """Number of nodes."""
    precision: str = "32-true"
    """Lightning's precision: 32-true, bf16-mixed, 16-mixed, …"""
    log_every: int = 20
    """Steps between logged losses, throughput, learning rate and logit scale."""
    checkpoint_epochs: int = 5
    """Epochs between the checkpoints that are kept (weights only)."""
    checkpoint_at: tuple[int, ...] = ()
    """Additional epochs whose checkpoints are kept, counted from 1."""
    checkpoint_steps: int = 1000
    """Steps between saves of last.ckpt within an epoch; it is also saved after every epoch."""
    timeout_min: float = 30
    """Minutes that a rank waits for another rank, or for its loader processes, before it gives up."""
    trim: bool = True
    """Compute only the tokens that the features depend on, in models where this changes nothing but rounding."""
    checkpointing: bool = False
    """Recompute activations in the backward pass: less memory, a third more time."""
    compile: bool = False
    """Compile the encoders with torch.compile."""
    loader: LoaderSettings = field(default_factory=LoaderSettings)
    """How pairs are read."""

    def __post_init__(self) -> None:
        check_choice("trainer.accelerator", self.accelerator, ACCELERATORS)
        check_choice("trainer.precision", self.precision, PRECISIONS)
        check_at_least(self, "trainer.", num_nodes=1, log_every=1, checkpoint_epochs=1, checkpoint_steps=1)
        object.__setattr__(self, "checkpoint_at", tuple(self.checkpoint_at))
        if not all(epoch > 0 for epoch in self.checkpoint_at):
            raise UserError(
                f"trainer.checkpoint_at={list(self.checkpoint_at)} must be a list of epochs, counted from 1"
            )
        if self.devices == 0 or self.devices < -1:
            raise UserError(f"trainer.devices={self.devices} must be at least 1, or -1 for all devices of the node")
        check_range(self, "trainer.", "(0, inf)", "timeout_min")

    def keeps(self, epoch: int) -> bool:
        """Whether the weights after an epoch, counted from 1, are kept as a checkpoint."""
        return epoch % self.checkpoint_epochs == 0 or epoch in self.checkpoint_at


@dataclass(frozen=True)
class GapSettings:
    """Whether and how the gaps are measured while training; without a reference they are not measured."""

    reference: str | None = None
    """RUN (its checkpoint of the same epoch, else its final model), RUN@EPOCH, MODEL, embeddings:DIR or text:MODEL."""
    every: int = 5
    """Epochs between two measurements."""
    sample: int = 500
    """Pairs with objects, per set."""
    public: int | None = 512
    """Public images that are searched, drawn by hash in chunks of 64; null: all, as dejavu evaluate does."""
    k: int = 10
    """Neighbors."""
    threshold: float = 0.5
    """Lowest annotator score that counts."""

    def __post_init__(self) -> None:
        check_at_least(self, "gaps.", every=1, sample=1, public=1, k=1)
        check_range(self, "gaps.", "[0, 1]", "threshold")


@dataclass(frozen=True, kw_only=True)
class TrainingSettings:
    """How models are trained, whatever their side and seed."""

    data: DataSpec
    """The prepared data."""
    model: ModelSpec
    """The architecture and its initial weights."""
    recipe: Recipe
    """How the model is trained, mitigations apart."""
    mitigation: Mitigation = field(default_factory=Mitigation)
    """What is done against memorization."""
    trainer: TrainerSettings = field(default_factory=TrainerSettings)
    """Where and how the run is computed."""
    logger: LoggerSettings = field(default_factory=LoggerSettings)
    """The dashboards; metrics.csv is always written."""
    gaps: GapSettings = field(default_factory=GapSettings)
    """PPG, PRG and AUCG while training, on fixed samples of A and H; measured if there is a reference."""


@dataclass(frozen=True, kw_only=True)
class TrainingRun(TrainingSettings):
    """Everything that defines a training run, apart from its directory."""

    side: str
    """target (trains on A) or reference (trains on B)."""
    seed: int = 0
    """Seed of initialization, order and masking; give both sides the same one. The splits have their own, data.seed."""

    def __post_init__(self) -> None:
        check_choice("side", self.side, TRAINED_ON)
        if not 0 <= self.seed < 2**32:
            raise UserError(f"seed={self.seed} must be a whole number from 0 to {2**32 - 1}")
        precision = self.trainer.precision
        if self.mitigation.ema is not None and precision in ("16-true", "bf16-true", "64-true", "64"):
            raise UserError(
                f"mitigation.ema={self.mitigation.ema} averages weights of 32 bits, and trainer.precision={precision} has "
                "others; use 32-true, 16-mixed or bf16-mixed"
            )
        knobs = {name: getattr(self.mitigation, name) for name in ("lock_image", "lock_text", "lora_rank")}
        if self.model.init is None and any(knobs.values()):
            name, value = next((name, value) for name, value in knobs.items() if value)
            raise UserError(
                f"mitigation.{name}={value} fine-tunes a model, and there is none to start from; give model.init=… or drop it"
            )

    @property
    def epochs(self) -> int:
        """The number of epochs to train, unless a callback stops the run."""
        return min(self.recipe.epochs, self.mitigation.stop_epoch or self.recipe.epochs)
