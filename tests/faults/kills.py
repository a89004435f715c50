"""Commands killed (SIGKILL) at random moments and started again; what they leave is compared with an undisturbed run's.

``Case.undisturbed`` runs a command once in peace and notes when its files appear. A moment to kill at is drawn from
that time and told as "so long after the n-th new file", so that it falls amid the work on machines of any speed.
"""

import os
import random
import shutil
import signal
import time
from bisect import bisect_right
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

from tests.faults.contents import check_equal, check_whole
from tests.starter import PATIENCE, starter

LOOK = 0.002  # seconds between two looks at the files
TRIES = 20  # for each kill that is to fall amid the work
BY_TIME = 0.2  # share of the moments that are drawn by time alone: many fall into the start and the end
BUSY = "another process is using"


@dataclass(frozen=True)
class Trace:
    """What a run did when: the seconds after which each of its files appeared, how long it took, and whether it was killed."""

    appeared: list[float]
    seconds: float
    killed: bool = False


@dataclass(frozen=True)
class Moment:
    """When to kill: ``delay`` seconds after so many (``files``) new files; the main process ``alone``, or its group."""

    files: int
    delay: float
    alone: bool

    def come(self, appeared: list[float], now: float) -> bool:
        """Whether it has come ``now``, in seconds since the start, when files have ``appeared``."""
        if len(appeared) < self.files:
            return False
        return now - (appeared[self.files - 1] if self.files else 0) >= self.delay


@dataclass
class Tally:
    """How often a command was to be killed, how often that fell amid its work, and which files it was then at."""

    tried: int = 0
    amid: int = 0
    alone: int = 0
    at: list[str] = field(default_factory=list)

    def __str__(self) -> str:
        return (
            f"{self.tried} tries, {self.amid} kills amid the work ({self.alone} of the main process alone): {self.at}"
        )


@dataclass
class Case:
    """A command with its options, the folder ``out`` that it works in, and what is there ``before`` it is started.

    ``aside`` is a folder for the undisturbed run's results, which are made in ``out`` too, since artifacts hold paths.
    """

    command: str
    options: list[str]
    out: Path
    aside: Path
    before: Path | None = None
    traces: dict[bool, Trace] = field(default_factory=dict)

    @property
    def whole(self) -> Path:
        """The folder as the undisturbed run left it."""
        return self.aside / "undisturbed"

    def undisturbed(self, real: bool = False) -> Trace:
        """Run it once in peace, forked or as a user would."""
        if real not in self.traces:
            self.aside.mkdir(exist_ok=True)
            with self._clean():
                self.traces[real] = self._run(real)
                check_whole(self.out)
                if self.whole.exists():
                    check_equal(self.out, self.whole)
                else:
                    self.out.rename(self.whole)
        return self.traces[real]

    def killed(self, kills: int, seed: int, real: bool = False, row: int = 3, alone: float = 0.25) -> Tally:
        """Kill it amid its work ``kills`` times, up to ``row`` tries before a start is left in peace, and compare then.

        A try that comes after the end is one more whole run and does not count; too many of them are an error.

        Args:
            real: start it as a user would, and not forked.
            alone: share of the kills that hit the main process alone, and not its workers.
        """
        draw, tally, trace = random.Random(f"{self.command} {seed} {real}"), Tally(), self.undisturbed(real)
        while tally.amid < kills:
            assert tally.tried < TRIES * kills, f"most kills came too late: {tally}"
            with self._clean():
                done = 0
                for _ in range(min(draw.randint(1, row), kills - tally.amid)):
                    moment = _moment(draw, trace, done, draw.random() < alone)
                    tally.tried += 1
                    run = self._run(real, moment)
                    if run.killed:
                        done += len(run.appeared)
                        tally.amid += 1
                        tally.alone += moment.alone
                        tally.at.append(f"{done}/{len(trace.appeared)}")
                        check_whole(self.out)
                self._run(real)
                check_whole(self.out)
                check_equal(self.out, self.whole)
        return tally

    @contextmanager
    def _clean(self) -> Iterator[None]:
        shutil.rmtree(self.out, ignore_errors=True)
        if self.before is not None:
            shutil.copytree(self.before, self.out)
        yield
        shutil.rmtree(self.out, ignore_errors=True)

    def _run(self, real: bool, moment: Moment | None = None) -> Trace:
        """Run it to its end, or kill it at a moment, if that comes before the end."""
        log = self.aside / "log"
        log.unlink(missing_ok=True)
        seen, appeared = _files(self.out), list[float]()
        process = starter().start(self.command, self.options, log, real=real)
        began = time.monotonic()
        try:
            while process.running(LOOK):
                now = time.monotonic() - began
                new = _files(self.out) - seen
                seen |= new
                appeared += [now] * len(new)
                if moment is not None and moment.come(appeared, now):
                    process.kill(moment.alone)
                    if process.code == -signal.SIGKILL:
                        return Trace(appeared, now, killed=True)
                assert now < PATIENCE, f"no end after {now:.0f} s:\n{log.read_text()}"
        finally:
            if process.running(0):
                process.kill()
        said = log.read_text()
        if BUSY in said and process.code == 1:  # what a killed process started ends a little later
            time.sleep(1)
            return self._run(real, moment)
        assert process.code == 0, f"{self.command} ended with {process.code}:\n{said}"
        return Trace(appeared, time.monotonic() - began)


def _files(folder: Path) -> set[tuple[str, int]]:
    """(path, inode) of every file below ``folder``: one that replaces another is a new one."""
    found: set[tuple[str, int]] = set()
    open_folders = [str(folder)]
    while open_folders:
        with suppress(FileNotFoundError, NotADirectoryError), os.scandir(open_folders.pop()) as entries:
            for entry in entries:
                if entry.is_dir(follow_symlinks=False):
                    open_folders.append(entry.path)
                else:
                    found.add((entry.path, entry.inode()))
    return found


def _moment(draw: random.Random, trace: Trace, done: int, alone: bool) -> Moment:
    """A moment of what is left when about ``done`` of the files have come: mostly before one of the others, else any."""
    times = [0.0, *trace.appeared, trace.seconds]
    done = min(done, len(trace.appeared))
    following = draw.randrange(done, len(trace.appeared)) if done < len(trace.appeared) else done
    at = draw.uniform(times[following], times[following + 1])
    if draw.random() < BY_TIME:
        at = draw.uniform(times[done], trace.seconds)
    number = bisect_right(times, at, 1, len(times) - 1) - 1
    return Moment(max(0, number - done), at - times[number], alone)
