"""A loss that is no number, a checkpoint that is damaged, a loader's process that is killed or stalls."""

import io
import os
import re
import shutil
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import reduce
from operator import getitem
from pathlib import Path

import pytest
import torch

from tests.conftest import SMALL, call
from tests.faults.common import DEADLINE, children, sentence, weights


@pytest.fixture
def begun(runs, tmp_path) -> Path:
    """A run of two epochs that was killed after the last of them, before it was finished."""
    run = shutil.copytree(runs["target"], tmp_path / "run")
    (run / "run.json").unlink()
    (run / "model" / "open_clip_model.safetensors").unlink()
    return run


def train(scenes: Path, run: Path, *options: str):
    return call("train", "side=target", f"data.dir={scenes}", f"out={run}", *SMALL, *options)


def test_weights_that_are_no_numbers_are_never_saved(scenes, tmp_path):
    done = train(scenes, tmp_path / "run", "recipe.lr=1e38", "recipe.warmup_steps=0")
    said = sentence(done)
    assert "the loss is NaN or infinite at step" in said
    assert "(no checkpoint was saved before)" in said
    assert not list((tmp_path / "run").rglob("*.ckpt"))
    assert not list((tmp_path / "run").rglob("*.safetensors"))
    assert not (tmp_path / "run" / "run.json").exists()


def test_the_last_good_checkpoint_is_named_and_kept(scenes, runs, tmp_path):
    """The optimizer's memory is spoilt, so that the next step's weights are NaN, whatever the loss."""
    run, last = tmp_path / "run", tmp_path / "run" / "checkpoints" / "last.ckpt"
    longer = ["recipe.epochs=3"]
    config = (runs["target"] / "config.yaml").read_text()
    shutil.copytree(runs["target"], run, ignore=shutil.ignore_patterns("run.json", "*.safetensors"))
    (run / "config.yaml").write_text(config.replace("  epochs: 2\n", "  epochs: 3\n"))
    state = torch.load(last, weights_only=True)
    state["settings"]["recipe"]["epochs"] = 3
    torch.save(state, last)
    good = last.read_bytes()
    state["optimizer_states"][0]["state"][0]["exp_avg"].fill_(float("nan"))
    torch.save(state, last)
    spoilt = last.read_bytes()
    said = sentence(train(scenes, run, *longer))
    assert f"the last good checkpoint is {last}, of step {state['global_step']}" in said
    assert last.read_bytes() == spoilt
    assert not (run / "checkpoints" / "epoch=0003.ckpt").exists()
    last.write_bytes(good)
    done = train(scenes, run, *longer)
    assert done.returncode == 0, done.stderr


def without(*names: str) -> Callable[[bytes], bytes]:
    """A damage: the same checkpoint without one entry, named by the way to it."""

    def damage(whole: bytes) -> bytes:
        content = torch.load(io.BytesIO(whole), weights_only=True)
        reduce(getitem, names[:-1], content).pop(names[-1])
        torch.save(content, out := io.BytesIO())
        return out.getvalue()

    return damage


def with_other_loops(whole: bytes) -> bytes:
    """Entries of other types, as of another program's checkpoint."""
    torch.save(torch.load(io.BytesIO(whole), weights_only=True) | {"loops": None}, out := io.BytesIO())
    return out.getvalue()


DAMAGES: dict[str, Callable[[bytes], bytes]] = {
    "empty": lambda whole: b"",
    "cut": lambda whole: whole[: len(whole) // 2],
    "noise": lambda whole: bytes((i * 7919 + 31) % 251 for i in range(4096)),
    "another": lambda whole: b"PK\x05\x06" + bytes(18),  # an empty zip
    "weights alone": without("optimizer_states"),
    "a weight missing": without("state_dict", "model.positional_embedding"),
    "a loop missing": without("loops", "fit_loop"),
    "progress missing": without("loops", "fit_loop", "epoch_progress", "current"),
    "other loops": with_other_loops,
    "flipped": lambda whole: whole[: len(whole) // 2] + b"\xff" * 64 + whole[len(whole) // 2 + 64 :],
}


@pytest.mark.parametrize("how", DAMAGES)
def test_a_damaged_checkpoint_is_named_with_what_to_do(how, begun, scenes, runs):
    last = begun / "checkpoints" / "last.ckpt"
    whole = last.read_bytes()
    last.write_bytes(DAMAGES[how](whole))
    said = sentence(train(scenes, begun))
    assert f"the checkpoint {last} is damaged (" in said
    assert "restore it from a copy, or remove it to start over" in said
    assert f"can be evaluated as {begun}@2" in said
    if how == "cut":  # both remedies
        last.write_bytes(whole)
        done = train(scenes, begun)
        assert done.returncode == 0, done.stderr
        assert weights(begun) == weights(runs["target"])
    if how == "noise":
        last.unlink()
        done = train(scenes, begun)
        assert done.returncode == 0, done.stderr
        assert weights(begun) == weights(runs["target"])


WORKERS = ["trainer.loader.workers=1", "trainer.loader.cache_mb=0", "recipe.epochs=6"]


@contextmanager
def hitting(number: int, when: Path) -> Iterator[None]:
    """Send a signal to whatever processes this one has started, again and again from when ``when`` is there."""
    done = threading.Event()
    before = set(children(os.getpid()))

    def watch() -> None:
        until = time.monotonic() + DEADLINE
        while not done.wait(0.01) and time.monotonic() < until:
            if when.exists():
                for child in set(children(os.getpid())) - before:
                    with suppress(ProcessLookupError):
                        os.kill(child, number)

    thread = threading.Thread(target=watch, daemon=True)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()
        for child in set(children(os.getpid())) - before:  # one that was stopped would be waited for at the end
            with suppress(ProcessLookupError):
                os.kill(child, signal.SIGKILL)


@pytest.fixture(scope="module")
def with_workers(scenes, tmp_path_factory):
    """An undisturbed run with a loader's process."""
    run = tmp_path_factory.mktemp("workers") / "run"
    done = train(scenes, run, *WORKERS)
    assert done.returncode == 0, done.stderr
    return run


@pytest.mark.parametrize(
    ("number", "options", "words"),
    [
        (signal.SIGKILL, [], "a data-loader process was killed, possibly out of memory"),
        pytest.param(  # most of it is waiting for processes that are stopped
            signal.SIGSTOP,
            ["trainer.timeout_min=0.05"],
            "reading the data has stalled",
            marks=pytest.mark.slow,
        ),
    ],
)
def test_a_process_of_the_loader_that_is_killed_or_stalls(number, options, words, scenes, with_workers, tmp_path):
    run = tmp_path / "run"
    with hitting(number, run / "checkpoints" / "last.ckpt"):
        said = sentence(train(scenes, run, *WORKERS, *options))
    assert words in said
    assert re.search(r"the same command continues from .*last\.ckpt", said)
    done = train(scenes, run, *WORKERS)
    assert done.returncode == 0, done.stderr
    assert weights(run) == weights(with_workers)
