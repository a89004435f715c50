"""Measure and mitigate déjà vu memorization in CLIP-style vision-language models."""

from importlib.metadata import PackageNotFoundError, version

try:
    __version__ = version("dejavu-lit")
except PackageNotFoundError:  # run from a checkout that was never installed
    __version__ = "0+unknown"
