"""Remote data: a mirror on this node whose small files are copied at once and whose shards when they are read.

    data.dir=s3://bucket/OUT            anything that fsspec opens, also http and https; AWS_ENDPOINT_URL for your own S3
    data.dir='pipe:aws s3 cp s3://bucket/OUT/{} -'    a command that writes the file named {} below OUT to its output

The mirror is a prepared folder in which some shards are missing, in a folder of this user's own in DEJAVU_CACHE: only there
does a folder count as a mirror. A file gets its name only after it was parsed (webdataset's FileCache names it before). The
manifest has a fingerprint of each set's shards, so new data replaces the mirror. The complete shards of all mirrors take at
most DEJAVU_CACHE_GB (50): the oldest are evicted, and copied again when needed. A source that sends no byte for
DEJAVU_STALLED_S (120) seconds is retried.
"""

import errno
import filecmp
import logging
import os
import re
import shutil
import stat
import tempfile
import time
from contextlib import ExitStack, suppress
from functools import lru_cache
from pathlib import Path

from dejavu_lit.data.download import check_complete, check_permission, download, number_of_environment
from dejavu_lit.data.manifest import MANIFEST, SIZES
from dejavu_lit.utils.errors import UserError
from dejavu_lit.utils.io import atomic, fingerprint, locked, read_json, read_json_object, write_json

STATE = "remote.json"  # in the mirror: its source
ATTEMPTS = 3
MAX_SET_NAME_CHARS = 100
PAUSE = 0.25  # seconds; retry n waits PAUSE · 4ⁿ
OTHERS_WRITE = stat.S_IWGRP | stat.S_IWOTH
log = logging.getLogger(__name__)


class NotThere(UserError):
    """The source has no such file; other errors, of the network for instance, do not say so."""


class Refused(UserError):
    """The source refuses the file, as a store that does not list its files also does if the file is missing."""


def is_remote(text: str) -> bool:
    """Whether ``data.dir`` is a remote address, not a local folder."""
    return text.startswith("pipe:") or "://" in text


def cache_root() -> Path:
    """This user's folder for all mirrors, created if missing; raises UserError if anybody else may write to it."""
    parent = Path(os.environ.get("DEJAVU_CACHE") or tempfile.gettempdir()).expanduser().resolve()
    root = parent / f"dejavu-lit-{os.getuid()}"
    parent.mkdir(parents=True, exist_ok=True)
    with suppress(FileExistsError):
        root.mkdir(mode=0o700)
    state = root.lstat()
    if not stat.S_ISDIR(state.st_mode) or state.st_uid != os.getuid() or state.st_mode & OTHERS_WRITE:
        raise UserError(
            f"the cache {root} is a link, belongs to another user, or is writable by others; remove it, or set "
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
    """The folder on this node that mirrors the prepared data at ``url``, checked once per process.

    Raises UserError if there is no prepared data there, or for ``pipe:`` without DEJAVU_PIPE=1.
    """
    check_permission(url)
    root = cache_root()
    folder = root / fingerprint(url.rstrip("/"))
    with locked(root / f".{folder.name}.lock"), tempfile.TemporaryDirectory(dir=root) as temporary:
        latest, known = Path(temporary) / MANIFEST, folder / MANIFEST
        try:
            _copy(url, MANIFEST, latest)
            sets = {name: {**about} for name, about in read_json_object(latest)["sets"].items()}
        except (UserError, AttributeError, KeyError, TypeError) as error:
            raise UserError(f"data.dir={url} has no {MANIFEST} of prepared data ({error}); check the address") from None
        if known.is_file() and known.read_bytes() != latest.read_bytes():
            shutil.rmtree(folder)  # the source was prepared again
        if invalid := [name for name in sets if not name.isidentifier() or len(name) > MAX_SET_NAME_CHARS]:
            raise UserError(
                f"the {MANIFEST} of data.dir={url} names a set {invalid[0][:MAX_SET_NAME_CHARS]!r}, which is not a valid "
                "name; prepare the data again"
            )
        for name in sets:
            if not (folder / name / SIZES).is_file():
                _copy(url, f"{name}/{SIZES}", folder / name / SIZES)
        write_json(folder / STATE, {"url": url})
        latest.replace(known)  # last: a mirror with a manifest has all its small files
    return folder


@lru_cache(maxsize=32)
def fetch_objects(folder: Path, name: str) -> None:
    """Copy the available parts of the object artifact ``name`` into a mirror; does nothing for a local folder.

    They are copied once per process even if they are there, because the images may have been annotated again since.
    Raises UserError if a part could not be downloaded, other than one that is not there.
    """
    if "/" in name or (url := source(folder)) is None:  # a path is a folder of the user's own
        return
    for set_name, about in read_json_object(folder / MANIFEST)["sets"].items():
        objects = f"objects/{name}/{set_name}"
        parts = [f"{objects}/{Path(shard).stem}.parquet" for shard in read_json(folder / set_name / SIZES)]
        try:
            with tempfile.TemporaryDirectory(dir=folder) as temporary:
                for part in parts:
                    new, path = Path(temporary) / part, folder / part
                    _copy(url, part, new)
                    if not path.is_file() or not filecmp.cmp(new, path, shallow=False):  # else it keeps its time
                        path.parent.mkdir(parents=True, exist_ok=True)
                        new.replace(path)
        except UserError as error:
            # A command fails alike for a file that is not there and for any other reason.
            maybe_absent = isinstance(error, NotThere | Refused) or url.startswith("pipe:")
            if about.get("objects") == name or not maybe_absent:
                raise
            log.info("%s has no objects of %s: %s", set_name, name, error)  # this annotator has not annotated this set
            if isinstance(error, NotThere):
                shutil.rmtree(folder / objects, ignore_errors=True)


def local_shard(address: str) -> Path:
    """Where a shard is on this node, by its path or address; what is remote is copied when it is opened.

    Raises UserError for ``pipe:`` without DEJAVU_PIPE=1.
    """
    if not is_remote(address):
        return Path(address)
    check_permission(address)
    folder = cache_root() / fingerprint(address)
    if not (folder / STATE).is_file():
        write_json(folder / STATE, {"url": address, "is_shard": True})
    name = re.sub(r"[^\w-]+", "_", Path(address).stem)[-80:]
    return folder / "shard" / f"{name}.tar"


def fetch_shard(path: Path) -> bool:
    """Copy a missing shard of a mirror; False if ``path`` is not in a mirror. Raises UserError if it cannot be copied."""
    folder = path.parent.parent
    if (url := source(folder)) is None:
        return False
    with locked(path.parent / f".{path.name}.lock"):  # one process per node copies it
        if not path.is_file():
            for leftover in path.parent.glob(f".{path.name}.*.part"):  # of a process that was killed
                leftover.unlink(missing_ok=True)
            relative = "" if read_json_object(folder / STATE).get("is_shard") else f"{path.parent.name}/{path.name}"
            _copy(url, relative, path)
    return True


def _evict_shards(incoming: int) -> None:
    """Remove the oldest shards of all mirrors until one of ``incoming`` bytes has room."""
    shards = []
    for path in cache_root().glob("*/*/*.tar"):
        with suppress(FileNotFoundError):  # its set was removed by a new mirror
            shards.append((path.stat().st_mtime, path.stat().st_size, path))
    excess = incoming + sum(size for _, size, _ in shards) - number_of_environment("DEJAVU_CACHE_GB", 50, "GB") * 1e9
    for _, size, path in sorted(shards):
        if excess <= 0:
            return
        path.unlink(missing_ok=True)
        excess -= size


def _copy(url: str, relative: str, path: Path) -> None:
    """Copy the file ``relative`` below ``url`` (or ``url`` itself, if empty) to ``path``, with retries for network errors."""
    reason, kind = "", UserError
    for attempt in range(ATTEMPTS):
        if attempt:
            time.sleep(PAUSE * 4**attempt)
        try:
            with ExitStack() as room, atomic(path) as part:
                download(url, relative, part)
                check_complete(part, path.suffix)
                if path.suffix == ".tar":  # one process at a time makes room and gives a shard its name
                    room.enter_context(locked(cache_root() / ".room.lock"))
                    _evict_shards(part.stat().st_size)
            return
        except FileNotFoundError:
            raise NotThere(f"{url} has no {relative or 'shard'}; check the address or prepare the data again") from None
        except UserError:
            raise
        except Exception as error:  # every backend of fsspec has its own errors
            if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EROFS):
                raise  # a problem of this node; retrying does not help
            reason = f"{type(error).__name__}: {error}".rstrip(": ")
            is_refused = isinstance(error, PermissionError) or getattr(error, "status", None) == 403
            kind = Refused if is_refused else UserError
    name = f"{relative} of {url}" if relative else url
    raise kind(f"{name} could not be read in {ATTEMPTS} attempts ({reason}); try again later")
