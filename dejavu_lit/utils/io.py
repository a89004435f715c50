"""Files that are whole or absent: atomic writing, JSON, and fingerprints of contents and settings."""

import fcntl
import hashlib
import json
import logging
import math
import os
import re
import secrets
import socket
from argparse import Namespace
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from glob import escape
from pathlib import Path
from typing import Any, BinaryIO, TextIO

from dejavu_lit.utils.errors import UserError, first_line

log = logging.getLogger(__name__)
HOST = socket.gethostname()
HALF = re.compile(r"\\u[dD][89a-fA-F]")  # of a surrogate pair in JSON
_swept: set[str] = set()  # folders in which this process has removed what killed ones left


@contextmanager
def atomic(path: Path | str) -> Iterator[Path]:
    """Yield a temporary path beside ``path``; on success it is synced and renamed to ``path``, on failure removed.

    The temporary name begins with a dot and ends with ``.part``, so no glob for finished artifacts ever matches it. It
    is random, because processes of several machines that share a folder may have the same number. It is locked while it
    is written; what killed processes of this machine left in the folder is not, and is removed before a process first
    writes there (some file systems do not know the locks of other machines).
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    _sweep(path.parent)
    part = path.parent / f".{path.name}.{HOST}-{os.getpid()}-{secrets.token_hex(4)}.part"
    try:
        with _made(part):
            yield part
            with open(part, "rb+") as file:
                os.fsync(file.fileno())
            os.replace(part, path)
    except OSError as error:
        if error.errno is None:
            _raise_refusal(part, path, error)
            raise
        if error.filename in (None, str(part)):
            raise OSError(error.errno, error.strerror, str(path)) from error
        raise
    except UserError:
        raise
    except Exception as error:
        _raise_refusal(part, path, error)
        raise
    finally:
        part.unlink(missing_ok=True)


def _sweep(folder: Path) -> None:
    """Remove the half-written files that no process writes; once a folder, since listing a large one at each write is slow."""
    if (place := os.path.abspath(folder)) in _swept:
        return
    _swept.add(place)
    for part in folder.glob(f".*.{escape(HOST)}-*.part"):
        with suppress(OSError), open(part, "rb+") as file:  # NFS locks only what may be written
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            part.unlink()


def _made(part: Path) -> BinaryIO:
    """Make ``part`` and lock it, once more where another process removed it in between."""
    while True:
        file = open(part, "xb")  # noqa: SIM115
        with suppress(OSError):  # a file system without locks: there nothing is removed either
            fcntl.flock(file, fcntl.LOCK_EX)
        if part.exists():
            return file
        file.close()


def _raise_refusal(part: Path, path: Path, error: Exception) -> None:
    """Raise the system's reason why ``part`` cannot grow, where there is one: some libraries keep it to themselves."""
    try:
        with open(part, "ab") as file:
            file.write(bytes(1 << 20))
            os.fsync(file.fileno())
    except OSError as refusal:
        raise OSError(refusal.errno, refusal.strerror, str(path)) from error


@contextmanager
def naming(path: Path | str) -> Iterator[None]:
    """Let an error of the system that names no file name this one."""
    try:
        yield
    except OSError as error:
        if error.errno is not None and error.filename is None:
            error.filename = str(path)
        raise


def write_text(path: Path | str, text: str) -> None:
    """Write ``text`` (UTF-8) atomically."""
    with atomic(path) as part:
        part.write_text(text, encoding="utf-8")


def write_json(path: Path | str, value: Any) -> None:
    """Write ``value`` as indented JSON, atomically; NaN and infinity are refused (they are not JSON)."""
    write_text(path, json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False) + "\n")


def read_json(path: Path | str) -> Any:
    """The JSON value in ``path``; raises UserError naming the file when it is missing or not JSON.

    NaN, infinity and half surrogates are refused: nothing of ours writes them, and what follows could not write them again.
    """
    try:
        text = Path(path).read_text(encoding="utf-8-sig")
        value = json.loads(text, parse_constant=_no_number, parse_float=_finite)
        if HALF.search(text):
            json.dumps(value, ensure_ascii=False).encode("utf-8")
        return value
    except FileNotFoundError:
        raise UserError(f"{path} does not exist") from None
    except OSError as error:
        raise UserError(f"{path} cannot be read ({error.strerror}); give another or mend its rights") from None
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path} is not valid JSON ({first_line(error)}); remove it and make it again") from None


def read_object(path: Path | str, schema: int | None = None) -> dict[str, Any]:
    """The JSON object in ``path``.

    Raises:
        UserError: it is missing, not JSON or no object, or names another ``schema``, where one is asked for; artifacts
            older than the numbers name none.
    """
    value = read_json(path)
    if not isinstance(value, dict):
        raise UserError(f"{path} holds no JSON object; remove it and make it again")
    if schema is not None and (found := value.get("schema", schema)) != schema:
        raise UserError(
            f"{path} has schema {found}, this version reads {schema}; read it with the version that wrote it, or make it anew"
        )
    return value


def _no_number(name: str) -> Any:
    raise ValueError(f"{name} is no number of JSON")


def _finite(text: str) -> float:
    value = float(text)
    return value if math.isfinite(value) else _no_number(text[:20])


def fingerprint(value: Any) -> str:
    """The first 16 hex digits of the SHA-256 of ``value`` as canonical JSON."""
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def file_sha256(path: Path | str) -> str:
    """SHA-256 of a file's bytes, as hex."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


@contextmanager
def locked(path: Path | str, wait: bool = True) -> Iterator[None]:
    """Hold an exclusive lock (flock) on ``path``, a file made for it; the system frees it however the process ends.

    The file says who holds it, for people; only the system's lock counts, so what a killed process left blocks nobody.

    Raises:
        UserError: another process holds it and ``wait`` is false.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, "a+", errors="replace") as file:
        with naming(path):
            _take(file, path, wait)
        with suppress(OSError):  # a full disk: the lock holds all the same
            os.truncate(file.fileno(), 0)
            os.write(file.fileno(), f"process {os.getpid()} on {socket.gethostname()}".encode())
        _held.add(file)
        try:
            yield
        finally:
            _held.discard(file)


def _take(file: TextIO, path: Path, wait: bool) -> None:
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        file.seek(0)
        holder = file.read(200).strip() or "of unknown number"
        if not wait:
            raise UserError(
                f"another process works in {path.parent} ({holder}); wait for it or choose another out="
            ) from None
        log.info("waiting for another process (%s) to end its work in %s", holder, path.parent)
        fcntl.flock(file, fcntl.LOCK_EX)


_held: set[TextIO] = set()


def _let_go() -> None:
    """Close the locks in a process that was forked: it may outlive its parent by seconds, and must not hold them."""
    for file in _held:
        with suppress(OSError):
            file.close()


os.register_at_fork(after_in_child=_let_go)


def plain(value: Any) -> Any:
    """A config, namespace or path as plain JSON values."""
    if isinstance(value, Namespace):
        value = vars(value)
    return json.loads(json.dumps(value, default=str))
