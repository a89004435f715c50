"""Files that are complete or missing: atomic writing, locks, JSON, and fingerprints of contents and settings."""

import csv
import hashlib
import json
import logging
import os
import re
import secrets
import shutil
import socket
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from functools import cache
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from dejavu_lit.utils.errors import UserError, counted, first_line

log = logging.getLogger(__name__)
ATTEMPT = 1 << 20  # bytes that the system is asked to write after a library failed to, without saying why
LISTED_KINDS = 10  # of unread files, in a message
# What begins a formula in a spreadsheet, the last four in wide forms: at the start of a text, and where semicolons, tabs and
# line breaks divide one into cells, as LibreOffice takes them to, and Excel in most of Europe; quotes (\x22) may stand before.
FORMULA = re.compile(r"^(?=[\t\r\n])|((?:^|[;\t\r\n])[ \x22]*)(?=[=+@\uff1d\uff0b\uff0d\uff20-])")


@contextmanager
def atomic(path: Path | str) -> Iterator[Path]:
    """Yield a temporary path beside ``path``; on success it is synced and renamed to ``path``, on failure removed.

    The temporary name begins with a dot and ends with ``.part``, so that no glob for finished artifacts matches it, and is
    random, because processes of several machines may write the same file. A killed process leaves it behind. An OSError names
    ``path``, also where a library does not say that the disk is full.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.parent / f".{path.name}.{secrets.token_hex(8)}.part"
    try:
        yield part
        with open(part, "rb+") as file:
            os.fsync(file.fileno())
        os.replace(part, path)
    except UserError:
        raise
    except Exception as error:
        if isinstance(error, OSError) and error.errno is not None:
            if error.filename in (None, str(part)):
                raise OSError(error.errno, error.strerror, str(path)) from error
        elif number := _refusal(part, error):
            raise OSError(number, os.strerror(number), str(path)) from error
        raise
    finally:
        part.unlink(missing_ok=True)


def _refusal(part: Path, error: Exception) -> int | None:
    """The number with which the system refuses to write to ``part``: a full disk, a quota, a limit of file sizes.

    Some libraries do not say it, those in Rust only in their message.
    """
    if number := re.search(r"\(os error (\d+)\)", str(error)):
        return int(number[1])
    try:
        with open(part, "ab") as file:
            file.write(bytes(ATTEMPT))
    except OSError as refused:
        return refused.errno
    return None


@contextmanager
def name_file_in_errors(path: Path | str) -> Iterator[None]:
    """Add this file's name to an OSError that names none."""
    try:
        yield
    except OSError as error:
        if error.errno is not None and error.filename is None:
            error.filename = str(path)
        raise


def write_text(path: Path | str, text: str) -> None:
    with atomic(path) as part:
        part.write_text(text, encoding="utf-8")


def csv_cell(column: str, value: Any) -> Any:
    """A value as a cell of a CSV, a list joined by ``; ``.

    What a spreadsheet would run as a formula gets an apostrophe before it, because keys and captions come from third
    parties. Keys in the form that prepare gives them are written unchanged, so that tables can be joined by key.
    """
    if isinstance(value, list):
        value = "; ".join(str(v) for v in value)
    if (column == "key" or column.endswith("_neighbors")) and re.fullmatch(r"[\w; -]*", str(value)):
        return value
    return FORMULA.sub(r"\1'", value) if isinstance(value, str) else value


def write_csv(
    path: Path | str, rows: Sequence[Mapping[str, Any]], columns: Sequence[str] | None = None, end: str = "\r\n"
) -> None:
    """Write rows as CSV (UTF-8), atomically, with ``csv_cell``; ``columns``: of all rows, by default those of the first."""
    columns = columns or list(rows[0] if rows else ())
    with atomic(path) as part, open(part, "w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, lineterminator=end)
        writer.writerow(columns)
        writer.writerows([csv_cell(name, row[name]) for name in columns] for row in rows)


def write_json(path: Path | str, value: Any) -> None:
    """Write ``value`` as indented JSON, atomically; NaN and infinity are refused, for they are not JSON."""
    write_text(path, json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False) + "\n")


def check_regular(path: Path | str) -> None:
    """Raise UserError for a pipe or a device: opening one may wait forever."""
    if (path := Path(path)).exists() and not path.is_file():
        raise UserError(f"{path} is a folder, a pipe or a device; put the file itself there")


def read_json(path: Path | str) -> Any:
    """The JSON value in ``path``; raises UserError naming the file when it is missing or not JSON.

    NaN, infinity and lone surrogates are refused: this package does not write them, and could not write them again.
    """
    try:
        check_regular(path)
        return parse_json(Path(path).read_text(encoding="utf-8-sig"))
    except FileNotFoundError:
        raise UserError(f"{path} does not exist") from None
    except OSError as error:
        raise UserError(f"{path} cannot be read ({error.strerror}); give another file or fix its permissions") from None
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path} is not valid JSON ({first_line(error)}); remove it and create it again") from None


def parse_json(text: str) -> Any:
    """The JSON value of a text; raises ValueError for what could not be written again: NaN, infinity, a lone surrogate."""
    value = json.loads(text, parse_int=_whole_number)
    json.dumps(value, ensure_ascii=False, allow_nan=False).encode("utf-8")
    return value


def _whole_number(digits: str) -> int | float:
    """One beyond every float becomes infinity, as JSON's other numbers do."""
    return int(digits) if len(digits) < 300 else float(digits)


def read_json_object(path: Path | str, schema: int | None = None) -> dict[str, Any]:
    """The JSON object in ``path``; raises UserError as ``read_json``, and for another ``schema`` number, if it has one."""
    value = read_json(path)
    if not isinstance(value, dict):
        raise UserError(f"{path} is not a JSON object; remove it and create it again")
    if schema is not None and (saved := value.get("schema", schema)) != schema:
        raise UserError(
            f"{path} has schema {saved}, but this version reads {schema}; use the version that wrote it, or create it again"
        )
    return value


def is_plain_file(path: Path) -> bool:
    """Whether ``path`` is a file and no link, which could show a file from elsewhere in a report that is shared."""
    return path.is_file() and not path.is_symlink()


def link_or_copy(source: Path, path: Path) -> None:
    """Make ``path`` a hard link to ``source`` (or a copy), unless it exists. Neither may be changed in place."""
    if path.exists():
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        os.link(source, path)
    except OSError:
        shutil.copyfile(source, path)


def visible_files(folder: Path | str, pattern: str) -> list[Path]:
    """The paths below ``folder`` that match a glob, sorted; those with a hidden component (``._00000.tar``) are only counted."""
    folder = Path(folder)
    paths = sorted(folder.glob(pattern))
    visible = [path for path in paths if not is_hidden(path.relative_to(folder).as_posix())]
    if len(visible) < len(paths):
        _log_hidden(folder, len(paths) - len(visible))
    return visible


def is_hidden(path: str) -> bool:
    """Whether a relative path has a component that begins with a dot: AppleDouble files, editors' and notebooks' copies."""
    return any(part.startswith(".") and part not in (".", "..") for part in path.split("/"))


@cache
def _log_hidden(folder: Path, count: int) -> None:
    log.warning("%s: %s ignored (names that begin with a dot)", folder, counted(count, "hidden file"))


def warn_unread(where: object, what: str, counts: Mapping[str, int]) -> None:
    """Log how many files (or what else) of each kind were found that belong to no pair, if there are any."""
    if total := sum(counts.values()):
        kinds = sorted(counts.items(), key=lambda item: (-item[1], item[0]))
        listed = ", ".join(f"{count} {kind}" for kind, count in kinds[:LISTED_KINDS])
        listed += ", …" if len(kinds) > LISTED_KINDS else ""
        log.warning("%s: passed over %s of no pair: %s", where, counted(total, what), listed)


def fingerprint(value: Any) -> str:
    """The first 16 hex digits of the SHA-256 of ``value`` as canonical JSON."""
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def file_sha256(path: Path | str) -> str:
    check_regular(path)
    with name_file_in_errors(path), open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


@contextmanager
def locked(path: Path | str, wait: bool = True) -> Iterator[None]:
    """Hold an exclusive lock on ``path``, a file that exists while it is held; the system frees it however the process ends.

    The file says who holds the lock, for people; only the system's lock counts, so a killed process blocks nobody.
    Unless ``wait``, a lock that another process holds raises UserError; a file system without locks raises OSError.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    with name_file_in_errors(path):
        lock = FileLock(path, fallback_to_soft=False)  # its other kind of lock would outlive a killed process
        try:
            lock.acquire(blocking=False)
        except Timeout:
            holder = "of unknown number"
            with suppress(FileNotFoundError):  # it has just ended
                holder = path.read_text(errors="replace")[:200].strip() or holder
            if not wait:
                raise UserError(
                    f"another process is using {path.parent} ({holder}); wait for it, or choose another folder"
                ) from None
            log.info("waiting for another process (%s) to finish its work in %s", holder, path.parent)
            lock.acquire()
    try:
        with suppress(OSError), open(path, "w", opener=no_links) as file:  # a full disk: the lock still holds
            file.write(f"process {os.getpid()} on {socket.gethostname()}")
        yield
    finally:
        with suppress(OSError):
            path.unlink()  # while it is held: filelock sees that a file it has just opened is gone, and opens another
        lock.release()


def no_links(path: str, flags: int) -> int:
    """An ``opener`` for ``open`` that refuses a link: a file written in place must not be one that lies elsewhere."""
    return os.open(path, flags | os.O_NOFOLLOW, 0o666)
