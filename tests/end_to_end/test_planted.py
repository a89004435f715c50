"""Planted memory: pairs shown more often are remembered more, through the whole real path."""

import json

import pytest

from tests.conftest import run


@pytest.mark.slow
def test_the_gap_rises_with_exposure(tmp_path):
    options = [
        f"data.dir={tmp_path / 'scenes'}",
        "data.sizes={A: 600, B: 600, H: 100, V: 50, P: 800}",
        "data.reader.count=2150",
        "data.extra.single.count=100",
        "data.repeat.share=[0.25,0.25]",
        "data.repeat.times=[8,3]",
        "recipe.epochs=5",
    ]
    for side in ("target", "reference"):
        run("train", f"side={side}", f"out={tmp_path / side}", *options)
    out = tmp_path / "gap"
    run(
        "evaluate",
        f"target={tmp_path / 'target'}",
        f"reference={tmp_path / 'reference'}",
        f"out={out}",
        "report.write=false",
    )
    planted = json.loads((out / "metrics.json").read_text())["planted"]
    levels = [level for level in planted["levels"] if level["records"] >= 100]  # pairs left out of an epoch stand apart
    assert [round(level["exposure"] / 5) for level in levels] == [1, 3, 8]
    hits = [level["hits"] for level in levels]
    assert hits == sorted(hits)
    assert hits[2] > hits[0] + 0.2
    assert planted["spearman"]["hits"]["rho"] > 0
    assert planted["spearman"]["hits"]["p"] < 0.01
