"""Evaluations and studies on the dashboards: Weights & Biases, TensorBoard, and ``scalars.csv`` beside metrics.json.

An evaluation is a wandb run of its own (job type ``evaluation``, the group of its target run) with the numbers of metrics.json
under stable names, the figures, and a table of the most memorized pairs; a study is one (``study``) with its settings as a table.
"""

import logging
import os
import shutil
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from dejavu_lit.measure.per_pair import write_csv
from dejavu_lit.report.cards import Images, choose, read_ranks, read_rows
from dejavu_lit.report.evaluation import Evaluation, draw, images, run_and_epoch
from dejavu_lit.report.scalars import scalars, settings_rows
from dejavu_lit.report.study import labels
from dejavu_lit.utils.io import file_sha256, plain, read_json, write_json
from dejavu_lit.utils.run_directory import read_config
from dejavu_lit.utils.wandb import FOLDER, LoggerSettings, Wandb, open_run, quiet, wandb_options

PAIRS = 100  # of the most memorized in wandb's table
STRIP = 96  # pixels: height of the neighbors' images there
OF_RUN = ("model", "recipe", "mitigation", "seed")  # settings of the target run that panels compare by
log = logging.getLogger(__name__)


def log_evaluation(
    settings: LoggerSettings, out: Path, redact: bool, drawn: Path | None = None, tags: Sequence[str] = ()
) -> None:
    """Log the evaluation in ``out``; one that was logged already and has not changed since is left alone.

    Args:
        redact: leave captions, images and objects of single pairs out.
        drawn: the folder of its figures; None: they are drawn for this.
        tags: wandb's, where the settings have none.
    """
    found = Evaluation.open(out)
    values = scalars(found.metrics)
    write_csv(out / "scalars.csv", [{"name": name, "value": value} for name, value in values.items()])
    if settings.wandb is None and not settings.tensorboard:
        return
    run, epoch = _target(found.metrics)
    with _figures("evaluation", found.drawn(redact), drawn) as figures:
        if settings.tensorboard:
            _tensorboard(out / "tensorboard", values, figures, epoch)
        if settings.wandb is not None:
            config = {**found.metrics["settings"], "epoch": epoch, "target_run": _run_settings(run)}
            options = wandb_options(out, settings.wandb, "evaluation", run)
            with _wandb_run(out, "metrics.json", redact, settings.wandb, options, config, tags) as client:
                if client is not None:
                    client.log(values | _images(figures) | {"memorized": memorized_table(found, redact)})


def log_study(settings: LoggerSettings, out: Path, redact: bool, report: Path | None = None) -> None:
    """Log the study in ``out`` and each of its evaluations; ``report``: the study's report, whose figures are used."""
    study = read_json(out / "study.json")
    for label, row in zip(labels(study["settings"]), study["settings"], strict=True):
        drawn = report / "settings" / label / "figures" if report else None
        log_evaluation(settings, (out / row["metrics"]).parent, redact, drawn, row["overrides"])
    if settings.wandb is None and not settings.tensorboard:
        return
    rows = settings_rows(study)
    with _figures("study", study, report / "figures" if report else None) as figures:
        if settings.tensorboard:
            _tensorboard(out / "tensorboard", {}, figures, 0)
            _hyperparameters(out / "tensorboard", rows, labels(study["settings"]))
        if settings.wandb is not None:
            import wandb

            config = {"settings": {row["name"]: row["overrides"] for row in study["settings"]}}
            options = wandb_options(out, settings.wandb, "study")
            with _wandb_run(out, "study.json", redact, settings.wandb, options, config, ()) as client:
                if client is not None:
                    table = wandb.Table(columns=list(rows[0]), data=[list(row.values()) for row in rows])
                    client.log(_images(figures) | {"settings": table})
                    client.summary["recommended"] = study["recommended"]


def memorized_table(found: Evaluation, redact: bool) -> Any:
    """wandb's table of the most memorized pairs: numbers, and unless redacted caption, objects and images."""
    import wandb

    ranks = read_ranks(found.records)
    rows = read_rows(found.records, ranks, choose([ranks], PAIRS), found.metrics["k"])
    numbers = ("hits", "precision", "recall")
    columns: list[str | int] = ["rank", "key", "gap_hits", "distance", "exposure"]
    columns += [f"{side}_{n}" for side in ("target", "reference") for n in numbers]
    if not redact:
        columns += ["caption", "objects", "only_target", "picture", "target_finds", "reference_finds"]
    table = wandb.Table(columns=columns)
    with tempfile.TemporaryDirectory() as folder:
        names = Images() if redact else images(found, rows, Path(folder), found.folder / "report" / "thumbs")
        for number, row in enumerate(rows):
            cells = [number + 1, row["key"], row["target_hits"] - row["reference_hits"], row["target_distances"][0]]
            cells += [row["exposure"], *(row[f"{side}_{n}"] for side in ("target", "reference") for n in numbers)]
            if not redact:
                only = sorted(set(row["objects"]) & set(row["target_predicted"]) - set(row["reference_predicted"]))
                cells += [row["caption"], ", ".join(row["objects"]), ", ".join(only)]
                strips = [[names.own.get(row["key"])]]
                strips += [[names.public.get(n) for n in row[f"{side}_neighbors"]] for side in ("target", "reference")]
                cells += [_strip(Path(folder), strip) for strip in strips]
            table.add_data(*cells)
    return table


def _strip(folder: Path, names: Sequence[str | None]) -> Any:
    """Thumbnails side by side as one image for wandb; None where there are none."""
    import wandb

    opened = [Image.open(folder / name) for name in names if name is not None]
    if not opened:
        return None
    small = [image.resize((max(1, round(image.width * STRIP / image.height)), STRIP)) for image in opened]
    strip = Image.new("RGB", (sum(image.width for image in small), STRIP))
    left = 0
    for image in small:
        strip.paste(image, (left, 0))
        left += image.width
    return wandb.Image(strip, file_type="jpg")


def _target(metrics: Mapping[str, Any]) -> tuple[Path | None, int]:
    """The target's run directory, if it is one, and the epoch that was measured (0: the last)."""
    run, epoch = run_and_epoch(str(metrics["settings"].get("target", "")))
    return (run, epoch) if (run / "run.json").is_file() else (None, 0)


def _run_settings(run: Path | None) -> dict[str, Any]:
    if run is None or not (run / "config.yaml").is_file():
        return {}
    config = read_config(run)
    found = {name: config[name] for name in OF_RUN if name in config}
    known = run / FOLDER / "id.json"
    return found | {
        "train_size": config["data"]["train_size"],
        "id": read_json(known)["id"] if known.is_file() else None,
    }


@contextmanager
def _figures(kind: str, value: Mapping[str, Any], drawn: Path | None) -> Iterator[list[Path]]:
    """The figures as PNG files, drawn for this where they are not at hand."""
    if drawn is not None and drawn.is_dir():
        yield sorted(drawn.glob("*.png"))
        return
    with tempfile.TemporaryDirectory() as folder:
        draw(kind, value, Path(folder))
        yield sorted(Path(folder).glob("*.png"))


def _images(figures: Sequence[Path]) -> dict[str, Any]:
    import wandb

    return {f"figures/{path.stem}": wandb.Image(str(path)) for path in figures}


@contextmanager
def _wandb_run(
    out: Path,
    artifact: str,
    redact: bool,
    settings: Wandb,
    options: dict[str, Any],
    config: Mapping[str, Any],
    tags: Sequence[str],
) -> Iterator[Any]:
    """wandb's run of ``out``, ended whatever happens; None where this artifact was logged before in the same way."""
    import wandb

    known = out / FOLDER / "id.json"
    state = file_sha256(out / artifact)
    before = read_json(known)
    if (before.get("logged"), before.get("redacted")) == (state, redact):
        yield None
        return
    if redact and not before.get("redacted"):
        _remove_runs(out, before["id"])
    before.pop("logged", None)  # a call that is killed from here on has not logged
    write_json(known, before | {"redacted": redact})
    own = "WANDB_DATA_DIR" not in os.environ
    if own:  # images of a table wait for the upload there; by default that is in the home folder, where nobody looks
        os.environ["WANDB_DATA_DIR"] = str((out / FOLDER / "data").resolve())
    try:
        run = open_run(
            out,
            settings.offline,
            config=plain(config),
            settings=wandb.Settings(silent=quiet(), console="off", x_disable_stats=True),
            **options | {"tags": options["tags"] or list(tags) or None},
        )
        try:
            yield run
        finally:
            run.finish()
    finally:
        if own:
            del os.environ["WANDB_DATA_DIR"]
    write_json(known, read_json(known) | {"logged": state})
    log.info("logged to wandb: %s", out / FOLDER)


def _remove_runs(out: Path, id: str) -> None:
    """Remove what an unredacted call left on disk: wandb's runs of this id, and images that wait for the upload."""
    folder = out / FOLDER
    for place in (runs := sorted(folder.glob(f"*run-*-{id}"))):
        shutil.rmtree(place)
    if (folder / "data").is_dir():
        shutil.rmtree(folder / "data")
    if runs:
        log.warning(
            "%s: the wandb run %s held captions and images and was removed here; if it was uploaded, delete it there too",
            out,
            id,
        )


def _tensorboard(folder: Path, values: Mapping[str, float], figures: Sequence[Path], step: int) -> None:
    """Write the event file anew: an evaluation that is made again replaces the earlier one."""
    from torch.utils.tensorboard import SummaryWriter

    shutil.rmtree(folder, ignore_errors=True)
    with SummaryWriter(str(folder)) as writer:
        for name, value in values.items():
            writer.add_scalar(name, value, step)
        for path in figures:
            writer.add_image(f"figures/{path.stem}", np.array(Image.open(path).convert("RGB")), step, dataformats="HWC")


def _hyperparameters(folder: Path, rows: Sequence[Mapping[str, Any]], names: Sequence[str]) -> None:
    """Each setting with its knobs and numbers, for TensorBoard's own parallel-coordinates and scatter views."""
    from torch.utils.tensorboard import SummaryWriter

    with SummaryWriter(str(folder)) as writer:
        for name, row in zip(names, rows, strict=True):
            knobs = {k: v for k, v in row.items() if "/" not in k and v is not None}
            numbers = {k: v for k, v in row.items() if "/" in k and v is not None}
            writer.add_hparams(knobs, numbers, run_name=name, global_step=0)
