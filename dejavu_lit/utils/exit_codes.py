"""How a command ends: well, by a user's mistake, a full disk, a signal or a reader that went away; never by a traceback of these.

Exit codes: 1 for a mistake and for what the system refuses, 128 + n for signal n (130 for Ctrl-C, 143 for TERM, 141 where
whoever read the output has closed it).
"""

import os
import select
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import NoReturn, TextIO

from dejavu_lit.utils.errors import UserError, spoken


class Terminated(KeyboardInterrupt):
    """TERM: what cleans up after Ctrl-C cleans up after this, too."""


@contextmanager
def ending() -> Iterator[None]:
    """Turn what ends the block into one sentence on stderr and the exit code."""
    try:
        with _heeding_term():
            yield
            sys.stdout.flush()
    except UserError as error:
        fail(str(error))
    except KeyboardInterrupt as end:
        number = signal.SIGTERM if isinstance(end, Terminated) else signal.SIGINT
        how = "terminated" if isinstance(end, Terminated) else "interrupted"
        fail(str(end) or f"{how}; the same command takes up what is finished, and goes on", 128 + number)
    except OSError as error:
        if isinstance(error, BrokenPipeError) and _left(sys.stdout):
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # where the rest goes at exit
            sys.exit(128 + signal.SIGPIPE)
        fail(spoken(error))


def fail(sentence: str, code: int = 1) -> NoReturn:
    """End with an ``error:`` sentence and an exit code."""
    if "Original Traceback" in sentence:  # of a loader's worker: its last line is the sentence
        sentence = sentence.strip().splitlines()[-1].partition("Error: ")[2] or sentence
    print(f"error: {sentence}", file=sys.stderr)
    sys.exit(code)


@contextmanager
def _heeding_term() -> Iterator[None]:
    """Raise ``Terminated`` when TERM comes, unless somebody else answers it."""
    if threading.current_thread() is not threading.main_thread() or signal.getsignal(signal.SIGTERM) != signal.SIG_DFL:
        yield
        return
    owner = os.getpid()

    def answer(number: int, frame: object) -> None:
        if os.getpid() != owner:  # a worker that was forked meanwhile
            os._exit(128 + number)
        raise Terminated

    signal.signal(signal.SIGTERM, answer)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)


def _left(stream: TextIO) -> bool:
    """Whether nobody reads this pipe any more."""
    try:
        poll = select.poll()
        poll.register(stream.fileno(), 0)
    except (OSError, ValueError):  # no file of the system at all
        return False
    return bool(poll.poll(0))
