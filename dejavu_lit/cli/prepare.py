"""``dejavu prepare``: turn images and captions into shards and splits."""

from pathlib import Path

from omegaconf import DictConfig

from dejavu_lit.cli.app import command, plain
from dejavu_lit.data.prepared import prepare_data
from dejavu_lit.utils.config import build, check_fields
from dejavu_lit.utils.errors import UserError


def prepare(cfg: DictConfig, out: Path) -> None:
    """Turn images and captions into shards and splits."""
    config = plain(cfg, complete=True)
    spec = build({**config.pop("data"), "_recursive_": False}, "data")
    from dejavu_lit.data.prepare import prepare as run

    check_fields(run, config, "")
    for option, given in (("data.exclude", spec.exclude), ("keys", any((config["keys"] or {}).values()))):
        if given and spec.dir is None:
            raise UserError(f"{option} changes what is prepared, so name the folder: data.dir=OUT")
    prepare_data(spec, wait=False, exclude=spec.exclude, **config)


main = command("prepare", prepare)
