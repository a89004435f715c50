"""What evaluations and studies print on the terminal."""

import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.table import Table

from dejavu_lit.measure.controls import beats_blind
from dejavu_lit.measure.figures import BLOCKS, DISPLAY_ORDER, FIGURES
from dejavu_lit.report.membership import MEMBERSHIP_HEADERS, epsilon_sentence, membership_rows, memorization_sentences

if TYPE_CHECKING:
    from dejavu_lit.study.plan import Plan

STYLES = {"symmetric": "bold"}
UTILITY = ("zeroshot_top1", "zeroshot_top5", "i2t_r1", "t2i_r1", "linear_probe")
PIPE_WIDTH = 132  # columns, if stdout is not a terminal


def _console() -> Console:
    """Without markup, because names of models, settings and objects may contain [brackets] and :colons:."""
    width = None if sys.stdout.isatty() else PIPE_WIDTH
    return Console(file=sys.stdout, highlight=False, markup=False, emoji=False, width=width)


def show_evaluation(metrics: Mapping[str, Any], out: Path) -> None:
    """Print the gaps, the verdict, utility, exposure, and the result files."""
    console = _console()
    console.print(_gap_table(metrics))
    for name, reason in metrics.get("reasons", {}).items():
        if name in BLOCKS:
            console.print(f"{name} is missing: {reason}")
    for name, result in metrics.get("by_objects", {}).items():
        block = result["symmetric"] or result["population"]
        gaps = _gaps_text(block) if block else result["reason"]
        basis = "symmetric" if result["symmetric"] else "A"
        console.print(f"objects={name}: {gaps} ({basis}, {result['counts']['records']} records)", soft_wrap=True)
    console.print(metrics["found"]["words"])
    if metrics.get("blind"):
        console.print(beats_blind(metrics["blind"])[1], soft_wrap=True)
    if board := metrics.get("membership"):
        console.print(_membership_table(board))
        if epsilon := epsilon_sentence(board):
            console.print(epsilon, soft_wrap=True)
    utility = metrics.get("utility") or {}
    for side in ("target", "reference"):
        values = {name: value for name, value in (utility.get(side) or {}).items() if isinstance(value, float)}
        if values:
            console.print(f"{side}: " + ", ".join(f"{name} {values[name]:.3f}" for name in UTILITY if name in values))
    exposure = (metrics.get("exposure") or {}).get("target")
    if exposure:
        console.print(f"each pair of A was seen {exposure['mean']:.1f} times ({exposure['min']} to {exposure['max']})")
    console.print(f"results: {out}/metrics.json, {out}/records.parquet")


def _gap_table(metrics: Mapping[str, Any]) -> Table:
    title = f"déjà vu memorization, k = {metrics['k']}, {metrics['counts']['records']} records with objects"
    table = Table(title=title, title_justify="left")
    table.add_column("value [95 % interval]\nmean ± std of 100 draws of 10 %")
    for figure in FIGURES.values():
        table.add_column(figure.label, justify="right", no_wrap=True)
    for name in DISPLAY_ORDER:
        block = metrics.get(name)
        cells = [_gap(block[figure]) if block else "–" for figure in FIGURES]
        table.add_row(BLOCKS[name].label, *cells, style=STYLES.get(name))
    return table


def _gap(figure: Mapping[str, Any]) -> str:
    low, high = figure["ci95"]
    return f"{figure['value']:+.3f} [{low:+.3f}, {high:+.3f}]\n{figure['mean']:+.3f} ± {figure['std']:.3f}"


def _membership_table(board: Mapping[str, Any]) -> Table:
    pairs = board["pairs"]
    table = Table(title=f"membership, {pairs['A']} pairs of A against {pairs['H']} of H", title_justify="left")
    for number, header in enumerate(("score", *MEMBERSHIP_HEADERS)):
        table.add_column(header, justify="left" if number == 0 else "right")
    for row in membership_rows(board):
        table.add_row(*row)
    return table


def _gaps_text(block: Mapping[str, Any]) -> str:
    return ", ".join(f"{figure.label} {block[name]['value']:+.3f}" for name, figure in FIGURES.items())


def show_plan(plan: "Plan") -> None:
    """Print what a study will do: one row per cell, and the number of runs to train and reuse and of evaluations."""
    console = _console()
    table = Table(title="the plan", title_justify="left")
    for header in ("setting", "size", "seed", "target and reference", "evaluation"):
        table.add_column(header, justify="right" if header in ("size", "seed") else "left")
    for row in _plan_rows(plan):
        table.add_row(*row)
    console.print(table)
    complete = sum(plan.evaluations.values())
    console.print(
        f"{len(plan.to_train)} runs to train, {len(plan.runs) - len(plan.to_train)} to reuse; "
        f"{len(plan.evaluations) - complete} evaluations to do, {complete} complete"
    )


def _plan_rows(plan: "Plan") -> list[list[str]]:
    from dejavu_lit.study.runs import finished

    rows = []
    listed: set[Path] = set()  # runs that a row above trains or reuses
    for cell in plan.cells:
        paths = {"target": cell.target, "reference": cell.reference}
        actions = {}
        for side, path in paths.items():
            action = "reuse" if finished(path) else "as above" if path in listed else "train"
            name = Path(cell.model_name(side)).name.replace(f"-{side}", "")
            actions[side] = action if name == cell.label else f"{action} {name}"
        listed |= set(paths.values())
        runs = ", ".join(dict.fromkeys(actions.values()))
        complete = cell.folder is not None and plan.evaluations[cell.folder]
        size = "all" if cell.train_size is None else str(cell.train_size)
        rows.append([cell.name, size, str(cell.seed), runs, "complete" if complete else "to do"])
    return rows


def show_study(study: Mapping[str, Any], out: Path) -> None:
    """Print one row per cell with symmetric gaps, their drop against the first setting, null and utility; then the verdicts."""
    console = _console()
    console.print(_study_table(study))
    for pooled in study["pooled"]:
        unit = "halves" if any(pooled.get("halves", [])) else "seeds"
        spread = (pooled["symmetric"] or {}).get("ppg") or {}
        sd = f" (sd over {len(pooled['seeds'])} {unit} {spread['sd']:.3f})" if spread.get("sd") is not None else ""
        verdict = pooled["found"]["words"]
        if pooled.get("difference"):
            difference = pooled["difference"]["words"]
            verdict += f" {difference[0].upper()}{difference[1:]}."
        console.print(f"{pooled['name']}, {pooled['train_size']} pairs: {verdict}{sd}", soft_wrap=True)
        if memorization := pooled.get("memorization"):
            for line in memorization_sentences(memorization):
                console.print(line, soft_wrap=True)
    console.print(f"frontier: {', '.join(study['frontier']) or 'none'}; recommended: {study['recommended'] or 'none'}")
    console.print(f"results: {out}/study.json, one evaluation per setting in {out}/evaluations")


def _study_table(study: Mapping[str, Any]) -> Table:
    rows = study["settings"]
    several_public_sets = len({row.get("public") for row in rows}) > 1
    headers = ["setting", "size", "seed", *(["public"] if several_public_sets else [])]
    headers += [*(figure.label for figure in FIGURES.values()), "95 % of PPG", "PPG drop", "null PPG"]
    headers += ["AUC", "zero-shot", "t2i R@1"]
    table = Table(title="memorization against utility", title_justify="left")
    for number, header in enumerate(headers):
        table.add_column(header, justify="left" if number == 0 else "right")
    for row in rows:
        public = [str(row.get("public"))] if several_public_sets else []
        cells = [row["name"], str(row["train_size"]), str(row["seed"]), *public]
        table.add_row(*cells, *_study_gaps(study, row), *_study_utility(row))
    return table


def _study_gaps(study: Mapping[str, Any], row: Mapping[str, Any]) -> Sequence[str]:
    block, null = row["symmetric"], row["null"]
    if block is None:
        return ["–"] * 6
    low, high = block["ppg"]["ci95"]
    gaps = [f"{block[figure]['value']:+.3f}" for figure in FIGURES]
    null_ppg = f"{null['ppg']['value']:+.3f}" if null else "–"
    return [*gaps, f"[{low:+.3f}, {high:+.3f}]", _drop(study, row), null_ppg]


def _drop(study: Mapping[str, Any], row: Mapping[str, Any]) -> str:
    """How much smaller a row's PPG is than the default's, or that the two are not distinguishable."""
    identity = ("name", "train_size", "seed")
    same = (d for d in study["differences"] if all(d[name] == row[name] for name in identity))
    difference = next(same, None)
    if difference is None:
        return ""
    ppg = difference["ppg"]
    if not ppg["distinguishable"]:
        return "not dist."
    base = ppg["value"] + row["symmetric"]["ppg"]["value"]
    return f"{100 * ppg['value'] / base:.0f} %" if base > 0 else f"{ppg['value']:+.3f}"


def _study_utility(row: Mapping[str, Any]) -> list[str]:
    """The AUC of membership by cosine, zero-shot accuracy and retrieval."""
    utility = (row.get("utility") or {}).get("target") or {}
    attack = ((row.get("membership") or {}).get("cosine") or {}).get("auc")
    auc = f"{attack['value']:.3f}" if attack else "–"
    return [auc] + [f"{utility[n]:.3f}" if utility.get(n) is not None else "–" for n in ("zeroshot_top1", "t2i_r1")]
