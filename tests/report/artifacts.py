"""Small whole evaluations and studies on disk, made by the package's own writers from random neighbors, without a model."""

import io
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from dejavu_lit.data.objects import Annotation, Annotator, read_objects, write_objects
from dejavu_lit.data.shards import Pair, write_shards
from dejavu_lit.measure.metrics import Settings, measure
from dejavu_lit.measure.records import EXPOSURE, Neighbors, Records, write_records
from dejavu_lit.study import table as study
from dejavu_lit.utils.io import read_json, write_json

WORDS = (
    "bear",
    "wolf",
    "kite",
    "soccer ball",
    "tulip",
    "drum",
    "pizza",
    "bus",
    "owl",
    "crown",
    "<b>bold</b>",
    "$x$ & y",
)
HOSTILE = (
    "<script>window.hacked = 1</script>",
    '"><img src=x onerror="window.hacked = 2">',
    "שלום עולם with a kite",
    "مرحبا ‮ reversed",
    "a 🐻 and a 👩‍👩‍👧 in one image \u2028 next line",
    "</script><style>*{display:none}</style> ${alert(1)} `x`",
)
FEW_FIGURES = Settings(k=5, ks=(5,), bootstrap=100, tops=(10, 1.0), subgroups=())
SETS = {"A": 1, "B": 2, "H": 3}


def make_evaluation(
    folder: Path,
    n: int = 40,
    m: int = 30,
    strength: float = 0.6,
    images: bool = True,
    captions: Mapping[int, str] | None = None,
    planted: bool = False,
    data: Path | None = None,
    settings: Settings | None = None,
    seed: int = 0,
) -> Path:
    """An evaluation of n pairs a set and m public images; with ``strength`` target's neighbors share an object.

    Data and objects lie in ``data`` (``folder``/data by default) and depend on n, m and ``captions`` alone.
    """
    data = data or folder / "data"
    settings = settings or Settings(
        k=5, ks=(1, 5), bootstrap=100, tops=(10, 0.1, 1.0), smallest_group=5, thresholds=(0.3,), top_ms=(3, 6)
    )
    if not (data / "objects").is_dir():
        _data(data, n, m, dict(captions or {}), images)
    kinds = {"population": "A", "null": "H", "swapped": "B"}

    def at(threshold: float) -> dict[str, Any]:
        found, _ = read_objects([data / "objects" / "made" / name for name in (*kinds.values(), "P")], threshold)
        return dict(zip((*kinds.values(), "P"), found, strict=True))

    objects = at(settings.threshold)
    rng = np.random.default_rng(seed)
    sets = {}
    for kind, name in kinds.items():
        truth, public = objects[name], objects["P"]
        texts = json.loads((data / f"{name}.captions.json").read_text())
        target = _neighbors(rng, truth, public, settings.ks[-1], 0.0 if kind == "null" else strength)
        reference = _neighbors(rng, truth, public, settings.ks[-1], 0.0)
        columns = {EXPOSURE: [20 if planted and i % 4 == 0 else 2 for i in range(len(truth))]}
        sets[kind] = Records(texts, truth, public, target, reference, columns)
        file = "records.parquet" if kind == "population" else f"records_{kind}.parquet"
        write_records(folder / file, sets[kind], settings.k, settings.top_m)
    metrics = measure(sets["population"], sets["null"], sets["swapped"], settings, at)
    metrics["utility"] = {
        side: {"zeroshot_top1": 0.4 + 0.05 * strength, "t2i_r1": 0.2, "linear_probe": None}
        for side in ("target", "reference")
    }
    metrics["exposure"] = {side: {"mean": 2.0, "min": 2, "max": 2} for side in ("target", "reference")}
    metrics["search"] = {"index": "flat", "recall": 1.0}
    metrics["settings"] |= {"target": "runs/target", "reference": "runs/<reference>", "public": "scenes"}
    metrics["settings"] |= {"objects": str(data / "objects" / "made"), "data": str(data)}
    metrics["provenance"] = {
        "dejavu_lit": "0.1.0",
        "commit": "abc",
        "command": "evaluate.py target=runs/target",
        "versions": {"numpy": "2"},
        "config": {"data": {"public_sets": {"scenes": "P"}}},
    }
    write_json(folder / "metrics.json", metrics)
    write_json(folder / "context.json", {"public": "P"})
    return folder


def make_study(
    folder: Path,
    strengths: Mapping[str, float],
    sizes: tuple[int, ...] = (40,),
    seeds: int = 1,
    settings: Settings | None = None,
) -> Path:
    """A study of settings whose targets remember more or less; the first is the default."""
    rows = []
    for size in sizes:
        for name, strength in strengths.items():
            for seed in range(seeds):
                where = folder / "evaluations" / f"{name}-{size}-{seed}"
                make_evaluation(
                    where, n=size, strength=strength, data=folder / f"data{size}", seed=seed, settings=settings
                )
                runs = [folder / f"{name}-{side}" for side in ("target", "reference")]
                for run in runs:
                    write_json(run / "run.json", {"seconds": 1.0})
                cell = study.Cell(name, (f"mitigation.text_mask={1 - strength:g}",), size, seed, runs[0], runs[1])
                row = study.row(folder, cell, read_json(where / "metrics.json"), where)
                rows.append(row | {"data": "data", "objects": "made"})  # sizes of a real study share their data
    study.conclude(folder, rows, {}, 0.05)
    return folder


def _data(data: Path, n: int, m: int, captions: dict[int, str], images: bool) -> None:
    rng = np.random.default_rng(7)
    for name, count in [*((s, n) for s in SETS), ("P", m)]:
        rows, texts, pairs = [], [], []
        for i in range(count):
            key = f"{name.lower()}{i:05d}"
            some = sorted(rng.choice(len(WORDS), size=int(rng.integers(1, 5)), replace=False).tolist())
            if i == count - 1 and name == "A":
                some = []  # an image without objects: left out of every figure
            scores = [0.9 if rng.random() < 0.8 else 0.4 for _ in some]
            scores[:1] = [0.9] * bool(some)
            boxes = [[2.0 * j, 1.0 + j, 8.0, 6.0] for j in range(len(some))]  # in images of 24 × 16 pixels
            rows.append(Annotation(key, [WORDS[s] for s in some], scores, boxes))
            texts.append(captions.get(i, f"one {WORDS[some[0]]} in image {i}" if some else "nothing at all"))
            pairs.append(Pair(key, _image(i if count < 1000 else 0), "png", texts[-1]))
        write_objects(data / "objects" / "made" / name / "00000.parquet", rows, Annotator("made", threshold=0.0))
        (data / f"{name}.captions.json").write_text(json.dumps(texts))
        if images:
            write_shards(data / name, pairs, pairs_per_shard=5000)


def _image(number: int) -> bytes:
    out = io.BytesIO()
    Image.new("RGB", (24, 16), ((number * 37) % 256, (number * 91) % 256, 120)).save(out, "PNG")
    return out.getvalue()


def _neighbors(rng: np.random.Generator, truth: Any, public: Any, k: int, strength: float) -> Neighbors:
    """k public rows for every record: with probability ``strength`` each shares an object with the record."""
    by_code: dict[int, list[int]] = {}
    for row in range(len(public)):
        for code in public.codes[public.starts[row] : public.starts[row + 1]].tolist():
            by_code.setdefault(code, []).append(row)
    rows = np.zeros((len(truth), k), np.int32)
    for record in range(len(truth)):
        own = truth.codes[truth.starts[record] : truth.starts[record + 1]].tolist()
        near = [r for code in own for r in by_code.get(code, [])]
        first = [r for r in dict.fromkeys(near) if rng.random() < strength][:k]
        others = [r for r in rng.choice(len(public), 2 * k, replace=False).tolist() if r not in first]
        rows[record] = [*first, *others][:k]
    distances = np.sort(rng.uniform(0.1, 0.9, rows.shape).astype(np.float32), axis=1)
    return Neighbors(rows, distances)
