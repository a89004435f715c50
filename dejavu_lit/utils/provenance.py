"""Provenance of a result: commit, versions, machine, command."""

import os
import platform
import shlex
import subprocess
import sys
import time
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from dejavu_lit import __version__

PACKAGES = ("torch", "torchvision", "pytorch-lightning", "open_clip_torch", "faiss-cpu", "faiss-gpu", "numpy")


def provenance() -> dict[str, Any]:
    return {
        "dejavu_lit": __version__,
        "commit": _commit(),
        "command": _command(),
        "python": platform.python_version(),
        "versions": {name: version for name in PACKAGES if (version := _version(name))},
        "machine": f"{platform.system()} {platform.machine()}, {os.cpu_count()} CPUs",
        "time": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
    }


def _command() -> str:
    program, *arguments = sys.argv
    path = Path(program)
    if path.name == "dejavu":
        words = ["dejavu"]
    elif path.name == "__main__.py":
        words = ["python", "-m", path.parent.name]
    else:
        words = ["python", program]
    return shlex.join([*words, *arguments])


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _commit() -> str | None:
    """The checkout's commit, with ``+`` if files were changed; None outside a checkout."""
    root = Path(__file__).resolve().parents[2]
    if not (root / ".git").exists():
        return None
    git = ["git", "-C", str(root), "describe", "--always", "--exclude=*", "--abbrev=40", "--dirty=+"]
    try:
        return subprocess.run(git, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return None
