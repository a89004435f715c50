"""What the tests of faults share: commands as processes that can be hit, and the one sentence in which they must end."""

import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from tests.conftest import ROOT

DEADLINE = 240  # seconds: other things run beside the tests

FEW = ["k=5", "ks=[5]", "statistics.bootstrap=200", "report.write=false"]  # of an evaluation that takes a second


def start(command: str, *options: str, **given: object) -> subprocess.Popen[str]:
    """One of the project's commands as a process in a session of its own, with the system's own answers to signals."""
    script = [str(ROOT / f"{command}.py")] if (ROOT / f"{command}.py").is_file() else ["-m", "dejavu_lit", command]
    return subprocess.Popen(
        [sys.executable, *script, *options],
        cwd=ROOT,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        start_new_session=True,
        preexec_fn=_default_signals,
        **given,
    )


def _default_signals() -> None:
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGPIPE):
        signal.signal(number, signal.SIG_DFL)


def wait_for(condition: Callable[[], object], process: subprocess.Popen[str] | None = None) -> bool:
    """Wait until ``condition`` holds; False where the process ended first. Fails at the deadline."""
    until = time.monotonic() + DEADLINE
    while not condition():
        if process is not None and process.poll() is not None:
            return False
        assert time.monotonic() < until, "waited in vain"
        time.sleep(0.01)
    return True


def end(process: subprocess.Popen[str]) -> subprocess.CompletedProcess[str]:
    """Wait for a process that was started here; what it said and its code."""
    out, err = process.communicate(timeout=DEADLINE)
    return subprocess.CompletedProcess(process.args, process.returncode, out, err)


def sentence(done: subprocess.CompletedProcess[str], code: int = 1) -> str:
    """The one ``error:`` line in which a command ended; no traceback, and the code."""
    assert done.returncode == code, done.stderr
    assert "Traceback" not in done.stderr, done.stderr
    lines = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert len(lines) == 1, done.stderr
    return lines[0].removeprefix("error: ")


def report(*options: str) -> subprocess.CompletedProcess[str]:
    """``dejavu report`` in this process."""
    import io
    from contextlib import redirect_stderr, redirect_stdout

    from dejavu_lit.cli.report import main

    out, err, code = io.StringIO(), io.StringIO(), 0
    before, sys.argv = sys.argv, ["report", *options]
    try:
        with redirect_stdout(out), redirect_stderr(err):
            main()
    except SystemExit as end:
        code = int(end.code or 0)
    finally:
        sys.argv = before
    return subprocess.CompletedProcess(options, code, out.getvalue(), err.getvalue())


def contents(folder: Path, *patterns: str) -> dict[str, bytes]:
    """{name below ``folder``: bytes} of the files that match."""
    found = (path for pattern in patterns for path in folder.rglob(pattern))
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(found) if path.is_file()}


def annotation(scenes: Path, table: Path) -> list[str]:
    """Options of ``annotate`` for its quickest real annotator: a table, which is written with what the scenes show."""
    parts = [
        pq.read_table(part, columns=["key", "labels"])
        for part in sorted((scenes / "objects/scenes").rglob("*.parquet"))
    ]
    pq.write_table(pa.concat_tables(parts).replace_schema_metadata(None), table)
    return ["annotator=table", f"annotator.path={table}", "data=prepared"]


def weights(run: Path) -> bytes:
    """The exported weights of a run."""
    return (run / "model" / "open_clip_model.safetensors").read_bytes()


def children(pid: int) -> list[int]:
    """The processes that ``pid`` has started and that are not ended."""
    found = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            text = stat.read_text()
        except OSError:  # ended meanwhile
            continue
        state, parent = re.match(r".*\) (\S) (\d+) ", text, re.DOTALL).groups()  # type: ignore[union-attr]
        if int(parent) == pid and state not in "ZX":
            found.append(int(stat.parent.name))
    return found
