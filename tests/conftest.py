"""Small real things that several tests share: a prepared scenes folder and tiny runs on it."""

import io
import json
import os
import pickle
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import redirect_stderr, redirect_stdout
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, settings

from dejavu_lit.cli.commands import COMMANDS
from dejavu_lit.utils.errors import UserError
from tests.starter import ROOT, starter

for _name in [name for name in os.environ if name.startswith(("WANDB_", "SLURM_")) or name == "PYTHONWARNINGS"]:
    del os.environ[_name]  # of the user's shell or job: commands of the tests would go by them
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ["NO_PROXY"] = os.environ["no_proxy"] = "127.0.0.1,localhost"  # servers of the tests stand here
settings.register_profile("suite", deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("suite")
# A few dozen pairs, a model of one layer, two epochs: seconds, and every part of the path is the real one.
SMALL = [
    "data.sizes={A: 96, B: 96, H: 48, V: 16, P: 64}",
    "data.reader.count=320",
    "data.extra.single.count=100",
    "recipe.epochs=2",
    "recipe.batch=16",
    "recipe.warmup_steps=2",
    "trainer.checkpoint_epochs=1",
    "model.config.vision_cfg.width=32",
    "model.config.vision_cfg.head_width=16",
    "model.config.vision_cfg.layers=1",
    "model.config.text_cfg.width=32",
    "model.config.text_cfg.heads=2",
    "model.config.text_cfg.layers=1",
    "model.config.embed_dim=32",
]


@pytest.fixture(autouse=True)
def _environment() -> Iterator[None]:
    """What commands set in the environment of this process (wandb its service, torch its ranks) is gone in the next test."""
    before = dict(os.environ)
    yield
    os.environ.clear()
    os.environ.update(before)


@pytest.fixture(scope="session", autouse=True)
def _checkout() -> Iterator[None]:
    """The tests write into folders of their own: what the commands write by default, below the checkout, is as before."""
    before = _outputs()
    yield
    assert _outputs() <= before, "a test wrote into the checkout; give out=, data.dir= and, with -m, hydra.sweep.dir="


def _outputs() -> set[Path]:
    patterns = [f"{name}{below}" for name in ("outputs", "multirun", "runs", "wandb") for below in ("", "/*", "/*/*")]
    return {path for pattern in patterns for path in ROOT.glob(pattern)}


def without_report(command: str, options: Sequence[str]) -> list[str]:
    """The options of a command that writes no report, which takes five times as long as the rest, unless they ask for it."""
    prefix = {"evaluate": "", "mitigate": "evaluate."}.get(command)
    is_asked = any(option.startswith(("-", f"{prefix}report.")) for option in options)
    return [*options] if prefix is None or is_asked else [*options, f"{prefix}report.write=false"]


def run(
    command: str, *options: str, cwd: Path = ROOT, check: bool = True, real: bool = False, ranks: int = 1
) -> subprocess.CompletedProcess[str]:
    """Run one of the project's commands (``train``, ``evaluate``, …) in a process of its own, see ``without_report``.

    It is forked (``starter``), as several ``ranks`` with the environment that torchrun gives to each, or run as a user would
    (``real``): always if it starts further ranks itself, since Lightning repeats the command line. ``command`` may be a
    script of the checkout, without its ``.py``.
    """
    options = (*without_report(command, options),)
    real |= command not in COMMANDS and not (ROOT / f"{command}.py").exists()
    real |= ranks == 1 and any(option.startswith(("trainer.devices=", "trainer=ddp")) for option in options)
    with tempfile.TemporaryDirectory() as said:
        files = Path(said, "out"), Path(said, "err")
        done = starter().start(command, [*options], *files, cwd, real, ranks).completed()
    if check:
        assert done.returncode == 0, done.stderr + done.stdout
    return done


def call(command: str, *options: str) -> subprocess.CompletedProcess[str]:
    """The same in this process, which spares the seconds of importing torch; an exception that escapes fails the test."""
    out, err, code = io.StringIO(), io.StringIO(), 0
    before, sys.argv = sys.argv, [f"{command}.py", *without_report(command, options)]
    try:
        with redirect_stdout(out), redirect_stderr(err):
            import_module(f"dejavu_lit.cli.{command}").main()
    except SystemExit as end:
        code = int(end.code or 0)
    finally:
        sys.argv = before
    return subprocess.CompletedProcess([command, *options], code, out.getvalue(), err.getvalue())


def record(folder: Path) -> dict[str, Any]:
    """run.json of a finished run."""
    return json.loads((folder / "run.json").read_text())


def weights(folder: Path) -> dict[str, Any]:
    """The exported tensors of a finished run."""
    from safetensors.torch import load_file  # imports torch

    return load_file(folder / "model" / "open_clip_model.safetensors")


def message_of(mistake: Callable[[], object]) -> str:
    """The sentence of the UserError that a call raises."""
    with pytest.raises(UserError) as error:
        mistake()
    return str(error.value)


def spawn_ranks(function: Callable[..., None], *arguments: object) -> None:
    """Call ``function(rank, *arguments)`` in two forked processes, a gloo group; it must be importable."""
    run("tests/rank", pickle.dumps((function, arguments)).hex(), ranks=2)


@pytest.fixture(scope="session")
def scenes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A prepared folder of a few hundred scenes."""
    out = tmp_path_factory.mktemp("data") / "scenes"
    run("prepare", f"data.dir={out}", *[o for o in SMALL if o.startswith("data.")])
    return out


@pytest.fixture(scope="session")
def trained(scenes: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A finished target and a finished reference run on them."""
    base = tmp_path_factory.mktemp("trained")
    for side in ("target", "reference"):
        run("train", f"side={side}", f"data.dir={scenes}", f"out={base / side}", *SMALL)
    return {side: base / side for side in ("target", "reference")}


@pytest.fixture(scope="module")
def runs(trained: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Copies of them for each module: what evaluations leave in one is in no other's way."""
    base = tmp_path_factory.mktemp("runs")
    return {side: Path(shutil.copytree(folder, base / side)) for side, folder in trained.items()}
