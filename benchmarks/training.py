"""Pairs per second in training, against open_clip's own training script: three JSON lines, one per claim.

    python benchmarks/training.py                 train_tiny, train_vit_fp32, train_vit_bf16: about 16 minutes on two cores
    python benchmarks/training.py train_tiny      one of them
    python benchmarks/training.py --profile       one step by part, and its share of the machine's matrix-product rate

The peer is ``python -m open_clip_train.main`` on the same shards with the same architecture, batch, precision and threads,
with 1 and with 2 loader processes in the tiny claim. It runs as it is, but for a stopwatch around its epochs. It needs
webdataset 0.2.86, which is installed beside the other packages into PREFIX/peer where it is absent. Both sides train whole
epochs; the first is a warm-up, the best of the others counts; validation and checkpoints are in neither. They take turns, because
the speed of a shared machine changes within minutes; ``epoch_seconds`` are those of all rounds, without the warm-ups.
Two things the peer does are not ours by default: it crops the images at random (``ours_augmented`` does as well), and it
decodes them anew each epoch (ours are decoded once where they fit into ``trainer.loader.cache_mb``).
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any
from unittest.mock import patch

ROOT = Path(__file__).parents[1]
PEER = Path(sys.prefix) / "peer"
WEBDATASET = "webdataset==0.2.86"
RATE = 1e-3


@dataclass(frozen=True)
class Claim:
    """One comparison: an option of ``model=``, its size, and the ratio that is to be reached."""

    model: str
    precision: str
    batch: int
    steps: int  # an epoch
    epochs: int  # the first of them a warm-up
    workers: tuple[int, ...]  # loader processes that the peer is tried with
    threshold: float


CLAIMS = {
    "train_tiny": Claim("tiny", "fp32", 128, 32, 4, (1, 2), 2.5),
    "train_vit_fp32": Claim("vit_b_32", "fp32", 32, 4, 3, (1,), 1.7),
    "train_vit_bf16": Claim("vit_b_32", "bf16", 32, 4, 3, (1,), 1.7),
}
PRECISIONS = {"fp32": ("fp32", "32-true"), "bf16": ("amp_bf16", "bf16-mixed")}  # the peer's name and ours


def write_data(folder: Path, pairs: int) -> None:
    """Generated scenes, the embedded default data, as set A in eight shards."""
    from shards import write_shards  # beside this one

    from dejavu_lit.data.manifest import MANIFEST
    from dejavu_lit.data.readers.scenes import SceneReader
    from dejavu_lit.utils.io import write_json

    reader = SceneReader(pairs)
    write_shards(folder / "A", (reader.read(key)[0] for key in reader.keys()), pairs // 8)
    write_json(folder / MANIFEST, {"benchmark": pairs})


def model_options(name: str) -> dict[str, Any]:
    """name and config of conf/model/NAME.yaml."""
    import yaml

    options = yaml.safe_load((ROOT / "conf" / "model" / f"{name}.yaml").read_text())
    return {key: options.get(key) for key in ("name", "config")}


def stopwatch(run: Callable[..., Any], seconds: list[float]) -> Callable[..., Any]:
    """``run``, each call's seconds appended."""

    def timed(*args: Any, **kwargs: Any) -> Any:
        begun = time.perf_counter()
        try:
            return run(*args, **kwargs)
        finally:
            seconds.append(time.perf_counter() - begun)

    return timed


def train_peer(folder: Path, claim: Claim, workers: int) -> list[float]:
    """Seconds of each epoch of open_clip's script."""
    import open_clip
    import open_clip_train.main as script

    options = model_options(claim.model)
    if options["config"] is not None:
        configs = folder / "configs"
        configs.mkdir(exist_ok=True)
        (configs / f"{options['name']}.json").write_text(json.dumps(options["config"]))
        open_clip.add_model_config(configs)
    seconds: list[float] = []
    script.train_one_epoch = stopwatch(script.train_one_epoch, seconds)
    shards = len(list((folder / "A").glob("*.tar")))
    arguments = {
        "--train-data": f"{folder}/A/{{00000..{shards - 1:05d}}}.tar",
        "--train-num-samples": claim.batch * claim.steps,
        "--dataset-type": "webdataset",
        "--model": options["name"],
        "--precision": PRECISIONS[claim.precision][0],
        "--batch-size": claim.batch,
        "--epochs": claim.epochs,
        "--workers": workers,
        "--device": "cpu",
        "--lr": RATE,
        "--warmup": 100,
        "--logs": "none",
    }
    script.main([str(part) for pair in arguments.items() for part in pair])
    return seconds


def train_ours(folder: Path, claim: Claim, augment: bool) -> list[float]:
    """Seconds of each epoch of `train.py`."""
    from dejavu_lit.data.prepared import DataSpec
    from dejavu_lit.mitigation import Mitigation
    from dejavu_lit.models.settings import ModelSpec
    from dejavu_lit.training.clip_module import ClipModule
    from dejavu_lit.training.settings import Recipe, TrainerSettings, TrainingRun
    from dejavu_lit.training.train import train

    begun: list[float] = []
    seconds: list[float] = []

    def start(module: ClipModule) -> None:
        begun.append(time.perf_counter())
        seconds.append(0.0)

    def end(module: ClipModule, *batch: Any) -> None:
        seconds[-1] = time.perf_counter() - begun[-1]  # up to the last batch: its checkpoint is written behind it

    ClipModule.on_train_epoch_start = followed(start, ClipModule.on_train_epoch_start)  # type: ignore[method-assign]
    ClipModule.on_train_batch_end = followed(end, ClipModule.on_train_batch_end)  # type: ignore[method-assign]
    run = TrainingRun(
        side="target",
        data=DataSpec("benchmark", str(folder)),
        model=ModelSpec(**model_options(claim.model)),
        recipe=Recipe(epochs=claim.epochs, batch=claim.batch, lr=RATE, warmup_steps=100),
        mitigation=Mitigation(image_augment=augment),
        trainer=TrainerSettings(precision=PRECISIONS[claim.precision][1], checkpoint_epochs=1000),
    )
    train(run, Path(tempfile.mkdtemp(dir=folder)))
    return seconds


def followed(first: Callable[..., None], then: Callable[..., None]) -> Callable[..., None]:
    """One function after the other."""

    def both(*args: Any) -> None:
        first(*args)
        then(*args)

    return both


def epochs(who: str, name: str, claim: Claim, folder: Path, option: int, threads: int) -> list[float]:
    """Seconds of the epochs of one side, in a process of its own."""
    found = folder / "seconds.json"
    found.unlink(missing_ok=True)
    environment = {**os.environ, "OMP_NUM_THREADS": str(threads), "MKL_NUM_THREADS": str(threads)}
    paths = [*([str(PEER)] if who == "peer" else []), str(ROOT), os.environ.get("PYTHONPATH", "")]
    environment["PYTHONPATH"] = os.pathsep.join(path for path in paths if path)
    command = [sys.executable, __file__, name, "--side", who, "--folder", str(folder), "--option", str(option)]
    command += ["--steps", str(claim.steps)]
    done = subprocess.run(command, env=environment, cwd=folder, capture_output=True, text=True)
    if done.returncode or not found.is_file():
        raise SystemExit(f"{name}: {who} failed\n{done.stdout[-2000:]}\n{done.stderr[-4000:]}")
    return json.loads(found.read_text())


def compare(name: str, claim: Claim, threads: int, rounds: int) -> dict[str, Any]:
    """One claim, from the best epoch of each side in all rounds."""
    if not PEER.is_dir():
        subprocess.run(
            [sys.executable, "-m", "pip", "install", "-q", "--no-deps", "--target", str(PEER), WEBDATASET], check=True
        )
    pairs = claim.batch * claim.steps
    with tempfile.TemporaryDirectory() as where:
        folder = Path(where)
        write_data(folder, pairs)
        sides = {f"peer, {w} workers": ("peer", w) for w in claim.workers} | {"ours": ("ours", 0)}
        if claim.model == "tiny":
            sides["ours, augmented"] = ("ours", 1)
        seconds: dict[str, list[float]] = {what: [] for what in sides}
        for _ in range(rounds):
            for what, (who, option) in sides.items():
                seconds[what] += epochs(who, name, claim, folder, option, threads)[1:]
    rates = {what: pairs / min(each) for what, each in seconds.items()}
    peer = max(rate for what, rate in rates.items() if what.startswith("peer"))
    line = {"name": name, "ratio": rates["ours"] / peer, "ours": rates["ours"], "peer": peer, "unit": "pairs/s"}
    line |= {"threshold": claim.threshold, "peer_is": "open_clip_train.main", "precision": claim.precision}
    if "ours, augmented" in rates:
        line["ours_augmented"] = rates["ours, augmented"]
    return line | {"batch": claim.batch, "pairs": pairs, "epoch_seconds": seconds, "threads": threads}


def product_rate(precision: str, size: int = 2048) -> float:
    """The machine's matrix products, as the towers compute them, in GFLOP/s: the best of several."""
    import torch

    from dejavu_lit.models.towers import linear

    dtype = torch.float32 if precision == "fp32" else torch.bfloat16
    one, other = (torch.randn(size, size).to(dtype) for _ in range(2))
    seconds: list[float] = []
    multiply = stopwatch(linear, seconds)
    for _ in range(6):
        multiply(one, other)
    return 2 * size**3 / min(seconds) / 1e9


def profile(name: str, trim: bool, steps: int = 3) -> dict[str, Any]:
    """Milliseconds of each part of a step (the best of several), and the step's matrix products against the machine's rate."""
    import torch
    from torch.utils.flop_counter import FlopCounterMode

    from dejavu_lit.data.module import PairDataModule
    from dejavu_lit.data.prepared import DataSpec
    from dejavu_lit.mitigation import Mitigation
    from dejavu_lit.models import towers
    from dejavu_lit.models.build import build_model, export_config
    from dejavu_lit.models.preprocess import Preprocess
    from dejavu_lit.models.settings import ModelSpec
    from dejavu_lit.training.clip_module import ClipModule
    from dejavu_lit.training.regularizers import contrastive_loss
    from dejavu_lit.training.settings import Recipe, TrainerSettings

    claim = CLAIMS[name]
    with tempfile.TemporaryDirectory() as where:
        folder = Path(where)
        write_data(folder, claim.batch * (steps + 1))
        spec = ModelSpec(**model_options(claim.model))
        export_config(spec, folder / "model")
        import open_clip

        network: Any = build_model(spec, folder / "model").train()
        tokenizer = open_clip.get_tokenizer(f"local-dir:{folder / 'model'}")
        data, preprocess = DataSpec("photographs", str(folder)), Preprocess(network.visual.preprocess_cfg)
        pairs = PairDataModule(data, "target", claim.batch, 0, preprocess, tokenizer)
        pairs.setup("fit")
        recipe = Recipe(epochs=1, batch=claim.batch, lr=RATE)
        module = ClipModule(network, recipe, Mitigation(), trainer=TrainerSettings(trim=trim))
        loss = contrastive_loss(False, 0, 0, 1)
        optimizer = torch.optim.AdamW(network.parameters(), lr=RATE, fused=True)
        features = module._features
        images_of, captions_of = features.visual or network.encode_image, features.text or network.encode_text
        extra = (False,) if trim else ()
        parts: dict[str, list[float]] = {}

        def part(what: str, run: Callable[[], Any]) -> Any:
            return stopwatch(run, parts.setdefault(what, []))()

        def step(batch: dict[str, Any]) -> None:
            ready = part("captions", lambda: module.on_before_batch_transfer(batch, 0))
            with torch.autocast("cpu", torch.bfloat16, enabled=claim.precision == "bf16"):
                pixels = part("pixels", lambda: module._pixels(ready["images"]))
                image = part("image forward", lambda: images_of(pixels, *extra))
                text = part("text forward", lambda: captions_of(ready["captions"][0], *extra))
                norm = torch.nn.functional.normalize
                value = part("loss", lambda: loss(norm(image), norm(text), module.logit_scale.exp()))
            part("backward", value.backward)
            part("optimizer", optimizer.step)
            part("zero gradients", optimizer.zero_grad)

        batches = iter(pairs.train_dataloader())
        for _ in range(steps):
            step(part("data", lambda: next(batches)))
        best = {what: round(min(each) * 1000, 1) for what, each in parts.items()}
        machine = product_rate(claim.precision)
        # torch does not count what oneDNN computes
        with patch.object(towers, "mkl_is_slow", return_value=False), FlopCounterMode(display=False) as counter:
            step(next(batches))
    total, gflop = sum(best.values()), counter.get_total_flops() / 1e9
    return {
        "name": f"profile_{name.removeprefix('train_')}",
        "trim": trim,
        "milliseconds": best,
        "step_ms": round(total, 1),
        "gflop": round(gflop, 1),
        "gflop_per_s": round(gflop / total * 1000, 1),
        "machine_gflop_per_s": round(machine, 1),
        "share": round(gflop / total * 1000 / machine, 3),
        "threads": torch.get_num_threads(),
    }


def main() -> None:
    """Print the JSON lines."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("claims", nargs="*", choices=[[], *CLAIMS], help=", ".join(CLAIMS))
    parser.add_argument(
        "--profile", action="store_true", help="one step by part instead, with and without trainer.trim"
    )
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--steps", type=int, help="an epoch; fewer only show that it runs")
    parser.add_argument("--rounds", type=int, default=2, help="how often each side trains")
    parser.add_argument("--side", choices=["ours", "peer"], help=argparse.SUPPRESS)  # a process of the benchmark's own
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--option", type=int, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    claims = {name: CLAIMS[name] for name in arguments.claims or CLAIMS}
    if arguments.steps:
        claims = {name: replace(claim, steps=arguments.steps) for name, claim in claims.items()}
    if arguments.side:
        (claim,) = claims.values()
        if arguments.side == "peer":
            seconds = train_peer(arguments.folder, claim, arguments.option)
        else:
            seconds = train_ours(arguments.folder, claim, bool(arguments.option))
        (arguments.folder / "seconds.json").write_text(json.dumps(seconds))
        return
    for name, claim in claims.items():
        if arguments.profile:
            import torch

            torch.set_num_threads(arguments.threads)
            for trim in (True, False):
                print(json.dumps(profile(name, trim)), flush=True)
        else:
            print(json.dumps(compare(name, claim, arguments.threads, arguments.rounds)), flush=True)


if __name__ == "__main__":
    main()
