"""What may break with an update fails here: private names of other libraries, and the versions that were not tried."""

import ast
import re
import tomllib

import numpy as np
import open_clip.factory
import pytest
import torch
from open_clip.transformer import VisionTransformer
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version
from pytorch_lightning.callbacks import WeightAveraging
from pytorch_lightning.loops.training_epoch_loop import _TrainingEpochLoop

from tests.conftest import ROOT

PRIVATE = {
    "_average_model": WeightAveraging(),
    "_broadcast_sigterm_tensor": _TrainingEpochLoop,
    "_find_checkpoint_in_dir": open_clip.factory,
    "_foreach_copy_": torch,
    "_mmap": np.memmap(__file__, mode="r"),
    "_pool": VisionTransformer,
    "_set_SIGCHLD_handler": torch.utils.data._utils.signal_handling,
    "_swap_models": WeightAveraging,
    "_utils": torch.utils.data,
}
DOCUMENTED = {"_asdict", "_exit"}  # of named tuples and os, public in spite of the underscore
TREES = [ast.parse(path.read_text(encoding="utf-8")) for path in (ROOT / "dejavu_lit").rglob("*.py")]


def private(name: str) -> bool:
    return bool(re.match(r"_[a-z]", name))


def own_names(tree: ast.AST) -> set[str]:
    """The methods, fields and attributes that the package's classes define."""
    names = set()
    for node in (part for owner in ast.walk(tree) if isinstance(owner, ast.ClassDef) for part in ast.walk(owner)):
        if isinstance(node, ast.FunctionDef):
            names.add(node.name)
        elif isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store):
            if isinstance(node.value, ast.Name) and node.value.id in ("self", "cls"):
                names.add(node.attr)
        elif isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
            names.add(node.target.id)
    return names


def used_names(tree: ast.AST) -> set[str]:
    """The private attributes, imported names and modules, and the names that getattr and hasattr ask for."""
    names = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute):
            names.add(node.attr)
        elif isinstance(node, ast.Import | ast.ImportFrom):
            names |= {part for alias in node.names for part in alias.name.split(".")}
            names |= {*(getattr(node, "module", None) or "").split(".")}
        elif isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in ("getattr", "hasattr"):
            names |= {argument.value for argument in node.args if isinstance(argument, ast.Constant)}
    return {name for name in names if isinstance(name, str) and private(name)}


def test_the_private_names_of_other_libraries_are_these() -> None:
    used, own = (set().union(*map(names, TREES)) for names in (used_names, own_names))
    assert used - own - DOCUMENTED == PRIVATE.keys()


@pytest.mark.parametrize("name", PRIVATE)
def test_they_exist(name: str) -> None:
    assert hasattr(PRIVATE[name], name)


@pytest.mark.parametrize(
    ("name", "tried"), [("hydra-core", 2), ("omegaconf", 2), ("pytorch-lightning", 2), ("open-clip-torch", 1)]
)
def test_the_next_version_that_was_not_tried_is_excluded(name: str, tried: int) -> None:
    """``tried``: how many numbers of the version must be those of the pinned one."""
    lines = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["dependencies"]
    (allowed,) = (line.specifier for line in map(Requirement, lines) if canonicalize_name(line.name) == name)
    lines = [line for line in (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines() if "==" in line]
    (pinned,) = (
        Version(next(iter(pin.specifier)).version)
        for pin in map(Requirement, lines)
        if canonicalize_name(pin.name) == name
    )
    *same, last = pinned.release[:tried]
    following = ".".join(map(str, [*same, last + 1]))
    assert pinned in allowed
    assert following not in allowed
    assert f"{following}.dev1" not in allowed  # nor a candidate for it
