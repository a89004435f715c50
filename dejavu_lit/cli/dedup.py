"""``dejavu dedup``: find duplicates and list the keys to exclude."""

import shlex
from dataclasses import replace
from pathlib import Path

from dejavu_lit.cli.annotate import open_sets
from dejavu_lit.cli.app import command
from dejavu_lit.cli.options import Dedup
from dejavu_lit.data.prepared import ready
from dejavu_lit.evaluation.run import check_model
from dejavu_lit.utils.config import to_plain
from dejavu_lit.utils.errors import counted
from dejavu_lit.utils.printable import argument, print_next
from dejavu_lit.utils.run_directory import RunDirectory


def dedup(settings: Dedup, out: Path) -> None:
    """Find duplicates within and across the sets."""
    if settings.encoder is not None:
        check_model("encoder", settings.encoder)
    data = ready(settings.data)
    data.check()
    data.warn_of_unknown_keys()
    sets = open_sets(data, settings.sets)
    unsaved = ("out", "workers", "device", "force")
    saved = {name: value for name, value in to_plain(replace(settings, data=data)).items() if name not in unsaved}
    from dejavu_lit.duplicates.dedup import EXAMPLES, LIST, REPORT
    from dejavu_lit.duplicates.dedup import dedup as run

    with RunDirectory(out).opened(saved, take_over=not (out / REPORT).is_file()):
        report = run(out, sets, settings, settings.within, data.excluded, settings.force)
    for name, kind in report["kinds"].items():
        print(
            f"{name}: {counted(kind['groups'], 'group')} of {kind['pictures']} images, the largest of {kind['largest']}"
        )
    across = {(a, b): n for a, row in report["shared"]["any"].items() for b, n in row.items() if a < b and n}
    print("across sets: " + (", ".join(f"{n} of {a} also in {b}" for (a, b), n in across.items()) or "none"))
    if report["exclude"]["file"]:
        print(f"keys to exclude: {report['exclude']['keys']}, in {out / LIST}")
        page = out / EXAMPLES
        look = [f"open {shlex.quote(str(page))}    # the least similar pairs"] if page.is_file() else []
        train = [f"dejavu train … {argument('data.exclude', out / LIST)}"] if report["exclude"]["keys"] else []
        if look or train:
            print_next(*look, *train)
    else:
        print("no keys to exclude: one group has more than half of a set (force=true lists them anyway)")


main = command("dedup", dedup)
