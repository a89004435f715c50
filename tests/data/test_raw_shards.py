"""Raw shards: the hash of a key decides its set, training streams one set, and the samples are an ordinary folder."""

import io
import json
import tarfile
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from benchmarks.shards import write_shards
from dejavu_lit.cli.options import Prepare
from dejavu_lit.cli.prepare import prepare
from dejavu_lit.data.key_lists import excluded_keys
from dejavu_lit.data.prepared import DataSpec, prepare_data, ready
from dejavu_lit.data.raw_shards import RawShards, write_samples
from dejavu_lit.data.raw_stream import RawDataModule
from dejavu_lit.data.readers.shards import ShardReader
from dejavu_lit.data.settings import LoaderSettings, Repeat
from dejavu_lit.data.shards import Pair, ShardSet, index_shard, read_pairs
from dejavu_lit.data.splits import SETS, seeded_hash
from dejavu_lit.evaluation.run import changed_data
from dejavu_lit.evaluation.settings import DataChanges
from dejavu_lit.mitigation import Mitigation
from dejavu_lit.models.preprocess import Preprocess
from dejavu_lit.utils.errors import UserError
from dejavu_lit.utils.io import write_json
from tests.conftest import SMALL, run
from tests.data.images import contents, encoded, sample_image
from tests.data.preparing import prepare as prepare_pairs
from tests.data.test_stream import CONFIG, char_tokens

FRACTIONS = {"A": 0.5, "B": 0.2, "H": 0.1, "V": 0.1, "P": 0.1}
SIZES = {"A": 20, "B": 10, "H": 6, "V": 6, "P": 6}


def pair(number: int) -> Pair:
    return Pair(f"{number:09d}", encoded(sample_image(number, 40, 36)), "png", f"image number {number}")


@pytest.fixture(scope="module")
def tars(tmp_path_factory) -> Path:
    """200 pairs in 10 shards as img2dataset writes them, one of them unreadable; sizes.json is gone."""
    folder = tmp_path_factory.mktemp("raw")
    write_shards(folder, [pair(number) for number in range(200)], 20)
    (folder / "sizes.json").unlink()
    return folder


def spec(tars: Path, out: Path, **options) -> DataSpec:
    data = DataSpec("raw", str(out), shards=f"{tars}/{{00000..00009}}.tar", fractions=FRACTIONS, sizes=SIZES, **options)
    write_samples(data.raw_shards(), data.sizes, out)
    return data


def module(data: DataSpec, workers: int = 0, mitigation: Mitigation | None = None) -> RawDataModule:
    pairs = RawDataModule(
        data=data,
        side="target",
        batch=4,
        seed=3,
        preprocess=Preprocess(CONFIG),
        tokenizer=char_tokens,
        mitigation=mitigation or Mitigation(),
        loader=LoaderSettings(workers=workers),
    )
    pairs.setup("fit")
    return pairs


def captions(batches) -> list[list[str]]:
    return [[bytes(tokens.tolist()).decode().rstrip() for tokens in batch["tokens"]] for batch in batches]


def members(tars: Path, name: str) -> set[str]:
    raw = RawShards(str(tars), FRACTIONS)
    keys = [f"{number:09d}" for number in range(200)]
    return {key for key, code in zip(keys, raw.sets(keys), strict=True) if SETS[code] == name}


def numbers(batches: list[list[str]]) -> list[str]:
    return [f"{int(caption.split()[-1]):09d}" for batch in batches for caption in batch]


def test_the_hash_of_the_key_decides_the_set_in_the_given_shares():
    keys = [f"k{number}" for number in range(20_000)]
    raw = RawShards("x", {"A": 0.3, "H": 0.2}, seed=5, excluded=frozenset(keys[:1000]))
    sets = raw.sets(keys)
    assert set(sets[:1000]) == {-1}
    share = Counter(sets[1000:].tolist())
    assert [share[SETS.index(name)] / 19_000 for name in "AH"] == pytest.approx([0.3, 0.2], abs=0.015)
    expected = seeded_hash(keys, 5, "raw") / 2.0**64 < 0.3
    assert np.array_equal(sets[1000:] == 0, expected[1000:])
    assert np.array_equal(raw.sets(keys[::-1]), sets[::-1])


@pytest.mark.parametrize("fractions", [{}, {"A": 0.7, "B": 0.4}, {"C": 0.1}, {"A": 0}, {"A": "half"}, {"A": 1.5}])
def test_fractions_that_make_no_sense_are_one_sentence(fractions):
    with pytest.raises(UserError, match=r"data\.fractions="):
        RawShards("x", fractions)


@pytest.mark.parametrize("sizes", [{"A": 0.5}, {"A": -1}, {"A": 4, "P": 4}, {"A": None}])
def test_sizes_that_no_sample_can_have_are_one_sentence(tars, tmp_path, sizes):
    *_, (name, size) = sizes.items()
    with pytest.raises(
        UserError, match=rf"data\.sizes\.{name}={size} must be a number of pairs of one of the sets .*: A, B$"
    ):
        write_samples(RawShards(str(tars), {"A": 0.5, "B": 0.5}), sizes, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_the_samples_are_an_ordinary_prepared_folder(tars, tmp_path, monkeypatch):
    monkeypatch.setattr("dejavu_lit.data.raw_shards.PAIRS_PER_SHARD", 8)
    data = spec(tars, tmp_path / "samples")
    data.check()
    for name, size in SIZES.items():
        pairs = list(read_pairs(ShardSet.open(tmp_path / "samples" / name)))
        assert len(pairs) == size
        assert {p.key for p in pairs} <= members(tars, name)
        assert all(p.image == pair(int(p.key)).image for p in pairs)
    assert data.shard_set("A").sizes == (8, 8, 4)
    of_shards = Counter(int(key) // 20 for key in data.shard_set("A").keys())
    assert sorted(of_shards.values()) == [4] * 5  # half of the ten shards, which have 20 pairs each
    manifest = json.loads((tmp_path / "samples/manifest.json").read_text())
    assert {name: manifest["sets"][name]["shards"] for name in "AB"} == {"A": 3, "B": 2}
    pairs = {name: len(members(tars, name)) for name in FRACTIONS}
    assert manifest["settings"]["exclude"] is None
    assert manifest["raw_shards"] == {"shards": 10, "opened": 10, "pairs": pairs, "counted": True}
    before = (tmp_path / "samples/manifest.json").read_bytes()
    spec(tars, tmp_path / "samples")
    assert (tmp_path / "samples/manifest.json").read_bytes() == before
    with pytest.raises(UserError, match="made with other settings"):
        spec(tars, tmp_path / "samples", seed=1)
    with pytest.raises(UserError, match=r"data\.sizes\.P=90, but data\.shards has only"):
        write_samples(data.raw_shards(), {"P": 90}, tmp_path / "more")
    with pytest.raises(UserError, match=r"data\.sizes asks for no pairs at all"):
        write_samples(data.raw_shards(), {"A": 0, "P": 0}, tmp_path / "none")


def test_without_opening_every_shard_the_sizes_of_the_sets_are_estimated(tars, tmp_path, monkeypatch):
    monkeypatch.setattr("dejavu_lit.data.raw_shards.COUNTED_SHARDS", 1)
    write_samples(RawShards(str(tars), FRACTIONS), {"A": 5}, tmp_path / "out")
    found = json.loads((tmp_path / "out/manifest.json").read_text())["raw_shards"]
    assert (found["shards"], found["opened"], found["counted"]) == (10, 5, False)
    assert sum(found["pairs"].values()) == pytest.approx(200, abs=len(FRACTIONS) / 2)  # the shards are equally large


def test_classes_are_captions_and_unread_members_are_counted(tmp_path):
    keys = sorted(members(tmp_path, "A"))
    with tarfile.open(tmp_path / "0.tar", "w") as tar:
        for key in keys:
            for name, data in {"png": pair(int(key)).image, "cls": b"7", "npy": b"x"}.items():
                (member := tarfile.TarInfo(f"{key}.{name}")).size = len(data)
                tar.addfile(member, io.BytesIO(data))
    write_samples(RawShards(str(tmp_path / "0.tar"), FRACTIONS), {"A": 4}, tmp_path / "out")
    assert [p.caption for p in read_pairs(ShardSet.open(tmp_path / "out/A"))] == ["7"] * 4
    assert json.loads((tmp_path / "out/manifest.json").read_text())["unread"] == {"KEY.npy": len(keys)}


@pytest.mark.parametrize("workers", [0, 2])
def test_an_epoch_is_one_pass_over_the_set_in_another_order(tars, tmp_path, workers):
    own = members(tars, "A")
    pairs = module(spec(tars, tmp_path, pairs=2 * len(own)), workers)
    loader = pairs.train_dataloader()
    epochs = [captions(loader.batches(epoch)) for epoch in (0, 1, 0)]
    assert len(loader) == len(own) // 4 == len(epochs[0])
    assert epochs[0] == epochs[2] != epochs[1]
    for epoch in epochs:
        assert set(numbers(epoch)) <= own
    if not workers:  # the loader processes have equally many batches, not equally many pairs
        assert len(set(numbers(epochs[0]))) == len(loader) * 4
    assert captions(loader.batches(1, 5)) == epochs[1][5:]  # resumed
    pairs.teardown("fit")


def test_two_ranks_do_equally_many_steps_and_share_no_shard(tars, tmp_path):
    data = spec(tars, tmp_path)
    seen = []
    for rank in range(2):
        pairs = module(data)
        pairs.trainer = type("Trainer", (), {"world_size": 2, "global_rank": rank, "current_epoch": 0})()
        loader = pairs.train_dataloader()
        seen.append(captions(loader.batches(0)))
    assert len(seen[0]) == len(seen[1]) == len(loader)
    assert not set(numbers(seen[0])) & set(numbers(seen[1]))


def test_shards_drawn_with_replacement(tars, tmp_path):
    pairs = module(spec(tars, tmp_path, resampled=True), 0)
    loader = pairs.train_dataloader()
    epoch = captions(loader.batches(0))
    assert len(epoch) == len(loader)
    assert epoch == captions(loader.batches(0)) != captions(loader.batches(1))


@pytest.mark.parametrize(
    ("resampled", "match"), [(False, "has no pair of A that can be read"), (True, "1000 pairs .*in a row")]
)
def test_shards_without_a_readable_image_end_with_one_sentence(tmp_path, caplog, resampled, match):
    pairs = [pair(number) for number in range(200)]
    write_shards(tmp_path / "raw", pairs, 20)
    loader = module(spec(tmp_path / "raw", tmp_path / "samples", resampled=resampled)).train_dataloader()
    write_shards(tmp_path / "raw", [replace(good, image=good.image[:60]) for good in pairs], 20)
    index_shard.cache_clear()
    with pytest.raises(UserError, match=f"{match}.*last error: the image does not decode.; check the shards"):
        next(iter(loader.batches(0)))
    assert len([r for r in caplog.records if r.message.startswith("skipped ")]) <= len(members(tmp_path / "raw", "A"))


@pytest.mark.parametrize(("resampled", "remedy"), [(False, "use fewer processes"), (True, "check data.fractions")])
def test_shards_without_a_pair_of_the_set_end_with_one_sentence(tmp_path, resampled, remedy):
    pairs = [pair(number) for number in range(200)]
    write_shards(tmp_path / "raw", pairs, 20)
    loader = module(spec(tmp_path / "raw", tmp_path / "samples", resampled=resampled)).train_dataloader()
    of_a = members(tmp_path / "raw", "A")
    others = [other for other in pairs if other.key not in of_a]
    write_shards(tmp_path / "raw", others, -(-len(others) // 10))  # again ten shards
    index_shard.cache_clear()
    with pytest.raises(UserError, match=f"has no pair of A; {remedy}"):
        next(iter(loader.batches(0)))


def test_excluded_keys_are_in_no_sample_and_no_batch(tars, tmp_path):
    gone = sorted(members(tars, "A"))[::2]
    (tmp_path / "gone.txt").write_text("\n".join(gone))
    data = spec(tars, tmp_path / "samples", exclude=str(tmp_path / "gone.txt"))
    loader = module(data).train_dataloader()
    found = {key for epoch in range(4) for key in numbers(captions(loader.batches(epoch)))}
    assert found == members(tars, "A") - set(gone)
    assert not set(ShardSet.open(tmp_path / "samples" / "A").keys()) & set(gone)


def test_keys_as_the_report_writes_them_are_excluded_and_unknown_ones_are_said(tmp_path, caplog):
    pairs = [replace(pair(number), key=f"train/{number:06d}") for number in range(40)]
    with tarfile.open(tmp_path / "0.tar", "w") as tar:
        for each in pairs:
            for extension, data in (("png", each.image), ("txt", each.caption.encode())):
                member = tarfile.TarInfo(f"{each.key}.{extension}")
                member.size = len(data)
                tar.addfile(member, io.BytesIO(data))
    excluded = excluded_keys(["train-000012", "train/000013.jpg"])
    raw = RawShards(str(tmp_path / "0.tar"), {"A": 1.0}, excluded=excluded)
    write_samples(raw, {"A": 38}, tmp_path / "out")
    kept = {f"train-{number:06d}" for number in range(40)} - {"train-000012", "train-000013"}
    assert set(ShardSet.open(tmp_path / "out/A").keys()) == kept
    assert {key for key, _ in raw.read(raw.addresses[0], "A")} == {key.replace("-", "/") for key in kept}
    assert "data.exclude" not in caplog.text
    write_samples(replace(raw, excluded=frozenset({"000012"})), {"A": 38}, tmp_path / "unknown")
    assert "no key in data.exclude is in the 1 shards that were opened" in caplog.text


def test_images_without_captions_can_be_public(tmp_path):
    folder = write_shards(tmp_path / "raw", [replace(pair(number), caption="") for number in range(60)], 20).folder
    data = DataSpec("raw", str(tmp_path / "out"), shards=str(folder), fractions={"A": 0.5, "P": 0.5}, sizes={"P": 6})
    write_samples(data.raw_shards(), data.sizes, data.folder)
    assert [p.caption for p in read_pairs(data.shard_set("P"))] == [""] * 6
    reason = r"only 0 usable pairs of A \(\d+ in all sets cannot be used: its caption is empty\); ask for fewer"
    with pytest.raises(UserError, match=rf"data\.sizes\.A=6, but data\.shards has {reason}"):
        write_samples(data.raw_shards(), {"A": 6}, tmp_path / "captioned")


@pytest.mark.parametrize("end", ["", "*", "*.tar", "*/0.tar"])
def test_remote_folders_are_refused(end):
    with pytest.raises(
        UserError, match=r"the shards at an address cannot be listed; name them, as in \{00000\.\.00999\}"
    ):
        _ = RawShards(f"https://a.b/shards/{end}", {"A": 1.0}).addresses


def test_a_shard_gives_more_than_its_quota_if_the_others_have_too_few(tmp_path):
    for number, count in enumerate((60, 1, 1, 1)):
        write_shards(tmp_path / "raw" / f"{number}", [pair(100 * number + n) for n in range(count)])
    broken = replace(pair(5), image=pair(5).image[:60])
    write_shards(tmp_path / "raw/0", [broken if n == 5 else pair(n) for n in range(60)])
    raw = RawShards([str(tmp_path / "raw" / f"{number}") for number in range(4)], {"P": 1.0})
    write_samples(raw, {"P": 62}, tmp_path / "out")
    keys = ShardSet.open(tmp_path / "out/P").keys()
    assert len(keys) == len(set(keys)) == 62
    assert sum(s["count"] for s in json.loads((tmp_path / "out/manifest.json").read_text())["skipped"].values()) == 1
    with pytest.raises(UserError, match=r"has only 62 usable pairs of P"):
        write_samples(raw, {"P": 63}, tmp_path / "more")


def test_a_key_in_two_shards_is_refused(tmp_path):
    """Its pairs would be in one set, and the sample, the order and the exposures tell pairs by their keys."""
    for number in range(2):
        write_shards(tmp_path / "raw" / str(number), [pair(7)])
    raw = RawShards([str(tmp_path / "raw" / str(number)) for number in range(2)], {"A": 1.0})
    with pytest.raises(UserError, match=r"the key '000000007' occurs twice in data\.shards; make keys unique"):
        write_samples(raw, {"A": 2}, tmp_path / "out")


def test_a_folder_of_dejavu_prepare_is_no_folder_of_samples(tars, tmp_path):
    prepare_pairs(ShardReader(tars), tmp_path / "out", SIZES)
    data = DataSpec("raw", str(tmp_path / "out"), shards=str(tars), fractions=FRACTIONS, sizes=SIZES)
    with pytest.raises(UserError, match=r"out was made with other settings \(fractions: null → "):
        data.raw_shards()


def test_a_shard_counts_once_however_its_path_is_written(tmp_path):
    folder = write_shards(tmp_path / "raw", [pair(number) for number in range(20)], 10).folder
    (tmp_path / "link").symlink_to(folder)
    paths = [str(folder), f"{tmp_path}/./raw/00000.tar", str(tmp_path / "link" / "00001.tar")]
    assert RawShards(paths, {"A": 1.0}).addresses == [str(folder / name) for name in ("00000.tar", "00001.tar")]


def test_shards_that_were_replaced_since_the_samples_were_drawn_are_refused(tmp_path):
    folder = write_shards(tmp_path / "raw", [pair(number) for number in range(60)], 20).folder
    data = DataSpec("raw", str(tmp_path / "out"), shards=str(folder), fractions={"A": 1.0}, sizes={"A": 8})
    write_samples(data.raw_shards(), data.sizes, data.folder)
    module(data).train_dataloader()
    write_shards(folder, [pair(number) for number in range(1000, 1060)], 20)
    for use in (lambda data: module(data).train_dataloader(), prepare_data):
        with pytest.raises(UserError, match=r"data\.shards has other shards than when the samples in .*out were drawn"):
            use(data)
    assert ShardSet.open(data.folder / "A").sizes == (8,)  # which can be evaluated


def test_what_needs_exact_counts_is_refused(tars, tmp_path):
    data = spec(tars, tmp_path)
    with pytest.raises(UserError, match=r"data\.train_size needs prepared data"):
        module(replace(data, train_size=5))
    with pytest.raises(UserError, match=r"data\.repeat needs prepared data"):
        module(replace(data, repeat=Repeat(0.1, 2)))
    with pytest.raises(UserError, match=r"data\.half needs prepared data"):
        module(replace(data, half=1))
    with pytest.raises(
        UserError, match=r"mitigation\.dedup=true needs the groups of near-duplicates, .*, or set data\.exclude="
    ):
        module(data, mitigation=Mitigation(dedup=True))
    with pytest.raises(UserError, match=r"data\.shards has 10 shards for 11 loader processes \(1 rank × "):
        module(data, workers=11).train_dataloader()


def test_a_pipe_needs_the_permission_of_the_environment(tars, tmp_path, monkeypatch):
    monkeypatch.setenv("DEJAVU_CACHE", str(tmp_path / "cache"))
    raw = RawShards(f"pipe:touch {tmp_path}/ran; cat {tars}/{{00000..00009}}.tar", FRACTIONS)
    with pytest.raises(UserError, match="would run a command; set DEJAVU_PIPE=1"):
        write_samples(raw, SIZES, tmp_path / "out")
    assert not (tmp_path / "ran").exists()
    monkeypatch.setenv("DEJAVU_PIPE", "1")
    write_samples(raw, SIZES, tmp_path / "out")
    assert ShardSet.open(tmp_path / "out" / "A").sizes == (20,)
    assert (tmp_path / "ran").exists()


def test_training_and_evaluation_on_raw_shards_with_two_uneven_ranks(scenes, tmp_path):
    """The scenes' pairs as raw shards of very different sizes; the ranks end together, and metrics.json says what is expected."""
    pairs = [p for name in "ABHVP" for p in read_pairs(ShardSet.open(scenes / name))]
    for number, (first, last) in enumerate([(0, 10), (10, 200), (200, 300), (300, len(pairs))]):
        write_shards(tmp_path / f"part{number}", pairs[first:last], 1000)
        (tmp_path / f"part{number}" / "00000.tar").rename(tmp_path / f"{number}.tar")
    small = [option for option in SMALL if not option.startswith("data.")]
    data = ["data=stream", f"data.shards={tmp_path}", f"data.dir={tmp_path / 'samples'}"]
    data += [
        "data.fractions={A: 0.3, B: 0.3, H: 0.2, V: 0.05, P: 0.15}",
        "data.sizes={A: 40, B: 40, H: 30, V: 4, P: 30}",
    ]
    run("train", "side=target", *data, f"out={tmp_path / 'target'}", *small, "trainer.devices=2", ranks=2)
    run("train", "side=reference", *data, f"out={tmp_path / 'reference'}", *small)
    record = json.loads((tmp_path / "target" / "run.json").read_text())
    assert record["batches"] == 2 * (record["train_size"] // 16)
    assert record["exposure"]["mean"] == pytest.approx(record["batches"] * 16 / record["train_size"])
    table = tmp_path / "objects.csv"
    table.write_text("key,labels\n" + "".join(f"{p.key},{p.caption.split()[-1]}\n" for p in pairs))
    run("annotate", "annotator=table", f"annotator.path={table}", *data)
    sides = [f"{side}={tmp_path / side}" for side in ("target", "reference")]
    run("evaluate", *sides, *data, "objects=table", f"out={tmp_path / 'gap'}", "k=5", "ks=[5]", "report.write=false")
    metrics = json.loads((tmp_path / "gap" / "metrics.json").read_text())
    assert metrics["exposure"]["target"] is None
    assert metrics["raw_shards"]["expected_exposure"]["target"] == record["exposure"]["mean"]
    assert metrics["symmetric"]["ppg"]["value"] is not None


def test_the_batches_do_not_depend_on_torch_s_generator(tars, tmp_path):
    loader = module(spec(tars, tmp_path)).train_dataloader()
    state = torch.get_rng_state()
    captions(loader.batches(0))
    assert torch.equal(torch.get_rng_state(), state)


def test_training_refuses_samples_that_were_drawn_with_another_seed_fractions_or_exclude(tars, tmp_path):
    data = spec(tars, tmp_path / "samples")
    (tmp_path / "gone.txt").write_text("000000003")
    for name, change in (
        ("seed", {"seed": 1}),
        ("fractions.H", {"fractions": FRACTIONS | {"H": 0.05}}),
        ("exclude", {"exclude": str(tmp_path / "gone.txt")}),
    ):
        with pytest.raises(UserError, match=rf"samples was made with other settings \({name}: "):
            replace(data, **change).raw_shards()
    data.raw_shards()


def test_what_a_failed_draw_has_left_is_in_no_sample_and_sets_of_others_stay(tars, tmp_path):
    raw = RawShards(str(tars), FRACTIONS)
    with pytest.raises(UserError, match=r"data\.sizes\.P=90, but"):
        write_samples(raw, {"A": 20, "P": 90}, tmp_path / "out")
    write_samples(replace(raw, seed=1), {"A": 6, "B": 6}, tmp_path / "out")
    assert sorted(path.parent.name for path in (tmp_path / "out").glob("*/*.tar")) == ["A", "B"]
    assert [len(ShardSet.open(tmp_path / "out" / name)) for name in "AB"] == [6, 6]
    (tmp_path / "own/P").mkdir(parents=True)
    with pytest.raises(UserError, match=r"own contains 'P', which this command did not write"):
        write_samples(raw, {"A": 6}, tmp_path / "own")


def test_samples_that_were_killed_before_their_manifest_are_drawn_again(tars, tmp_path, monkeypatch):
    raw, sizes, out = RawShards(str(tars), FRACTIONS), {"A": 6, "B": 6}, tmp_path / "out"

    def killed(path: Path, content: object) -> None:
        if path.parent.name == "B":
            raise KeyboardInterrupt
        write_json(path, content)

    monkeypatch.setattr("dejavu_lit.data.raw_shards.write_json", killed)
    with pytest.raises(KeyboardInterrupt):
        write_samples(raw, {"A": 9, "B": 6, "P": 6}, out)
    monkeypatch.undo()
    write_samples(raw, sizes, out)
    write_samples(raw, sizes, tmp_path / "whole")
    assert contents(out) == contents(tmp_path / "whole")


def test_options_that_raw_shards_do_not_have_are_refused(tars, tmp_path):
    data = DataSpec("raw", str(tmp_path / "out"), shards=str(tars), fractions=FRACTIONS, sizes=SIZES)
    for option in ({"keys": {"A": "members.txt"}}, {"max_skipped": 0.5}, {"pairs_per_shard": 7}):
        with pytest.raises(UserError, match=rf"{next(iter(option))} does not apply to raw shards"):
            prepare(Prepare(data, **option))
    for option in ({"near_duplicates": 3}, {"extra": {"L": {"type": "folder"}}}, {"reader": {"type": "folder"}}):
        with pytest.raises(UserError, match=rf"data\.{next(iter(option))} needs prepared data"):
            prepare(Prepare(replace(data, **option)))
    assert not (tmp_path / "out").exists()


def test_a_set_of_size_0_has_no_sample_and_excluded_keys_need_no_folder(tars, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "gone.txt").write_text("000000003")
    sizes = {"A": 4, "B": 4, "P": 0}
    folder = prepare(
        Prepare(DataSpec("raw", exclude="gone.txt", shards=str(tars), fractions=FRACTIONS, sizes=sizes, automatic=True))
    )
    assert sorted(path.parent.name for path in folder.glob("*/sizes.json")) == ["A", "B"]


def test_samples_without_a_folder_are_found_with_excluded_keys_then_and_later(tars, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "gone.txt").write_text("000000003")
    options = {"shards": str(tars), "fractions": FRACTIONS, "sizes": SIZES, "automatic": True}
    data = ready(DataSpec("raw", exclude="gone.txt", **options))
    data.check()
    data.raw_shards()
    assert data.folder != DataSpec("raw", **options).folder
    (tmp_path / "more.txt").write_text("000000003\n000000004")
    later = changed_data(data, DataChanges(exclude="more.txt"))
    assert later.folder == data.folder
    assert later.excluded == {"000000003", "000000004"}
    (tmp_path / "gone.txt").write_text("000000005")
    assert replace(data).folder == data.folder  # of a run whose list was changed since


def test_keys_as_in_the_shards_are_excluded_from_the_samples_later(tars, tmp_path):
    (tmp_path / "gone.txt").write_text("train/000012\n")
    data = DataSpec("raw", str(tmp_path), shards=str(tars), fractions=FRACTIONS, exclude=str(tmp_path / "gone.txt"))
    assert data.excluded == data.raw_shards().excluded == {"train/000012", "train-000012"}


def test_indexes_of_raw_shards_are_not_kept(tars):
    """64 of them, with 10,000 pairs each, would take 800 MB in every loader process."""
    index_shard.cache_clear()
    raw = RawShards(str(tars), FRACTIONS)
    for address in raw.addresses:
        assert all(key in members(tars, "A") for key, _ in raw.read(address, "A"))
    assert index_shard.cache_info().currsize == 0
