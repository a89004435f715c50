"""The training runs of a study: trained where they are not finished, by a launcher, with the time that is left.

A launcher is a function ``(directories) -> iterator of (directory, None | why it failed)``. It gets run directories that hold
``config.yaml`` and are not finished, trains each by ``dejavu resume DIRECTORY`` (which resumes from
``last.ckpt`` and leaves ``run.json``), and yields every directory once, as soon as it ended, in any order. It must bear that
a directory is already being trained, by what an interrupted study left running: it waits for that one. ``train_here`` is the
one for this machine; another is a function beside it in ``LAUNCHERS``, whose name is then a value of ``launcher=``.
"""

import fcntl
import logging
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import yaml

from dejavu_lit.data.prepared import TRAINED_ON, DataSpec
from dejavu_lit.utils.errors import UserError
from dejavu_lit.utils.io import write_text
from dejavu_lit.utils.run_directory import difference, read_config

log = logging.getLogger(__name__)

FINISHED = "run.json"
LOG = "training.log"  # what the training said, of all calls
Launcher = Callable[[Sequence[Path]], Iterator[tuple[Path, str | None]]]


def finished(run: Path) -> bool:
    """Whether a run directory holds a whole run."""
    return (run / FINISHED).is_file()


def epochs(config: Mapping[str, Any]) -> int:
    """How many epochs a run of this configuration trains."""
    planned = int(config["recipe"]["epochs"])
    return min(planned, config["mitigation"]["stop_epoch"] or planned)


def cost(config: Mapping[str, Any]) -> int:
    """What a run costs, in pairs seen: epochs × training size."""
    data = DataSpec(**{name: value for name, value in config["data"].items() if name != "_target_"})
    size = data.train_size if data.train_size is not None else sum(data.shards(TRAINED_ON[config["side"]]).sizes)
    return epochs(config) * size


def save_config(path: Path, config: Mapping[str, Any]) -> None:
    """Save a run's configuration; one that was begun is told of further checkpoints to keep.

    Raises:
        UserError: the directory holds another run.
    """
    if (path / "config.yaml").is_file():
        saved = read_config(path)
        if changed := difference(saved, config):
            raise UserError(f"{path} holds a run with other settings ({changed}); choose another out= or remove it")
        kept = set(saved["trainer"].get("checkpoint_at", []))
        if not (more := {*config["trainer"].get("checkpoint_at", [])} - kept):
            return
        config = saved | {"trainer": {**saved["trainer"], "checkpoint_at": sorted(kept | more)}}
    write_text(path / "config.yaml", yaml.safe_dump(dict(config), sort_keys=False, allow_unicode=True))


def train_missing(runs: Mapping[Path, Mapping[str, Any]], launcher: Launcher) -> dict[Path, str]:
    """Train every run that is not finished and return the reasons of those that failed.

    Args:
        runs: {run directory: its configuration}; launcher: as the module describes it.
    """
    todo = {path: config for path, config in runs.items() if not finished(path)}
    for path, config in todo.items():
        save_config(path, config)
    costs = {path: cost(config) for path, config in todo.items()}
    done: dict[Path, str | None] = {}
    started = time.perf_counter()
    for path, why in launcher(list(todo)):
        done[path] = why if why is not None or finished(path) else f"it ended without {FINISHED}; see {path / LOG}"
        if done[path] is not None:
            log.error("%s failed, the others go on: %s", path.name, done[path])
        bad = sum(why is not None for why in done.values())
        left = _left(costs, done, time.perf_counter() - started)
        failed = f", {bad} failed" if bad else ""
        log.info("%d of %d runs trained%s%s", len(done) - bad, len(todo), failed, left)
    return {path: why for path, why in done.items() if why is not None}


def _left(costs: Mapping[Path, int], done: Mapping[Path, str | None], seconds: float) -> str:
    """The time left for the rest, from what the trained ones took for their share of the pairs."""
    behind = sum(costs[path] for path, why in done.items() if why is None)
    ahead = sum(cost for path, cost in costs.items() if path not in done)
    if not behind or not ahead:
        return ""
    left = seconds / behind * ahead
    return f", about {f'{left / 60:.0f} min' if left > 90 else f'{left:.0f} s'} left for all"


def train_here(runs: Sequence[Path]) -> Iterator[tuple[Path, str | None]]:
    """Train one run after the other on this machine, a process each, so that one which dies takes no other along."""
    for number, path in enumerate(runs):
        with _held(path) as lock:
            why = None
            if not finished(path):
                log.info("training %d of %d: %s", number + 1, len(runs), path.name)
                why = _train(path, lock)
        yield path, why


@contextmanager
def _held(path: Path) -> Iterator[int]:
    """Wait until no other launcher's training is at work in a directory, and hold it; yields the lock's file descriptor."""
    with open(path / ".launched", "a") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            log.info("waiting for the training in %s, which an earlier call began", path)
            fcntl.flock(file, fcntl.LOCK_EX)
        yield file.fileno()


def _train(path: Path, lock: int) -> str | None:
    """Train one run in a process of its own, whose words go to its log and from there to the screen.

    The process inherits ``lock``, so that it holds the directory even after this one was killed.
    """
    # Not through a pipe: a training that outlives its study must be able to go on talking.
    with open(path / LOG, "ab") as out, open(path / LOG, "rb") as tail:
        tail.seek(0, 2)
        command = [sys.executable, "-m", "dejavu_lit", "resume", str(path)]
        process = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=out, stderr=subprocess.STDOUT, pass_fds=(lock,)
        )
        said = b""
        try:
            while True:
                code = process.poll()
                new = tail.read()
                said += new
                sys.stderr.write(new.decode(errors="replace"))
                sys.stderr.flush()
                if code is not None:
                    return None if code == 0 else reason(said.decode(errors="replace"), code, path / LOG)
                time.sleep(0.1)
        except KeyboardInterrupt as end:
            process.send_signal(signal.SIGTERM)
            process.wait()
            raise type(end)(f"interrupted while training {path.name}; the same command goes on") from None


def reason(said: str, code: int, where: Path) -> str:
    """Why a training failed, in its own words: its last ``error:`` sentence, else the signal or the last line.

    Args:
        said: what it wrote; code: its exit code, negative for a signal; where: the file that holds the whole.
    """
    lines = [line.strip() for line in said.splitlines() if line.strip()]
    if sentences := [line for line in lines if line.startswith("error: ")]:
        return sentences[-1].removeprefix("error: ")
    if code < 0:
        want = ", often for want of memory" if -code == signal.SIGKILL else ""
        return f"it was killed by {signal.Signals(-code).name}{want}; the same command goes on from its last checkpoint"
    return f"it ended with code {code}: {lines[-1] if lines else 'without a word'}; see {where}"


LAUNCHERS: dict[str, Launcher] = {"local": train_here}
