"""The frame of every command: Hydra composes the config, the task does the work, user errors end as one sentence."""

import atexit
import os
import re
import shlex
import sys
import warnings
from collections.abc import Callable, Sequence
from contextlib import nullcontext, suppress
from importlib import import_module
from pathlib import Path
from typing import Any

import hydra
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Quote, QuotedString
from hydra.errors import HydraException
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from dejavu_lit.cli import help, secrets
from dejavu_lit.cli.slurm_resolvers import register_resolvers
from dejavu_lit.study.slurm import submission_error
from dejavu_lit.utils.distributed import forget_left_over_ranks
from dejavu_lit.utils.errors import UserError, error_sentence, first_line, suggest
from dejavu_lit.utils.exit_codes import clean_exit, fail

register_resolvers()  # also in the jobs of a multirun, which only import this module
HERE = Path(__file__).resolve().parent.parent
CONF = HERE / "conf" if (HERE / "conf").is_dir() else HERE.parent / "conf"
PATHS = re.compile(  # options that name a file or a folder
    r"(\w+\.)*(out|target|reference|metrics|dir|path|root|exclude|labelled|embeddings|encoder|classes|vocabulary|weights)"
    r"|(\w+\.)*(keys|images|captions|instances)|keys\.\w+|data\.public"
)


def command(config_name: str, task: Callable[[DictConfig, Path], None]) -> Callable[..., None]:
    """The function behind a command; it takes the arguments, by default those of the command line.

    Args:
        config_name: the file in conf/; task: what to do with the composed config and the output directory.
    """
    called = sys.argv  # the whole command line, with which Lightning starts further processes
    failures: list[str] = []  # of the jobs of a multirun in this process; Hydra raises only the first

    def job(cfg: DictConfig) -> None:
        sys.argv = called
        try:
            task(cfg, _out(cfg))
        except Exception as error:
            sentence = None if isinstance(error, BrokenPipeError) else error_sentence(error)
            if HydraConfig.get().mode == RunMode.MULTIRUN:
                _end_as_failed()
                failures.append(f"{_out(cfg)}: {sentence or f'{type(error).__name__}: {first_line(error)}'}")
                if sentence:  # the launcher reports it, the other jobs continue
                    raise UserError(failures[-1]) from None
            elif sentence:
                fail(sentence)
            raise

    def command(arguments: Sequence[str] | None = None) -> None:
        nonlocal called
        with clean_exit():
            forget_left_over_ranks()
            called = sys.argv
            failures.clear()
            given = [_quoted(argument) for argument in (called[1:] if arguments is None else arguments)]
            if {"-h", "--help"} & set(given):
                print(help.text(CONF, config_name))
                return
            secrets.check_secrets(dict(argument.partition("=")[::2] for argument in given))
            sys.argv = [called[0], *given]  # Hydra reads it
            os.environ.setdefault("HYDRA_FULL_ERROR", "1")  # let exceptions reach the handlers below
            warnings.filterwarnings("ignore", category=UserWarning, module="hydra")
            try:
                hydra.main(version_base="1.3", config_path=str(CONF), config_name=config_name)(job)()
            except (HydraException, OmegaConfBaseException) as error:
                fail(explain(error, config_name, given))
            except UserError:
                if len(failures) > 1:
                    fail(f"{len(failures)} jobs failed: {'; '.join(failures)}")
                raise
            except RuntimeError as error:
                if not type(error).__module__.startswith("submitit."):
                    raise
                fail(submission_error(error))
            finally:
                sys.argv = called

    job.__module__, job.__qualname__ = task.__module__, f"_{config_name}_job"
    setattr(sys.modules[task.__module__], job.__qualname__, job)  # launchers pickle the job by its name
    command.__name__ = config_name
    command.__doc__ = task.__doc__
    return command


def _end_as_failed() -> None:
    """Let a job of a multirun on SLURM exit with code 1: Hydra returns the exception and would exit with 0."""
    if os.environ.get("SUBMITIT_EXECUTOR") == "slurm":
        atexit.register(lambda: (sys.stdout.flush(), sys.stderr.flush(), os._exit(1)))


def _quoted(argument: str) -> str:
    """``fail_if=a>0``, ``out=20261128`` and ``out=~/lr=0.1`` with the quotes by which Hydra takes the text as it is typed.

    A path may be any text without a comma, which separates the values of a multirun. Other arguments are unchanged, and so is
    what Hydra reads as null, a list or a quoted text.
    """
    name, _, text = argument.partition("=")
    if name != "fail_if" and PATHS.fullmatch(name.lstrip("+")) and "," not in text:
        text = os.path.expanduser(text)
        try:
            value = OverridesParser.create().parse_override(f"{name}={text}").value()
        except HydraException:
            value = 0
        if not isinstance(value, int | float):
            return f"{name}={text}"
    elif name != "fail_if" or text == "null":
        return argument
    if text[:1] in ("'", '"'):
        return argument
    return f"{name}={QuotedString(text, Quote.single).with_quotes()}"


def explain(error: Exception, config_name: str, given: Sequence[str]) -> str:
    """One sentence for a configuration error, naming the ``given`` option at fault and the nearest known one."""
    message = str(error.__cause__ or error).split("Config search path:")[0]
    lines = [line.strip() for line in message.splitlines() if line.strip()]
    text = " ".join(line for line in lines if not line.startswith(("full_key:", "object_type=", "To append")))
    text = text.removeprefix("UserError raised while resolving interpolation: ")
    if re.search(r"Could not (find|load) '[\w/]*submitit_slurm'", text):
        return "hydra/launcher=slurm needs Hydra's plugin for submitit; pip install 'dejavu-lit[slurm]'"
    if group := re.search(r"Could not find '([\w/]+)/([^'/]*)' Available options in '[\w/]+': (.*)", text):
        name, wanted, known = group.groups()
        return f"{name}={wanted} is unknown{suggest(wanted, known.split())}; there are {', '.join(known.split())}"
    if hint := _quotes_hint(given):
        return hint
    for argument in sorted(given, key=lambda argument: -len(argument.partition("=")[0])):  # data.keys.A before data
        name = argument.lstrip("+~").split("=")[0]
        if name and name in str(error):
            options = _options(config_name)
            return f"{argument}: {text}{suggest(name, options) if name not in options else ''}"
    return text


def _quotes_hint(given: Sequence[str]) -> str | None:
    """The sentence for an argument whose value Hydra's grammar cannot read although it could in quotes; None without one."""
    parser = OverridesParser.create()
    for argument in given:
        name, _, value = argument.partition("=")
        quoted = f"{name}={QuotedString(value, Quote.double).with_quotes()}"
        try:
            parser.parse_override(argument)
        except HydraException:
            with suppress(HydraException):
                parser.parse_override(quoted)
                if not value.startswith(("[", "{", "'", '"')):  # else a list, a mapping or a quotation is not complete
                    return f"{argument}: Hydra reads signs in this value as its own; quote it, as {shlex.quote(quoted)}"
    return None


def _options(config_name: str) -> list[str]:
    """The dotted names of all options in a command's default config."""
    initialized = GlobalHydra.instance().is_initialized()
    with nullcontext() if initialized else hydra.initialize_config_dir(str(CONF), version_base="1.3"):
        config = hydra.compose(config_name)

    def walk(node: Any, path: str) -> list[str]:
        if not isinstance(node, dict):
            return [path]
        return [path] * bool(path) + [p for k, v in node.items() for p in walk(v, f"{path}.{k}" if path else str(k))]

    return walk(OmegaConf.to_container(config, resolve=False), "")


def _out(cfg: DictConfig) -> Path:
    """The output directory: ``out=`` or a new one below outputs/; in a multirun the job's own folder below it."""
    hydra_config = HydraConfig.get()
    if hydra_config.mode == RunMode.MULTIRUN:
        base = Path(str(cfg.out)) if cfg.get("out") else Path(hydra_config.sweep.dir)
        return base / hydra_config.sweep.subdir
    if cfg.get("out"):
        return Path(str(cfg.out))
    from time import strftime

    return Path("outputs") / (hydra_config.job.config_name or "run") / strftime("%Y-%m-%d_%H-%M-%S")


def plain(cfg: DictConfig, complete: bool = False) -> dict[str, Any]:
    """The composed config as a mapping, without secrets.

    Args:
        complete: whether ``data`` must be complete too; only preparing needs all of its options.

    Raises:
        UserError: an option is missing, or holds a secret.
    """
    missing = sorted(key for key in OmegaConf.missing_keys(cfg) if complete or not key.startswith("data."))
    if missing:
        raise UserError(f"{missing[0]} is missing; give {missing[0]}=…")
    config = OmegaConf.to_container(cfg, resolve=True, throw_on_missing=False)
    assert isinstance(config, dict)
    settings = {str(key): value for key, value in config.items()}
    secrets.check_secrets(settings)
    return settings


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
    with clean_exit():
        if name in ("-h", "--help"):
            lines = "\n".join(f"  {command:10}{summary}" for command, summary in COMMANDS.items())
            print(OVERVIEW.format(lines))
        elif name in COMMANDS:
            import_module(f"dejavu_lit.cli.{name}").main(arguments)
        else:
            known = ", ".join(COMMANDS)
            fail(f"dejavu {name} is not a command{suggest(name, COMMANDS)}; choose one of {known}")
