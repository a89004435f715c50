"""Progress without a terminal: lines of the log, at most one per interval, with the rate and the time left."""

import logging
import re
import time

from dejavu_lit.utils import progress as module
from dejavu_lit.utils.progress import announce, progress


def test_without_a_terminal_it_is_logged(monkeypatch, caplog, capsys):
    monkeypatch.setattr(module, "SECONDS_BETWEEN_LINES", 0.1)
    caplog.set_level(logging.INFO)
    with progress(None, "searching", total=1000, unit="vector", done=500) as bar:
        for _ in range(20):
            time.sleep(0.025)
            bar.update(20)
    lines = [record.message for record in caplog.records]
    assert 1 <= len(lines) <= 5
    form = r"searching: (\d+) of 1000, +([\d.]+) vector/s, 00:0[0-9] left"
    counts = [re.fullmatch(form, line) for line in lines]
    assert all(counts), lines
    first = counts[0]
    assert 500 < int(first[1]) < 1000
    assert float(first[2]) <= 20 / 0.025  # the 500 of an earlier call are not in the rate
    assert capsys.readouterr().err == ""


def test_what_is_done_at_once_logs_nothing(caplog):
    caplog.set_level(logging.INFO)
    assert list(progress([1, 2, 3], "counting")) == [1, 2, 3]
    assert caplog.records == []


def test_a_large_file_is_announced(monkeypatch, caplog, tmp_path):
    caplog.set_level(logging.INFO)
    monkeypatch.setattr(module, "LARGE", 3 << 20)
    for size in (3, 4):
        (tmp_path / "a.json").write_bytes(bytes(size << 20))
        announce(tmp_path / "a.json")
    assert [record.message for record in caplog.records] == [f"reading {tmp_path / 'a.json'}, 4 MB"]
