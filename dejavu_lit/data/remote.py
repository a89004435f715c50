"""Prepared data that lies elsewhere: a mirror on this node whose small files come at once and whose shards come when read.

    data.dir=s3://bucket/OUT            anything that fsspec opens, http and https too; AWS_ENDPOINT_URL for one's own S3
    data.dir='pipe:aws s3 cp s3://bucket/OUT/{} -'    a command that writes the file below OUT named {} to its output

The mirror is an ordinary prepared folder in which some shards are not there yet. It lies below DEJAVU_CACHE (a folder of
the node; by default below the system's temporary one), and its shards together take at most DEJAVU_CACHE_GB (50): those
copied first make room, and come again when they are needed again. A source that gives no byte for DEJAVU_STALLED_S (120)
seconds is given up, and asked again.
"""

import errno
import math
import os
import select
import shlex
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import lru_cache
from pathlib import Path

from dejavu_lit.utils.errors import UserError
from dejavu_lit.utils.io import atomic, fingerprint, locked, read_json, read_object, write_json

STATE = "remote.json"  # in the mirror: where it comes from
MANIFEST = "manifest.json"
SIZES = "sizes.json"
ATTEMPTS = 3
LONGEST_NAME = 100  # characters of a set's name
PAUSE = 0.25  # seconds, four times as long before each further attempt
COMING = ".coming"  # ends the mark of a shard that is being copied
END = bytes(1024)  # the two empty blocks that end a tar


def is_remote(text: str) -> bool:
    """Whether ``data.dir`` names a place that is no local folder."""
    return text.startswith("pipe:") or "://" in text


@lru_cache(maxsize=8)
def mirror(url: str) -> Path:
    """The folder on this node that stands for the prepared data at ``url``; looked at once a process.

    Raises:
        UserError: no prepared data there, or ``pipe:`` without DEJAVU_PIPE=1 in the environment.
    """
    if url.startswith("pipe:") and os.environ.get("DEJAVU_PIPE") != "1":
        raise UserError(f"data.dir={url} would run a command; set DEJAVU_PIPE=1 in the environment to allow it")
    default = Path(tempfile.gettempdir()) / f"dejavu-lit-{os.getuid()}"
    root = Path(os.environ.get("DEJAVU_CACHE") or default).expanduser()
    folder = root / fingerprint(url.rstrip("/"))
    with locked(root / f".{folder.name}.lock"), tempfile.TemporaryDirectory(dir=root) as temporary:
        now, known = Path(temporary) / MANIFEST, folder / MANIFEST
        try:
            _copy(url, MANIFEST, now.parent)
            sets = dict(read_object(now)["sets"])
        except (UserError, KeyError, TypeError, ValueError) as error:
            raise UserError(
                f"data.dir={url} holds no {MANIFEST} of prepared data ({error}); check the address"
            ) from None
        if known.is_file() and known.read_bytes() != now.read_bytes():
            shutil.rmtree(folder)  # the data there were prepared anew
        if strange := [name for name in sets if not str(name).isidentifier() or len(name) > LONGEST_NAME]:
            raise UserError(
                f"the {MANIFEST} of data.dir={url} names a set {strange[0][:LONGEST_NAME]!r}, which is no name; refused"
            )
        for name in sets:
            if not (folder / name / SIZES).is_file():
                _copy(url, f"{name}/{SIZES}", folder)
        write_json(folder / STATE, {"url": url})
        now.replace(known)  # last: a mirror with a manifest has all its small files
    return folder


def fetch_objects(folder: Path, name: str) -> None:
    """Copy the parts of the object artifact ``name`` into a mirror, those that are there; elsewhere do nothing."""
    if not (folder / STATE).is_file():
        return
    url = read_json(folder / STATE)["url"]
    for chosen, about in read_json(folder / MANIFEST)["sets"].items():
        for shard in read_json(folder / chosen / SIZES):
            relative = f"objects/{name}/{chosen}/{Path(shard).stem}.parquet"
            if (folder / relative).is_file():
                continue
            try:
                _copy(url, relative, folder)
            except UserError:
                if about.get("objects") == name:
                    raise
                break  # this annotator has not seen this set


def fetch_shard(path: Path) -> bool:
    """Copy a mirror's shard that is not there; False where ``path`` belongs to no mirror.

    Raises:
        UserError: it cannot be had, or comes cut short, three times.
    """
    folder = path.parent.parent
    if not (folder / STATE).is_file():
        return False
    with locked(path.parent / f".{path.name}.lock"):  # of several processes on the node one copies
        if not path.is_file():
            with _room(path):
                _copy(read_json(folder / STATE)["url"], f"{path.parent.name}/{path.name}", folder)
    return True


def _setting(name: str, default: float, unit: str) -> float:
    """A number from the environment; raises UserError naming it where it is none above 0."""
    given = os.environ.get(name, default)
    try:
        value = float(given)
        if 0 < value < math.inf:
            return value
    except ValueError:
        pass
    raise UserError(f"{name}={given} must be a number of {unit} above 0")


@contextmanager
def _room(path: Path) -> Iterator[None]:
    """Make room for a shard whose lock is held, and have it counted by others until the block ends."""
    mark = path.parent / f".{path.name}{COMING}"
    with locked(path.parent.parent / ".room.lock"):
        mark.touch()
        _make_room(path.parent.parent)
    try:
        yield
    finally:
        mark.unlink(missing_ok=True)


def _make_room(folder: Path) -> None:
    room = _setting("DEJAVU_CACHE_GB", 50, "GB") * 1e9
    coming = 0  # counted before what is there: a shard that arrives meanwhile counts twice rather than not at all
    for mark in folder.glob(f"*/.*.tar{COMING}"):
        try:
            with locked(mark.with_suffix(".lock"), wait=False):  # the process that copied it was killed
                for path in (mark, *mark.parent.glob(f"{mark.stem}.*.part")):
                    path.unlink(missing_ok=True)
        except UserError:
            coming += 1
    found = sorted((p.stat().st_mtime, p.stat().st_size, p) for p in folder.glob("*/*.tar"))
    # A shard that is being copied is about as large as the largest so far.
    excess = sum(size for _, size, _ in found) + coming * max((size for _, size, _ in found), default=0) - room
    for _, size, path in found:
        if excess <= 0:
            return
        path.unlink(missing_ok=True)
        excess -= size


def _copy(url: str, relative: str, folder: Path) -> None:
    """Copy one file, whole, with some patience for networks."""
    reason = ""
    for attempt in range(ATTEMPTS):
        if attempt:
            time.sleep(PAUSE * 4**attempt)
        try:
            with atomic(folder / relative) as part:
                _get(url, relative, part)
                if relative.endswith(".tar") and not _ends(part):
                    raise EOFError("it came cut short")
            return
        except FileNotFoundError:
            raise UserError(f"{url} has no {relative}; check data.dir or prepare the data again") from None
        except UserError:
            raise
        except Exception as error:  # each of fsspec's backends has errors of its own
            if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EROFS):
                raise  # it is this node that cannot go on
            reason = f"{type(error).__name__}: {error}".rstrip(": ")
    raise UserError(f"{relative} of {url} could not be read in {ATTEMPTS} attempts ({reason}); try again later")


def _get(url: str, relative: str, target: Path) -> None:
    """Write the file there to ``target``; raises FileNotFoundError, UserError, or whatever the way there raises."""
    if url.startswith("pipe:"):
        _run(url.removeprefix("pipe:").replace("{}", shlex.quote(relative)), target)
        return
    import fsspec

    options = {}
    if url.startswith("http"):
        import aiohttp

        patience = aiohttp.ClientTimeout(total=None, sock_read=_patience(), sock_connect=_patience())
        options = {"client_kwargs": {"timeout": patience}}
    try:
        system, path = fsspec.core.url_to_fs(f"{url.rstrip('/')}/{relative}", **options)
    except ImportError as missing:
        raise UserError(f"data.dir={url} needs another package: {missing}") from None
    except ValueError as error:
        raise UserError(f"data.dir={url}: {error}") from None
    system.get_file(path, str(target))


def _patience() -> float:
    """Seconds without a byte after which a source is given up."""
    return _setting("DEJAVU_STALLED_S", 120, "seconds")


def _run(command: str, target: Path) -> None:
    """Write the output of a shell's command to ``target``; raises TimeoutError where it stalls."""
    patience = _patience()
    with (
        open(target, "wb") as file,
        subprocess.Popen(command, shell=True, stdout=subprocess.PIPE, start_new_session=True) as process,
    ):
        assert process.stdout is not None
        poll = select.poll()
        poll.register(process.stdout, select.POLLIN)
        try:
            while poll.poll(patience * 1000):
                if not (block := os.read(process.stdout.fileno(), 1 << 20)):
                    code = process.wait(patience)
                    break
                file.write(block)
            else:
                raise TimeoutError(f"no byte for {patience:g} s")
        except BaseException:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)  # all that the shell has started
            raise
    if code:
        raise subprocess.CalledProcessError(code, command)


def _ends(path: Path) -> bool:
    """Whether a tar has its end mark."""
    with open(path, "rb") as file:
        if file.seek(0, os.SEEK_END) < len(END):
            return False
        file.seek(-len(END), os.SEEK_END)
        return file.read() == END
