"""Pools of threads that each do their own work from end to end, libraries' own threads left out of it."""

import os
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager


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
