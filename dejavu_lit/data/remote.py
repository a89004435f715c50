"""Prepared data that lies elsewhere: a mirror on this node whose small files come at once and whose shards come when read.

    data.dir=s3://bucket/OUT            anything that fsspec opens, http and https too
    data.dir='pipe:aws s3 cp s3://bucket/OUT/{} -'    a command that writes the file below OUT named {} to its output

The mirror is an ordinary prepared folder in which some shards are not there yet. It lies below DEJAVU_CACHE (a folder of
the node; by default below the system's temporary one), and its shards together take at most DEJAVU_CACHE_GB (50): those
copied first make room, and come again when they are needed again.
"""

import os
import shlex
import shutil
import subprocess
import tempfile
import time
from functools import lru_cache
from pathlib import Path

from dejavu_lit.errors import UserError
from dejavu_lit.files import atomic, fingerprint, locked, read_json, write_json

STATE = "remote.json"  # in the mirror: where it comes from
MANIFEST = "manifest.json"
SIZES = "sizes.json"
ATTEMPTS = 3
PAUSE = 0.25  # seconds, four times as long before each further attempt
STALLED = 120  # seconds without a byte after which a read over http is given up
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
            sets = read_json(now)["sets"]
        except (UserError, KeyError, TypeError) as error:
            raise UserError(
                f"data.dir={url} holds no {MANIFEST} of prepared data ({error}); check the address"
            ) from None
        if known.is_file() and known.read_bytes() != now.read_bytes():
            shutil.rmtree(folder)  # the data there were prepared anew
        if strange := [name for name in sets if not str(name).isidentifier()]:
            raise UserError(f"the {MANIFEST} of data.dir={url} names a set {strange[0]!r}, which is no name; refused")
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
            _make_room(folder)
            _copy(read_json(folder / STATE)["url"], f"{path.parent.name}/{path.name}", folder)
    return True


def _make_room(folder: Path) -> None:
    try:
        room = float(os.environ.get("DEJAVU_CACHE_GB", 50)) * 1e9
    except ValueError:
        raise UserError(f"DEJAVU_CACHE_GB={os.environ['DEJAVU_CACHE_GB']} must be a number of GB") from None
    found = sorted((p.stat().st_mtime, p.stat().st_size, p) for p in folder.glob("*/*.tar"))
    # The next shard is about as large as the largest so far.
    excess = sum(size for _, size, _ in found) + max((size for _, size, _ in found), default=0) - room
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
            reason = f"{type(error).__name__}: {error}".rstrip(": ")
    raise UserError(f"{relative} of {url} could not be read in {ATTEMPTS} attempts ({reason}); try again later")


def _get(url: str, relative: str, target: Path) -> None:
    """Write the file there to ``target``; raises FileNotFoundError, UserError, or whatever the way there raises."""
    if url.startswith("pipe:"):
        command = url.removeprefix("pipe:").replace("{}", shlex.quote(relative))
        with open(target, "wb") as file:
            subprocess.run(command, shell=True, stdout=file, check=True)
        return
    import fsspec

    options = {}
    if url.startswith("http"):
        import aiohttp

        options = {"client_kwargs": {"timeout": aiohttp.ClientTimeout(total=None, sock_read=STALLED)}}
    try:
        system, path = fsspec.core.url_to_fs(f"{url.rstrip('/')}/{relative}", **options)
    except ImportError as missing:
        raise UserError(f"data.dir={url} needs another package: {missing}") from None
    except ValueError as error:
        raise UserError(f"data.dir={url}: {error}") from None
    system.get_file(path, str(target))


def _ends(path: Path) -> bool:
    """Whether a tar has its end mark."""
    with open(path, "rb") as file:
        if file.seek(0, os.SEEK_END) < len(END):
            return False
        file.seek(-len(END), os.SEEK_END)
        return file.read() == END
