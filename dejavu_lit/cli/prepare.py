"""``dejavu prepare``: turn images and captions into shards and splits."""

from pathlib import Path

from dejavu_lit.cli.app import command
from dejavu_lit.cli.options import Prepare
from dejavu_lit.data.prepared import prepare_data
from dejavu_lit.utils.errors import UserError
from dejavu_lit.utils.printable import argument, print_next


def prepare(settings: Prepare) -> Path:
    """Turn images and captions into shards and splits; returns the data folder.

    Raises UserError if keys are excluded or listed without data.dir, for an option that raw shards do not have, and for
    a source that cannot be prepared.
    """
    data = settings.data
    if data.shards is not None:
        defaults = Prepare(data)
        names = ("max_skipped", "pairs_per_shard", "keys")
        if unused := [name for name in names if getattr(settings, name) != getattr(defaults, name)]:
            raise UserError(
                f"{unused[0]} does not apply to raw shards (data.shards), which are used as they are: the hash "
                "of a key decides its set; drop the option, or run dejavu prepare data=shards"
            )
    for option, given in (("data.exclude", data.exclude), ("keys", any(settings.keys.values()))):
        if given and data.dir is None and data.shards is None:  # raw shards: the folder's name says which
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
    folder = prepare(settings)
    if settings.data.shards is not None:  # trained on as they are
        print_next("dejavu train … side=target out=TARGET", "dejavu train … side=reference out=REFERENCE")
        return
    data = f"data=prepared {argument('data.dir', folder)}"
    print_next(
        f"dejavu dedup {data}    # duplicates that are left within and across the sets",
        f"dejavu annotate {data} annotator=…    # the objects, if the source had none",
        *([f"dejavu train {data} side=target out=TARGET"] if (folder / "A").is_dir() else []),  # else a public set
    )


main = command("prepare", _prepare)
