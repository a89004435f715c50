"""Provenance of a result: commit, versions, machine, command."""

import os
import platform
import shlex
import subprocess
import sys
import time
from contextlib import suppress
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from dejavu_lit import __version__

PACKAGES = ("torch", "torchvision", "pytorch-lightning", "open_clip_torch", "faiss-cpu", "faiss-gpu", "numpy")


def provenance() -> dict[str, Any]:
    versions = {}
    for name in PACKAGES:
        with suppress(PackageNotFoundError):
            versions[name] = version(name)
    return {
        "dejavu_lit": __version__,
        "commit": _commit(),
        "command": _command(),
        "python": platform.python_version(),
        "versions": versions,
        "machine": f"{platform.system()} {platform.machine()}, {os.cpu_count()} CPUs",
        "time": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
    }


def _command() -> str:
    program, *arguments = sys.argv
    path = Path(program)
    started_by = {"dejavu": ["dejavu"], "__main__.py": ["python", "-m", path.parent.name]}
    return shlex.join([*started_by.get(path.name, ["python", program]), *arguments])


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
