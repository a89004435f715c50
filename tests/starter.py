"""The project's commands as processes forked from one that has imported torch already, which spares seconds for each.

Every process of the tests that starts commands has one such server (``starter``), started when it is first needed.
"""

import atexit
import importlib
import json
import os
import runpy
import select
import signal
import socket
import subprocess
import sys
import time
from contextlib import suppress
from functools import cache, cached_property
from pathlib import Path
from typing import IO, Any

from dejavu_lit.cli.commands import COMMANDS

ROOT = Path(__file__).resolve().parent.parent
PATIENCE = 900  # seconds within which any command of the tests ends, on the slowest machine


def arguments(command: str) -> list[str]:
    """What follows ``python`` for a command: the script of the checkout that has its name, or the package."""
    script = ROOT / f"{command}.py"
    return [str(script)] if script.exists() else ["-m", "dejavu_lit", command]


def free_port() -> int:
    """A port of this machine on which nobody listens."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


class Process:
    """A command at work in a process group of its own."""

    def __init__(self, pid: int, ended: IO[bytes], out: Path, err: Path) -> None:
        self.pid, self.out, self.err, self._ended = pid, out, err, ended
        self.code: int | None = None

    def running(self, wait: float) -> bool:
        """Whether it is still at work after ``wait`` seconds."""
        if self.code is None and select.select([self._ended], [], [], wait)[0]:
            self.code = int(self._ended.readline())
        return self.code is None

    def kill(self, alone: bool = False) -> None:
        """SIGKILL to the whole group, or to the command's own process ``alone``; returns when that one is gone."""
        with suppress(ProcessLookupError):
            (os.kill if alone else os.killpg)(self.pid, signal.SIGKILL)
        assert not self.running(PATIENCE), f"process {self.pid} outlives SIGKILL"

    def completed(self) -> subprocess.CompletedProcess[str]:
        """Wait for its end: its code and what it said. Raises AssertionError after ``PATIENCE``."""
        if self.running(PATIENCE):
            self.kill()
            raise AssertionError(f"no end after {PATIENCE} s:\n{self.err.read_text()}")
        out, err = (file.read_text(errors="replace") for file in (self.out, self.err))
        return subprocess.CompletedProcess([], self.code or 0, out, err)


class Starter:
    """Starts commands one after the other: forked, as one process or several ranks, or as a user would (``real``)."""

    @cached_property
    def _server(self) -> subprocess.Popen[bytes]:
        threads = {f"{name}_NUM_THREADS": "1" for name in ("OMP", "OPENBLAS", "MKL")}
        return subprocess.Popen(
            [sys.executable, "-m", "tests.starter"],
            bufsize=0,  # or the next line would hide from select
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            cwd=ROOT,
            env={**os.environ, **threads, "PYTHONPATH": str(ROOT)},
            start_new_session=True,
        )

    def start(
        self,
        command: str,
        options: list[str],
        out: Path,
        err: Path | None = None,
        cwd: Path = ROOT,
        real: bool = False,
        ranks: int = 1,
    ) -> Process:
        """Start a command, or a script of the checkout, in this process's environment; its words go to two files, or one."""
        order = {"command": command, "options": options, "out": str(out), "err": str(err or out), "cwd": str(cwd)}
        order |= {"ranks": ranks}
        environment = {**os.environ, "PYTHONPATH": str(ROOT)}
        environment.pop("WANDB_SERVICE", None)  # the socket of a service that a fixture of this process has started
        assert self._server.stdin is not None
        assert self._server.stdout is not None
        self._server.stdin.write(f"{json.dumps({**order, 'real': real, 'environment': environment})}\n".encode())
        return Process(int(self._server.stdout.readline()), self._server.stdout, out, err or out)

    def close(self) -> None:
        """End the waiting process."""
        if "_server" in self.__dict__:
            self._server.communicate()


@cache
def starter() -> Starter:
    """This process's own, which ends with it."""
    started = Starter()
    atexit.register(started.close)
    return started


def _obey() -> dict[str, Any]:
    """Fork a process for every order that comes in; it returns here with its order, the parent tells its end."""
    for line in sys.stdin.buffer:
        order: dict[str, Any] = json.loads(line)
        if (child := os.fork()) == 0:
            os.setpgid(0, 0)
            return order
        with suppress(OSError):  # whoever comes first
            os.setpgid(child, child)
        print(child, flush=True)
        print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
    sys.exit()


def _become(order: dict[str, Any]) -> None:
    """Go on as the command that was asked for."""
    with open(os.devnull) as nothing, open(order["out"], "ab") as out, open(order["err"], "ab") as err:
        for number, file in enumerate((nothing, out, err)):
            os.dup2(file.fileno(), number)
    os.chdir(order["cwd"])
    os.environ.clear()
    os.environ.update(order["environment"])
    time.tzset()
    signal.signal(signal.SIGINT, signal.default_int_handler)  # it may be ignored where the tests run
    words = [*arguments(order["command"]), *order["options"]]
    if order["real"]:
        os.execv(sys.executable, [sys.executable, *words])
    if order["ranks"] > 1:
        _fork_ranks(order["ranks"])
    sys.argv = [words[0] if words[0] != "-m" else order["command"], *order["options"]]
    if order["command"] in COMMANDS:
        importlib.import_module(f"dejavu_lit.cli.{order['command']}").main()
    else:
        runpy.run_path(words[0], run_name="__main__")


def _fork_ranks(count: int) -> None:
    """Fork the ranks of one machine; it returns in each of them, and this process ends with the first failure, as torchrun."""
    os.environ |= {"WORLD_SIZE": f"{count}", "LOCAL_WORLD_SIZE": f"{count}", "TORCHELASTIC_RUN_ID": "tests"}
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": f"{free_port()}"}
    ranks = []
    for rank in range(count):
        if (child := os.fork()) == 0:
            os.environ |= {"RANK": f"{rank}", "LOCAL_RANK": f"{rank}"}
            return
        ranks.append(child)
    for _ in range(count):
        if code := os.waitstatus_to_exitcode(os.wait()[1]):
            for child in ranks:
                with suppress(ProcessLookupError):
                    os.kill(child, signal.SIGKILL)
            sys.exit(code if code > 0 else 128 - code)
    sys.exit()


if __name__ == "__main__":
    import dejavu_lit.evaluation.embed
    import dejavu_lit.evaluation.evaluate
    import dejavu_lit.evaluation.search
    import dejavu_lit.report.report
    import dejavu_lit.training.train  # noqa: F401

    # timm has imported it, with a folder that the first process to end removes: who logs to it imports it again.
    for name in [name for name in sys.modules if name.partition(".")[0] == "wandb"]:
        del sys.modules[name]
    _become(_obey())
