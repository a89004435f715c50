"""Process and thread pools: jobs over a shared read-only state or in order, workers that end with their parent."""

import gc
import multiprocessing
import os
import signal
import sys
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor, ThreadPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from typing import Any, TypeVar

from dejavu_lit.utils.errors import UserError

State = TypeVar("State")
Job = TypeVar("Job")
Result = TypeVar("Result")
_state: Any = None


def map_unordered(
    function: Callable[[State, Job], Result], state: State, jobs: Iterable[Job], workers: int
) -> Iterator[Result]:
    """Yield ``function(state, job)`` for every job, in order of completion; in this process if ``workers`` ≤ 1.

    On Linux the workers are forked and share ``state``; elsewhere it is pickled once per worker. ``function`` must be
    importable. The first exception stops everything; a worker that was killed, e.g. for lack of memory, raises
    UserError.
    """
    if workers <= 1:
        yield from (function(state, job) for job in jobs)
        return
    context = multiprocessing.get_context("fork" if sys.platform == "linux" else "spawn")
    others = set(multiprocessing.active_children())
    pool = ProcessPoolExecutor(workers, context, _start, (state,))
    try:
        try:
            # as_completed drops each future after its turn.
            finished = as_completed([pool.submit(_call, function, job) for job in jobs])
            yield from (future.result() for future in finished)
        finally:
            pool.shutdown(cancel_futures=True)
    except KeyboardInterrupt:
        # After a second one, which ends the wait for the jobs at work, Python would wait for the idle workers forever.
        for worker in set(multiprocessing.active_children()) - others:
            worker.kill()
        raise
    except BrokenProcessPool:
        raise UserError(
            "a worker process was killed, perhaps for lack of memory; run the command again with fewer workers= or a "
            "smaller OMP_NUM_THREADS"
        ) from None


def _start(state: Any) -> None:
    global _state
    _state = state
    gc.freeze()  # what the parent made is not searched for garbage
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # only the parent handles Ctrl-C
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    """Exit when the parent is killed; the worker would wait for jobs forever."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)


def _call(function: Callable[[Any, Job], Result], job: Job) -> Result:
    return function(_state, job)


def thread_count() -> int:
    """OMP_NUM_THREADS, or the number of CPUs that this process may use."""
    given = os.environ.get("OMP_NUM_THREADS", "")
    if given.isdecimal() and int(given):
        return int(given)
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


@contextmanager
def thread_pool(count: int | None = None) -> Iterator[ThreadPoolExecutor]:
    """A pool of ``count`` threads (``thread_count()`` by default); torch, if loaded, runs single-threaded in each."""
    torch = sys.modules.get("torch")
    before = torch.get_num_threads() if torch else 0
    limit: dict[str, Any] = {"initializer": torch.set_num_threads, "initargs": (1,)} if torch else {}
    try:
        with ThreadPoolExecutor(count or thread_count(), **limit) as pool:
            yield pool
    finally:
        if torch:
            torch.set_num_threads(before)  # new threads inherit the number set last


def map_ahead(
    function: Callable[[Job], Result], items: Iterable[Job], threads: int, ahead: int | None = None
) -> Iterator[Result]:
    """Yield ``function(item)`` for every item, in their order, computed by ``threads`` at most ``ahead`` items early.

    ``ahead`` bounds the memory; by default each thread has one item in work and one that waits.
    """
    waiting: deque[Future[Result]] = deque()
    with thread_pool(threads) as pool:
        try:
            for item in items:
                waiting.append(pool.submit(function, item))
                if len(waiting) > (ahead or 2 * threads):
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        finally:
            for future in waiting:
                future.cancel()


def for_blocks(function: Callable[[int], None], total: int, size: int) -> None:
    """Call ``function(start)`` for 0, ``size``, … below ``total``, by ``thread_count()`` threads."""
    with thread_pool() as pool:
        list(pool.map(function, range(0, total, size)))
