"""Remote prepared data: a mirror on this node whose small files are copied at once and whose shards when they are read.

    data.dir=s3://bucket/OUT            anything that fsspec opens, also http and https; AWS_ENDPOINT_URL for your own S3
    data.dir='pipe:aws s3 cp s3://bucket/OUT/{} -'    a command that writes the file named {} below OUT to its output

The mirror is an ordinary prepared folder in which some shards are missing. It is created in DEJAVU_CACHE (a folder on the
node; by default the system's temporary folder), in a folder of this user's own: only there does a folder count as a mirror.
A file gets its name only after it was parsed. The manifest has a fingerprint of each set's shards, so new data replaces the
mirror; objects are copied again by every process. Its shards together take at most DEJAVU_CACHE_GB (50): the oldest copies
are evicted, and copied again when needed. A source that sends no byte for DEJAVU_STALLED_S (120) seconds is retried.
"""

import errno
import filecmp
import json
import logging
import math
import os
import select
import shlex
import shutil
import signal
import stat
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import lru_cache
from pathlib import Path

from dejavu_lit.utils.errors import UserError
from dejavu_lit.utils.io import atomic, fingerprint, locked, read_json, read_json_object, write_json

STATE = "remote.json"  # in the mirror: its source
MANIFEST = "manifest.json"
SIZES = "sizes.json"
ATTEMPTS = 3
MAX_SET_NAME_CHARS = 100
PAUSE = 0.25  # seconds; retry n waits PAUSE · 4ⁿ
COPYING = ".coming"  # suffix of the marker of a shard that is being copied
TAR_END = bytes(1024)  # the two empty blocks at the end of a tar
OTHERS_WRITE = stat.S_IWGRP | stat.S_IWOTH
log = logging.getLogger(__name__)


def is_remote(text: str) -> bool:
    """Whether ``data.dir`` is a remote address, not a local folder."""
    return text.startswith("pipe:") or "://" in text


def cache_root() -> Path:
    """This user's folder for all mirrors, which nobody else may write to; created if missing.

    Raises:
        UserError: it is a link, belongs to another user, or others may write to it.
    """
    parent = Path(os.environ.get("DEJAVU_CACHE") or tempfile.gettempdir()).expanduser().resolve()
    root = parent / f"dejavu-lit-{os.getuid()}"
    parent.mkdir(parents=True, exist_ok=True)
    with suppress(FileExistsError):
        root.mkdir(mode=0o700)
    state = root.lstat()
    if not stat.S_ISDIR(state.st_mode) or state.st_uid != os.getuid() or state.st_mode & OTHERS_WRITE:
        raise UserError(
            f"the cache {root} is a link, belongs to another user, or is writable for others; remove it, or set "
            "DEJAVU_CACHE to a folder of your own"
        )
    return root


def source(folder: Path) -> str | None:
    """The address that ``folder`` mirrors; None outside of the cache, whatever the folder itself says."""
    if not (folder / STATE).is_file() or folder.resolve().parent != cache_root():
        return None
    return str(read_json_object(folder / STATE)["url"])


@lru_cache(maxsize=8)
def mirror(url: str) -> Path:
    """The folder on this node that mirrors the prepared data at ``url``; checked once per process.

    Raises:
        UserError: no prepared data there, or ``pipe:`` without DEJAVU_PIPE=1 in the environment.
    """
    _check_permission(url)
    root = cache_root()
    folder = root / fingerprint(url.rstrip("/"))
    with locked(root / f".{folder.name}.lock"), tempfile.TemporaryDirectory(dir=root) as temporary:
        latest, known = Path(temporary) / MANIFEST, folder / MANIFEST
        try:
            _copy(url, MANIFEST, latest.parent)
            sets = dict(read_json_object(latest)["sets"])
        except (UserError, KeyError, TypeError, ValueError) as error:
            raise UserError(f"data.dir={url} has no {MANIFEST} of prepared data ({error}); check the address") from None
        if known.is_file() and known.read_bytes() != latest.read_bytes():
            shutil.rmtree(folder)  # the source was prepared again
        if invalid := [name for name in sets if not str(name).isidentifier() or len(name) > MAX_SET_NAME_CHARS]:
            raise UserError(
                f"the {MANIFEST} of data.dir={url} names a set {invalid[0][:MAX_SET_NAME_CHARS]!r}, which is not a valid "
                "name; prepare the data again"
            )
        for name in sets:
            try:
                _check_complete(folder / name / SIZES, ".json")
            except (OSError, ValueError):  # missing, or cut short by a full disk
                _copy(url, f"{name}/{SIZES}", folder)
        write_json(folder / STATE, {"url": url})
        latest.replace(known)  # last: a mirror with a manifest has all its small files
    return folder


@lru_cache(maxsize=32)
def fetch_objects(folder: Path, name: str) -> None:
    """Copy the available parts of the object artifact ``name`` into a mirror; does nothing for a local folder.

    They are copied once per process even if they are there, because the images may have been annotated again since.
    """
    if "/" in name or (url := source(folder)) is None:  # a path is a folder of the user's own
        return
    for set_name, about in read_json_object(folder / MANIFEST)["sets"].items():
        objects = f"objects/{name}/{set_name}"
        parts = [f"{objects}/{Path(shard).stem}.parquet" for shard in read_json(folder / set_name / SIZES)]
        try:
            with tempfile.TemporaryDirectory(dir=folder) as temporary:
                for part in parts:
                    _copy(url, part, Path(temporary))
                    _replace_if_different(Path(temporary) / part, folder / part)
        except UserError as error:
            if about.get("objects") == name:
                raise
            log.info("%s has no objects of %s: %s", set_name, name, error)  # this annotator has not annotated this set
            shutil.rmtree(folder / objects, ignore_errors=True)


def _replace_if_different(new: Path, path: Path) -> None:
    """Move ``new`` to ``path``; a file with the same bytes stays, with its time, by which changes are recognized."""
    if not path.is_file() or not filecmp.cmp(new, path, shallow=False):
        path.parent.mkdir(parents=True, exist_ok=True)
        new.replace(path)


def fetch_shard(path: Path) -> bool:
    """Copy a missing shard of a mirror; False if ``path`` is not in a mirror.

    Raises:
        UserError: it could not be downloaded, or arrived cut short, in each of ATTEMPTS attempts.
    """
    folder = path.parent.parent
    if (url := source(folder)) is None:
        return False
    with locked(path.parent / f".{path.name}.lock"):  # one process per node copies it
        if not path.is_file():
            with _reserved_space(path):
                _copy(url, f"{path.parent.name}/{path.name}", folder)
    return True


@contextmanager
def _reserved_space(path: Path) -> Iterator[None]:
    """Evict shards to make room for one whose lock is held; other processes count it until the block ends."""
    marker = path.parent / f".{path.name}{COPYING}"
    with locked(path.parent.parent / ".room.lock"):
        marker.touch()
        _evict_shards(path.parent.parent)
    try:
        yield
    finally:
        marker.unlink(missing_ok=True)


def _evict_shards(folder: Path) -> None:
    limit = _env_number("DEJAVU_CACHE_GB", 50, "GB") * 1e9
    copying = 0  # counted before the shards: one that arrives meanwhile counts twice rather than not at all
    for marker in folder.glob(f"*/.*.tar{COPYING}"):
        try:
            with locked(marker.with_suffix(".lock"), wait=False):  # free: the process that copied it was killed
                for path in (marker, *marker.parent.glob(f"{marker.stem}.*.part")):
                    path.unlink(missing_ok=True)
        except UserError:
            copying += 1
    shards = sorted((p.stat().st_mtime, p.stat().st_size, p) for p in folder.glob("*/*.tar"))
    # Assume that a shard being copied is as large as the largest so far.
    excess = sum(size for _, size, _ in shards) + copying * max((size for _, size, _ in shards), default=0) - limit
    for _, size, path in shards:
        if excess <= 0:
            return
        path.unlink(missing_ok=True)
        excess -= size


def _copy(url: str, relative: str, folder: Path) -> None:
    """Copy one file atomically, with retries for network errors."""
    reason = ""
    for attempt in range(ATTEMPTS):
        if attempt:
            time.sleep(PAUSE * 4**attempt)
        try:
            with atomic(folder / relative) as part:
                _download(url, relative, part)
                _check_complete(part, Path(relative).suffix)
            return
        except FileNotFoundError:
            raise UserError(f"{url} has no {relative}; check data.dir or prepare the data again") from None
        except UserError:
            raise
        except Exception as error:  # every backend of fsspec has its own errors
            if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EROFS):
                raise  # a problem of this node; retrying does not help
            reason = f"{type(error).__name__}: {error}".rstrip(": ")
    raise UserError(f"{relative} of {url} could not be read in {ATTEMPTS} attempts ({reason}); try again later")


def _download(url: str, relative: str, target: Path) -> None:
    """Write the remote file to ``target``; raises FileNotFoundError, UserError, or whatever the backend raises."""
    if url.startswith("pipe:"):
        _check_permission(url)
        _run_command(url.removeprefix("pipe:").replace("{}", shlex.quote(relative)), target)
        return
    import fsspec

    options = {}
    if url.startswith("http"):
        import aiohttp

        timeout = aiohttp.ClientTimeout(total=None, sock_read=_stall_timeout(), sock_connect=_stall_timeout())
        options = {"client_kwargs": {"timeout": timeout}}
    try:
        system, path = fsspec.core.url_to_fs(f"{url.rstrip('/')}/{relative}", **options)
    except ImportError as missing:
        raise UserError(f"data.dir={url} needs another package: {missing}") from None
    except ValueError as error:
        raise UserError(f"data.dir={url}: {error}") from None
    system.get_file(path, str(target))


def _check_permission(url: str) -> None:
    if url.startswith("pipe:") and os.environ.get("DEJAVU_PIPE") != "1":
        raise UserError(f"data.dir={url} would run a command; set DEJAVU_PIPE=1 in the environment to allow it")


def _run_command(command: str, target: Path) -> None:
    """Write the output of a shell command to ``target``; raises TimeoutError if it stalls."""
    timeout = _stall_timeout()
    with (
        open(target, "wb") as file,
        subprocess.Popen(command, shell=True, stdout=subprocess.PIPE, start_new_session=True) as process,
    ):
        assert process.stdout is not None
        poll = select.poll()
        poll.register(process.stdout, select.POLLIN)
        try:
            while poll.poll(timeout * 1000):
                if not (block := os.read(process.stdout.fileno(), 1 << 20)):
                    code = process.wait(timeout)
                    break
                file.write(block)
            else:
                raise TimeoutError(f"no byte for {timeout:g} s")
        except BaseException:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)  # everything that the shell started
            raise
    if code:
        raise subprocess.CalledProcessError(code, command)


def _stall_timeout() -> float:
    """Seconds without a byte after which a source counts as stalled."""
    return _env_number("DEJAVU_STALLED_S", 120, "seconds")


def _env_number(name: str, default: float, unit: str) -> float:
    """A number from the environment; raises UserError naming the variable if it is not a number above 0."""
    text = os.environ.get(name, default)
    try:
        value = float(text)
        if 0 < value < math.inf:
            return value
    except ValueError:
        pass
    raise UserError(f"{name}={text} must be a number of {unit} above 0")


def _check_complete(path: Path, suffix: str) -> None:
    """Raise EOFError for a downloaded tar without its end, ValueError or OSError for JSON and parquet that do not parse."""
    if suffix == ".json":
        if not isinstance(json.loads(path.read_bytes()), dict):
            raise ValueError("it is not a JSON object")
    elif suffix == ".parquet":
        import pyarrow.parquet as pq

        pq.read_table(path)
    elif suffix == ".tar" and not _has_end_mark(path):
        raise EOFError("it arrived cut short")


def _has_end_mark(path: Path) -> bool:
    with open(path, "rb") as file:
        if file.seek(0, os.SEEK_END) < len(TAR_END):
            return False
        file.seek(-len(TAR_END), os.SEEK_END)
        return file.read() == TAR_END
