"""One file from a remote address to a local one, and whether it arrived complete.

webdataset's gopen runs the commands. fsspec reads all other addresses, because gopen knows no S3 and, with curl, cannot
tell a missing file from a server that fails.
"""

import json
import math
import os
import re
import select
from pathlib import Path

from dejavu_lit.utils.errors import UserError, explained

PLAIN_NAME = re.compile(r"[\w./,:@%+=-]*")  # which every shell takes as it stands
TAR_END = bytes(1024)  # the two empty blocks at the end of a tar


def download(url: str, relative: str, target: Path) -> None:
    """Write the remote file to ``target``; raises FileNotFoundError, UserError, or whatever the backend raises."""
    if url.startswith("pipe:"):
        check_permission(url)
        if not PLAIN_NAME.fullmatch(relative):  # quoting does not help if {} is within quotes, or behind ssh
            raise UserError(
                f"{url} lists {relative!r}, which has characters that a shell may interpret; rename it at the source"
            )
        _run_command(url.replace("{}", relative), target)
        return
    import fsspec

    options = {}
    if url.startswith("http"):
        import aiohttp

        timeout = aiohttp.ClientTimeout(total=None, sock_read=_stall_timeout(), sock_connect=_stall_timeout())
        options = {"client_kwargs": {"timeout": timeout}}
    with explained(
        f"{url} cannot be opened", "install that package, or correct the address", errors=(ImportError, ValueError)
    ):
        system, path = fsspec.core.url_to_fs(f"{url.rstrip('/')}/{relative}" if relative else url, **options)
    system.get_file(path, str(target))


def check_permission(url: str) -> None:
    """Raise UserError for a command that the environment does not allow."""
    if url.startswith("pipe:") and os.environ.get("DEJAVU_PIPE") != "1":
        raise UserError(f"{url} would run a command; set DEJAVU_PIPE=1 in the environment to allow it")


def _run_command(command: str, target: Path) -> None:
    """Write the output of ``pipe:…`` to ``target``; raises TimeoutError if it stalls and OSError if the command fails."""
    import webdataset

    timeout = _stall_timeout()
    webdataset.utils.enforce_security = False  # the user allowed this command
    try:
        stream = webdataset.gopen(command)
    finally:
        webdataset.utils.enforce_security = True
    poll = select.poll()
    poll.register(stream.stream, select.POLLIN)
    try:
        with open(target, "wb") as file:
            while poll.poll(timeout * 1000):
                if not (block := os.read(stream.stream.fileno(), 1 << 20)):
                    break
                file.write(block)
            else:
                raise TimeoutError(f"no byte for {timeout:g} s")
    except BaseException:
        stream.ignore_errors = True  # it fails because it is killed
        stream.proc.kill()
        raise
    finally:
        stream.close()


def _stall_timeout() -> float:
    """Seconds without a byte after which a source counts as stalled."""
    return number_of_environment("DEJAVU_STALLED_S", 120, "seconds")


def number_of_environment(name: str, default: float, unit: str) -> float:
    """A number from the environment; raises UserError naming the variable if it is not a number above 0."""
    text = os.environ.get(name, default)
    try:
        value = float(text)
        if 0 < value < math.inf:
            return value
    except ValueError:
        pass
    raise UserError(f"{name}={text} must be a number of {unit} above 0")


def check_complete(path: Path, suffix: str) -> None:
    """Raise EOFError for a downloaded tar without its end, ValueError or OSError for JSON and parquet that do not parse."""
    if suffix == ".json":
        if not isinstance(json.loads(path.read_bytes()), dict):
            raise ValueError("it is not a JSON object")
    elif suffix == ".parquet":
        import pyarrow.parquet as pq

        pq.read_table(path)
    elif suffix == ".tar":
        with open(path, "rb") as file:
            file.seek(max(0, path.stat().st_size - len(TAR_END)))
            if file.read() != TAR_END:
                raise EOFError("it arrived cut short")
