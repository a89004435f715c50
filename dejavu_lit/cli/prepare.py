"""``dejavu prepare``: turn images and captions into shards and splits."""

from pathlib import Path

from dejavu_lit.cli.app import command
from dejavu_lit.cli.options import Prepare
from dejavu_lit.data.prepared import prepare_data
from dejavu_lit.utils.errors import UserError


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


main = command("prepare", prepare)
