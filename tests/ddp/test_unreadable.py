"""Pairs that two gloo processes could not read: counted for both, also in the checkpoint that a run goes on from."""

import json
import shutil
from dataclasses import replace

import torch

from dejavu_lit.data.epoch import epoch_plan
from dejavu_lit.data.shards import Pair, ShardSet, read_pairs, write_shard
from tests.conftest import SMALL, run
from tests.data.test_epoch import batches


def test_what_both_ranks_could_not_read_is_kept(scenes, tmp_path):
    data, out = shutil.copytree(scenes, tmp_path / "scenes"), tmp_path / "run"
    shards = ShardSet.open(data / "A")
    plan = epoch_plan(shards.sizes, 0, 0, world=2, workers=0, batch=8)
    # One pair of rank 0, three of rank 1.
    bad = {tuple(map(int, entry)) for rank, many in ((0, 1), (1, 3)) for entry in batches(plan, rank)[0][:many]}
    pairs = iter(list(read_pairs(shards)))
    for shard, (name, size) in enumerate(zip(shards.names, shards.sizes, strict=True)):
        with write_shard(data / "A" / name) as write:
            for position in range(size):
                pair = next(pairs)
                assert isinstance(pair, Pair)
                write(replace(pair, image=b"no image") if (shard, position) in bad else pair)
    options = ["side=target", *SMALL, f"data.dir={data}", f"out={out}", "recipe.epochs=1", "trainer.devices=2"]
    run("train", *options, "trainer.loader.bad_share=1", ranks=2)
    saved = torch.load(out / "checkpoints" / "last.ckpt", weights_only=True)["unreadable"]
    assert set(saved) == {int(shards.starts[shard]) + position for shard, position in bad}
    assert sum(json.loads((out / "run.json").read_text())["unreadable"].values()) == 4
