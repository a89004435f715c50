"""One training run: trains a model on the pairs of one side with a mitigation, in a directory that a second call resumes."""

import logging
import math
import sys
import warnings
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from datetime import timedelta
from pathlib import Path
from typing import Any, cast

import pytorch_lightning as pl
import torch
from lightning_fabric.utilities.exceptions import MisconfigurationException
from pytorch_lightning.callbacks import Callback, LambdaCallback, TQDMProgressBar
from pytorch_lightning.loggers import Logger
from pytorch_lightning.strategies import DDPStrategy
from torch.utils.data._utils.signal_handling import _set_SIGCHLD_handler

from dejavu_lit.data.loader import loader_failure
from dejavu_lit.data.module import PairDataModule
from dejavu_lit.data.raw_stream import RawDataModule
from dejavu_lit.models.build import CONFIG, build_model, export_config, export_weights
from dejavu_lit.models.preprocess import Augment, Preprocess
from dejavu_lit.models.tokenizer import load_tokenizer
from dejavu_lit.training.checkpoints import AtomicCheckpointIO, CheckpointSaver, restoring, saved_step
from dejavu_lit.training.clip_module import ClipModule
from dejavu_lit.training.ema import Averaging, averaged
from dejavu_lit.training.finetuning import merged
from dejavu_lit.training.gap_callback import GapCallback, gap_callback
from dejavu_lit.training.loggers import training_loggers
from dejavu_lit.training.preemption import Preemption
from dejavu_lit.training.progress import EpochLogger, StepMetrics
from dejavu_lit.training.settings import TrainingRun
from dejavu_lit.training.stopping import EarlyStop, NonFiniteLossStop
from dejavu_lit.utils.config import to_plain
from dejavu_lit.utils.distributed import Ranks, lightning_environment, rank
from dejavu_lit.utils.errors import UserError, counted, explained, first_line
from dejavu_lit.utils.io import write_json
from dejavu_lit.utils.provenance import provenance
from dejavu_lit.utils.run_directory import RUN_SCHEMA, RunDirectory

log = logging.getLogger(__name__)
# Options of the data that decide which pairs are trained on, and how often.
PAIR_OPTIONS = (
    *("train_size", "repeat", "half", "seed", "exclude_fingerprint"),
    *("fractions", "pairs", "shuffle", "resampled"),  # of raw shards
)
logging.getLogger("pytorch_lightning").setLevel(logging.WARNING)  # it sets INFO on import
warnings.filterwarnings("ignore", message=".*nn.functional.all_gather.*")  # open_clip's loss
warnings.filterwarnings("ignore", message=".*LeafSpec.*")  # a deprecation between Lightning and torch
warnings.filterwarnings("ignore", message=".*does not have many workers.*")  # on purpose if images are cached
warnings.filterwarnings("ignore", message=".*dataloader is not resumable.*")  # ours is, by the epoch plan
warnings.filterwarnings("ignore", message=".*exists and is not empty.*")  # the checkpoints of a resumed run
warnings.filterwarnings("ignore", message=".*Total length of `list` across ranks is zero.*")  # data without V
warnings.filterwarnings("ignore", message=".*overridden `on_before_batch_transfer`.*")  # on purpose, in ClipModule
warnings.filterwarnings("ignore", message=".*`srun` command is available.*")  # one process on a node of a cluster


def train(run: TrainingRun, out: Path) -> Path:
    """Train to the end, from ``last.ckpt`` if it exists, and write model/, checkpoints/, metrics.csv and run.json into ``out``.

    The caller owns ``out`` (see ``RunDirectory.opened``), which is returned. Raises UserError if data, sizes, devices or
    weights do not fit together.
    """
    directory = RunDirectory(out)
    if directory.finished:
        log.info("%s is finished (%s); nothing to do", out, counted(directory.record()["epochs"], "epoch"))
        return out
    if rank() == 0:
        run.data.warn_of_unknown_keys()
    if (last_kept := max(run.trainer.checkpoint_at, default=0)) > run.epochs:
        log.warning("trainer.checkpoint_at=%d has no effect: training ends after epoch %d", last_kept, run.epochs)
    gaps = gap_callback(run, out)
    pl.seed_everything(run.seed, verbose=False)
    module, pairs = _build_model_and_data(run, out)
    last = directory.last_checkpoint
    if rank() == 0:
        for part in last.parent.glob(".*.part"):  # of a killed process; they may be large
            part.unlink()
    step = saved_step(last) if last.is_file() else None
    if step is not None:
        log.info("resuming %s at step %d", out, step)
    loggers = training_loggers(out, run.logger, run.side, to_plain(run), step)
    try:
        trainer = build_trainer(run, out, gaps, loggers)
        _fit(trainer, module, pairs, last, resume=step is not None)
    finally:
        pairs.teardown("fit")  # Lightning calls it only if the fit succeeds
        for logger in loggers:
            logger.finalize("finished")
    with Ranks(trainer.global_rank, trainer.world_size).step():
        unreadable = module.unreadable()  # a collective operation: every rank takes part
        if trainer.is_global_zero:
            _write_results(run, out, trainer, module, gaps, unreadable)
    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()  # left to the exit of the process, gloo sometimes aborts
    return out


def _build_model_and_data(run: TrainingRun, out: Path) -> tuple[ClipModule, PairDataModule]:
    """The module and its pairs; also exports the model's config, which the tokenizer is read from."""
    folder = RunDirectory(out).model
    # A resumed run keeps the config that it began with; its base may have changed since.
    resumed = RunDirectory(out).last_checkpoint.is_file() and (folder / CONFIG).is_file()
    if not resumed:
        export_config(run.model, folder)
    network = build_model(run.model, folder, resumed)
    image_config = cast(Any, network.visual).preprocess_cfg
    module = ClipModule(network, run.recipe, run.mitigation, run.seed, run.trainer)
    module.settings = _trained_settings(run)
    data_module = PairDataModule if run.data.shards is None else RawDataModule
    pairs = data_module(
        data=run.data,
        side=run.side,
        batch=run.recipe.batch,
        seed=run.seed,
        preprocess=Preprocess(image_config),
        tokenizer=load_tokenizer(f"local-dir:{folder}"),
        mitigation=run.mitigation,
        augment=Augment(image_config) if run.mitigation.image_augment else None,
        loader=run.trainer.loader,
        batch_timeout=60 * run.trainer.timeout_min,
    )
    return module, pairs


def _trained_settings(run: TrainingRun) -> dict[str, Any]:
    """What decides the weights of a run, without paths: data and a base may have moved when it is resumed."""
    settings = {name: value for name, value in to_plain(run).items() if name not in ("trainer", "logger")}
    data = {name: settings["data"][name] for name in PAIR_OPTIONS}
    return {**settings, "data": data, "model": {**settings["model"], "init": None}}


def build_trainer(run: TrainingRun, out: Path, gaps: GapCallback | None, loggers: Sequence[Logger]) -> pl.Trainer:
    """Lightning's trainer with the callbacks of the run; raises UserError if it refuses the options."""
    settings = run.trainer
    show_progress = sys.stderr.isatty()
    distributed = settings.devices != 1 or settings.num_nodes > 1
    # Not in the block below: an error in code of ours is not the user's.
    plugins = cast(Any, [*lightning_environment(), AtomicCheckpointIO()])
    callbacks = _callbacks(run, RunDirectory(out), gaps, show_progress)
    problem = f"Lightning refuses trainer.accelerator={settings.accelerator} with the other options of trainer"
    with explained(problem, "choose others", errors=(MisconfigurationException, TypeError, ValueError)):
        return pl.Trainer(
            accelerator=settings.accelerator,
            devices=settings.devices,
            num_nodes=settings.num_nodes,
            strategy=DDPStrategy(timeout=timedelta(minutes=settings.timeout_min)) if distributed else "auto",
            plugins=plugins,
            precision=settings.precision,  # type: ignore[arg-type]
            max_epochs=run.epochs,
            log_every_n_steps=settings.log_every,
            gradient_clip_val=run.recipe.gradient_clip,
            logger=list(loggers),
            callbacks=callbacks,
            enable_checkpointing=False,
            enable_progress_bar=show_progress,
            enable_model_summary=False,
            num_sanity_val_steps=0,
            use_distributed_sampler=False,
            default_root_dir=out,
        )


def _callbacks(
    run: TrainingRun, directory: RunDirectory, gaps: GapCallback | None, show_progress: bool
) -> list[Callback]:
    """The callbacks in their order: what changes or stops the training comes before what saves it."""
    settings, mitigation, last = run.trainer, run.mitigation, directory.last_checkpoint
    preemption = Preemption(last)
    # It listens before the other callbacks start, which may take minutes, although it acts after them. Only on_train_start is
    # after Lightning has recorded the handlers that it restores after fit.
    callbacks: list[Callback] = [LambdaCallback(on_train_start=lambda *_: preemption.listen())]
    if mitigation.ema is not None:
        callbacks.append(Averaging(mitigation.ema))
    if mitigation.early_stopping is not None:
        callbacks.append(EarlyStop(mitigation.early_stopping, mitigation.early_patience))
    callbacks.append(NonFiniteLossStop(last))  # weights that are not finite are not measured either
    if gaps is not None:
        callbacks.append(gaps)
    callbacks += [
        StepMetrics(),
        EpochLogger(enabled=not show_progress),
        CheckpointSaver(directory, settings),
        preemption,
    ]
    return [*callbacks, TQDMProgressBar(10)] if show_progress else callbacks


def _fit(trainer: pl.Trainer, module: ClipModule, pairs: PairDataModule, last: Path, resume: bool) -> None:
    """``trainer.fit``; Ctrl-C raises KeyboardInterrupt, and the death of a loader process or of a rank raises UserError."""
    # Lightning restores the handlers that it finds here; torch sets its own once per process, so a second training had none.
    _set_SIGCHLD_handler()
    try:
        with restoring(last) if resume else nullcontext():
            trainer.fit(module, pairs, ckpt_path=str(last) if resume else None, weights_only=True)
    except SystemExit as end:
        if isinstance(end.__context__, KeyboardInterrupt):  # Lightning turns it into exit code 1, without a message
            raise end.__context__ from None
        raise
    except (RuntimeError, ConnectionError, EOFError) as error:  # the last two: killed while it was sending a batch
        if trainer.world_size > 1 and ("gloo" in str(error) or isinstance(error, torch.distributed.DistBackendError)):
            raise UserError(
                f"the {trainer.world_size} processes lost each other ({first_line(error)}): one exited, or did not answer for "
                "trainer.timeout_min minutes; see the last message of each, then run the same command to resume"
            ) from None
        if isinstance(error, RuntimeError) and ("DataLoader" not in str(error) or "Original Traceback" in str(error)):
            raise  # by our code, also in a process of the loader
        raise UserError(f"{loader_failure(error)}; the same command continues from {last}") from None


def _write_results(
    run: TrainingRun,
    out: Path,
    trainer: pl.Trainer,
    module: ClipModule,
    gaps: GapCallback | None,
    unreadable: Mapping[str, int],
) -> None:
    """Export the model, then write run.json, which marks the run as finished."""
    seconds = module.seconds
    with averaged(trainer, module):
        export_weights(merged(module.model.state_dict()), RunDirectory(out).model)
    reasons = (getattr(callback, "stopped", None) for callback in cast(Any, trainer).callbacks)
    stopped = next(filter(None, reasons), None)
    plan = module.pairs.plan
    batches = trainer.fit_loop.epoch_loop.total_batch_idx + 1
    record = {
        "schema": RUN_SCHEMA,
        "side": run.side,
        "data": module.data,
        "epochs": trainer.current_epoch,
        "steps": trainer.global_step,
        "batches": batches,
        "stopped": stopped,  # the reason, if the run ended before its last epoch
        **({"gaps": gaps.report()} if gaps else {}),
        "unreadable": dict(unreadable),  # {reason: pairs} over all epochs; other pairs were read in their place
        **module.pairs.exposure(batches),
        "seconds": round(seconds, 1),  # over all calls
        "pairs_per_second": round(batches * plan.batch * plan.world / max(seconds, 1e-9), 1),
        "parameters": sum(math.prod(p.shape) for p in module.model.parameters()),
        "plan": {"world": plan.world, "workers": plan.workers, "batch": plan.batch, "seed": plan.seed},
        "provenance": provenance(),
    }
    write_json(RunDirectory(out).record_file, record)
    log.info(
        "finished %s: %s, %d steps, %.0f s", out, counted(trainer.current_epoch, "epoch"), trainer.global_step, seconds
    )
    if stopped:
        log.info("stopped by %s after epoch %d", stopped["by"], stopped["epoch"])
