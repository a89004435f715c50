"""Measure and mitigate déjà vu memorization in CLIP-style vision-language models."""

from importlib import import_module
from importlib.metadata import PackageNotFoundError, version
from typing import Any

try:
    __version__ = version("dejavu-lit")
except PackageNotFoundError:  # run from a checkout that was never installed
    __version__ = "0+unknown"

# {name: its module and its name there}, imported when first used. ``mitigate`` trains and evaluates a study.
PUBLIC = {
    "settings": "dejavu_lit.cli.app:settings",
    "prepare": "dejavu_lit.cli.prepare:prepare",
    "train": "dejavu_lit.training.resume:run_training",
    "evaluate": "dejavu_lit.evaluation.run:run_evaluation",
    "mitigate": "dejavu_lit.cli.mitigate:mitigate",
    "write_report": "dejavu_lit.report.report:write_report",
    "write_embeddings": "dejavu_lit.evaluation.embeddings:write_embeddings",
}


def __getattr__(name: str) -> Any:
    if name not in PUBLIC:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    module, _, attribute = PUBLIC[name].partition(":")
    return getattr(import_module(module), attribute)


def __dir__() -> list[str]:
    return sorted([*globals(), *PUBLIC])
