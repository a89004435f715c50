"""The torchmetrics against the plain statistics, on one process and on two."""

import socket
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.multiprocessing as mp

from dejavu_lit.measure.population import estimate, outcomes
from dejavu_lit.measure.sample import RANKINGS, table
from dejavu_lit.measure.scores import Scores
from dejavu_lit.training.torch_metrics import AUCG, PPG, PRG, SampleLevelGap


def made(n: int = 300) -> tuple[Scores, Scores, np.ndarray]:
    rng = np.random.default_rng(0)
    truth = rng.integers(0, 6, n).astype(np.int32)
    sides = []
    for share in (0.6, 0.4):
        hits = rng.binomial(truth, share).astype(np.int32)
        sides.append(Scores((1,), hits[:, None], (hits + rng.integers(0, 5, n).astype(np.int32))[:, None], truth))
    # Few distances, so that ties are common; some are slightly negative, as rounding makes them, and one is −0.
    distance = rng.choice(np.array([-1e-7, -0.0, 0.0, 0.1, 0.25, 1.5], np.float32), n)
    return sides[0], sides[1], distance


def metrics() -> dict[str, torch.nn.Module]:
    samples = {f"{by}@{top}": SampleLevelGap(top, by) for by in RANKINGS for top in (1, 20, 1000)}
    return {"ppg": PPG(), "prg": PRG(), "aucg": AUCG(max_objects=8), **samples}


def run(rank: int, world: int) -> dict[str, torch.Tensor]:
    """Every metric over this process's share of the records, in batches."""
    target, reference, distance = made()
    ours = metrics()
    mine = np.arange(rank, len(target), world)
    for batch in np.array_split(mine, 4):
        t_hits, t_all, r_hits, r_all = (
            torch.from_numpy(x[batch, 0]) for s in (target, reference) for x in (s.hits, s.predicted)
        )
        truth = torch.from_numpy(target.truth[batch])
        ours["ppg"].update(t_hits, t_all, r_hits, r_all, truth)
        ours["prg"].update(t_hits, r_hits, truth)
        ours["aucg"].update(t_hits, r_hits, truth)
        for name in ours:
            if "@" in name:
                args = (torch.from_numpy(batch), torch.from_numpy(distance[batch]), t_hits, t_all, r_hits, r_all, truth)
                ours[name].update(*args)
    found = {}
    for name, metric in ours.items():
        value = metric.compute()
        found |= {f"{name}/{part}": v for part, v in value.items()} if isinstance(value, dict) else {name: value}
    return found


def one_of_two(rank: int, port: int, folder: str) -> None:
    torch.distributed.init_process_group("gloo", init_method=f"tcp://127.0.0.1:{port}", rank=rank, world_size=2)
    try:
        torch.save(run(rank, 2), Path(folder) / f"{rank}.pt")
    finally:
        torch.distributed.destroy_process_group()


def test_they_agree_with_the_plain_statistics() -> None:
    target, reference, distance = made()
    found = run(0, 1)
    want = estimate(outcomes(target, reference, 1)).value
    assert [found[name].item() for name in ("ppg", "prg", "aucg")] == want.tolist()
    kept = int(target.kept.sum())
    rows = table(target, reference, distance, 1, [1, 20, 1.0])
    for by in RANKINGS:
        for row, top in zip(rows[by], (1, 20, 1000), strict=True):
            assert row["top"] == min(top, kept)
            for gap in ("precision_gap", "recall_gap", "f1_gap"):
                assert found[f"{by}@{top}/{gap}"].item() == pytest.approx(row[gap], abs=1e-14)


def test_two_processes_give_the_same_bits(tmp_path: Path) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    mp.spawn(one_of_two, args=(port, str(tmp_path)), nprocs=2)
    alone = run(0, 1)
    for rank in (0, 1):
        both = torch.load(tmp_path / f"{rank}.pt", weights_only=True)
        assert set(both) == set(alone)
        for name, value in alone.items():
            assert value.dtype == torch.float64
            assert torch.equal(both[name], value), name


def test_states_are_bounded_and_reset() -> None:
    metric = SampleLevelGap(top=5)
    target, reference, distance = made()
    for _ in range(3):
        columns = [torch.from_numpy(x[:, 0]) for s in (target, reference) for x in (s.hits, s.predicted)]
        metric.update(torch.arange(300), torch.from_numpy(distance), *columns, torch.from_numpy(target.truth))
    assert metric.first.shape == (5, 7)
    metric.reset()
    assert metric.first.abs().sum() == 0


def test_without_records_with_objects_there_is_no_number() -> None:
    none = torch.zeros(3, dtype=torch.int64)
    prg, aucg, top = PRG(), AUCG(), SampleLevelGap(4)
    prg.update(none, none, none)
    aucg.update(none, none, none)
    top.update(torch.arange(3), torch.zeros(3), none, none, none, none, none)
    assert prg.compute().isnan()
    assert aucg.compute().isnan()
    assert top.compute()["recall_gap"].isnan()


def test_nothing_right_gives_an_f1_of_zero() -> None:
    none, one = torch.zeros(1, dtype=torch.int64), torch.ones(1, dtype=torch.int64)
    top = SampleLevelGap(4)
    top.update(none, torch.zeros(1), none, one, none, one, one)
    assert top.compute()["f1_gap"].item() == 0.0


def test_mistakes_are_named() -> None:
    five = torch.full((1,), 5)
    with pytest.raises(ValueError, match="has 5 objects"):
        AUCG(max_objects=4).update(five, five, five)
    with pytest.raises(ValueError, match="top=0"):
        SampleLevelGap(0)
    with pytest.raises(ValueError, match="by='size'"):
        SampleLevelGap(3, "size")
