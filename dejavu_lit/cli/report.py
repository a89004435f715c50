"""``dejavu report PATH [redact=true] [out=DIR] [data=DIR] [limit=500] [fail_if=CONDITION]``; it needs neither Hydra nor torch."""

import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from dejavu_lit.cli.gate import Gate
from dejavu_lit.utils.config import expand_home, options, read
from dejavu_lit.utils.errors import UserError
from dejavu_lit.utils.exit_codes import clean_exit
from dejavu_lit.utils.printable import log_warnings

HEAD = """dejavu report PATH [option=value …]

Writes report/index.html from the artifacts alone, without a model; it opens from disk.
"""
EXAMPLES = """
  dejavu report outputs/demo
  dejavu report path=outputs/eval redact=true out=for-the-privacy-officer
  dejavu report path=outputs/eval data=/mnt/data/coco limit=500
  dejavu report outputs/eval fail_if='symmetric.ppg.ci95[0] > 0.05'
"""


@dataclass(frozen=True)
class Report:
    path: str
    """The out= folder of dejavu evaluate or dejavu mitigate; the name ``path=`` before it can be omitted."""
    redact: bool = False
    """Leave out captions, images and objects; statistics and keys stay."""
    out: str | None = None
    """Where the report goes; null: PATH/report."""
    data: str | None = None
    """The prepared data, if it was moved; images come from its shards."""
    limit: int = 500
    """How many of the most memorized pairs get a card."""
    fail_if: str | None = None
    """A condition as in dejavu evaluate: write no report; exit with code 3 if it is true for the evaluation, or for one
    of the study."""


def run(arguments: Sequence[str]) -> Path | None:
    """Write a report and return its page, or judge ``fail_if``; raises UserError for arguments that are not understood."""
    names = Report.__dataclass_fields__
    given: dict[str, str] = {}
    for argument in arguments:
        name, equals, value = argument.partition("=")
        is_path = not equals or Path(argument).exists()
        if name not in names and is_path and not argument.startswith("-"):
            name, value = "path", argument
        elif name in names and not value:
            raise UserError(f"{argument} has no value; write {name}=…")
        if name in given:
            raise UserError(f"{name} is given twice: {given[name]} and {value}")
        given[name] = value
    settings = asdict(expand_home(read(Report, given)))
    condition = settings.pop("fail_if")
    from dejavu_lit.report.report import read_evaluations, write_report

    if condition is None:
        return write_report(**settings)
    if unused := sorted(given.keys() - {"path", "fail_if"}):
        raise UserError(f"fail_if= judges figures and writes no report; drop {unused[0]}=")
    Gate.parse(condition).enforce(read_evaluations(Path(settings["path"])))
    return None


def main(arguments: Sequence[str] | None = None) -> None:
    """Write the report of an evaluation or a study again."""
    given = sys.argv[1:] if arguments is None else arguments
    log_warnings()
    with clean_exit():
        if {"-h", "--help"} & set(given):
            from dejavu_lit.cli.help import own_text

            print(HEAD, own_text(options(Report)), EXAMPLES, sep="\n")
        elif page := run(given):
            print(page)
