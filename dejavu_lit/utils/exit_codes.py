"""How a command ends: user errors, full disks, full memory and signals become one sentence and an exit code, never a traceback.

Exit codes: 1 for an error, 128 + n for signal n (130 for Ctrl-C, 143 for SIGTERM, 141 if the reader of the output closed it).
"""

import codecs
import gc
import io
import os
import select
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import NoReturn, TextIO

from dejavu_lit.utils.errors import UserError, error_sentence
from dejavu_lit.utils.printable import printable

early_signals: list[int] = []  # see signals_kept


class Terminated(KeyboardInterrupt):
    """SIGTERM; a KeyboardInterrupt, so that the same handlers clean up."""


def _replace(error: UnicodeError) -> tuple[str, int]:
    """``?`` for signs that an output lacks, but a hyphen for a minus."""
    if not isinstance(error, UnicodeEncodeError):
        raise error
    lacking = error.object[error.start : error.end]
    return "".join("-" if sign == "−" else "?" for sign in lacking), error.end


codecs.register_error(REPLACED := "dejavu-lit", _replace)


@contextmanager
def clean_exit() -> Iterator[None]:
    """Turn expected exceptions into one sentence on stderr and the exit code; print signs that the output lacks as ``?``."""
    gc.set_threshold(10_000)  # indexes and records, many objects without cycles, would be searched again and again
    for name in ("stdout", "stderr"):
        if getattr(sys, name) is None:  # closed by the shell (>&-): what is written there is lost, and nothing else
            setattr(sys, name, open(os.devnull, "w", encoding="utf-8"))  # noqa: SIM115
        if isinstance(stream := getattr(sys, name), io.TextIOWrapper):
            stream.reconfigure(errors=REPLACED)
    try:
        with _raise_on_sigterm():
            yield
            sys.stdout.flush()
    except UserError as error:
        fail(str(error))
    except KeyboardInterrupt as end:
        number = signal.SIGTERM if isinstance(end, Terminated) else signal.SIGINT
        how = "terminated" if isinstance(end, Terminated) else "interrupted"
        fail(str(end) or f"{how}; run the same command again to continue", 128 + number)
    except (OSError, MemoryError, RuntimeError, ImportError) as error:
        if isinstance(error, BrokenPipeError) and _reader_is_gone(sys.stdout):
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # for what Python still flushes at exit
            sys.exit(128 + signal.SIGPIPE)
        if (sentence := error_sentence(error)) is None:
            raise
        fail(sentence)
    finally:
        gc.freeze()  # Python's search for garbage at its end takes half a second, and nothing needs it


def fail(sentence: str, code: int = 1) -> NoReturn:
    if "Original Traceback" in sentence:  # from a worker of the data loader: its last line is the message
        sentence = sentence.strip().splitlines()[-1].partition("Error: ")[2] or sentence
    print(f"error: {printable(sentence)}", file=sys.stderr)
    sys.exit(code)


@contextmanager
def _raise_on_sigterm() -> Iterator[None]:
    if threading.current_thread() is not threading.main_thread() or signal.getsignal(signal.SIGTERM) != signal.SIG_DFL:
        yield
        return
    owner = os.getpid()

    def handler(number: int, frame: object) -> None:
        if os.getpid() != owner:  # a forked worker
            os._exit(128 + number)
        raise Terminated

    signal.signal(signal.SIGTERM, handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)


def keep_signal(number: int, frame: object) -> None:
    early_signals.append(number)


@contextmanager
def signals_kept() -> Iterator[None]:
    """In a SLURM job, keep the signals that announce its end in ``early_signals``, for a training that has not started yet.

    They would end the process, and SLURM requeues no job that ends by itself, also if it was being preempted. Signals that
    submitit handles are left to it.
    """
    early_signals.clear()
    before = {}
    if "SLURM_JOB_ID" in os.environ and threading.current_thread() is threading.main_thread():
        for number in (signal.SIGUSR1, signal.SIGUSR2, signal.SIGTERM):
            owner = signal.getsignal(number)
            if owner == signal.SIG_DFL or getattr(owner, "__module__", None) == __name__:
                before[number] = signal.signal(number, keep_signal)
    try:
        yield
    finally:
        for number, owner in before.items():
            signal.signal(number, owner)


def _reader_is_gone(stream: TextIO) -> bool:
    try:
        poll = select.poll()
        poll.register(stream.fileno(), 0)
    except (OSError, ValueError):  # not a real file
        return False
    return bool(poll.poll(0))
