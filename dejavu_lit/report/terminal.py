"""What evaluations and studies print on the terminal: tables that fit its width, verdicts, and what to do next.

A table that is wider than the terminal loses its least important columns, never letters of its labels.
"""

import shlex
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from rich.console import Console
from rich.table import Table
from rich.text import Text

from dejavu_lit.measure.controls import differences_sentence, few_records_sentence
from dejavu_lit.measure.figures import BLOCKS, FIGURES, headline, signed
from dejavu_lit.measure.records import SIDES
from dejavu_lit.report.membership import MEMBERSHIP_HEADERS, epsilon_sentence, membership_rows, pooled_boards
from dejavu_lit.report.narrative import bracketed, measured_blocks, pooled_sentence, study_caution, study_sentence
from dejavu_lit.report.study_points import membership_auc
from dejavu_lit.study.ranking import difference_to_default, lacks_seeds, share_removed, utility
from dejavu_lit.utils.printable import argument, print_next, printable
from dejavu_lit.utils.run_directory import RunDirectory

if TYPE_CHECKING:
    from dejavu_lit.study.plan import Plan

UTILITY = ("zeroshot_top1", "zeroshot_top5", "i2t_r1", "t2i_r1", "linear_probe")
PIPE_WIDTH = 132  # columns, if stdout is not a terminal
UNLIMITED = 10_000  # columns, to measure what a table needs
GROUPS = 20  # lines of an evaluation; there may be thousands of owners
KEPT = 0  # the importance of a column that is never left out


class Column(NamedTuple):
    """One column of a table; those with the largest number in ``order`` are left out first."""

    header: str
    cells: Sequence[str]
    order: int = KEPT
    justify: Any = "right"


class _Terminal(Console):
    def render_str(self, text: str, **options: Any) -> Text:
        return super().render_str(printable(text), **options)

    def say(self, text: str, style: str | None = None) -> None:
        """Print a sentence, broken between words on a terminal and nowhere in a file."""
        self.print(text, style=style, soft_wrap=not self.is_terminal)


def console(width: int | None = None) -> _Terminal:
    """Without markup and control characters, because names of models, settings and objects may contain any."""
    if width is None and not sys.stdout.isatty():
        width = PIPE_WIDTH
    return _Terminal(file=sys.stdout, highlight=False, markup=False, emoji=False, width=width)


def fitting_table(terminal: _Terminal, title: str, columns: Sequence[Column], bold: Sequence[int] = ()) -> None:
    """Print the columns that fit, and the headers of the others; ``bold`` are the rows to emphasize."""
    shown = list(columns)
    while True:
        table = Table(title=title, title_justify="left", pad_edge=False)
        for column in shown:
            table.add_column(column.header, justify=column.justify, no_wrap=True)
        for row, cells in enumerate(zip(*(column.cells for column in shown), strict=True)):
            table.add_row(*cells, style="bold" if row in bold else None)
        last = max(shown, key=lambda column: column.order)
        needed = terminal.measure(table, options=terminal.options.update(width=UNLIMITED)).maximum
        if needed <= terminal.width or last.order == KEPT:
            break
        shown.remove(last)
    # Columns that are never left out may be too wide: the terminal then breaks their lines, where rich would cut the labels.
    (terminal if needed <= terminal.width else console(needed)).print(table)
    if left_out := [column.header for column in columns if column not in shown]:
        terminal.say(f"left out at {terminal.width} columns: {', '.join(left_out)}")


def _columns(
    headers: Sequence[str], rows: Sequence[Sequence[str]], orders: Sequence[int], right: Sequence[str] | None = None
) -> list[Column]:
    """Rows as columns; those in ``right``, by default all but the first, are aligned at the right."""
    right = headers[1:] if right is None else right
    parts = zip(headers, zip(*rows, strict=True), orders, strict=True)
    return [Column(header, cells, order, "right" if header in right else "left") for header, cells, order in parts]


def show_evaluation(metrics: Mapping[str, Any], out: Path, width: int | None = None) -> None:
    """Print the gaps, the verdict, utility, exposure, and the result files; ``width`` in columns, by default the terminal's."""
    terminal = console(width)
    _show_gaps(terminal, metrics)
    for name, reason in metrics.get("reasons", {}).items():
        if name in BLOCKS:
            terminal.say(f"{name} is missing: {reason}")
    if base := metrics.get("base"):
        gaps = ", ".join(f"{name} {_gaps_text(base[name])}" for name in ("population", "corrected") if base[name])
        note = f" ({base['note']})" if "note" in base else ""
        terminal.say(f"target against its base {base['model']}: {gaps}{note}")
    if groups := metrics.get("groups"):
        _show_groups(terminal, groups)
    for name, result in metrics.get("by_objects", {}).items():
        basis = headline(result)
        gaps = _gaps_text(result[basis]) if result[basis] else result["reason"]
        terminal.say(f"objects={name}: {gaps} ({basis}, {result['counts']['records']} records)")
    sentences = [metrics["found"]["words"], few_records_sentence(metrics["counts"]), metrics["blind"].get("words")]
    if differences := metrics.get("training_differences"):
        sentences.append(differences_sentence(differences))
    for sentence in filter(None, sentences):
        terminal.say(sentence)
    if board := metrics.get("membership"):
        _show_membership(terminal, board)
    for side in SIDES:
        values = (metrics.get("utility") or {}).get(side) or {}
        if shown := [f"{name} {values[name]:.3f}" for name in UTILITY if isinstance(values.get(name), float)]:
            terminal.say(f"{side}: {', '.join(shown)}")
    if exposure := (metrics.get("exposure") or {}).get("target"):
        terminal.say(f"each pair of A was seen {exposure['mean']:.1f} times ({exposure['min']} to {exposure['max']})")
    terminal.print(f"results: {out}/metrics.json, {out}/records.parquet", soft_wrap=True)


def _show_groups(terminal: _Terminal, groups: Mapping[str, Any]) -> None:
    """The groups with a gap or membership that H does not explain (q ≤ 0.05), one per line, the ``GROUPS`` of smallest q."""
    lines = []
    for group in groups["groups"]:
        q = {"gap": group["q"], "membership": group.get("clipmem_q")}
        if low := {name: value for name, value in q.items() if value is not None and value <= 0.05}:
            by = " and ".join(f"q {value:.3g} by {name}" for name, value in low.items())
            gap = f"PPG {signed(group['ppg'])}, {by} ({group['records']} records)"
            lines.append((min(low.values()), f"{groups['column']}={group['group']}: {gap}"))
    lines.sort(key=lambda line: line[0])
    for _, line in lines[:GROUPS]:
        terminal.say(line)
    if len(lines) > GROUPS:
        terminal.say(f"groups.csv has further groups with q ≤ 0.05: {len(lines) - GROUPS}")


def _show_gaps(terminal: _Terminal, metrics: Mapping[str, Any]) -> None:
    """The five blocks, each with its three gaps, one above the other in a column of a narrow terminal."""
    title = f"déjà vu memorization, k = {metrics['k']}, {metrics['counts']['records']} records with objects"
    blocks = measured_blocks(metrics)
    wide = terminal.width >= 116
    separator = " " if wide else "\n"
    draws = f"{metrics['settings']['draws']} draws of {100 * metrics['settings']['share']:g} %"
    note = f"value [95 % interval]\nmean ± std of {draws}" if wide else "value\n[95 % interval]\nmean ± std"
    labels = [BLOCKS[name].label if wide else BLOCKS[name].label.replace(": mean of A and B", "") for name in blocks]
    columns = [Column(note, labels, justify="left")]
    for order, (name, figure) in enumerate(FIGURES.items()):
        cells = [_gap(metrics[block][name], separator) for block in blocks]
        columns.append(Column(figure.label, cells, order))
    fitting_table(terminal, title, columns, bold=[blocks.index(headline(metrics))])
    _explain_gaps(terminal)


def _gap(figure: Mapping[str, Any], separator: str) -> str:
    of_draws = f"{signed(figure['mean'])} ± {figure['std']:.3f}"
    return f"{signed(figure['value'])}{separator}{bracketed(figure['ci95'])}\n{of_draws}"


def _explain_gaps(terminal: _Terminal) -> None:
    for figure in FIGURES.values():
        terminal.say(f"{figure.label}: {figure.meaning}")


def _show_membership(terminal: _Terminal, board: Mapping[str, Any]) -> None:
    headers, orders = ("score", *MEMBERSHIP_HEADERS), (KEPT, KEPT, KEPT, 5, 1, 2, 4, 3)
    title = f"membership, {board['pairs']['A']} pairs of A against {board['pairs']['H']} of H"
    fitting_table(terminal, title, _columns(headers, membership_rows(board, short=True), orders))
    if epsilon := epsilon_sentence(board):
        terminal.say(epsilon)


def _gaps_text(block: Mapping[str, Any]) -> str:
    return ", ".join(f"{figure.label} {signed(block[name]['value'])}" for name, figure in FIGURES.items())


def show_plan(plan: "Plan", width: int | None = None) -> None:
    """Print what a study will do: one row per cell, and the number of runs to train and reuse and of evaluations."""
    terminal = console(width)
    evaluations = plan.evaluations  # reads a file for each cell
    headers = ("setting", "size", "seed", "target and reference", "evaluation")
    columns = _columns(headers, _plan_rows(plan, evaluations), (KEPT, 3, 1, KEPT, 2), right=("size", "seed"))
    fitting_table(terminal, "the plan", columns)
    complete = sum(evaluations.values())
    terminal.say(
        f"runs: {len(plan.to_train)} to train, {len(plan.runs) - len(plan.to_train)} to reuse; "
        f"evaluations: {len(evaluations) - complete} to do, {complete} complete"
    )


def _plan_rows(plan: "Plan", evaluations: Mapping[Path, bool]) -> list[list[str]]:
    rows = []
    listed: set[Path] = set()  # runs that a row above trains or reuses
    for cell in plan.cells:
        paths = {"target": cell.target, "reference": cell.reference}
        actions = {}
        for side, path in paths.items():
            action = "reuse" if RunDirectory(path).finished else "as above" if path in listed else "train"
            name = Path(cell.model_name(side)).name.replace(f"-{side}", "")
            actions[side] = action if name == cell.label else f"{action} {name}"
        listed |= set(paths.values())
        runs = ", ".join(dict.fromkeys(actions.values()))
        size = "all" if cell.train_size is None else str(cell.train_size)
        rows.append([cell.name, size, str(cell.seed), runs, "complete" if evaluations[cell.folder] else "to do"])
    return rows


def show_study(study: Mapping[str, Any], out: Path, width: int | None = None) -> None:
    """Print one row per cell with symmetric gaps, their drop against the first setting, null and utility; then the verdicts."""
    terminal = console(width)
    fitting_table(terminal, "memorization against utility", _study_columns(study))
    _explain_gaps(terminal)
    for pooled in study["pooled"]:
        unit = "halves" if any(pooled.get("halves", [])) else "seeds"
        spread = (pooled["symmetric"] or {}).get("ppg") or {}
        sd = f" (sd over {len(pooled['seeds'])} {unit} {spread['sd']:.3f})" if spread.get("sd") is not None else ""
        name = f"{pooled['name']}, {pooled['train_size']} pairs"
        terminal.say(f"{name}: {pooled_sentence(pooled)}{sd}")
    for board in pooled_boards(study):
        columns = _columns(("score", *board["headers"]), board["rows"], (KEPT, KEPT, 1, 2))
        fitting_table(terminal, board["title"], columns)
    if caution := study_caution(study):
        terminal.say(caution, style="yellow")
    recommended = f"recommended: {study['recommended']}" if study["recommended"] else "nothing is recommended"
    terminal.say(f"frontier: {', '.join(study['frontier']) or 'empty'}; {recommended}")
    terminal.say(f"{study_sentence(study)}.")
    terminal.print(f"results: {out}/study.json, one evaluation per setting in {out}/evaluations", soft_wrap=True)


def _study_columns(study: Mapping[str, Any]) -> list[Column]:
    """The columns of a study's table, in order; what is the same in all rows is left out first."""
    rows = study["settings"]
    gaps = {f: [signed(r["symmetric"][f]["value"]) if r["symmetric"] else "–" for r in rows] for f in FIGURES}
    intervals = [bracketed(r["symmetric"]["ppg"]["ci95"]) if r["symmetric"] else "–" for r in rows]
    null = [signed(r["null"]["ppg"]["value"]) if r["null"] else "–" for r in rows]
    sizes, seeds = [str(r["train_size"]) for r in rows], [str(r["seed"]) for r in rows]
    publics = [str(r.get("public")) for r in rows]
    return [
        Column("setting", [r["name"] for r in rows], justify="left"),
        Column("size", sizes, KEPT if len(set(sizes)) > 1 else 9),
        Column("seed", seeds, KEPT if len(set(seeds)) > 1 else 10),
        *([Column("public", publics, KEPT)] if len(set(publics)) > 1 else []),
        *(Column(FIGURES[f].label, gaps[f], order) for f, order in (("ppg", KEPT), ("prg", 5), ("aucg", 6))),
        Column("95 % of PPG", intervals, 3),
        Column("PPG drop", [_drop(study, r) for r in rows], 1),
        Column("null PPG", null, 4),
        Column("AUC", [_share((membership_auc(r, "cosine") or {}).get("value")) for r in rows], 4),
        Column("zero-shot", [_share(utility(r, "zeroshot_top1")) for r in rows], 2),
        Column("t2i R@1", [_share(utility(r, "t2i_r1")) for r in rows], 7),
    ]


def _drop(study: Mapping[str, Any], row: Mapping[str, Any]) -> str:
    """How much smaller a row's PPG is than the default's, or that the two are not distinguishable."""
    difference = difference_to_default(study, row)
    if difference is None or row["symmetric"] is None:
        return "" if row["symmetric"] else "–"
    ppg = difference["ppg"]
    if not ppg["distinguishable"]:
        return "not dist."
    return share_removed(ppg["value"], row["symmetric"]["ppg"]["value"]) or signed(ppg["value"])


def _share(value: float | None) -> str:
    return "–" if value is None else f"{value:.3f}"


def show_next_steps(out: Path, page: Path | None, results: Mapping[str, Any], of_sweep: bool = False) -> None:
    """Print what to do next with the ``results`` in ``out``, a metrics.json or study.json; ``page``: the report if written."""
    path, shared = argument("path", out), argument("out", f"{out}-to-share")
    steps = [
        f"open {shlex.quote(str(page))}" if page else f"dejavu report {path}    # write the report",
        f"dejavu report {path} redact=true {shared}    # without captions and images",
    ]
    if "pooled" not in results:
        gate = f'fail_if="{headline(results)}.ppg.ci95[0]>0.05"'
        steps.append(f"dejavu evaluate … {argument('out', out)} {gate}    # a gate for releases")
    elif lacks_seeds(results):
        again = "dejavu train -m … seed=0,1,2" if of_sweep else "dejavu mitigate … 'seeds=[0,1,2]'"
        steps.append(f"{again}    # intervals that include training noise")
    print_next(*steps)
