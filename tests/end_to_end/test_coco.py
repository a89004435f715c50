"""Real photographs in COCO's format: prepared, trained on, evaluated."""

import json

import pytest

from tests.conftest import ROOT, SMALL, run

COCO = ROOT.parent / "shared" / "data" / "coco-mini"


@pytest.mark.skipif(not COCO.is_dir(), reason="needs ../shared/data/coco-mini")
def test_coco_from_json_to_a_gap(tmp_path):
    data = tmp_path / "coco"
    run("prepare", "data=coco", f"data.reader.root={COCO}", f"data.dir={data}")
    manifest = json.loads((data / "manifest.json").read_text())
    assert sum(manifest["sets"][name]["pairs"] for name in "ABHVP") >= 155
    model = [o for o in SMALL if not o.startswith("data.")]
    for side in ("target", "reference"):
        run("train", "data=coco", f"data.dir={data}", f"side={side}", f"out={tmp_path / side}", *model)
    out = tmp_path / "gap"
    run(
        "evaluate",
        f"target={tmp_path / 'target'}",
        f"reference={tmp_path / 'reference'}",
        f"out={out}",
        "k=5",
        "ks=[1,5]",
    )
    found = json.loads((out / "metrics.json").read_text())
    assert found["counts"]["records"] + found["counts"]["without_objects"] == manifest["sets"]["A"]["pairs"]
    assert found["counts"]["records"] > 0
    assert found["symmetric"]["ppg"]["ci95"][0] <= found["symmetric"]["ppg"]["value"]
    assert found["utility"]["target"]["zeroshot_top1"] is None
    assert found["utility"]["target"]["t2i_r1"] is not None
