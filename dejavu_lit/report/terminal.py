"""What an evaluation or a study says on the screen."""

import sys
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.table import Table

if TYPE_CHECKING:
    from dejavu_lit.study.plan import Plan

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
    """Without markup: names of models, settings and objects may hold [brackets] and :colons:."""
    width = None if sys.stdout.isatty() else 132
    return Console(file=sys.stdout, highlight=False, markup=False, emoji=False, width=width)


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
    for name, row in metrics.get("by_objects", {}).items():
        block = row["symmetric"] or row["population"]
        gaps = ", ".join(f"{f.upper()} {block[f]['value']:+.3f}" for f in FIGURES) if block else row["reason"]
        which = "symmetric" if row["symmetric"] else "A"
        console.print(f"objects={name}: {gaps} ({which}, {row['counts']['records']} records)", soft_wrap=True)
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


def show_plan(plan: "Plan") -> None:
    """Print what a study is going to do: a line a cell, and how much there is to train, to reuse and to evaluate."""
    from dejavu_lit.study.runs import finished

    console = _console()
    table = Table(title="the plan", title_justify="left")
    for head in ("setting", "size", "seed", "target and reference", "evaluation"):
        table.add_column(head, justify="right" if head in ("size", "seed") else "left")
    above: set[Path] = set()
    for cell in plan.cells:
        sides = {"target": cell.target, "reference": cell.reference}
        words = {side: "reuse" if finished(p) else "as above" if p in above else "train" for side, p in sides.items()}
        above |= set(sides.values())
        names = {side: Path(cell.side(side)).name.replace(f"-{side}", "") for side in sides}
        words = {side: f"{word} {names[side]}" if names[side] != cell.label else word for side, word in words.items()}
        same = words["target"] == words["reference"]
        runs = words["target"] if same else f"{words['target']}, {words['reference']}"
        there = "there" if cell.folder is not None and plan.evaluations[cell.folder] else "to do"
        size = "all" if cell.train_size is None else str(cell.train_size)
        table.add_row(cell.name, size, str(cell.seed), runs, there)
    console.print(table)
    to_do = sum(not there for there in plan.evaluations.values())
    console.print(
        f"{len(plan.to_train)} runs to train, {len(plan.runs) - len(plan.to_train)} to reuse; "
        f"{to_do} evaluations to do, {len(plan.evaluations) - to_do} there"
    )


def show_study(study: Mapping[str, Any], out: Path) -> None:
    """Print one line a cell: symmetric gaps, their change against the first setting, null, utility; then the verdicts."""
    console = _console()
    rows = study["settings"]
    publics = len({row.get("public") for row in rows}) > 1
    table = Table(title="memorization against utility", title_justify="left")
    heads = ["setting", "size", "seed", *(["public"] if publics else [])]
    heads += [
        "PPG",
        "PRG",
        "AUCG",
        "95 % of PPG",
        "PPG drop",
        "null PPG",
        "zero-shot",
        "t2i R@1",
    ]
    for number, head in enumerate(heads):
        table.add_column(head, justify="left" if number == 0 else "right")
    for row in rows:
        cells = [row["name"], str(row["train_size"]), str(row["seed"]), *([str(row.get("public"))] if publics else [])]
        block, null = row["symmetric"], row["null"]
        if block is None:
            table.add_row(*cells, *["–"] * 6, *_utilities(row))
            continue
        low, high = block["ppg"]["ci95"]
        table.add_row(
            *cells,
            *(f"{block[f]['value']:+.3f}" for f in FIGURES),
            f"[{low:+.3f}, {high:+.3f}]",
            _drop(study, row),
            f"{null['ppg']['value']:+.3f}" if null else "–",
            *_utilities(row),
        )
    console.print(table)
    for pooled in study["pooled"]:
        spread = (pooled["symmetric"] or {}).get("ppg") or {}
        sd = f" (sd over {len(pooled['seeds'])} seeds {spread['sd']:.3f})" if spread.get("sd") is not None else ""
        words = pooled["found"]["words"]
        if pooled.get("difference"):
            change = pooled["difference"]["words"]
            words += f" {change[0].upper()}{change[1:]}."
        console.print(f"{pooled['name']}, {pooled['train_size']} pairs: {words}{sd}", soft_wrap=True)
    console.print(f"frontier: {', '.join(study['frontier']) or 'none'}; recommended: {study['recommended'] or 'none'}")
    console.print(f"results: {out}/study.json, one evaluation a setting below {out}/evaluations")


def _utilities(row: Mapping[str, Any]) -> list[str]:
    found = (row.get("utility") or {}).get("target") or {}
    return [f"{found[n]:.3f}" if found.get(n) is not None else "–" for n in ("zeroshot_top1", "t2i_r1")]


def _drop(study: Mapping[str, Any], row: Mapping[str, Any]) -> str:
    """How much smaller a row's PPG is than the default's, or that it cannot be told apart."""
    same = ("name", "train_size", "seed")
    found = next((d for d in study["differences"] if all(d[n] == row[n] for n in same)), None)
    if found is None:
        return ""
    if not found["ppg"]["distinguishable"]:
        return "not dist."
    base = found["ppg"]["value"] + row["symmetric"]["ppg"]["value"]
    return f"{100 * found['ppg']['value'] / base:.0f} %" if base > 0 else f"{found['ppg']['value']:+.3f}"
