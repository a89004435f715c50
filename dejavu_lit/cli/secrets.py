"""What a configuration may not do, whoever wrote it: call through Hydra what is not ours, or carry secrets into saved settings.

``dejavu_lit.utils.config`` guards what we build; Hydra builds callbacks, launchers, sweepers and logging handlers itself, before
any line of ours runs. So its settings are looked through as soon as they are composed.
"""

import os
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from hydra._internal.config_loader_impl import ConfigLoaderImpl
from omegaconf import DictConfig, ListConfig
from omegaconf.errors import OmegaConfBaseException

from dejavu_lit.utils.config import trusted
from dejavu_lit.utils.errors import UserError

# Where Hydra takes launchers and sweepers from: a class of a module, not what the module has imported.
PLUGIN = re.compile(r"(hydra_plugins\.\w+|hydra\._internal\.core_plugins)\.\w+\.[A-Z]\w*")
LOGGING = (
    "logging.StreamHandler",
    "logging.FileHandler",
    "logging.NullHandler",
    "logging.Formatter",
    "colorlog.ColoredFormatter",
)
STREAMS = ("ext://sys.stdout", "ext://sys.stderr")
DEEPEST = 30  # levels of a configuration; more are a circle of ${…}
SECRET = re.compile(
    r"(^|_)(API_?KEY|ACCESS_?KEY|SECRET|TOKEN|PASSWORD|PASSWD|CREDENTIALS?|PRIVATE_KEY|JWT)(_|$)", re.IGNORECASE
)
SHORTEST = 8  # characters of a secret that is looked for; a shorter one would be found in names and words
WITHIN = 16  # characters from which on it is looked for within a setting too: "x-" + a key, not a word in a path
URL = re.compile(r"\w://[^/\s:@]*:[^/\s@]+@")
ASSIGNED = re.compile(r"(\w*(?:API_?KEY|ACCESS_?KEY|SECRET|TOKEN|PASSWORD|PASSWD))=(?![\"']?\$)\S{8,}", re.IGNORECASE)
SPECIAL = re.compile(r"(^|_)(bos|eos|pad|unk|cls|sep|mask|start|end)_token$", re.IGNORECASE)  # a tokenizer's, no secret


def watch() -> None:
    """Have every configuration that Hydra composes looked through; once is enough for a process."""
    loader: Any = ConfigLoaderImpl
    original = loader.load_configuration
    if original.__module__ == __name__:
        return

    def load_configuration(*args: Any, **kwargs: Any) -> DictConfig:
        composed: DictConfig = original(*args, **kwargs)
        check_hydra(composed.hydra)
        return composed

    loader.load_configuration = load_configuration


def check_hydra(hydra: DictConfig) -> None:
    """Raise UserError for settings of Hydra's by which a configuration would call or change what is not its business."""
    for part in ("callbacks", "launcher", "sweeper"):
        for place, key, value in _leaves(hydra.get(part), f"hydra.{part}"):
            plugin = place in ("hydra.launcher._target_", "hydra.sweeper._target_") and PLUGIN.fullmatch(str(value))
            if key == "_target_" and not plugin and str(value).partition(".")[0] not in trusted():
                raise UserError(
                    f"{place}={value} is no plugin of Hydra; where you trust it, name its package in the environment variable "
                    "DEJAVU_TARGETS"
                )
    for part in ("job_logging", "hydra_logging"):
        for place, key, value in _leaves(hydra.get(part), f"hydra.{part}"):
            streams = str(value).startswith(("ext://", "cfg://")) and value not in STREAMS
            called = key in ("()", "class") and value not in LOGGING
            if streams or (called and str(value).partition(".")[0] not in trusted()):
                raise UserError(
                    f"{place}={value} may not be used for logging; there are {', '.join((*LOGGING, *STREAMS))}, and classes "
                    "of the packages that the environment variable DEJAVU_TARGETS names"
                )
    if names := list(hydra.job.get("env_set") or {}):
        raise UserError(f"hydra.job.env_set.{names[0]}: a configuration may not set variables; set them in the shell")


def _leaves(node: Any, place: str, depth: int = 0) -> Iterator[tuple[str, str, Any]]:
    """(place, key, value) of everything below a node that is no container; what cannot be resolved is passed over."""
    if not isinstance(node, DictConfig | ListConfig) or node._is_none() or node._is_missing():
        return
    if depth > DEEPEST:
        raise UserError(f"{place} goes round in a circle of ${{…}}; give it plain values")
    keys: Sequence[Any] = list(node.keys()) if isinstance(node, DictConfig) else range(len(node))
    for key in keys:
        try:
            value = node[key]
        except OmegaConfBaseException:  # Hydra cannot use it either
            continue
        if isinstance(value, DictConfig | ListConfig):
            yield from _leaves(value, f"{place}.{key}", depth + 1)
        else:
            yield f"{place}.{key}", str(key), value


def check_arguments(arguments: Sequence[str]) -> None:
    """Raise UserError for arguments that hold a secret, or would have a pickle read."""
    for argument in arguments:
        name, _, value = argument.partition("=")
        if name.startswith("--experimental-rerun"):
            raise UserError(f"{name} reads a pickle, which could run anything; give the options of the run instead")
        check_secrets({name: value} if value else name, "" if value else "the command line")


def check_secrets(node: Any, place: str = "") -> None:
    """Raise UserError where settings, which every run saves, hold a secret.

    A secret is the value of an environment variable that is called like one (a short one where it is the whole setting), a
    password within an address, or what is assigned to such a name, as ``token=…`` in a text or as a setting of that name.

    Args:
        node: the settings, or a part of them; place: its name.
    """
    if isinstance(node, Mapping):
        for key, value in node.items():
            check_secrets(str(key), f"a name in {place or 'the settings'}")
            below = f"{place}.{key}".removeprefix(".")
            check_secrets(value, below)
            if isinstance(value, str):  # the name may say that it is one
                check_secrets(f"{key}={value}", below)
    elif isinstance(node, list | tuple):
        for number, value in enumerate(node):
            check_secrets(value, f"{place}[{number}]")
    elif isinstance(node, str) and (found := _secret(node)):
        raise UserError(f"{place} holds {found}, and a run saves its settings; leave it to the environment")


def _secret(text: str) -> str | None:
    for name, value in os.environ.items():
        if not SECRET.search(name) or len(value) < SHORTEST or os.path.exists(value):
            continue
        if value == text or (len(value) >= WITHIN and value in text):
            return f"the value of ${name}"
    if URL.search(text):
        return "a password within an address"
    names = (assigned.group(1) for assigned in ASSIGNED.finditer(text))
    return next((f"a value for {name}" for name in names if not SPECIAL.search(name)), None)
