"""What the gaps cost while training: the demo's run (2,000 pairs, 25 epochs, gaps every 5 on 500 + 500 records).

    python benchmarks/callback.py [--epochs 25]        trains a reference, then a target that is measured against it

One JSON line: ours, the seconds of the target's training; peer, the same without those spent in the callback; both are of
one run, since two runs on a busy machine differ by more than the callback costs. The reference has a checkpoint of each
epoch that is measured, so it is encoded anew every time: the most expensive case.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent


def train(side: str, out: Path, epochs: int, *options: str) -> dict:
    """Train one side on the scenes data with default settings and return run.json."""
    command = [
        sys.executable,
        str(ROOT / "train.py"),
        f"side={side}",
        f"out={out}",
        f"recipe.epochs={epochs}",
        *options,
    ]
    subprocess.run(command, cwd=ROOT, check=True, stderr=subprocess.DEVNULL)
    return json.loads((out / "run.json").read_text())


def main() -> None:
    """Print the JSON line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--epochs", type=int, default=25)
    epochs = parser.parse_args().epochs
    with tempfile.TemporaryDirectory() as where:
        reference, target = Path(where) / "reference", Path(where) / "target"
        train("reference", reference, epochs)
        record = train("target", target, epochs, f"gaps.reference={reference}")
    whole, spent = record["seconds"], record["gaps"]["seconds"]
    line = {
        "name": "gaps_while_training",
        "ratio": (whole - spent) / whole,
        "ours": whole,
        "peer": whole - spent,
        "unit": "s",
        "threshold": 0.9,
        "peer_is": "the same training, the callback's seconds left out",
        "measurements": len(record["gaps"]["rows"]),
        "threads": os.environ.get("OMP_NUM_THREADS") or os.cpu_count(),
    }
    print(json.dumps(line), flush=True)


if __name__ == "__main__":
    main()
