"""Remote prepared data: real local HTTP and S3 servers, a pipe, network faults and the bounded cache."""

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
import yaml
from PIL import Image

from dejavu_lit.cli.annotate import open_sets
from dejavu_lit.data import remote
from dejavu_lit.data.objects import Annotation, read_part, write_objects
from dejavu_lit.data.prepared import DataSpec
from dejavu_lit.data.readers.folder import FolderReader
from dejavu_lit.data.shards import ShardSet, index_shard, read_pairs
from dejavu_lit.utils.errors import UserError
from dejavu_lit.utils.io import locked, write_json
from tests.conftest import ROOT, SMALL, call
from tests.data.preparing import prepare


class Server(http.server.ThreadingHTTPServer):
    """Serves a folder. ``requested`` lists the paths; of ``cut`` = {path: n}, the next n responses end after ``cut_to`` bytes."""

    daemon_threads = True

    def __init__(self, folder: Path) -> None:
        self.folder, self.requested, self.cut = folder, list[str](), dict[str, int]()
        self.cut_to = 1000
        super().__init__(("127.0.0.1", 0), Handler)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"


class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        server = self.server
        assert isinstance(server, Server)
        path = self.path.lstrip("/")
        server.requested.append(path)
        if not (server.folder / path).is_file():
            self.send_error(404)
            return
        data = (server.folder / path).read_bytes()
        if server.cut.get(path, 0):
            server.cut[path] -= 1
            data = data[: server.cut_to]
        self.send_response(200)
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, *_: object) -> None:
        """Log nothing."""


@pytest.fixture
def server(scenes: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    monkeypatch.setenv("DEJAVU_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(remote, "PAUSE", 0)
    new_process()
    with Server(shutil.copytree(scenes, tmp_path / "source")) as running:
        threading.Thread(target=running.serve_forever, daemon=True).start()
        yield running
        running.shutdown()


def new_process() -> None:
    """Forget what this process has checked already."""
    remote.mirror.cache_clear()
    remote.fetch_objects.cache_clear()
    index_shard.cache_clear()


def requested_shards(server: Server) -> list[str]:
    return [path for path in server.requested if path.endswith(".tar")]


@pytest.mark.slow
def test_training_and_evaluation_over_http_equal_those_from_a_folder(server, scenes, runs, tmp_path):
    for side in ("target", "reference"):
        done = call("train", f"side={side}", f"data.dir={server.url}", f"out={tmp_path / side}", *SMALL)
        assert done.returncode == 0, done.stderr
        weights = "model/open_clip_model.safetensors"
        assert (tmp_path / side / weights).read_bytes() == (runs[side] / weights).read_bytes()
    assert requested_shards(server) == [
        "A/00000.tar",
        "V/00000.tar",
        "B/00000.tar",
    ]  # each once, and only those that are read
    records = {}
    for name, folder in (("http", tmp_path), ("local", runs["target"].parent)):
        out = tmp_path / name
        sides = [f"{side}={folder / side}" for side in ("target", "reference")]
        address = [f"data.dir={server.url}"] if name == "http" else []
        done = call("evaluate", *sides, *address, f"out={out}-gap", "k=5", "ks=[5]", "report.write=false")
        assert done.returncode == 0, done.stderr
        records[name] = (tmp_path / f"{name}-gap/records.parquet").read_bytes()
    assert records["http"] == records["local"]


def test_a_response_cut_short_is_requested_again(server, scenes):
    server.cut["A/00000.tar"] = 2
    folder = remote.mirror(server.url)
    assert list(read_pairs(ShardSet.open(folder / "A"))) == list(read_pairs(ShardSet.open(scenes / "A")))
    assert requested_shards(server) == ["A/00000.tar"] * 3
    server.cut["B/00000.tar"] = 3
    with pytest.raises(UserError, match=r"B/00000.tar of http://.* in 3 attempts \(EOFError: it arrived cut short\)"):
        ShardSet.open(folder / "B").index(0)
    assert not list((folder / "B").glob("*.tar"))


@pytest.mark.parametrize("name", ["manifest.json", "A/sizes.json", "objects/scenes/A/00000.parquet"])
def test_a_small_file_cut_short_is_requested_again_and_never_kept(server, name):
    server.cut[name] = 3
    server.cut_to = len((server.folder / name).read_bytes()) // 2
    with pytest.raises(UserError, match=f"{name} of http://.* in 3 attempts"):
        remote.fetch_objects(remote.mirror(server.url), "scenes")
    server.cut[name] = 2
    folder = remote.mirror(server.url)
    remote.fetch_objects(folder, "scenes")
    assert (folder / name).read_bytes() == (server.folder / name).read_bytes()


def test_objects_annotated_again_replace_those_in_the_cache(server):
    folder = remote.mirror(server.url)
    remote.fetch_objects(folder, "scenes")
    parts = {name: folder / f"objects/scenes/{name}/00000.parquet" for name in "AP"}
    times = {name: part.stat().st_mtime_ns for name, part in parts.items()}
    annotator, table = read_part(parts["A"])
    again = [Annotation(key, ["lamp"], [0.9], [[0.0, 0.0, 1.0, 1.0]]) for key in table["key"].to_pylist()]
    write_objects(server.folder / "objects/scenes/A/00000.parquet", again, annotator)
    new_process()
    remote.fetch_objects(remote.mirror(server.url), "scenes")
    assert read_part(parts["A"])[1]["labels"].to_pylist() == [["lamp"]] * len(again)
    assert parts["P"].stat().st_mtime_ns == times["P"]  # the same bytes are not a change


def test_objects_that_are_gone_from_the_source_leave_the_cache(server):
    shutil.copytree(server.folder / "objects/scenes", server.folder / "objects/again")
    folder = remote.mirror(server.url)
    remote.fetch_objects(folder, "again")
    assert (folder / "objects/again/A").is_dir()
    shutil.rmtree(server.folder / "objects/again/A")
    new_process()
    remote.fetch_objects(folder, "again")
    assert not (folder / "objects/again/A").exists()
    assert (folder / "objects/again/P").is_dir()
    remote.fetch_objects(folder, str(server.folder / "objects/again"))  # a folder of the user's own
    assert (server.folder / "objects/again/P").is_dir()


class BlindReader(FolderReader):
    """A reader that does not notice when its files change."""

    def fingerprint(self) -> dict[str, str]:
        return {"reader": "blind"}


def test_shards_of_other_content_are_noticed(server, tmp_path):
    """The same settings and numbers of pairs, other images: the manifest differs by the fingerprint of the shards alone."""
    images = tmp_path / "images"
    images.mkdir()
    manifests = []
    for color in ("red", "blue"):
        for number in range(8):
            image = Image.new("RGB", (32, 32), color)
            image.putpixel((number, number), (0, 0, 0))
            image.save(images / f"a{number}.png")
            (images / f"a{number}.txt").write_text("a caption")
        shutil.rmtree(server.folder)
        manifests.append(prepare(BlindReader(images), server.folder, {"A": 8}, near_duplicates=None, workers=1))
        new_process()
        pair = ShardSet.open(remote.mirror(server.url) / "A").index(0).read(0)
        assert pair.image == (images / f"{pair.key}.png").read_bytes()
    first, second = (manifest["sets"]["A"].pop("fingerprint") for manifest in manifests)
    assert first != second
    assert manifests[0] == manifests[1]


def test_the_cache_is_bounded_and_evicted_shards_come_again(server, monkeypatch):
    folder = remote.mirror(server.url)
    sizes = {name: (server.folder / name / "00000.tar").stat().st_size for name in "ABHP"}
    monkeypatch.setenv("DEJAVU_CACHE_GB", str(2.5 * max(sizes.values()) / 1e9))
    for name in "ABHP":
        ShardSet.open(folder / name).index(0).read(3)
        assert sum(path.stat().st_size for path in folder.glob("*/*.tar")) <= 2.5 * max(sizes.values())
    assert not (folder / "A" / "00000.tar").exists()
    assert ShardSet.open(folder / "A").index(0).read(3) == ShardSet.open(server.folder / "A").index(0).read(3)
    assert requested_shards(server).count("A/00000.tar") == 2


def test_data_prepared_again_is_noticed(server):
    folder = remote.mirror(server.url)
    ShardSet.open(folder / "A").index(0)
    manifest = server.folder / "manifest.json"
    manifest.write_text(manifest.read_text().replace('"seed": 0', '"seed": 1'))
    new_process()
    assert remote.mirror(server.url) == folder
    assert not (folder / "A" / "00000.tar").exists()
    assert (folder / "manifest.json").read_bytes() == manifest.read_bytes()


def test_names_that_point_outside_the_mirror_are_rejected(server):
    manifest = server.folder / "manifest.json"
    manifest.write_text(manifest.read_text().replace('"single": {', '"../up": {'))
    with pytest.raises(UserError, match=r"names a set '../up'"):
        remote.mirror(server.url)


@pytest.mark.parametrize("sets", ["[[null, null]]", '{"A": null}', "3"])
def test_a_manifest_without_sets_is_refused(server, sets):
    (server.folder / "manifest.json").write_text(f'{{"sets": {sets}}}')
    with pytest.raises(UserError, match=r"has no manifest\.json of prepared data"):
        remote.mirror(server.url)


def test_a_folder_is_not_a_mirror_because_it_says_so(server, scenes, tmp_path, monkeypatch):
    """Somebody's local data with a remote.json: its command does not run, with the permission for another one or without."""
    theirs = shutil.copytree(scenes, tmp_path / "theirs")
    (theirs / "A/00000.tar").unlink()
    shutil.rmtree(theirs / "objects/scenes/A")
    write_json(theirs / remote.STATE, {"url": f"pipe:touch {tmp_path}/ran; cat {scenes}/{{}}"})
    for allowed in ("", "1"):
        monkeypatch.setenv("DEJAVU_PIPE", allowed)
        with pytest.raises(UserError, match="has no shards"):
            ShardSet.open(theirs / "A")
        remote.fetch_objects(theirs, "scenes")
        new_process()
    assert not (tmp_path / "ran").exists()
    assert not (theirs / "objects/scenes/A").exists()
    (remote.cache_root() / theirs.name).symlink_to(theirs)
    assert remote.source(remote.cache_root() / theirs.name) is None


def test_a_mirror_asks_for_permission_when_the_command_runs(scenes, tmp_path, monkeypatch):
    monkeypatch.setenv("DEJAVU_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("DEJAVU_PIPE", "1")
    new_process()
    folder = remote.mirror(f"pipe:cat {scenes}/{{}}")
    monkeypatch.delenv("DEJAVU_PIPE")
    with pytest.raises(UserError, match="would run a command; set DEJAVU_PIPE=1"):
        ShardSet.open(folder / "A").index(0)
    new_process()


def test_the_cache_is_a_private_folder_of_this_user(tmp_path, monkeypatch):
    monkeypatch.setenv("DEJAVU_CACHE", str(tmp_path))
    root = remote.cache_root()
    assert root.parent == tmp_path
    assert root.stat().st_mode & 0o777 == 0o700
    root.chmod(0o777)
    with pytest.raises(UserError, match="writable by others; remove it, or set DEJAVU_CACHE"):
        remote.cache_root()
    root.rmdir()
    root.symlink_to(tmp_path)
    with pytest.raises(UserError, match="is a link"):
        remote.cache_root()
    root.unlink()
    root.mkdir(mode=0o700)
    owner = os.getuid()
    monkeypatch.setattr(os, "getuid", lambda: owner + 1)
    (tmp_path / f"dejavu-lit-{owner + 1}").mkdir(mode=0o700)
    with pytest.raises(UserError, match="belongs to another user"):
        remote.cache_root()


@pytest.mark.parametrize("name", ["0;touch ran;.tar", "$(touch ran).tar", "`touch ran`.tar", "0 1.tar"])
def test_a_name_that_a_shell_might_run_is_refused(tmp_path, monkeypatch, name):
    """The place of a name may be within quotes, or in a command that ssh hands to a second shell."""
    monkeypatch.setenv("DEJAVU_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("DEJAVU_PIPE", "1")
    monkeypatch.chdir(tmp_path)
    write_json(tmp_path / "from" / "manifest.json", {"sets": {"A": {}}})
    write_json(tmp_path / "from" / "A" / "sizes.json", {name: 1})
    shards = ShardSet.open(remote.mirror(f"pipe:sh -c 'cat {tmp_path}/from/{{}}'") / "A")
    with pytest.raises(UserError, match="which has characters that a shell may interpret; rename"):
        remote.fetch_shard(shards.paths[0])
    assert not (tmp_path / "ran").exists()


def test_the_address_of_a_given_run_is_not_opened(server, runs, tmp_path):
    given = shutil.copytree(runs["target"], tmp_path / "given", ignore=shutil.ignore_patterns("embeddings"))
    config = yaml.safe_load((given / "config.yaml").read_text())
    (given / "config.yaml").write_text(yaml.safe_dump(config | {"data": config["data"] | {"dir": server.url}}))
    options = [f"target={given}", f"reference={runs['reference']}", f"out={tmp_path / 'gap'}"]
    done = call("evaluate", *options)
    assert done.returncode == 1
    assert f"was trained on data.dir={server.url}; an address in a run's settings is not opened" in done.stderr
    assert server.requested == []


def test_a_pipe_runs_only_if_the_environment_allows_it(server, scenes, tmp_path, monkeypatch):
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
    ("address", "message"),
    [
        ("{url}/nowhere", "has no manifest.json of prepared data"),
        ("http://127.0.0.1:9", "could not be read in 3 attempts"),
        ("nosuch://bucket/x", "Protocol not known: nosuch"),
    ],
)
def test_a_wrong_address_is_one_sentence(server, tmp_path, address, message):
    done = call("train", "side=target", f"data.dir={address.format(url=server.url)}", f"out={tmp_path / 'run'}", *SMALL)
    assert done.returncode == 1
    assert message in done.stderr
    assert done.stderr.count("error:") == 1


READER = """
import random, sys
from pathlib import Path
from dejavu_lit.data import remote
from dejavu_lit.data.objects import Annotation, read_part, write_objects
from dejavu_lit.data.shards import ShardSet, index_shard
order = random.Random(int(sys.argv[2]))
folder = remote.mirror(sys.argv[1])
for _ in range(8):
    for name in order.sample("ABHP", 4):
        index_shard.cache_clear()
        source = Path(sys.argv[3]) / name
        assert ShardSet.open(folder / name).index(0).read(3) == ShardSet.open(source).index(0).read(3)
"""


def test_the_bound_holds_for_all_processes_of_a_node_and_leftovers_of_a_killed_one_are_removed(server, tmp_path):
    for name in "BHP":  # shards of equal size, as within a set
        shutil.rmtree(server.folder / name)
        shutil.copytree(server.folder / "A", server.folder / name)
    largest = (server.folder / "A" / "00000.tar").stat().st_size
    folder = remote.mirror(server.url)
    (folder / "A" / ".00000.tar.7-abcd.part").write_bytes(bytes(largest))
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
    peak = 0
    while any(reader.poll() is None for reader in readers):
        with locked(folder.parent / ".room.lock"):  # nothing is evicted or named while they are listed
            peak = max(peak, sum(map(size_of, folder.glob("*/*.tar"))))
        time.sleep(0.002)
    for reader in readers:
        assert reader.wait() == 0, reader.communicate()[1]
    assert largest < peak <= 2.5 * largest
    assert len(requested_shards(server)) > 4  # some were evicted and copied again
    assert not list(folder.glob("*/.*.part"))


def size_of(path: Path) -> int:
    """0 if the file has just been removed."""
    with contextlib.suppress(FileNotFoundError):
        return path.stat().st_size
    return 0


@pytest.fixture
def bucket(scenes: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """A bucket of a local S3 server with the scenes in a folder."""
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
    new_process()
    import s3fs

    s3fs.S3FileSystem.clear_instance_cache()
    s3 = s3fs.S3FileSystem()
    s3.mkdir("pairs")
    s3.put(f"{scenes}/", "pairs/scenes/", recursive=True)
    yield "s3://pairs/scenes"
    server.stop()


def test_training_from_s3_equals_that_from_a_folder(bucket, runs, tmp_path, monkeypatch):
    monkeypatch.setattr(remote, "PAUSE", 0)
    done = call("train", "side=target", f"data.dir={bucket}", f"out={tmp_path / 'run'}", *SMALL)
    assert done.returncode == 0, done.stderr
    weights = "model/open_clip_model.safetensors"
    assert (tmp_path / "run" / weights).read_bytes() == (runs["target"] / weights).read_bytes()
    cached = sorted(str(path.relative_to(path.parent.parent)) for path in (tmp_path / "cache").rglob("*.tar"))
    assert cached == ["A/00000.tar", "V/00000.tar"]
    for address in ("s3://nowhere/scenes", "s3://pairs/elsewhere"):
        done = call("train", "side=target", f"data.dir={address}", f"out={tmp_path / 'none'}", *SMALL)
        assert done.returncode == 1
        assert f"data.dir={address} has no manifest.json of prepared data" in done.stderr


def test_a_network_failure_removes_no_objects_and_is_said(server, monkeypatch):
    shutil.copytree(server.folder / "objects/scenes", server.folder / "objects/again")
    folder = remote.mirror(server.url)
    remote.fetch_objects(folder, "again")
    new_process()
    server.cut["objects/again/A/00000.parquet"] = 3
    with pytest.raises(UserError, match=r"again/A/00000\.parquet of http://.* in 3 attempts"):
        remote.fetch_objects(folder, "again")
    assert (folder / "objects/again/A/00000.parquet").is_file()


def test_all_sets_of_remote_data_are_compared_whether_or_not_their_shards_were_read(server):
    data = DataSpec("mine", dir=server.url)
    before = open_sets(data, None)
    assert {"A", "B", "H", "P"} <= before.keys()
    data.shard_set("A").index(0)
    assert open_sets(data, None).keys() == before.keys()


@pytest.mark.parametrize("given", ["", "-1", "nan", "50 GB"])
def test_the_size_of_the_cache_must_be_a_number(given, monkeypatch):
    monkeypatch.setenv("DEJAVU_CACHE_GB", given)
    with pytest.raises(UserError, match=f"DEJAVU_CACHE_GB={given} must be a number of GB above 0"):
        remote._evict_shards(1)
