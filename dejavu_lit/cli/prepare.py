"""``dejavu prepare``: turn images and captions into shards and splits."""

from pathlib import Path

from dejavu_lit.cli.app import command
from dejavu_lit.cli.options import Prepare
from dejavu_lit.data.prepared import prepare_data
from dejavu_lit.utils.errors import UserError
from dejavu_lit.utils.next_steps import print_next


def prepare(settings: Prepare, out: Path | None = None) -> Path:
    """Turn images and captions into shards and splits; returns the data folder.

    Raises:
        UserError: keys are excluded or listed without data.dir, or the source cannot be prepared.
    """
    data = settings.data
    for option, given in (("data.exclude", data.exclude), ("keys", any(settings.keys.values()))):
        if given and data.dir is None:
            raise UserError(f"{option} changes what is prepared, so name the folder: data.dir=OUT")
    prepare_data(
        data,
        wait=False,
        exclude=data.exclude,
        workers=settings.workers,
        pairs_per_shard=settings.pairs_per_shard,
        max_skipped=settings.max_skipped,
        keys=settings.keys,
    )
    return data.folder


def _prepare(settings: Prepare, out: Path) -> None:
    """Turn images and captions into shards and splits."""
    folder = prepare(settings, out)
    if settings.data.shards is not None:  # trained on as they are
        print_next("dejavu train … side=target out=TARGET", "dejavu train … side=reference out=REFERENCE")
        return
    data = f"data=prepared data.dir={folder}"
    print_next(
        f"dejavu dedup {data}    # duplicates that are left within and across the sets",
        f"dejavu annotate {data} annotator=…    # the objects, if the source had none",
        f"dejavu train {data} side=target out=TARGET",
    )


main = command("prepare", _prepare)
