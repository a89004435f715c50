"""Jobs spread over worker processes that share one read-only state and end with the process that started them."""

import multiprocessing
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, ThreadPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from typing import Any, TypeVar

from dejavu_lit.utils.errors import UserError

State = TypeVar("State")
Job = TypeVar("Job")
Result = TypeVar("Result")
_state: Any = None


def spread(
    function: Callable[[State, Job], Result], state: State, jobs: Iterable[Job], workers: int
) -> Iterator[Result]:
    """Yield ``function(state, job)`` of every job, in the order of completion; in this process for ``workers`` ≤ 1.

    On Linux the workers are forked, so ``state`` is shared with them and not copied; elsewhere it is pickled once for each.
    ``function`` must be importable. The first exception ends it all.

    Raises:
        UserError: a worker was killed from outside, as happens when memory runs out.
    """
    if workers <= 1:
        for job in jobs:
            yield function(state, job)
        return
    context = multiprocessing.get_context("fork" if sys.platform == "linux" else "spawn")
    pool = ProcessPoolExecutor(workers, context, _start, (state,))
    try:
        pending: set[Future[Result]] = set()
        for job in jobs:
            pending.add(pool.submit(_call, function, job))
            if len(pending) > 2 * workers:
                done, pending = wait(pending, return_when=FIRST_COMPLETED)
                for future in done:
                    yield future.result()
        while pending:
            done, pending = wait(pending, return_when=FIRST_COMPLETED)
            for future in done:
                yield future.result()
    except BrokenProcessPool:
        raise UserError(
            "a worker process was killed, perhaps for lack of memory; start again, with fewer workers="
        ) from None
    finally:
        pool.shutdown(cancel_futures=True)


def _start(state: Any) -> None:
    global _state
    _state = state
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is answered by the parent alone
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    """A killed parent leaves its workers waiting for jobs for ever: they notice, and go."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)


def _call(function: Callable[[Any, Job], Result], job: Job) -> Result:
    return function(_state, job)


def threads_wanted() -> int:
    """As many as OMP_NUM_THREADS says, or as this process may use."""
    given = os.environ.get("OMP_NUM_THREADS", "")
    if given.isdecimal() and int(given):
        return int(given)
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


@contextmanager
def threads(count: int | None = None) -> Iterator[ThreadPoolExecutor]:
    """A pool of ``count`` threads (``threads_wanted()`` by default), in each of which torch, where it is loaded, uses one."""
    torch = sys.modules.get("torch")
    before = torch.get_num_threads() if torch else 1
    pool = (
        ThreadPoolExecutor(count or threads_wanted(), initializer=torch.set_num_threads, initargs=(1,))
        if torch
        else ThreadPoolExecutor(count or threads_wanted())
    )
    try:
        with pool:
            yield pool
    finally:
        if torch:
            torch.set_num_threads(before)  # torch hands the last number set on to threads that are new
