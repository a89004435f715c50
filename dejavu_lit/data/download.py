"""One file from a remote address to a local one, and whether it arrived complete.

fsspec reads addresses: webdataset's gopen knows no S3 and, with curl, cannot tell a missing file from a server that fails. Nor
does it end a command that stalls.
"""

import json
import math
import os
import shlex
import subprocess
from contextlib import suppress
from pathlib import Path

from dejavu_lit.utils.errors import UserError

TAR_END = bytes(1024)  # the two empty blocks at the end of a tar


def download(url: str, relative: str, target: Path) -> None:
    """Write the remote file to ``target``; raises FileNotFoundError, UserError, or whatever the backend raises."""
    if url.startswith("pipe:"):
        check_permission(url)
        _run_command(url.removeprefix("pipe:").replace("{}", shlex.quote(relative)), target)
        return
    import fsspec

    options = {}
    if url.startswith("http"):
        import aiohttp

        timeout = aiohttp.ClientTimeout(total=None, sock_read=_stall_timeout(), sock_connect=_stall_timeout())
        options = {"client_kwargs": {"timeout": timeout}}
    try:
        system, path = fsspec.core.url_to_fs(f"{url.rstrip('/')}/{relative}" if relative else url, **options)
    except ImportError as missing:
        raise UserError(f"{url} needs another package: {missing}") from None
    except ValueError as error:
        raise UserError(f"{url}: {error}") from None
    system.get_file(path, str(target))


def check_permission(url: str) -> None:
    """Raise UserError for a command that the environment does not allow."""
    if url.startswith("pipe:") and os.environ.get("DEJAVU_PIPE") != "1":
        raise UserError(f"{url} would run a command; set DEJAVU_PIPE=1 in the environment to allow it")


def _run_command(command: str, target: Path) -> None:
    """Write the output of a command to ``target``; raises TimeoutError if it stalls and OSError if it fails."""
    timeout, size = _stall_timeout(), 0
    with open(target, "wb") as file, subprocess.Popen(command, shell=True, stdout=file) as process:
        try:
            while True:
                with suppress(subprocess.TimeoutExpired):
                    process.wait(timeout)
                    break
                before, size = size, target.stat().st_size
                if size == before:
                    raise TimeoutError(f"no byte for {timeout:g} s")
        except BaseException:
            process.kill()
            raise
    if process.returncode:
        raise OSError(f"the command ended with code {process.returncode}")


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
