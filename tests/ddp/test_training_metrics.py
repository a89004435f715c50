"""metrics.csv of two gloo processes: every figure once, and that of one process on the same global batches."""

import csv

import pytest

from tests.ddp.test_ranks import notes


def rows(run):
    """{metric: [(step, value)]}, without what depends on the clock."""
    found: dict[str, list[tuple[int, float]]] = {}
    with open(run / "metrics.csv", newline="") as file:
        for row in csv.DictReader(file):
            if not row["metric"].startswith("pairs/s"):
                found.setdefault(row["metric"], []).append((int(row["step"]), float(row["value"])))
    return found


def test_two_ranks_log_what_one_process_does_and_once(scenes, tmp_path):
    options = [f"data.dir={scenes}", "recipe.epochs=1", "trainer.log_every=1"]
    for processes, name in ((1, "one"), (2, "two")):
        notes(tmp_path / name, processes, "same", *options)
    one, two = rows(tmp_path / "one" / "run"), rows(tmp_path / "two" / "run")
    assert one.keys() == two.keys() >= {"loss", "val_loss", "val_accuracy", "lr", "logit_scale"}
    assert len(one["loss"]) == 6
    for metric in one:
        assert [step for step, _ in one[metric]] == [step for step, _ in two[metric]], metric
    for metric in ("loss", "val_loss", "val_accuracy", "lr", "logit_scale"):
        assert [v for _, v in two[metric]] == pytest.approx([v for _, v in one[metric]], rel=1e-4), metric
