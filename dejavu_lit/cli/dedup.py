"""``dejavu dedup``: find duplicates and list the keys to exclude."""

from pathlib import Path

from omegaconf import DictConfig

from dejavu_lit.cli.annotate import open_sets
from dejavu_lit.cli.app import command, plain
from dejavu_lit.data.prepared import data_spec, pinned
from dejavu_lit.data.splits import SETS
from dejavu_lit.utils.errors import UserError


def dedup(cfg: DictConfig, out: Path) -> None:
    """Find duplicates within and across the sets."""
    config = plain(cfg, complete=True)
    from dejavu_lit.data.near_duplicates import check_distance
    from dejavu_lit.utils.run_directory import run_directory

    check_distance(config["distance"], "distance")
    if not 0 < config["similarity"] < 1:
        raise UserError(f"similarity={config['similarity']} must lie between 0 and 1, e.g. 0.95")
    data = data_spec(config["data"])
    data.check()
    data.warn_of_unknown_keys()
    sets = open_sets(data, config["sets"])
    if config["sets"] is None:
        sets = {
            name: sets[name] for name in sorted(sets, key=lambda n: (n not in SETS, SETS.index(n) if n in SETS else n))
        }
    saved = {name: value for name, value in config.items() if name not in ("out", "workers", "device", "force")}
    with run_directory(out, {**saved, "data": pinned(config["data"])}):
        from dejavu_lit.duplicates.dedup import LIST, DuplicateCriteria
        from dejavu_lit.duplicates.dedup import dedup as run

        criteria = DuplicateCriteria(
            *(config[name] for name in ("distance", "encoder", "similarity", "device", "workers"))
        )
        report = run(out, sets, criteria, config["within"], data.excluded, config["force"])
    for name, kind in report["kinds"].items():
        print(f"{name}: {kind['groups']} groups of {kind['pictures']} images, the largest of {kind['largest']}")
    across = {(a, b): n for a, row in report["shared"]["any"].items() for b, n in row.items() if a < b and n}
    print("across sets: " + (", ".join(f"{n} of {a} also in {b}" for (a, b), n in across.items()) or "none"))
    if report["exclude"]["file"]:
        print(f"{report['exclude']['keys']} keys to exclude: data.exclude={out / LIST}")
    else:
        print("no keys to exclude: one group has more than half of a set (force=true lists them all the same)")


main = command("dedup", dedup)
