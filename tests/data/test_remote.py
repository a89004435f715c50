"""Prepared data elsewhere: real servers of HTTP and S3 on this machine, a pipe, faults of the network, a bounded cache."""

import contextlib
import http.server
import os
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from dejavu_lit.data import remote
from dejavu_lit.data.shards import ShardSet, index_shard, read_pairs
from dejavu_lit.utils.errors import UserError
from dejavu_lit.utils.io import locked
from tests.conftest import ROOT, SMALL, call


class Server(http.server.ThreadingHTTPServer):
    """Serves a folder; ``asked`` lists the paths, ``cut`` maps a path to how many of its answers are cut short."""

    daemon_threads = True

    def __init__(self, folder: Path) -> None:
        self.folder, self.asked, self.cut = folder, list[str](), dict[str, int]()
        super().__init__(("127.0.0.1", 0), Handler)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"


class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        server = self.server
        assert isinstance(server, Server)
        path = self.path.lstrip("/")
        server.asked.append(path)
        if not (server.folder / path).is_file():
            self.send_error(404)
            return
        data = (server.folder / path).read_bytes()
        if server.cut.get(path, 0):
            server.cut[path] -= 1
            data = data[:1000]
        self.send_response(200)
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, *_: object) -> None:
        """Silence."""


@pytest.fixture
def server(scenes: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    monkeypatch.setenv("DEJAVU_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(remote, "PAUSE", 0)
    remote.mirror.cache_clear()
    index_shard.cache_clear()
    with Server(shutil.copytree(scenes, tmp_path / "there")) as made:
        threading.Thread(target=made.serve_forever, daemon=True).start()
        yield made
        made.shutdown()


def shards_asked(server: Server) -> list[str]:
    return [path for path in server.asked if path.endswith(".tar")]


def test_training_and_evaluation_over_http_equal_local_ones(server, scenes, runs, tmp_path):
    for side in ("target", "reference"):
        done = call("train", f"side={side}", f"data.dir={server.url}", f"out={tmp_path / side}", *SMALL)
        assert done.returncode == 0, done.stderr
        weights = "model/open_clip_model.safetensors"
        assert (tmp_path / side / weights).read_bytes() == (runs[side] / weights).read_bytes()
    assert shards_asked(server) == [
        "A/00000.tar",
        "V/00000.tar",
        "B/00000.tar",
    ]  # each once, and nothing that is not read
    found = {}
    for name, folder in (("there", tmp_path), ("here", runs["target"].parent)):
        out = tmp_path / name
        sides = [f"{side}={folder / side}" for side in ("target", "reference")]
        done = call("evaluate", *sides, f"out={out}-gap", "k=5", "ks=[5]", "report.write=false")
        assert done.returncode == 0, done.stderr
        found[name] = (tmp_path / f"{name}-gap/records.parquet").read_bytes()
    assert found["there"] == found["here"]


def test_an_answer_cut_short_is_asked_for_again(server, scenes):
    server.cut["A/00000.tar"] = 2
    folder = remote.mirror(server.url)
    assert list(read_pairs(ShardSet.open(folder / "A"))) == list(read_pairs(ShardSet.open(scenes / "A")))
    assert shards_asked(server) == ["A/00000.tar"] * 3
    server.cut["B/00000.tar"] = 3
    with pytest.raises(UserError, match=r"B/00000.tar of http://.* in 3 attempts \(EOFError: it came cut short\)"):
        ShardSet.open(folder / "B").index(0)
    assert not list((folder / "B").glob("*.tar"))


def test_the_cache_is_bounded_and_what_made_room_comes_again(server, monkeypatch):
    folder = remote.mirror(server.url)
    sizes = {name: (server.folder / name / "00000.tar").stat().st_size for name in "ABHP"}
    monkeypatch.setenv("DEJAVU_CACHE_GB", str(2.5 * max(sizes.values()) / 1e9))
    for name in "ABHP":
        ShardSet.open(folder / name).index(0).read(3)
        assert sum(path.stat().st_size for path in folder.glob("*/*.tar")) <= 2.5 * max(sizes.values())
    assert not (folder / "A" / "00000.tar").exists()
    assert ShardSet.open(folder / "A").index(0).read(3) == ShardSet.open(server.folder / "A").index(0).read(3)
    assert shards_asked(server).count("A/00000.tar") == 2


def test_data_prepared_anew_is_noticed(server):
    folder = remote.mirror(server.url)
    ShardSet.open(folder / "A").index(0)
    manifest = server.folder / "manifest.json"
    manifest.write_text(manifest.read_text().replace('"seed": 0', '"seed": 1'))
    remote.mirror.cache_clear()
    assert remote.mirror(server.url) == folder
    assert not (folder / "A" / "00000.tar").exists()
    assert (folder / "manifest.json").read_bytes() == manifest.read_bytes()


def test_names_that_point_outside_the_mirror_are_refused(server):
    manifest = server.folder / "manifest.json"
    manifest.write_text(manifest.read_text().replace('"single": {', '"../up": {'))
    with pytest.raises(UserError, match=r"names a set '../up'"):
        remote.mirror(server.url)


def test_a_pipe_runs_only_where_the_environment_allows_it(server, scenes, tmp_path, monkeypatch):
    url = f"pipe:touch {tmp_path}/ran; cat {scenes}/{{}}"
    with pytest.raises(UserError, match="set DEJAVU_PIPE=1"):
        remote.mirror(url)
    assert not (tmp_path / "ran").exists()
    monkeypatch.setenv("DEJAVU_PIPE", "1")
    folder = remote.mirror(url)
    assert list(read_pairs(ShardSet.open(folder / "H"))) == list(read_pairs(ShardSet.open(scenes / "H")))
    remote.fetch_objects(folder, "scenes")
    assert (folder / "objects/scenes/A/00000.parquet").read_bytes() == (
        scenes / "objects/scenes/A/00000.parquet"
    ).read_bytes()


@pytest.mark.parametrize(
    ("address", "words"),
    [
        ("{url}/nowhere", "holds no manifest.json of prepared data"),
        ("http://127.0.0.1:9", "could not be read in 3 attempts"),
        ("nosuch://bucket/x", "Protocol not known: nosuch"),
    ],
)
def test_a_wrong_address_is_one_sentence(server, tmp_path, address, words):
    done = call("train", "side=target", f"data.dir={address.format(url=server.url)}", f"out={tmp_path / 'run'}", *SMALL)
    assert done.returncode == 1
    assert words in done.stderr
    assert done.stderr.count("error:") == 1


READER = """
import random, sys
from pathlib import Path
from dejavu_lit.data import remote
from dejavu_lit.data.shards import ShardSet, index_shard
order = random.Random(int(sys.argv[2]))
folder = remote.mirror(sys.argv[1])
for _ in range(8):
    for name in order.sample("ABHP", 4):
        index_shard.cache_clear()
        there = Path(sys.argv[3]) / name
        assert ShardSet.open(folder / name).index(0).read(3) == ShardSet.open(there).index(0).read(3)
"""


def test_the_bound_holds_for_all_processes_of_a_node_and_what_a_killed_one_left_goes(server, tmp_path):
    for name in "BHP":  # shards as large as each other, as those of one set are
        shutil.rmtree(server.folder / name)
        shutil.copytree(server.folder / "A", server.folder / name)
    largest = (server.folder / "A" / "00000.tar").stat().st_size
    folder = remote.mirror(server.url)
    for name in ("A/.00000.tar.coming", "A/.00000.tar.7-abcd.part"):
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_bytes(bytes(largest))
    environment = {**os.environ, "DEJAVU_CACHE_GB": str(2.5 * largest / 1e9), "PYTHONPATH": str(ROOT)}
    readers = [
        subprocess.Popen(
            [sys.executable, "-c", READER, server.url, str(seed), str(server.folder)],
            env=environment,
            stderr=subprocess.PIPE,
            text=True,
        )
        for seed in range(2)
    ]
    most = 0
    while any(reader.poll() is None for reader in readers):
        with locked(folder / ".room.lock"):  # nothing makes room between these two looks
            taken = [*folder.glob("*/*.tar"), *folder.glob("*/.*.part")]
            most = max(most, sum(size_of(path) for path in taken if "7-abcd" not in path.name))
        time.sleep(0.002)
    for reader in readers:
        assert reader.wait() == 0, reader.communicate()[1]
    assert largest < most <= 2.5 * largest
    assert len(shards_asked(server)) > 4  # some made room and came again
    assert not list(folder.glob("*/.*.coming"))
    assert not list(folder.glob("*/.*.part"))


def size_of(path: Path) -> int:
    """0 where it has just gone."""
    with contextlib.suppress(FileNotFoundError):
        return path.stat().st_size
    return 0


@pytest.fixture
def bucket(scenes: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """A bucket on an S3 of this machine that holds the scenes below a folder."""
    pytest.importorskip("s3fs")
    server = pytest.importorskip("moto.server").ThreadedMotoServer(ip_address="127.0.0.1", port=0)
    server.start()
    host, port = server.get_host_and_port()
    for name, value in {
        "AWS_ENDPOINT_URL": f"http://{host}:{port}",
        "AWS_ACCESS_KEY_ID": "nobody",
        "AWS_SECRET_ACCESS_KEY": "secret",
        "AWS_DEFAULT_REGION": "us-east-1",
        "AWS_CONFIG_FILE": os.devnull,
        "AWS_SHARED_CREDENTIALS_FILE": os.devnull,
        "DEJAVU_CACHE": str(tmp_path / "cache"),
    }.items():
        monkeypatch.setenv(name, value)
    remote.mirror.cache_clear()
    import s3fs

    s3fs.S3FileSystem.clear_instance_cache()
    there = s3fs.S3FileSystem()
    there.mkdir("pairs")
    there.put(f"{scenes}/", "pairs/scenes/", recursive=True)
    yield "s3://pairs/scenes"
    server.stop()


def test_training_from_s3_equals_that_from_a_folder(bucket, runs, tmp_path, monkeypatch):
    monkeypatch.setattr(remote, "PAUSE", 0)
    done = call("train", "side=target", f"data.dir={bucket}", f"out={tmp_path / 'run'}", *SMALL)
    assert done.returncode == 0, done.stderr
    weights = "model/open_clip_model.safetensors"
    assert (tmp_path / "run" / weights).read_bytes() == (runs["target"] / weights).read_bytes()
    kept = sorted(str(path.relative_to(path.parent.parent)) for path in (tmp_path / "cache").rglob("*.tar"))
    assert kept == ["A/00000.tar", "V/00000.tar"]
    for address in ("s3://nowhere/scenes", "s3://pairs/elsewhere"):
        done = call("train", "side=target", f"data.dir={address}", f"out={tmp_path / 'none'}", *SMALL)
        assert done.returncode == 1
        assert f"data.dir={address} holds no manifest.json of prepared data" in done.stderr
