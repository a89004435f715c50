"""The frame of every command: Hydra composes the config, the task does the work, user errors end as one sentence."""

import atexit
import os
import re
import sys
import warnings
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from time import strftime
from typing import Any

import hydra
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from hydra.errors import HydraException
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from dejavu_lit.cli import help, mistakes, secrets
from dejavu_lit.cli.gate import EXIT_CODE
from dejavu_lit.cli.options import COMMANDS, Mitigate, register
from dejavu_lit.study.slurm import cpus_per_task, gpus_per_node, submission_error, tasks_per_node
from dejavu_lit.utils.config import expand_home, to_settings
from dejavu_lit.utils.distributed import forget_left_over_ranks
from dejavu_lit.utils.errors import UserError, check_choice, error_sentence, first_line
from dejavu_lit.utils.exit_codes import clean_exit, fail

# For conf/hydra/launcher/slurm.yaml; here, because the jobs of a multirun import only this module.
for _name, _function in (("tasks", tasks_per_node), ("gpus", gpus_per_node), ("cpus", cpus_per_task)):
    OmegaConf.register_new_resolver(f"slurm_{_name}", _function, replace=True)
HERE = Path(__file__).resolve().parent.parent
CONF = HERE / "conf" if (HERE / "conf").is_dir() else HERE.parent / "conf"


def command(config_name: str, task: Callable[[Any, Path], Any]) -> Callable[..., None]:
    """The function behind a command of this file in conf/; it takes the arguments, by default those of the command line."""
    called = sys.argv  # the whole command line, with which Lightning starts further processes
    failures: list[str] = []  # of the jobs of a multirun in this process; Hydra raises only the first
    gates: list[Path] = []  # the jobs of a multirun in this process whose gate holds; the others continue

    def job(cfg: DictConfig) -> None:
        sys.argv = called
        try:
            task(typed_settings(cfg, config_name, HydraConfig.get().overrides.task), _out(cfg))
        except SystemExit as end:
            is_alone = HydraConfig.get().mode != RunMode.MULTIRUN or "SUBMITIT_EXECUTOR" in os.environ
            if end.code != EXIT_CODE or is_alone:
                raise
            gates.append(_out(cfg))
        except Exception as error:
            _fail_job(error, _out(cfg), failures)
            raise

    def command(arguments: Sequence[str] | None = None) -> None:
        nonlocal called
        with clean_exit():
            if config_name != "train":  # a training decides by its settings, see run_training
                forget_left_over_ranks()
            called = sys.argv
            failures.clear()
            gates.clear()
            given = [
                mistakes.quoted(argument, config_name) for argument in (called[1:] if arguments is None else arguments)
            ]
            if {"-h", "--help"} & set(given):
                print(help.text(CONF, config_name))
                return
            mistakes.check_arguments(given)
            given.sort(key=lambda argument: argument not in ("-m", "--multirun"))  # argparse refuses it between options
            register(config_name)
            secrets.check_secrets(dict(argument.partition("=")[::2] for argument in given))
            sys.argv = [called[0], *given]  # Hydra reads it
            os.environ.setdefault("HYDRA_FULL_ERROR", "1")  # let exceptions reach the handlers below
            warnings.filterwarnings("ignore", category=UserWarning, module="hydra")
            try:
                _run_hydra(job, config_name, given, failures)
            finally:
                sys.argv = called
            if gates:
                sys.exit(EXIT_CODE)

    job.__module__, job.__qualname__ = task.__module__, f"_{config_name}_job"
    setattr(sys.modules[task.__module__], job.__qualname__, job)  # launchers pickle the job by its name
    return command


def _run_hydra(
    job: Callable[[DictConfig], None], config_name: str, given: Sequence[str], failures: Sequence[str]
) -> None:
    """Let Hydra compose the config and call ``job``, or the jobs of a multirun; what Hydra refuses ends as one sentence."""
    try:
        hydra.main(version_base="1.3", config_path=str(CONF), config_name=config_name)(job)()
    except (HydraException, OmegaConfBaseException) as error:
        fail(mistakes.explain(error, config_name, given))
    except UserError:
        if len(failures) > 1:
            fail(f"{len(failures)} jobs failed: {'; '.join(failures)}")
        raise
    except RuntimeError as error:
        if not type(error).__module__.startswith("submitit."):
            raise
        fail(submission_error(error))


def _fail_job(error: Exception, out: Path, failures: list[str]) -> None:
    """End a job that raised ``error`` with its sentence, if it has one; in a multirun the other jobs continue."""
    sentence = None if isinstance(error, BrokenPipeError) else error_sentence(error)
    if HydraConfig.get().mode == RunMode.MULTIRUN:
        if os.environ.get("SUBMITIT_EXECUTOR") == "slurm":  # Hydra returns the exception, and would exit with 0
            atexit.register(lambda: (sys.stdout.flush(), sys.stderr.flush(), os._exit(1)))
        failures.append(f"{out}: {sentence or f'{type(error).__name__}: {first_line(error)}'}")
        if sentence:  # the launcher reports it
            raise UserError(failures[-1]) from None
    elif sentence:
        fail(sentence)


def _out(cfg: DictConfig) -> Path:
    """The output directory: ``out=`` or a new one below outputs/; in a multirun the job's own folder below it."""
    hydra_config = HydraConfig.get()
    given = Path(expand_home(str(cfg.out))) if cfg.get("out") else None
    if hydra_config.mode == RunMode.MULTIRUN:
        return (given or Path(hydra_config.sweep.dir)) / hydra_config.sweep.subdir
    return given or Path("outputs") / (hydra_config.job.config_name or "run") / strftime("%Y-%m-%d_%H-%M-%S")


def typed_settings(cfg: DictConfig, command: str, typed: Sequence[str]) -> Any:
    """The dataclass of a composed config; raises UserError for a missing or wrong option, and for one that holds a secret."""
    for name in OmegaConf.missing_keys(cfg):
        if command != "prepare" and re.search(r"(^|\.)data\.(reader|extra)\.", name):  # only preparing reads the source
            OmegaConf.update(cfg, name, None)
    try:
        secrets.check_secrets(OmegaConf.to_container(cfg, resolve=True))  # type: ignore[arg-type]
        found = expand_home(to_settings(cfg))
    except OmegaConfBaseException as error:
        raise UserError(mistakes.explain(error, command, typed)) from None
    return replace(found, typed=tuple(typed)) if isinstance(found, Mitigate) else found


def settings(command: str, *overrides: str) -> Any:
    """The dataclass of a command's options, as the command line would compose it, for use from Python.

    Args:
        command: train, evaluate, mitigate or prepare; overrides: its options, "data=scenes", "recipe.epochs=3", …

    Raises UserError for another command, and for an option that is unknown, missing, or has a wrong value.
    """
    check_choice("command", command, COMMANDS)
    register(command)
    given = [mistakes.quoted(override, command) for override in overrides]
    running = GlobalHydra.instance().is_initialized()  # a study composes its settings within its own command
    with nullcontext() if running else hydra.initialize_config_dir(str(CONF), version_base="1.3"):
        return typed_settings(compose(command, given), command, given)


def compose(command: str, overrides: Sequence[str]) -> DictConfig:
    try:
        return hydra.compose(command, list(overrides))
    except (HydraException, OmegaConfBaseException) as error:
        raise UserError(mistakes.explain(error, command, overrides)) from None
