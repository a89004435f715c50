"""The torchmetrics against the plain statistics, on one process and on two."""

import socket
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.multiprocessing as mp
from torchmetrics import MetricCollection

from dejavu_lit.measure.population import estimate, outcomes
from dejavu_lit.measure.sample import RANKINGS, sample_gaps
from dejavu_lit.measure.scores import Scores
from dejavu_lit.training.torch_metrics import AUCG, PPG, PRG, SampleLevelGap


def records(n: int = 300) -> tuple[Scores, Scores, np.ndarray]:
    rng = np.random.default_rng(0)
    truth = rng.integers(0, 6, n).astype(np.int32)
    models = []
    for share in (0.6, 0.4):
        hits = rng.binomial(truth, share).astype(np.int32)
        models.append(Scores((1,), hits[:, None], (hits + rng.integers(0, 5, n).astype(np.int32))[:, None], truth))
    # Few distinct distances, so ties are common; one is slightly negative, as after rounding, and one is −0.
    distance = rng.choice(np.array([-1e-7, -0.0, 0.0, 0.1, 0.25, 1.5], np.float32), n)
    return models[0], models[1], distance


def metrics() -> dict[str, torch.nn.Module]:
    samples = {f"{by}@{top}": SampleLevelGap(top, by) for by in RANKINGS for top in (1, 20, 1000)}
    return {"ppg": PPG(), "prg": PRG(), "aucg": AUCG(max_objects=8), **samples}


def run(rank: int, world: int) -> dict[str, torch.Tensor]:
    """Every metric on this process's share of the records, in batches."""
    target, reference, distance = records()
    rank_metrics = metrics()
    rows = np.arange(rank, len(target), world)
    for batch in np.array_split(rows, 4):
        t_hits, t_all, r_hits, r_all = (
            torch.from_numpy(x[batch, 0]) for s in (target, reference) for x in (s.hits, s.predicted)
        )
        truth = torch.from_numpy(target.truth[batch])
        rank_metrics["ppg"].update(t_hits, t_all, r_hits, r_all, truth)
        rank_metrics["prg"].update(t_hits, r_hits, truth)
        rank_metrics["aucg"].update(t_hits, r_hits, truth)
        for name in rank_metrics:
            if "@" in name:
                args = (torch.from_numpy(batch), torch.from_numpy(distance[batch]), t_hits, t_all, r_hits, r_all, truth)
                rank_metrics[name].update(*args)
    values = {}
    for name, metric in rank_metrics.items():
        value = metric.compute()
        values |= {f"{name}/{part}": v for part, v in value.items()} if isinstance(value, dict) else {name: value}
    return values


def run_rank(rank: int, port: int, folder: str) -> None:
    torch.distributed.init_process_group("gloo", init_method=f"tcp://127.0.0.1:{port}", rank=rank, world_size=2)
    try:
        torch.save(run(rank, 2), Path(folder) / f"{rank}.pt")
    finally:
        torch.distributed.destroy_process_group()


def test_they_agree_with_the_plain_statistics() -> None:
    target, reference, distance = records()
    values = run(0, 1)
    expected = estimate(outcomes(target, reference, 1)).value
    assert [values[name].item() for name in ("ppg", "prg", "aucg")] == expected.tolist()
    with_objects = int(target.has_objects.sum())
    rows = sample_gaps(target, reference, distance, 1, [1, 20, 1.0])
    for by in RANKINGS:
        for row, top in zip(rows[by], (1, 20, 1000), strict=True):
            assert row["top"] == min(top, with_objects)
            for gap in ("precision_gap", "recall_gap", "f1_gap"):
                assert values[f"{by}@{top}/{gap}"].item() == pytest.approx(row[gap], abs=1e-14)


def test_in_a_collection_each_metric_is_updated() -> None:
    """In the first batch PPG and PRG count the same, and so do both rankings; in the second they differ."""
    samples = {"hits": SampleLevelGap(1, "hits"), "gap": SampleLevelGap(1, "gap")}
    collection = MetricCollection({"ppg": PPG(), "prg": PRG(), **samples})
    for first, *hits_and_predicted in ((0, (1, 0), (1, 1), (0, 0), (1, 1)), (2, (2, 2), (9, 9), (1, 2), (1, 2))):
        names = ("target_hits", "target_predicted", "reference_hits", "reference_predicted")
        counts = {name: torch.tensor(x) for name, x in zip(names, hits_and_predicted, strict=True)}
        record = torch.arange(first, first + 2)
        collection.update(record=record, distance=torch.zeros(2), truth=torch.full((2,), 3), **counts)
    values = {name: value.item() for name, value in collection.compute().items()}
    assert (values["ppg"], values["prg"]) == ((1 - 2) / 4, (2 - 0) / 4)
    assert values["hits_precision_gap"] == pytest.approx(2 / 9 - 1)  # the third record, with 2 hits
    assert values["gap_precision_gap"] == 1  # the first record, with 1 hit more than the reference


def test_two_processes_give_the_same_bits(tmp_path: Path) -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    mp.spawn(run_rank, args=(port, str(tmp_path)), nprocs=2)
    single = run(0, 1)
    for rank in (0, 1):
        both = torch.load(tmp_path / f"{rank}.pt", weights_only=True)
        assert set(both) == set(single)
        for name, value in single.items():
            assert value.dtype == torch.float64
            assert torch.equal(both[name], value), name


def test_states_are_bounded_and_reset() -> None:
    metric = SampleLevelGap(top=5)
    target, reference, distance = records()
    for _ in range(3):
        columns = [torch.from_numpy(x[:, 0]) for s in (target, reference) for x in (s.hits, s.predicted)]
        metric.update(torch.arange(300), torch.from_numpy(distance), *columns, torch.from_numpy(target.truth))
    assert metric.first.shape == (5, 7)
    metric.reset()
    assert metric.first.abs().sum() == 0


def test_without_records_with_objects_the_gaps_are_nan() -> None:
    zeros = torch.zeros(3, dtype=torch.int64)
    prg, aucg, top = PRG(), AUCG(), SampleLevelGap(4)
    prg.update(zeros, zeros, zeros)
    aucg.update(zeros, zeros, zeros)
    top.update(torch.arange(3), torch.zeros(3), zeros, zeros, zeros, zeros, zeros)
    assert prg.compute().isnan()
    assert aucg.compute().isnan()
    assert top.compute()["recall_gap"].isnan()


def test_without_hits_f1_is_zero() -> None:
    zero, one = torch.zeros(1, dtype=torch.int64), torch.ones(1, dtype=torch.int64)
    top = SampleLevelGap(4)
    top.update(zero, torch.zeros(1), zero, one, zero, one, one)
    assert top.compute()["f1_gap"].item() == 0.0


def test_invalid_arguments_are_named() -> None:
    five = torch.full((1,), 5)
    with pytest.raises(ValueError, match="has 5 objects"):
        AUCG(max_objects=4).update(five, five, five)
    with pytest.raises(ValueError, match="top=0"):
        SampleLevelGap(0)
    with pytest.raises(ValueError, match="by='size'"):
        SampleLevelGap(3, "size")
