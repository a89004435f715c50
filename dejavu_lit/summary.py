"""What an evaluation or a study says on the screen."""

import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

BLOCKS = {
    "population": "A: target − reference",
    "swapped": "B: roles exchanged",
    "symmetric": "symmetric (headline)",
    "null": "H: null control",
    "corrected": "corrected (A − H)",
}
FIGURES = ("ppg", "prg", "aucg")
STYLES = {"symmetric": "bold"}


def _console() -> Console:
    return Console(file=sys.stdout, highlight=False, width=None if sys.stdout.isatty() else 132)


def _figure(figure: Mapping[str, Any]) -> str:
    low, high = figure["ci95"]
    return f"{figure['value']:+.3f} [{low:+.3f}, {high:+.3f}]\n{figure['mean']:+.3f} ± {figure['std']:.3f}"


def show(metrics: Mapping[str, Any], out: Path) -> None:
    """Print the gaps, the verdict, utility and where the files are."""
    console = _console()
    k, kept = metrics["k"], metrics["counts"]["records"]
    table = Table(title=f"déjà vu memorization, k = {k}, {kept} records with objects", title_justify="left")
    table.add_column("value [95 % interval]\nmean ± std of 100 draws of 10 %")
    for figure in FIGURES:
        table.add_column(figure.upper(), justify="right", no_wrap=True)
    for name, label in BLOCKS.items():
        block = metrics.get(name)
        table.add_row(label, *(_figure(block[f]) if block else "–" for f in FIGURES), style=STYLES.get(name))
    console.print(table)
    for name, why in metrics.get("reasons", {}).items():
        if name in BLOCKS:
            console.print(f"{name} is missing: {why}")
    console.print(metrics["found"]["words"])
    utility = metrics.get("utility") or {}
    for side in ("target", "reference"):
        values = {name: v for name, v in (utility.get(side) or {}).items() if isinstance(v, float)}
        if values:
            shown = ("zeroshot_top1", "zeroshot_top5", "i2t_r1", "t2i_r1", "linear_probe")
            console.print(f"{side}: " + ", ".join(f"{n} {values[n]:.3f}" for n in shown if n in values))
    exposure = (metrics.get("exposure") or {}).get("target")
    if exposure:
        console.print(f"each pair of A was seen {exposure['mean']:.1f} times ({exposure['min']} to {exposure['max']})")
    console.print(f"results: {out}/metrics.json, {out}/records.parquet")


def show_study(study: Mapping[str, Any], out: Path) -> None:
    """Print one line a cell: symmetric gaps, their change against the first setting, null, utility; then the verdicts."""
    console = _console()
    rows = study["settings"]
    table = Table(title="memorization against utility", title_justify="left")
    heads = (
        "setting",
        "size",
        "seed",
        "PPG",
        "PRG",
        "AUCG",
        "95 % of PPG",
        "PPG drop",
        "null PPG",
        "zero-shot",
        "t2i R@1",
    )
    for number, head in enumerate(heads):
        table.add_column(head, justify="left" if number == 0 else "right")
    for row in rows:
        block, null = row["symmetric"], row["null"]
        if block is None:
            table.add_row(row["name"], str(row["train_size"]), str(row["seed"]), *["–"] * 8)
            continue
        first = next(r for r in rows if (r["train_size"], r["seed"]) == (row["train_size"], row["seed"]))
        base = first["symmetric"]["ppg"]["value"] if first["symmetric"] else 0
        drop = f"{100 * (1 - block['ppg']['value'] / base):.0f} %" if first is not row and base else ""
        utility = (row.get("utility") or {}).get("target") or {}
        low, high = block["ppg"]["ci95"]
        table.add_row(
            row["name"],
            str(row["train_size"]),
            str(row["seed"]),
            *(f"{block[f]['value']:+.3f}" for f in FIGURES),
            f"[{low:+.3f}, {high:+.3f}]",
            drop,
            f"{null['ppg']['value']:+.3f}" if null else "–",
            *(f"{utility[n]:.3f}" if utility.get(n) is not None else "–" for n in ("zeroshot_top1", "t2i_r1")),
        )
    console.print(table)
    for pooled in study["pooled"]:
        spread = (pooled["symmetric"] or {}).get("ppg") or {}
        sd = f" (sd over {len(pooled['seeds'])} seeds {spread['sd']:.3f})" if spread.get("sd") is not None else ""
        console.print(f"{pooled['name']}, {pooled['train_size']} pairs: {pooled['found']['words']}{sd}")
    console.print(f"frontier: {', '.join(study['frontier']) or 'none'}; recommended: {study['recommended'] or 'none'}")
    console.print(f"results: {out}/study.json, one evaluation a setting below {out}/evaluations")
