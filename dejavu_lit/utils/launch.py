"""Start a command once for each process that shares its work on this machine, and end these with the one that started them."""

import logging
import os
import secrets
import sys
import threading
import time
from typing import NoReturn

from dejavu_lit.utils.parallel import thread_count

PARENT = "DEJAVU_RANKS_OF"  # the process that started the ranks of this machine


def launch_ranks(count: int) -> NoReturn:
    """Start this command ``count`` times as ranks of this machine, as torchrun does, and exit with their exit code.

    The first failure ends the others, and so does the end of this process.
    """
    from torch.distributed.elastic.multiprocessing import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.launcher.api import LaunchConfig, elastic_launch

    logging.getLogger("torch.distributed.elastic").setLevel(logging.CRITICAL)  # the ranks speak for themselves
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, thread_count() // count)))
    os.environ[PARENT] = str(os.getpid())
    ranks = LaunchConfig(
        min_nodes=1,
        max_nodes=1,
        nproc_per_node=count,
        run_id=secrets.token_hex(8),
        rdzv_backend="c10d",
        rdzv_endpoint="localhost:0",
        max_restarts=0,
        monitor_interval=0.1,
    )
    try:
        elastic_launch(ranks, sys.executable)(*sys.orig_argv[1:])
    except ChildFailedError as error:
        code = error.get_first_failure()[1].exitcode
        sys.exit(code if code > 0 else 128 - code)
    except SignalException as error:
        sys.exit(128 + int(error.sigval))
    sys.exit(0)


def end_with_parent() -> None:
    """Let a rank started by ``launch_ranks`` exit when that process is killed; it would keep the directory locked."""
    parent = int(os.environ.get(PARENT, 0))

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(0.5)
        os._exit(1)

    if parent and "TORCHELASTIC_RUN_ID" in os.environ:
        threading.Thread(target=watch, daemon=True).start()
