"""What one GPU does, in at most six minutes: one JSON line per claim, {name, device, …}.

    python benchmarks/gpu.py              train_vit_b_32 (one line per batch), embedding_vit_b_32, search, parity
    python benchmarks/gpu.py --tiny       the same code with a tiny model on the CPU, to try the script

Training is `dejavu train` from the shards on, in bfloat16. Its peer is a bare loop of open_clip's model, ClipLoss and AdamW
over one batch that stays on the GPU, so it reads no data. The share of the peak is the model's FLOP (with padded captions on
both sides) per second over those of a square product in bfloat16, measured first. Search is faiss with exact re-ranking, from
vectors in memory, against torch.matmul and topk of vectors that are on the GPU already. Parity is one evaluation of the same
two runs on the CPU and on the GPU. Nothing is downloaded.
"""

import argparse
import csv
import json
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import redirect_stdout
from dataclasses import dataclass, replace
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import open_clip
import torch
from embedding import photograph
from shards import write_shards  # beside this one
from torch.utils.flop_counter import FlopCounterMode
from training import model_options

from dejavu_lit.data.shards import Pair
from dejavu_lit.evaluation.embed import embed
from dejavu_lit.evaluation.search import search
from dejavu_lit.models.zoo import load_encoder
from dejavu_lit.utils.errors import first_line

LIMIT_S = 360


@dataclass(frozen=True)
class Sizes:
    """How much is measured, on which device."""

    device: str
    model: str
    options: tuple[str, ...]
    batches: tuple[int, ...]
    steps: int
    images: int
    queries: int
    public: int
    product: int


LOADER = ("trainer.loader.workers=8", "trainer.loader.cache_mb=4096")
GPU = Sizes("cuda", "vit_b_32", ("trainer=gpu", *LOADER), (256, 512, 1024, 2048), 6, 4096, 20_000, 1_000_000, 8192)
CPU = Sizes("cpu", "tiny", ("trainer=cpu",), (16, 32), 4, 64, 50, 2000, 512)


def dejavu(command: str, *options: str) -> None:
    """One command of dejavu in this process; its output goes to stderr."""
    with redirect_stdout(sys.stderr):
        import_module(f"dejavu_lit.cli.{command}").main([*options])


def synchronized(sizes: Sizes) -> float:
    """The time, once the device has done all its work."""
    if sizes.device == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter()


def seconds_of(run: Callable[[], Any], sizes: Sizes, rounds: int = 5) -> float:
    """The least seconds of a call, after one that does not count."""
    run()
    best = float("inf")
    for _ in range(rounds):
        begun = synchronized(sizes)
        run()
        best = min(best, synchronized(sizes) - begun)
    return best


def peak_gib(sizes: Sizes) -> float | None:
    """The most memory that tensors have taken since it was last asked, in GiB; None on a CPU."""
    if sizes.device != "cuda":
        return None
    peak = torch.cuda.max_memory_allocated() / 2**30
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats()
    return peak


def product_rate(sizes: Sizes) -> float:
    """FLOP per second of a square matrix product in bfloat16."""
    one, other = (
        torch.randn(sizes.product, sizes.product, device=sizes.device, dtype=torch.bfloat16) for _ in range(2)
    )
    return 2 * sizes.product**3 / seconds_of(lambda: one @ other, sizes)


def bare_loop(sizes: Sizes, batch: int) -> tuple[float, float]:
    """Seconds of one step of open_clip's model and loss, and its FLOP per pair."""
    options, loss = model_options(sizes.model), open_clip.ClipLoss()
    model = open_clip.CLIP(**options["config"]) if options["config"] else open_clip.create_model(options["name"])
    model.to(sizes.device).train()
    optimizer = torch.optim.AdamW(model.parameters(), fused=True)
    side = model.visual.image_size if isinstance(model.visual.image_size, int) else model.visual.image_size[0]
    images = torch.randn(batch, 3, side, side, device=sizes.device)
    captions = torch.randint(1, 49407, (batch, model.context_length), device=sizes.device)

    def step() -> None:
        optimizer.zero_grad()
        with torch.autocast(sizes.device, torch.bfloat16):
            image, text, scale = model(images, captions)[:3]
            value = loss(image, text, scale)
        value.backward()
        optimizer.step()

    with FlopCounterMode(display=False) as counter:
        step()
    return seconds_of(step, sizes), counter.get_total_flops() / batch


def train(sizes: Sizes, folder: Path, data: list[str], side: str, batch: int) -> Path:
    """A finished run of three epochs."""
    out = folder / f"{side}-{batch}"
    options = (
        *data,
        f"side={side}",
        f"model={sizes.model}",
        f"recipe.batch={batch}",
        "recipe.epochs=3",
        *sizes.options,
    )
    dejavu("train", *options, "trainer.precision=bf16-mixed", "trainer.log_every=2", f"out={out}")
    return out


def training(sizes: Sizes, folder: Path) -> Iterator[dict[str, Any]]:
    """One line per batch: pairs/s of the fastest interval of a run, the bare loop's, and the peak memory of each."""
    peak = product_rate(sizes)
    yield {"name": "product_bf16", "tflops": peak / 1e12, "size": sizes.product}
    data = prepared(folder, "data", max(sizes.batches) * sizes.steps, 64)
    for batch in sizes.batches:
        peak_gib(sizes)
        try:
            run = train(sizes, folder, [*data, f"data.train_size={batch * sizes.steps}"], "target", batch)
            ours_gib = peak_gib(sizes)
            seconds, flop = bare_loop(sizes, batch)
        except (torch.OutOfMemoryError, SystemExit) as error:
            yield {"name": f"train_{sizes.model}", "batch": batch, "skipped": f"{type(error).__name__}: {error}"[:200]}
            return
        with open(run / "metrics.csv", newline="") as file:
            rates = [float(row["value"]) for row in csv.DictReader(file) if row["metric"] == "pairs/s"]
        ours, peer = max(rates), batch / seconds
        yield {
            "name": f"train_{sizes.model}",
            "batch": batch,
            "ours": ours,
            "peer": peer,
            "ratio": ours / peer,
            "unit": "pairs/s",
            "gflop_per_pair": flop / 1e9,
            "share_of_peak": {"ours": ours * flop / peak, "peer": peer * flop / peak},
            "peak_gib": {"ours": ours_gib, "peer": peak_gib(sizes)},
        }


def prepared(folder: Path, name: str, a: int, b: int) -> list[str]:
    """Options that name prepared scenes with these numbers of pairs in A and B."""
    rest = max(64, min(a, 512))
    options = [f"data.dir={folder / name}", f"data.sizes={{A: {a}, B: {b}, H: {rest}, V: 0, P: {rest}}}"]
    options += [f"data.reader.count={a + b + 2 * rest}", "data.extra.single.count=100"]
    dejavu("prepare", *options)
    return options


def embedding(sizes: Sizes, folder: Path) -> Iterator[dict[str, Any]]:
    """Images per second from JPEG shards to fp16 vectors on disk."""
    random = np.random.default_rng(0)
    photographs = [photograph(random) for _ in range(16)]
    pairs = (Pair(f"{i:06d}", photographs[i % 16], "jpg", "a caption") for i in range(sizes.images))
    shards = write_shards(folder / "images", pairs, max(16, sizes.images // 16))
    source = f"local-dir:{folder / f'target-{sizes.batches[0]}' / 'model'}"
    encoder = load_encoder(source, sizes.device)
    embed(encoder, shards, "image", folder / "warm", workers=8)
    begun = synchronized(sizes)
    embed(encoder, shards, "image", folder / "embeddings", workers=8)
    rate = sizes.images / (synchronized(sizes) - begun)
    yield {
        "name": f"embedding_{sizes.model}",
        "ours": rate,
        "unit": "images/s",
        "images": sizes.images,
        "pixels": "640x480 JPEG",
    }


def searching(sizes: Sizes, folder: Path) -> Iterator[dict[str, Any]]:
    """Seconds of the exact search of k = 10, and of torch's."""
    generator = torch.Generator(sizes.device).manual_seed(0)

    def unit(count: int) -> torch.Tensor:
        vectors = torch.randn(count, 512, generator=generator, device=sizes.device)
        return torch.nn.functional.normalize(vectors)

    queries, public = unit(sizes.queries), unit(sizes.public).half()
    parts = list(np.array_split(public.cpu().numpy(), 10))
    stored, index = queries.half().cpu().numpy(), "gpu" if sizes.device == "cuda" else "flat"
    found = search(stored, parts, 10, index)[0].rows

    def topk() -> torch.Tensor:
        blocks = queries.half().split(max(1, 2**28 // sizes.public))
        return torch.cat([(block @ public.T).float().topk(10).indices for block in blocks])

    agree = float(np.mean([len(set(a) & set(b)) / 10 for a, b in zip(found.tolist(), topk().tolist(), strict=True)]))
    ours = seconds_of(lambda: search(stored, parts, 10, index), sizes, 2)
    peer = seconds_of(topk, sizes, 2)
    line = {"name": "search", "ours": ours, "peer": peer, "ratio": peer / ours, "unit": "s", "same_neighbors": agree}
    yield line | {"queries": sizes.queries, "public": sizes.public, "peer_is": "torch.matmul in fp16 and topk"}


def parity(sizes: Sizes, folder: Path) -> Iterator[dict[str, Any]]:
    """The symmetric gaps of one evaluation on the CPU and on the device."""
    pairs = sizes.images // 4 * 2
    data = prepared(folder, "data-parity", pairs, pairs)
    small = replace(sizes, model="tiny")
    runs = {side: train(small, folder / "parity", data, side, 32) for side in ("target", "reference")}
    gaps = {}
    for device in ("cpu", sizes.device):
        out = folder / f"gap-{len(gaps)}"
        options = [
            *(f"{side}={run}" for side, run in runs.items()),
            f"device={device}",
            f"out={out}",
            f"embeddings={out}",
        ]
        dejavu("evaluate", *options, "report.write=false")
        symmetric = json.loads((out / "metrics.json").read_text())["symmetric"]
        gaps[out.name] = {figure: symmetric[figure]["value"] for figure in ("ppg", "prg", "aucg")}
    first, second = gaps.values()
    yield {
        "name": "parity",
        "cpu": first,
        "device_gaps": second,
        "largest_difference": max(abs(first[f] - second[f]) for f in first),
    }


Claim = Callable[[Sizes, Path], Iterator[dict[str, Any]]]


def report(claim: Claim, sizes: Sizes, folder: Path, end: float) -> Iterator[dict[str, Any]]:
    """The lines of a claim until ``end``; one that fails is skipped with its reason, so that the others still report."""
    lines = claim(sizes, folder)
    try:
        while time.perf_counter() < end:
            if (line := next(lines, None)) is None:
                return
            yield line
        yield {"name": claim.__name__, "skipped": f"the {LIMIT_S} s are nearly over"}
    except (Exception, SystemExit) as error:  # of any library, or of a command
        yield {"name": claim.__name__, "skipped": f"{type(error).__name__}: {first_line(error)}"}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tiny", action="store_true", help="a tiny model on the CPU")
    sizes = CPU if parser.parse_args().tiny else GPU
    if sizes is GPU and not torch.cuda.is_available():
        raise SystemExit("error: no GPU was found; run this on a machine with one, or try the script with --tiny")
    card = torch.cuda.get_device_name() if sizes is GPU else "cpu"
    begun = time.perf_counter()
    with tempfile.TemporaryDirectory() as name:
        for claim in (training, embedding, searching, parity):
            for line in report(claim, sizes, Path(name), begun + LIMIT_S - 60):
                print(json.dumps(line | {"device": card, "seconds": round(time.perf_counter() - begun, 1)}), flush=True)


if __name__ == "__main__":
    main()
