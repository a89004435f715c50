"""``dejavu report path=EVALUATION_OR_STUDY [redact=true] [out=DIR] [data=DIR] [limit=500]``."""

import sys
from collections.abc import Sequence
from pathlib import Path

from dejavu_lit.utils.errors import UserError, suggest
from dejavu_lit.utils.exit_codes import clean_exit

OPTIONS = ("path", "redact", "out", "data", "limit")
HELP = """dejavu report path=EVALUATION_OR_STUDY [option=value …]

Writes report/index.html from the artifacts alone, without a model; it opens from disk.

  path=DIR     an evaluation (metrics.json, records.parquet) or a study (study.json)
  redact=true  leave out captions, images and objects; statistics and keys stay
  out=DIR      where the report goes; by default PATH/report
  data=DIR     the prepared data, if they were moved; images come from their shards
  limit=500    how many of the most memorized pairs get a card

  dejavu report path=outputs/demo
  dejavu report path=outputs/eval redact=true out=for-the-privacy-officer
  dejavu report path=outputs/eval data=/mnt/data/coco limit=500
"""


def run(arguments: Sequence[str]) -> Path:
    """Write the report that the command line asks for; raises UserError for a wrong option."""
    given: dict[str, str] = {}
    for argument in arguments:
        name, separator, value = argument.partition("=")
        if name not in OPTIONS:
            raise UserError(f"{argument} is not an option{suggest(name, OPTIONS)}; choose from {', '.join(OPTIONS)}")
        if not separator or not value:
            raise UserError(f"{argument} has no value; write {name}=…")
        given[name] = value
    if "path" not in given:
        raise UserError("path is missing; give path=DIR of an evaluation or a study")
    redact = given.get("redact", "false").lower()
    if redact not in ("true", "false"):
        raise UserError(f"redact={given['redact']} must be true or false")
    limit = given.get("limit", "500")
    if not limit.isdecimal():
        raise UserError(f"limit={limit} must be a whole number")
    from dejavu_lit.report.report import write_report

    return write_report(given["path"], redact == "true", given.get("out"), given.get("data"), int(limit))


def main(arguments: Sequence[str] | None = None) -> None:
    """Write the report of an evaluation or a study again."""
    import logging

    given = sys.argv[1:] if arguments is None else arguments
    logging.basicConfig(format="%(message)s", level=logging.WARNING)
    with clean_exit():
        print(HELP if {"-h", "--help"} & set(given) else run(given))
