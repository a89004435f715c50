"""Shards that vanish or are cut while they are read, and readers that stall: named pipes, commands, servers."""

import http.server
import os
import re
import shutil
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from dejavu_lit.data import remote
from dejavu_lit.data.shards import ShardSet, index_shard
from dejavu_lit.utils.errors import UserError
from tests.conftest import SMALL, call
from tests.faults.common import DEADLINE, sentence, weights

READING = ["trainer.loader.cache_mb=0", "recipe.epochs=8"]  # every epoch reads the shards


def train(data: Path | str, run: Path, *options: str):
    index_shard.cache_clear()
    return call("train", "side=target", f"data.dir='{data}'", f"out={run}", *SMALL, *options)


@pytest.fixture(scope="module")
def undisturbed(scenes, tmp_path_factory):
    run = tmp_path_factory.mktemp("reading") / "run"
    done = train(scenes, run, *READING)
    assert done.returncode == 0, done.stderr
    return run


def vanish(shard: Path) -> None:
    shard.rename(shard.with_suffix(".away"))


def cut(shard: Path) -> None:
    os.truncate(shard, shard.stat().st_size // 2)


@pytest.mark.parametrize(
    ("fault", "words"), [(vanish, "does not exist; restore it"), (cut, "was cut short while being read")]
)
def test_while_training(fault, words, scenes, undisturbed, tmp_path):
    data, run = shutil.copytree(scenes, tmp_path / "scenes"), tmp_path / "run"
    shard = data / "A" / "00000.tar"

    def disturb() -> None:
        until = time.monotonic() + DEADLINE
        while not (run / "checkpoints" / "last.ckpt").exists() and time.monotonic() < until:
            time.sleep(0.005)
        fault(shard)

    thread = threading.Thread(target=disturb, daemon=True)
    thread.start()
    done = train(data, run, *READING)
    thread.join()
    said = sentence(done)
    assert f"the shard {shard} {words}" in said
    assert "restore it and start again" in said
    shutil.copy(scenes / "A" / "00000.tar", shard)
    (run / "config.yaml").write_text((run / "config.yaml").read_text().replace(str(data), str(scenes)))
    done = train(scenes, run, *READING)
    assert done.returncode == 0, done.stderr
    assert weights(run) == weights(undisturbed)


@pytest.mark.parametrize(
    ("fault", "indexing", "training"),
    [
        (vanish, "00000.tar does not exist", "has no shards"),
        (cut, "is cut short|is not a complete", "is cut short|is not a complete"),
    ],
)
def test_between_the_plan_and_the_epoch(fault, indexing, training, scenes, tmp_path):
    data = shutil.copytree(scenes, tmp_path / "scenes")
    opened = ShardSet.open(data / "A")
    fault(data / "A" / "00000.tar")
    index_shard.cache_clear()
    with pytest.raises(UserError, match=indexing):
        opened.index(0)
    said = sentence(train(data, tmp_path / "run"))
    assert str(data / "A") in said
    assert re.search(training, said)


def test_a_named_pipe_is_refused_and_not_waited_for(scenes, tmp_path):
    data = shutil.copytree(scenes, tmp_path / "scenes")
    (data / "A" / "00000.tar").unlink()
    os.mkfifo(data / "A" / "00000.tar")
    said = sentence(train(data, tmp_path / "run"))
    assert f"{data / 'A' / '00000.tar'} is a folder, a pipe or a device" in said


@pytest.fixture
def mirrored(tmp_path, monkeypatch) -> Iterator[None]:
    monkeypatch.setenv("DEJAVU_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("DEJAVU_PIPE", "1")
    monkeypatch.setattr(remote, "PAUSE", 0)
    remote.mirror.cache_clear()
    index_shard.cache_clear()
    yield
    remote.mirror.cache_clear()
    index_shard.cache_clear()


def test_a_command_that_gives_its_bytes_slowly_is_waited_for(mirrored, scenes, runs, tmp_path, monkeypatch):
    monkeypatch.setenv("DEJAVU_STALLED_S", "60")
    url = f"pipe:head -c 5000 {scenes}/{{}}; sleep 0.3; tail -c +5001 {scenes}/{{}}"
    done = train(url, tmp_path / "run")
    assert done.returncode == 0, done.stderr
    assert weights(tmp_path / "run") == weights(runs["target"])


def test_a_command_that_stalls_for_good_is_given_up(mirrored, scenes, tmp_path, monkeypatch):
    """A shard comes half, then nothing for ever, through a named pipe that nobody else writes to."""
    os.mkfifo(tmp_path / "nothing")
    half = f"case {{}} in *.tar) head -c 5000 {scenes}/{{}}; exec cat {tmp_path}/nothing;; *) cat {scenes}/{{}};; esac"
    monkeypatch.setenv("DEJAVU_STALLED_S", "3")
    said = sentence(train(f"pipe:{half}", tmp_path / "run"))
    assert "A/00000.tar of pipe:" in said
    assert "could not be read in 3 attempts (TimeoutError: no byte for 3 s); try again later" in said
    assert not list((tmp_path / "cache").rglob("*.part"))
    assert not list((tmp_path / "cache").rglob("*.tar"))


class Stalling(http.server.BaseHTTPRequestHandler):
    """Serves ``folder``, shards by half, and says nothing more until ``over``."""

    folder: Path
    over: threading.Event

    def do_GET(self) -> None:
        path = self.folder / self.path.lstrip("/")
        if not path.is_file():
            self.send_error(404)
            return
        data = path.read_bytes()
        self.send_response(200)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data[: len(data) // 2] if path.suffix == ".tar" else data)
        if path.suffix == ".tar":
            self.wfile.flush()
            self.over.wait(DEADLINE)

    def log_message(self, *_: object) -> None:
        """Silence."""


def test_a_server_that_stalls_amid_a_shard_is_given_up(mirrored, scenes, tmp_path, monkeypatch):
    monkeypatch.setenv("DEJAVU_STALLED_S", "3")
    handler = type("Handler", (Stalling,), {"folder": scenes, "over": threading.Event()})
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        server.daemon_threads = True
        threading.Thread(target=server.serve_forever, daemon=True).start()
        said = sentence(train(f"http://127.0.0.1:{server.server_address[1]}", tmp_path / "run"))
        handler.over.set()
        server.shutdown()
    assert "A/00000.tar of http://127.0.0.1" in said
    assert "could not be read in 3 attempts (" in said
    assert "timeout" in said.lower()
    assert not list((tmp_path / "cache").rglob("*.tar"))


@pytest.mark.parametrize("given", ["soon", "0", "-3", "nan"])
def test_the_patience_must_be_a_number_of_seconds(given, mirrored, scenes, tmp_path, monkeypatch):
    monkeypatch.setenv("DEJAVU_STALLED_S", given)
    said = sentence(train(f"pipe:cat {scenes}/{{}}", tmp_path / "run"))
    assert f"DEJAVU_STALLED_S={given} must be a number of seconds above 0" in said
