"""The commands that make data ready: ``dejavu prepare``, and what every command does with ``data=``."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

from omegaconf import DictConfig, OmegaConf

from dejavu_lit.cli.app import plain
from dejavu_lit.data.epoch import Repeat
from dejavu_lit.data.remote import is_remote
from dejavu_lit.utils.config import build, check_fields
from dejavu_lit.utils.errors import UserError

if TYPE_CHECKING:
    from dejavu_lit.data.prepared import DataSpec


def data_spec(config: dict[str, Any]) -> "DataSpec":
    """The DataSpec, its reader left as a description; data that needs no source is prepared where it is absent."""
    spec: DataSpec = build({**pinned(config), "_recursive_": False}, "data")
    check_fields(Repeat, spec.repeat, "data.repeat")
    if spec.automatic and not (spec.folder / "manifest.json").is_file():
        prepare_data(spec)
    return spec


def pinned(config: dict[str, Any]) -> dict[str, Any]:
    """The data's settings with the fingerprint of the keys in ``exclude``, so that other keys are other settings."""
    if config.get("exclude") is None:
        return config
    from dejavu_lit.data.exclude import keys_fingerprint, read_keys

    return {**config, "exclude_fingerprint": keys_fingerprint(read_keys(config["exclude"], "data.exclude"))}


def prepare_data(spec: "DataSpec", wait: bool = True, **how: Any) -> None:
    from dejavu_lit.data.prepare import prepare as run
    from dejavu_lit.utils.io import locked

    if spec.reader is None:
        raise UserError(f"data={spec.name} has no reader; choose data=coco, folder, table or shards to prepare from")
    if spec.dir is not None and is_remote(spec.dir):
        raise UserError(f"data.dir={spec.dir} is elsewhere; prepare into a local folder and copy it there")
    spec.folder.parent.mkdir(parents=True, exist_ok=True)
    lock = spec.folder.parent / f".{spec.folder.name}.lock"
    with locked(lock, wait):  # of ranks and jobs that start together, one prepares
        run(
            reader=build(spec.reader, "data.reader"),
            out=spec.folder,
            sizes=spec.sizes,
            seed=spec.seed,
            near_duplicates=spec.near_duplicates,
            extra={name: build(reader, f"data.extra.{name}") for name, reader in spec.extra.items()},
            **how,
        )


def prepare(cfg: DictConfig, out: Path) -> None:
    """Turn pictures and captions into shards and splits."""
    config = plain(cfg)
    if absent := sorted(k for k in OmegaConf.missing_keys(cfg)):
        raise UserError(f"{absent[0]} is missing; give {absent[0]}=…")
    spec = build({**config.pop("data"), "_recursive_": False}, "data")
    from dejavu_lit.data.prepare import prepare as run

    check_fields(run, config, "")
    for option, given in (("data.exclude", spec.exclude), ("keys", any((config["keys"] or {}).values()))):
        if given and spec.dir is None:
            raise UserError(f"{option} changes what is prepared, so name the folder: data.dir=OUT")
    prepare_data(spec, wait=False, exclude=spec.exclude, **config)
