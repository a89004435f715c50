"""Measure and mitigate déjà vu memorization in CLIP-style vision-language models."""

from importlib import import_module
from importlib.metadata import PackageNotFoundError, version
from typing import Any

try:
    __version__ = version("dejavu-lit")
except PackageNotFoundError:  # run from a checkout that was never installed
    __version__ = "0+unknown"

PUBLIC = {"write_embeddings": "dejavu_lit.evaluation.embeddings"}  # {name: its module}, imported when first used


def __getattr__(name: str) -> Any:
    if name not in PUBLIC:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(PUBLIC[name]), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *PUBLIC])
