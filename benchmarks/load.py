"""Load: so many pairs in shards through prepare → epoch plan → embedding → search → records, time and peak memory of each.

    python benchmarks/load.py                     1,000,000 pairs: an hour and 12 GB of disk on one core
    python benchmarks/load.py --pairs 10000       a minute
    python benchmarks/load.py --folder DIR        keeps what was made, and goes on there

One JSON line per stage: {stage, pairs, seconds, pairs_per_s, peak_mb, cpu_s, …}. Every stage is a process of its own, and
``peak_mb`` is the largest resident size that the system saw in it or its workers (memory-mapped files included). ``base``
only imports what the others import, so ``peak_mb`` − its own is what the data took. Images have 16 × 16 pixels, the model
one layer 16 wide: what is measured is the pipeline, not the model. Both sides of the evaluation are that one model, so that
every gap must be 0, and it measures a sample of A: a twentieth of all pairs.
"""

import argparse
import importlib
import io
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
SHARD = 1000  # pairs
SIZES = {"A": 0.5, "H": 0.02, "P": 0.48}
THINGS = [f"{first}{second}" for first in ("red", "blue", "old", "tiny", "round") for second in ("ball", "cat", "cup")]
TINY = {
    "embed_dim": 16,
    "vision_cfg": {"image_size": 16, "patch_size": 8, "width": 16, "layers": 1, "head_width": 16},
    "text_cfg": {"context_length": 16, "vocab_size": 49408, "width": 16, "heads": 1, "layers": 1},
}


def base(folder: Path, pairs: int) -> dict[str, Any]:
    """What the other stages import, and nothing else."""
    for module in (
        "data.prepare",
        "evaluation.evaluate",
        "cli.evaluate",
        "evaluation.embed",
        "models.zoo",
        "report.evaluation",
    ):
        importlib.import_module(f"dejavu_lit.{module}")
    return {"modules": len(sys.modules)}


def source(folder: Path, pairs: int) -> dict[str, Any]:
    """The shards that the user brings: noise with a caption of five words."""
    import numpy as np
    from PIL import Image

    from dejavu_lit.data.shards import Pair, write_shard

    for number, first in enumerate(range(0, pairs, SHARD)):
        path = folder / "source" / f"{number:05d}.tar"
        if path.exists():
            continue
        random = np.random.default_rng(number)
        images = random.integers(0, 256, (SHARD, 16, 16, 3), dtype=np.uint8)
        words = random.integers(0, len(THINGS), (SHARD, 2))
        with write_shard(path) as write:
            for row in range(min(SHARD, pairs - first)):
                buffer = io.BytesIO()
                Image.fromarray(images[row]).save(buffer, "JPEG", quality=90)
                one, other = (THINGS[word] for word in words[row])
                write(Pair(f"{first + row:09d}", buffer.getvalue(), "jpg", f"a {one} beside a {other}"))
    return {}


def prepare(folder: Path, pairs: int) -> dict[str, Any]:
    """The command, with one worker."""
    from dejavu_lit.data.prepare import Preparation
    from dejavu_lit.data.readers.shards import ShardReader

    manifest = Preparation(ShardReader(folder / "source"), folder / "data", SIZES).run(workers=1)
    used = {name: part["pairs"] for name, part in manifest["sets"].items()}
    assert sum(used.values()) + manifest["pairs"]["unused"] + manifest["pairs"]["skipped"] == pairs, manifest["pairs"]
    return {"sets": used, "near_duplicates": manifest["duplicates"]["source"]["near"]["groups"]}


def plan(folder: Path, pairs: int) -> dict[str, Any]:
    """Every entry of one epoch of A, for 2 ranks with 2 loader workers each, every pair seen at most once."""
    import numpy as np

    from dejavu_lit.data.epoch import epoch_plan
    from dejavu_lit.data.shards import ShardSet

    shards = ShardSet.open(folder / "data" / "A")
    epoch = epoch_plan(shards.sizes, 0, 0, world=2, workers=2, batch=64)
    seen = np.zeros(len(shards), np.int8)
    for rank in range(2):
        for worker in range(2):
            for part in epoch.parts(rank, worker):
                np.add.at(seen, shards.starts[part[:, 0]] + part[:, 1], 1)
    assert seen.max() == 1, "a pair was seen twice"
    assert (seen == 0).sum() < 2 * 64, "more pairs left out than the definition allows"
    return {"steps": epoch.steps, "left_out": int((seen == 0).sum())}


def objects(folder: Path, pairs: int) -> dict[str, Any]:
    """Objects as an annotator would leave them: for each image one or two things by chance."""
    import numpy as np

    from dejavu_lit.data.objects import Annotation, Annotator, write_objects
    from dejavu_lit.data.shards import ShardSet

    for name in SIZES:
        shards = ShardSet.open(folder / "data" / name)
        for shard, tar in enumerate(shards.names):
            random = np.random.default_rng(shard)
            found = [
                Annotation(
                    key, [THINGS[c] for c in set(codes)], [1.0] * len(set(codes)), [[0, 0, 8, 8]] * len(set(codes))
                )
                for key, codes in zip(
                    shards.index(shard).keys,
                    random.integers(0, len(THINGS), (shards.sizes[shard], 2)).tolist(),
                    strict=True,
                )
            ]
            write_objects(
                folder / "data" / "objects" / "load" / name / f"{Path(tar).stem}.parquet", found, Annotator("load")
            )
    return {}


def embed(folder: Path, pairs: int) -> dict[str, Any]:
    """The captions of A and H and the images of P and H, where the evaluation looks for them."""
    import open_clip
    import torch

    from dejavu_lit.data.shards import ShardSet
    from dejavu_lit.evaluation.audited_model import AuditedModel
    from dejavu_lit.models.build import export_config, export_weights
    from dejavu_lit.models.settings import ModelSpec

    model = folder / "model"
    if not (model / "open_clip_model.safetensors").exists():
        export_config(ModelSpec("tiny", TINY), model)
        torch.manual_seed(0)
        export_weights(open_clip.create_model(f"local-dir:{model}", load_weights=False).state_dict(), model)
    audited = AuditedModel(f"local-dir:{model}", folder / "embeddings", workers=1)
    rows = 0
    for name, modality in (("A", "text"), ("H", "text"), ("P", "image"), ("H", "image")):
        rows += len(audited.embeddings(ShardSet.open(folder / "data" / name), name, modality))
    return {"rows": rows}


def records(folder: Path, pairs: int) -> dict[str, Any]:
    """The evaluation of a sample of A and all of H against all of P: search, records, figures."""
    from dejavu_lit.cli.evaluate import main

    sample, model = max(1, pairs // 20), f"local-dir:{folder / 'model'}"
    sys.argv = ["evaluate.py", f"target={model}", f"reference={model}", "data=prepared", f"data.dir={folder / 'data'}"]
    sys.argv += [f"data.train_size={sample}", "objects=load", "threshold=0", f"embeddings={folder / 'embeddings'}"]
    sys.argv += [f"out={folder / 'evaluation'}", "allow_overlap=true", "workers=1"]
    main()
    metrics = json.loads((folder / "evaluation" / "metrics.json").read_text())
    assert metrics["counts"]["records"] == sample, metrics["counts"]
    for block in ("population", "null", "corrected"):
        assert metrics[block]["ppg"]["value"] == 0, "one model on both sides, and yet a gap"
    return {"records": sample + metrics["counts"]["null"]["records"], "public": metrics["counts"]["public"]}


STAGES: dict[str, Callable[[Path, int], dict[str, Any]]] = {
    stage.__name__: stage for stage in (base, source, prepare, plan, objects, embed, records)
}


def alone(stage: str, folder: Path, pairs: int) -> dict[str, Any]:
    """Run one stage in a process of its own; its line."""
    here = [
        sys.executable,
        str(Path(__file__).resolve()),
        "--stage",
        stage,
        "--folder",
        str(folder),
        "--pairs",
        str(pairs),
    ]
    path = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
    begun = time.perf_counter()
    with subprocess.Popen(here, env={**os.environ, "PYTHONPATH": path}, stdout=subprocess.PIPE, text=True) as child:
        assert child.stdout is not None
        said = child.stdout.read()
        _, status, used = os.wait4(child.pid, 0)
        child.returncode = os.waitstatus_to_exitcode(status)
    seconds = time.perf_counter() - begun
    if child.returncode:
        raise SystemExit(f"the stage {stage} ended with exit code {child.returncode}: {said}")
    line = {"stage": stage, "pairs": pairs, "seconds": round(seconds, 1), "pairs_per_s": round(pairs / seconds)}
    # Linux counts in kilobytes; of a process and those it waited for, the largest.
    return (
        line
        | {"peak_mb": round(used.ru_maxrss / 1024), "cpu_s": round(used.ru_utime + used.ru_stime, 1)}
        | json.loads(said.splitlines()[-1])
    )


def main() -> None:
    """Print the JSON lines."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--pairs", type=int, default=1_000_000)
    parser.add_argument(
        "--folder", type=Path, help="where it is made; a temporary folder, removed in the end, by default"
    )
    parser.add_argument("--stage", choices=STAGES, help="this one alone, in this process")
    arguments = parser.parse_args()
    if arguments.stage:
        print(json.dumps(STAGES[arguments.stage](arguments.folder.resolve(), arguments.pairs)), flush=True)
        return
    with tempfile.TemporaryDirectory() as temporary:
        for stage in STAGES:
            print(json.dumps(alone(stage, arguments.folder or Path(temporary), arguments.pairs)), flush=True)


if __name__ == "__main__":
    main()
