"""``dejavu annotate``: find objects, compare two object artifacts, or draw boxes."""

import os
from pathlib import Path

from hydra.core.hydra_config import HydraConfig

from dejavu_lit.cli.app import command
from dejavu_lit.cli.options import Annotate
from dejavu_lit.cli.processes import device, parse_share, processes
from dejavu_lit.data.manifest import SIZES
from dejavu_lit.data.prepared import DataSpec, ready
from dejavu_lit.data.remote import source
from dejavu_lit.data.shards import ShardSet
from dejavu_lit.data.splits import SETS
from dejavu_lit.objects.annotators import ANNOTATORS
from dejavu_lit.utils.errors import UserError, suggest
from dejavu_lit.utils.io import atomic, is_hidden, visible_files, write_csv, write_json
from dejavu_lit.utils.printable import argument, print_next, printable


def annotate(settings: Annotate, out: Path) -> None:
    """Find the objects of prepared images, compare two artifacts, or draw one."""
    if sum(mode is not None for mode in (settings.annotator, settings.compare, settings.show)) != 1:
        raise UserError("give one of annotator=NAME, compare=[NAME,NAME] and show=NAME")
    if settings.annotator is not None and settings.data.is_remote:
        raise UserError(
            f"data.dir={settings.data.dir} is remote; annotate the data where it is stored, or annotate a local copy and "
            "upload its objects/NAME"
        )
    data = ready(settings.data)
    data.check()
    sets = open_sets(data, settings.sets)
    if settings.show is not None:
        _show(data, sets, settings.show, settings, out)
    elif settings.compare is not None:
        _compare(data, sets, settings.compare, settings.threshold, out)
    else:
        _annotate(data, sets, settings)


def _annotate(data: DataSpec, sets: dict[str, ShardSet], settings: Annotate) -> None:
    from dejavu_lit.objects.annotate import annotate as run
    from dejavu_lit.objects.annotate import coverage

    trainer, node = settings.trainer, dict(settings.annotator or {})
    if processes(trainer, shared=True).world > 1 and settings.part is not None:
        raise UserError(f"part={settings.part} is one process's share; drop it when several processes share the shards")
    share = parse_share(settings.part)
    typed = {override.lstrip("+~").partition("=")[0] for override in HydraConfig.get().overrides.task}
    if "device" in node and "annotator.device" not in typed and trainer.accelerator != "cpu":
        node = {**node, "device": device(trainer, None)}
    if isinstance(names := node.get("artifacts"), list):  # anything else is refused below
        node = {**node, "artifacts": [str(data.objects_folder(name, "annotator.artifacts")) for name in names]}
    if settings.name and (is_hidden(settings.name) or "/" in settings.name):
        raise UserError(
            f"name={settings.name} must be the name of a folder in {data.folder / 'objects'}, without slashes"
        )
    source = ANNOTATORS.build(node)
    folder = data.folder / "objects" / (settings.name or source.annotator.name)
    done = run(source, sets, folder, share, settings.max_failed)
    rate = f", {done.images / done.seconds:.1f} images/s" if done.images else ""
    print(f"{folder}: {done.parts} of {done.total_parts} parts complete, {done.images} images annotated{rate}")
    if done.failed:
        where = str(folder / "failed.csv") if done.complete else "failed.csv lists them once all parts are complete"
        print(f"images that could not be annotated: {done.failed} ({where})")
    if done.complete:
        print(coverage(folder, list(sets), max(settings.threshold, source.annotator.threshold)))
        print_next(
            f"dejavu annotate … {argument('show', folder.name)} out=OUT    # the objects on images of every set",
            f"dejavu evaluate target=TARGET reference=REFERENCE {argument('objects', folder.name)}",
        )


def _show(data: DataSpec, sets: dict[str, ShardSet], name: str, settings: Annotate, out: Path) -> None:
    from dejavu_lit.objects.contact_sheet import contact_sheet

    artifact = data.objects_folder(name, "show")
    path = out / f"{artifact.name}.png"
    page = contact_sheet(sets, artifact, settings.threshold, settings.pictures)
    with atomic(path) as part:
        page.save(part, "PNG")
    print(f"{path}: objects of {artifact}")


def _compare(data: DataSpec, sets: dict[str, ShardSet], names: list[str], threshold: float, out: Path) -> None:
    from dejavu_lit.data.objects import check_images, read_objects
    from dejavu_lit.objects.compare import difference, format_differences

    if len(names) != 2:
        raise UserError(f"compare={names} must name two artifacts, e.g. compare=[torchvision,captions]")
    folders = [data.objects_folder(name, "compare") for name in names]
    # Of remote data only the shards that were read are here.
    images = {} if data.is_remote else {name: shards.images() for name, shards in sets.items()}
    for folder in folders:
        check_images(folder, images)
    read = [read_objects([f / name for name in sets], threshold)[0] for f in folders]
    differences = {name: difference(*pair) for name, *pair in zip(sets, *read, strict=True)}
    write_json(out / "difference.json", {"artifacts": [str(f) for f in folders], "threshold": threshold, **differences})
    write_csv(
        out / "difference.csv",
        [{"set": name, **row} for name, changes in differences.items() for row in changes["labels"]],
    )
    print(printable(format_differences(differences, names)))
    print(f"all labels: {out / 'difference.csv'}")


def open_sets(data: DataSpec, names: list[str] | None) -> dict[str, ShardSet]:
    """{name: shards} of the sets of a data folder, A, B, H, V and P before the others, and of folders elsewhere.

    Raises UserError for no set at all, or an unknown one.
    """
    # Of remote data only the shards that were read are here, but the sizes of all sets.
    files = visible_files(data.folder, f"*/{SIZES}" if source(data.folder) else "*/*.tar")
    available = sorted({path.parent.name for path in files}, key=lambda n: ([*SETS, n].index(n), n))
    if not (selected := available if names is None else names):
        raise UserError(f"sets= is empty; {data.folder} has {', '.join(available) or 'none'}")
    folders: dict[str, Path] = {}
    for name in selected:
        folder = data.folder / name if name in available else Path(os.path.abspath(name))
        if name not in available and not folder.is_dir():
            raise UserError(f"sets names {name}{suggest(name, available)}; {data.folder} has {', '.join(available)}")
        folders[name if name in available else data.set_name(str(folder))] = folder
    return {name: ShardSet.open(folder) for name, folder in folders.items()}


main = command("annotate", annotate)
