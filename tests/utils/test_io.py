"""Atomic files and locks."""

import os
import re
import resource
from collections.abc import Callable
from errno import EFBIG, ENOSYS
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from dejavu_lit.training.loggers import CsvLogger
from dejavu_lit.utils.errors import UserError, os_error_sentence
from dejavu_lit.utils.io import atomic, file_sha256, locked, read_json, visible_files, warn_unread, write_text


def test_two_writers_of_one_file_do_not_meet(tmp_path: Path) -> None:
    """As processes with the same number on two machines that share the folder."""
    path = tmp_path / "x.parquet"
    with atomic(path) as one:
        one.write_text("one")
        with atomic(path) as other:
            other.write_text("other")
        assert path.read_text() == "other"
        assert list(tmp_path.glob(".x.parquet.*.part")) == [one]
    assert path.read_text() == "one"
    assert [p.name for p in tmp_path.iterdir()] == ["x.parquet"]


def test_a_failed_write_leaves_nothing_and_keeps_the_earlier_file(tmp_path: Path) -> None:
    path = tmp_path / "x"
    write_text(path, "before")
    with pytest.raises(ZeroDivisionError), atomic(path) as part:  # noqa: PT012
        part.write_text("half")
        raise ZeroDivisionError
    assert {p.name: p.read_text() for p in tmp_path.iterdir()} == {"x": "before"}


def test_an_error_of_the_system_names_the_file_that_the_user_knows(tmp_path: Path) -> None:
    path = tmp_path / "x"
    with pytest.raises(OSError, match=re.escape(str(path))) as caught, atomic(path):
        pass  # nothing was written, so there is nothing to rename
    assert caught.value.filename == str(path)


@pytest.mark.parametrize("save", [torch.save, save_file])
def test_a_refusal_of_the_system_that_a_library_does_not_pass_on_is_found(
    save: Callable[..., None], tmp_path: Path
) -> None:
    """A limit of file sizes, as a quota: there is free space all the same."""
    path, limits = tmp_path / "weights", resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, limits[1]))
    try:
        with pytest.raises(OSError, match="weights") as caught, atomic(path) as part:
            save({"a": torch.zeros(100_000)}, part)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert (caught.value.errno, caught.value.filename) == (EFBIG, str(path))
    assert list(tmp_path.iterdir()) == []


def test_a_lock_file_that_is_a_link_is_not_followed(tmp_path: Path) -> None:
    precious = tmp_path / "precious"
    precious.write_text("of value")
    (tmp_path / ".lock").symlink_to(precious)
    with pytest.raises(OSError, match=r"\.lock"), locked(tmp_path / ".lock", wait=False):
        pass
    assert precious.read_text() == "of value"


def test_a_file_system_without_locks_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def flock(file: int, operation: int) -> None:
        raise OSError(ENOSYS, os.strerror(ENOSYS))

    monkeypatch.setattr("fcntl.flock", flock)
    with pytest.raises(OSError, match=r"\.lock") as caught, locked(tmp_path / ".lock"):
        pass
    assert os_error_sentence(caught.value).endswith("has no locks; choose a folder on another one")


def test_a_log_that_is_a_link_is_not_appended_to(tmp_path: Path) -> None:
    """``metrics.csv`` of a run from elsewhere that is resumed."""
    precious = tmp_path / "precious"
    precious.write_text("of value")
    (tmp_path / "metrics.csv").symlink_to(precious)
    with pytest.raises(OSError, match=r"metrics\.csv") as caught:
        CsvLogger(tmp_path).log_metrics({"loss": 0.5}, 1)
    assert os_error_sentence(caught.value).endswith("it is a link, which is not followed here; remove it")
    assert precious.read_text() == "of value"


@pytest.mark.parametrize("read", [read_json, file_sha256])
def test_a_pipe_is_refused_without_waiting_for_a_writer(read: Callable[[Path], object], tmp_path: Path) -> None:
    os.mkfifo(pipe := tmp_path / "sizes.json")
    with pytest.raises(UserError, match=r"sizes\.json is a folder, a pipe or a device"):
        read(pipe)


def test_hidden_files_are_not_listed_but_counted_once(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    for name in ("A/0.tar", "A/._0.tar", ".prepare/0.tar", "B/1.tar", "B/1.txt"):
        write_text(tmp_path / name, "")
    for _ in range(2):
        assert visible_files(tmp_path, "*/*.tar") == [tmp_path / "A/0.tar", tmp_path / "B/1.tar"]
    assert caplog.messages == [f"{tmp_path}: 2 hidden files ignored (names that begin with a dot)"]
    assert visible_files(tmp_path / "missing", "*") == []


def test_kinds_beyond_those_that_are_listed_are_hinted_at(caplog: pytest.LogCaptureFixture) -> None:
    for count in (10, 11):
        warn_unread("here", "file", {f".{number:02d}": 1 for number in range(count)})
    assert [message.endswith("1 .09, …") for message in caplog.messages] == [False, True]
