"""The frame of every command: Hydra reads the config, the task does the work, a user's mistake ends as one sentence."""

import atexit
import os
import re
import sys
import warnings
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from importlib import import_module
from pathlib import Path
from typing import Any

import hydra
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.types import Quote, QuotedString
from hydra.errors import HydraException
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from dejavu_lit.cli import help
from dejavu_lit.cli import secrets as guard
from dejavu_lit.cli.slurm_resolvers import register_resolvers
from dejavu_lit.study.slurm import refused
from dejavu_lit.utils.errors import UserError, spoken, suggest
from dejavu_lit.utils.exit_codes import ending, fail

register_resolvers()  # in the jobs of a multirun too, which only import this
guard.watch()
HERE = Path(__file__).resolve().parent.parent
CONF = HERE / "conf" if (HERE / "conf").is_dir() else HERE.parent / "conf"


def command(config_name: str, task: Callable[[DictConfig, Path], None]) -> Callable[..., None]:
    """A command: Hydra reads the config, ``task`` does the work, and a user's mistake ends as one sentence.

    The command takes its arguments, those of the command line by default.
    """
    called = sys.argv  # in full, for the processes that Lightning starts by it

    def job(cfg: DictConfig) -> None:
        sys.argv = called
        try:
            task(cfg, _out(cfg))
        except Exception as error:
            known = isinstance(error, UserError | OSError) and not isinstance(error, BrokenPipeError)
            sentence = spoken(error) if isinstance(error, OSError) else str(error)
            if HydraConfig.get().mode == RunMode.MULTIRUN:
                _end_as_failed()
                if known:  # the launcher notes it, the other jobs go on
                    raise UserError(f"{_out(cfg)}: {sentence}") from None
            elif known:
                fail(sentence)
            raise

    def command(arguments: Sequence[str] | None = None) -> None:
        nonlocal called
        with ending():
            called = sys.argv
            given = [_quoted(argument) for argument in (called[1:] if arguments is None else arguments)]
            if {"-h", "--help"} & set(given):
                print(help.text(CONF, config_name))
                return
            guard.check_arguments(given)
            sys.argv = [called[0], *given]  # Hydra reads it
            os.environ.setdefault("HYDRA_FULL_ERROR", "1")  # let exceptions through to the lines below
            warnings.filterwarnings("ignore", category=UserWarning, module="hydra")
            try:
                hydra.main(version_base="1.3", config_path=str(CONF), config_name=config_name)(job)()
            except (HydraException, OmegaConfBaseException) as error:
                fail(explain(error, config_name, given))
            except RuntimeError as error:
                if not type(error).__module__.startswith("submitit."):
                    raise
                fail(refused(error))
            finally:
                sys.argv = called

    job.__module__, job.__qualname__ = task.__module__, f"_{config_name}_job"
    setattr(sys.modules[task.__module__], job.__qualname__, job)  # launchers that pickle the job find it by its name
    command.__name__ = config_name
    command.__doc__ = task.__doc__
    return command


def _end_as_failed() -> None:
    """Let a job of a multirun on SLURM end with code 1: Hydra hands the exception over and would end the process well."""
    if os.environ.get("SUBMITIT_EXECUTOR") == "slurm":
        atexit.register(lambda: (sys.stdout.flush(), sys.stderr.flush(), os._exit(1)))


def _quoted(argument: str) -> str:
    """``fail_if=a>0`` as Hydra's grammar wants it, in quotes of its own; anything else as it is."""
    name, _, text = argument.partition("=")
    if name != "fail_if" or text == "null" or text[:1] in ("'", '"'):
        return argument
    return f"{name}={QuotedString(text, Quote.single).with_quotes()}"


def explain(error: Exception, config_name: str, given: Sequence[str]) -> str:
    """A configuration error as one sentence, with the one of the ``given`` options that was probably meant."""
    said = str(error.__cause__ or error).split("Config search path:")[0]
    lines = [line.strip() for line in said.splitlines() if line.strip()]
    text = " ".join(line for line in lines if not line.startswith(("full_key:", "object_type=", "To append")))
    text = text.removeprefix("UserError raised while resolving interpolation: ")
    if "submitit_slurm" in text:
        return "hydra/launcher=slurm needs Hydra's plugin for submitit; pip install 'dejavu-lit[slurm]'"
    group = re.search(r"Could not find '(\w+)/([^']*)' Available options in '\w+': (.*)", text)
    if group:
        name, wanted, known = group.groups()
        return f"{name}={wanted} is unknown{suggest(wanted, known.split())}; there are {', '.join(known.split())}"
    for argument in sorted(given, key=lambda one: -len(one.partition("=")[0])):  # data.keys.A before data
        name = argument.lstrip("+~").split("=")[0]
        if name and name in str(error):
            options = _options(config_name)
            return f"{argument}: {text}{suggest(name, options) if name not in options else ''}"
    return text


def _options(config_name: str) -> list[str]:
    """Every option of a command's default config, dotted."""
    within = GlobalHydra.instance().is_initialized()
    with nullcontext() if within else hydra.initialize_config_dir(str(CONF), version_base="1.3"):
        config = hydra.compose(config_name)

    def walk(node: Any, path: str) -> list[str]:
        if not isinstance(node, dict):
            return [path]
        return [path] * bool(path) + [p for k, v in node.items() for p in walk(v, f"{path}.{k}" if path else str(k))]

    return walk(OmegaConf.to_container(config, resolve=False), "")


def _out(cfg: DictConfig) -> Path:
    """The output directory: ``out=``, with the job's own folder below it in a multirun; else one below outputs/."""
    hydra_config = HydraConfig.get()
    if hydra_config.mode == RunMode.MULTIRUN:
        base = Path(cfg.out) if cfg.get("out") else Path(hydra_config.sweep.dir)
        return base / hydra_config.sweep.subdir
    if cfg.get("out"):
        return Path(cfg.out)
    from time import strftime

    return Path("outputs") / (hydra_config.job.config_name or "run") / strftime("%Y-%m-%d_%H-%M-%S")


def plain(cfg: DictConfig) -> dict[str, Any]:
    missing = sorted(key for key in OmegaConf.missing_keys(cfg) if not key.startswith("data."))
    if missing:
        raise UserError(f"{missing[0]} is missing; give {missing[0]}=…")
    plain = OmegaConf.to_container(cfg, resolve=True, throw_on_missing=False)
    assert isinstance(plain, dict)
    guard.check_secrets(plain)
    return {str(key): value for key, value in plain.items()}


OVERVIEW = """Measure and mitigate déjà vu memorization in CLIP-style models.

dejavu COMMAND [OPTION=VALUE …]

{}

dejavu COMMAND --help shows the options of a command."""
COMMANDS = {
    "train": "Train one model, the target or the reference.",
    "evaluate": "Measure how much the target remembers beyond the reference.",
    "mitigate": "Train and evaluate every setting of a study, and rank them.",
    "prepare": "Write images and captions as shards, split into sets.",
    "annotate": "Find the objects of prepared images.",
    "dedup": "Find duplicates within and across the sets.",
    "power": "Compute how many records and seed pairs a gap needs.",
    "report": "Write the report of an evaluation or a study again.",
    "resume": "Continue an interrupted training.",
}


def main() -> None:
    """Run the command that the first argument names, with the arguments after it."""
    name, arguments = sys.argv[1] if len(sys.argv) > 1 else "--help", sys.argv[2:]
    if name in ("-h", "--help"):
        lines = "\n".join(f"  {command:10}{summary}" for command, summary in COMMANDS.items())
        print(OVERVIEW.format(lines))
    elif name in COMMANDS:
        import_module(f"dejavu_lit.cli.{name}").main(arguments)
    else:
        known = ", ".join(COMMANDS)
        fail(f"dejavu {name} is not a command{suggest(name, COMMANDS)}; choose one of {known}")
