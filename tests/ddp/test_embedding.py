"""Embeddings whose shards several ranks share, and who a rank is."""

import pytest

from dejavu_lit.data.shards import ShardSet
from dejavu_lit.evaluation.embed import embed
from dejavu_lit.models.zoo import load_encoder
from dejavu_lit.utils.distributed import Ranks, current_ranks
from tests.conftest import SMALL, run
from tests.models.tiny import write_clip


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """Scenes in shards of 20 pairs."""
    out = tmp_path_factory.mktemp("shards") / "scenes"
    run("prepare", f"data.dir={out}", "pairs_per_shard=20", *[o for o in SMALL if o.startswith("data.")])
    return out


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """Two untrained models."""
    base = tmp_path_factory.mktemp("models")
    return [f"local-dir:{write_clip(base / str(seed), seed)}" for seed in (0, 1)]


def test_shares_are_disjoint_whole_and_exact(data, models, tmp_path):
    shards, encoder = ShardSet.open(data / "A"), load_encoder(models[0])
    assert len(shards.names) == 5
    for rank in (1, 0):
        embed(encoder, shards, "text", tmp_path / "shared", share=(rank, 2))
        parts = {path.name for path in (tmp_path / "shared").glob("*.npy")}
        assert parts == {f"{n:05d}.npy" for n in range(5) if rank == 0 or n % 2}
    embed(encoder, shards, "text", tmp_path / "alone")
    for path in (tmp_path / "alone").glob("*.npy"):
        assert path.read_bytes() == (tmp_path / "shared" / path.name).read_bytes()


def test_who_this_process_is(monkeypatch):
    for name in ("TORCHELASTIC_RUN_ID", "SLURM_STEP_NUM_TASKS"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("SLURM_NTASKS", "4")  # of a batch script: alone all the same
    monkeypatch.setenv("SLURM_PROCID", "0")
    assert current_ranks() == Ranks(0, 1, 0)
    for name, value in {"STEP_NUM_TASKS": "4", "PROCID": "3", "LOCALID": "1"}.items():
        monkeypatch.setenv(f"SLURM_{name}", value)
    assert current_ranks() == Ranks(3, 4, 1)
    assert current_ranks().device("cuda") == "cuda:1"
    assert current_ranks().device("cpu") == "cpu"
