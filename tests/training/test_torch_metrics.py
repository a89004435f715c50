"""The torchmetrics against the plain statistics, on one process and on two."""

from pathlib import Path

import numpy as np
import pytest
import torch
from torchmetrics import MetricCollection

from dejavu_lit.measure.gaps import estimate, outcomes
from dejavu_lit.measure.scores import Scores
from dejavu_lit.training.torch_metrics import AUCG, PPG, PRG
from tests.conftest import spawn_ranks


def records(n: int = 300) -> tuple[Scores, Scores]:
    rng = np.random.default_rng(0)
    truth = rng.integers(0, 6, n).astype(np.int32)
    models = []
    for share in (0.6, 0.4):
        hits = rng.binomial(truth, share).astype(np.int32)
        models.append(Scores((1,), hits[:, None], (hits + rng.integers(0, 5, n).astype(np.int32))[:, None], truth))
    return models[0], models[1]


def metrics() -> dict[str, torch.nn.Module]:
    return {"ppg": PPG(), "prg": PRG(), "aucg": AUCG(max_objects=8)}


def run(rank: int, world: int) -> dict[str, torch.Tensor]:
    """Every metric on this process's share of the records, in batches."""
    target, reference = records()
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
    return {name: metric.compute() for name, metric in rank_metrics.items()}


def save_metrics(rank: int, folder: Path) -> None:
    torch.save(run(rank, 2), folder / f"{rank}.pt")


def test_they_agree_with_the_plain_statistics() -> None:
    values = run(0, 1)
    expected = estimate(outcomes(*records(), 1)).value
    assert [values[name].item() for name in ("ppg", "prg", "aucg")] == expected.tolist()


def test_in_a_collection_each_metric_is_updated() -> None:
    """In the first batch PPG and PRG count the same; in the second they differ."""
    collection = MetricCollection({"ppg": PPG(), "prg": PRG()})
    for hits_and_predicted in (((1, 0), (1, 1), (0, 0), (1, 1)), ((2, 2), (9, 9), (1, 2), (1, 2))):
        names = ("target_hits", "target_predicted", "reference_hits", "reference_predicted")
        counts = {name: torch.tensor(x) for name, x in zip(names, hits_and_predicted, strict=True)}
        collection.update(truth=torch.full((2,), 3), **counts)
    values = {name: value.item() for name, value in collection.compute().items()}
    assert (values["ppg"], values["prg"]) == ((1 - 2) / 4, (2 - 0) / 4)


def test_two_processes_give_the_same_bits(tmp_path: Path) -> None:
    spawn_ranks(save_metrics, tmp_path)
    single = run(0, 1)
    for rank in (0, 1):
        both = torch.load(tmp_path / f"{rank}.pt", weights_only=True)
        assert set(both) == set(single)
        for name, value in single.items():
            assert value.dtype == torch.float64
            assert torch.equal(both[name], value), name


def test_without_records_with_objects_the_gaps_are_nan() -> None:
    zeros = torch.zeros(3, dtype=torch.int64)
    prg, aucg = PRG(), AUCG()
    prg.update(zeros, zeros, zeros)
    aucg.update(zeros, zeros, zeros)
    assert prg.compute().isnan()
    assert aucg.compute().isnan()


def test_invalid_arguments_are_named() -> None:
    five = torch.full((1,), 5)
    with pytest.raises(ValueError, match="has 5 objects"):
        AUCG(max_objects=4).update(five, five, five)
