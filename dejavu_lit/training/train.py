"""One training run: a model, the pairs of one side, a mitigation, and a directory that a second call resumes."""

import logging
import math
import sys
import warnings
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from typing import Any, cast

import pytorch_lightning as pl
import torch
from lightning_fabric.utilities.exceptions import MisconfigurationException
from pytorch_lightning.callbacks import Callback, TQDMProgressBar
from pytorch_lightning.loggers import Logger
from pytorch_lightning.strategies import DDPStrategy

from dejavu_lit.data.epoch import exposures
from dejavu_lit.data.module import LoaderSettings, PairDataModule, loader_failure
from dejavu_lit.data.prepared import MANIFEST, DataSpec
from dejavu_lit.mitigation import Mitigation
from dejavu_lit.models.build import ModelSpec, build_model, export_config, export_weights
from dejavu_lit.models.preprocess import Augment, Preprocess
from dejavu_lit.training.checkpoints import Checkpoints, WholeCheckpoints, saved_step
from dejavu_lit.training.clip_module import ClipModule, Recipe
from dejavu_lit.training.ema import Averaging, averaged
from dejavu_lit.training.features import Compute
from dejavu_lit.training.gap_callback import GapCallback, gap_callback
from dejavu_lit.training.gap_sample import GapSettings
from dejavu_lit.training.loggers import finish, training_loggers
from dejavu_lit.training.preemption import Listener, Preemption, environment
from dejavu_lit.training.progress import Narrator
from dejavu_lit.training.stopping import EarlyStop, Finite, why_stopped
from dejavu_lit.utils.distributed import rank
from dejavu_lit.utils.errors import UserError, first_line
from dejavu_lit.utils.io import file_sha256, read_object, write_json
from dejavu_lit.utils.provenance import provenance
from dejavu_lit.utils.run_directory import RUN_SCHEMA
from dejavu_lit.utils.wandb import LoggerSettings

log = logging.getLogger(__name__)
logging.getLogger("pytorch_lightning").setLevel(logging.WARNING)  # it sets INFO on import
warnings.filterwarnings("ignore", message=".*nn.functional.all_gather.*")  # open_clip's loss
warnings.filterwarnings("ignore", message=".*LeafSpec.*")  # a deprecation between Lightning and torch
warnings.filterwarnings("ignore", message=".*does not have many workers.*")  # on purpose where images are cached
warnings.filterwarnings("ignore", message=".*dataloader is not resumable.*")  # ours is, by the epoch plan
warnings.filterwarnings("ignore", message=".*exists and is not empty.*")  # a resumed run's checkpoints
warnings.filterwarnings("ignore", message=".*overridden `on_before_batch_transfer`.*")  # on purpose, in ClipModule
warnings.filterwarnings("ignore", message=".*`srun` command is available.*")  # one process on a node of a cluster

FINISHED = "run.json"


@dataclass(frozen=True)
class TrainerSettings:
    """Where and how a run is computed. ``loader.workers`` and the number of devices also fix the order of the pairs."""

    accelerator: str = "cpu"
    devices: int = 1  # a node; -1 for all
    num_nodes: int = 1
    precision: str = "32-true"
    log_every: int = 20
    checkpoint_epochs: int = 5
    checkpoint_at: tuple[int, ...] = ()  # epochs that are kept beside those
    checkpoint_steps: int = 1000
    timeout_min: float = 30  # a rank that waits this long for another one, or for its loader's processes, gives up
    trim: bool = True  # compute only the tokens that the features depend on, where that changes rounding alone
    checkpointing: bool = False  # compute activations again in the backward pass: less memory, a third more time
    compile: bool = False  # torch.compile
    loader: LoaderSettings = field(default_factory=LoaderSettings)

    def __post_init__(self) -> None:
        for name in ("num_nodes", "log_every", "checkpoint_epochs", "checkpoint_steps"):
            if getattr(self, name) < 1:
                raise UserError(f"trainer.{name}={getattr(self, name)} must be at least 1")
        if not all(isinstance(epoch, int) and epoch > 0 for epoch in self.checkpoint_at):
            raise UserError(f"trainer.checkpoint_at={self.checkpoint_at} must be a list of epochs, counted from 1")
        if self.devices == 0 or self.devices < -1:
            raise UserError(f"trainer.devices={self.devices} must be at least 1, or -1 for all of the node")
        if self.timeout_min <= 0:
            raise UserError(f"trainer.timeout_min={self.timeout_min} must be above 0")


def train(
    out: Path,
    side: str,
    data: DataSpec,
    model: ModelSpec,
    recipe: Recipe,
    mitigation: Mitigation,
    trainer: TrainerSettings,
    seed: int = 0,
    logger: LoggerSettings | None = None,
    config: Mapping[str, Any] | None = None,
    gaps: GapSettings | None = None,
) -> Path:
    """Train until done, from ``last.ckpt`` where there is one, and write the run directory's artifacts.

    Args:
        out: the run directory, owned by the caller.
        side: "target" (trains on A) or "reference" (B).
        logger: the dashboards; None for metrics.csv alone.
        config: the resolved settings, for wandb.
        gaps: whether the gaps are measured while training; None: they are not.

    Returns:
        ``out``, which then holds model/, checkpoints/, metrics.csv and run.json.

    Raises:
        UserError: data, sizes, devices or weights do not fit.
    """
    if (out / FINISHED).exists():
        log.info("%s is finished (%s epochs); nothing to do", out, read_object(out / FINISHED, RUN_SCHEMA)["epochs"])
        return out
    data.check()
    if rank() == 0:
        data.tell_unknown()
    epochs = min(recipe.epochs, mitigation.stop_epoch or recipe.epochs)
    if (mitigation.stop_epoch or 0) > recipe.epochs:
        log.warning(
            "mitigation.stop_epoch=%d is past recipe.epochs=%d, which ends it", mitigation.stop_epoch, recipe.epochs
        )
    watch = gap_callback(out, side, data, gaps or GapSettings(), mitigation.gap_budget, epochs)
    pl.seed_everything(seed, verbose=False)
    export_config(model, out / "model")
    network = build_model(model, out / "model")
    import open_clip

    image = cast(Any, network.visual).preprocess_cfg
    compute = Compute(trainer.trim, trainer.checkpointing, trainer.compile)
    module = ClipModule(network, recipe, mitigation, seed, compute)
    pairs = PairDataModule(
        folder=data.folder,
        side=side,
        batch=recipe.batch,
        seed=seed,
        preprocess=Preprocess(image),
        tokenizer=open_clip.get_tokenizer(f"local-dir:{out / 'model'}"),
        train_size=data.train_size,
        repeat=data.repeats(),
        mitigation=mitigation,
        augment=Augment(image) if mitigation.image_augment else None,
        loader=trainer.loader,
        exclude=data.excluded,
        dedup=mitigation.dedup,
        patience=60 * trainer.timeout_min,
    )
    last = out / "checkpoints" / "last.ckpt"
    resumed = last.is_file()
    step = None
    if resumed:
        step = saved_step(last)
        log.info("resuming %s at step %d", out, step)
    logger = logger or LoggerSettings()
    try:
        loggers = training_loggers(out, logger, side, config or {}, step)
        runner = _trainer(out, trainer, epochs, recipe, [*_acting(mitigation), *([watch] if watch else [])], loggers)
    except (MisconfigurationException, ValueError) as error:
        raise UserError(f"trainer={trainer.accelerator}: {first_line(error)}") from None
    try:
        runner.fit(module, pairs, ckpt_path=str(last) if resumed else None, weights_only=True)
    except SystemExit as end:
        if isinstance(end.__context__, KeyboardInterrupt):  # which Lightning makes code 1 of, without a word
            raise end.__context__ from None
        raise
    except RuntimeError as error:
        if "DataLoader" not in str(error) or "Original Traceback" in str(error):  # the latter is an error of ours
            raise
        raise UserError(f"{loader_failure(error)}; the same command goes on from {last}") from None
    finally:
        pairs.teardown("fit")  # Lightning's own call comes only where all went well
        finish(loggers)
    unreadable = module.unreadable()
    if runner.is_global_zero:
        _finish(out, runner, module, pairs, side, watch, unreadable)
    if torch.distributed.is_initialized():
        torch.distributed.barrier()
        torch.distributed.destroy_process_group()  # gloo now and then aborts at exit where this is left to the system
    return out


def _trainer(
    out: Path, settings: TrainerSettings, epochs: int, recipe: Recipe, acting: list[Callback], loggers: list[Logger]
) -> pl.Trainer:
    watched = sys.stderr.isatty()
    several = settings.devices != 1 or settings.num_nodes > 1
    checkpoints = Checkpoints(
        out / "checkpoints", settings.checkpoint_steps, settings.checkpoint_epochs, settings.checkpoint_at
    )
    preemption = Preemption(out / "checkpoints" / "last.ckpt")
    return pl.Trainer(
        accelerator=settings.accelerator,
        devices=settings.devices,
        num_nodes=settings.num_nodes,
        strategy=DDPStrategy(timeout=timedelta(minutes=settings.timeout_min)) if several else "auto",
        plugins=cast(Any, [*environment(), WholeCheckpoints()]),
        precision=settings.precision,  # type: ignore[arg-type]
        max_epochs=epochs,
        log_every_n_steps=settings.log_every,
        gradient_clip_val=recipe.gradient_clip,
        logger=loggers,
        callbacks=[
            Listener(preemption),
            *acting,  # before what saves
            Finite(out / "checkpoints" / "last.ckpt"),
            Narrator(speak=not watched),
            checkpoints,
            preemption,
            *([TQDMProgressBar(10)] if watched else []),
        ],
        enable_checkpointing=False,
        enable_progress_bar=watched,
        enable_model_summary=False,
        num_sanity_val_steps=0,
        use_distributed_sampler=False,
        default_root_dir=out,
    )


def _acting(mitigation: Mitigation) -> list[Callback]:
    """The callbacks of the knobs that act on the course of the training."""
    callbacks: list[Callback] = []
    if mitigation.ema is not None:
        callbacks.append(Averaging(mitigation.ema))
    if mitigation.early_stopping is not None:
        callbacks.append(EarlyStop(mitigation.early_stopping, mitigation.early_patience))
    return callbacks


def _finish(
    out: Path,
    runner: pl.Trainer,
    module: ClipModule,
    pairs: PairDataModule,
    side: str,
    watch: GapCallback | None,
    unreadable: Mapping[str, int],
) -> None:
    seconds = module.seconds
    with averaged(runner, module):
        export_weights(module.model, out / "model")
    stopped = why_stopped(runner)
    plan = pairs.plan(0, runner.world_size)
    batches = runner.fit_loop.epoch_loop.total_batch_idx + 1
    seen = exposures(plan, batches)
    write_json(
        out / FINISHED,
        {
            "schema": RUN_SCHEMA,
            "side": side,
            "data": file_sha256(pairs.folder / MANIFEST),
            "epochs": runner.current_epoch,
            "steps": runner.global_step,
            "batches": batches,
            "stopped": stopped,  # why, where it was before the last epoch
            **({"gaps": watch.report()} if watch else {}),
            "train_size": len(seen),
            "unreadable": dict(unreadable),  # {reason: pairs}, those met in any epoch; others took their places
            "exposure": {"mean": float(seen.mean()), "min": int(seen.min()), "max": int(seen.max())},
            "seconds": round(seconds, 1),  # of all calls
            "pairs_per_second": round(batches * plan.batch * plan.world / max(seconds, 1e-9), 1),
            "parameters": sum(math.prod(p.shape) for p in module.model.parameters()),
            "plan": {"world": plan.world, "workers": plan.workers, "batch": plan.batch, "seed": plan.seed},
            "provenance": provenance(),
        },
    )
    log.info("finished %s: %d epochs, %d steps in %.0f s", out, runner.current_epoch, runner.global_step, seconds)
    if stopped:
        log.info("stopped by %s after epoch %d", stopped["by"], stopped["epoch"])
