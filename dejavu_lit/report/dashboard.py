"""Evaluations and studies on the dashboards: Weights & Biases, TensorBoard, and ``scalars.csv`` beside metrics.json.

Each evaluation is its own wandb run (job type ``evaluation``, in the group of its target run) with the numbers of metrics.json
under stable names, the figures, and a table of the most memorized pairs. A study is a run (``study``) with a settings table.
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

from dejavu_lit.measure.records import SIDES
from dejavu_lit.models.model_name import ModelName
from dejavu_lit.report.cards import CardImages, Row, choose_keys, read_ranks, read_rows
from dejavu_lit.report.evaluation import Evaluation, write_card_images
from dejavu_lit.report.figure_files import draw_figures
from dejavu_lit.report.images import Thumbnail
from dejavu_lit.report.membership import pooled_boards
from dejavu_lit.report.scalars import scalars, settings_rows
from dejavu_lit.report.study import labelled_rows
from dejavu_lit.utils.errors import UserError
from dejavu_lit.utils.io import file_sha256, read_json, read_json_object, write_csv, write_json
from dejavu_lit.utils.run_directory import RunDirectory
from dejavu_lit.utils.wandb import FOLDER, LoggerSettings, Wandb, quiet, starting, wandb_options, with_tags

TABLE_PAIRS = 100  # the most memorized pairs in wandb's table
STRIP_HEIGHT = 96  # pixels: height of the images in wandb's table
TABLE_NUMBERS = tuple(f"{side}_{name}" for side in SIDES for name in ("hits", "precision", "recall"))
RUN_SETTINGS = ("model", "recipe", "mitigation", "seed")  # settings of the target run for wandb's comparison panels
DATA_DIR = "WANDB_DATA_DIR"
STATE = "logged.json"  # beside TensorBoard's files: which state they show
log = logging.getLogger(__name__)


def log_evaluation(settings: LoggerSettings, out: Path, redact: bool) -> None:
    """Log the evaluation in ``out`` (with ``redact``: without single pairs' contents), unless it has not changed since."""
    evaluation = Evaluation.open(out)
    values = scalars(evaluation.metrics)
    write_csv(out / "scalars.csv", [{"name": name, "value": value} for name, value in values.items()])
    state, to_wandb, to_tensorboard = _outdated(settings, out / "metrics.json", redact)
    if not (to_wandb or to_tensorboard):
        return
    run, epoch = _target(evaluation.metrics)
    with _figure_files("evaluation", evaluation.figure_data(redact)) as paths:
        if to_tensorboard:
            _write_tensorboard(out / "tensorboard", state, values, paths, epoch)
        if to_wandb:
            config = {**evaluation.metrics["settings"], "epoch": epoch, "target_run": _run_settings(run)}
            options = wandb_options(out, to_wandb, "evaluation", run)
            with _wandb_run(out, state, to_wandb, options, config) as client:
                client.log(values | _wandb_images(paths) | {"memorized": memorized_table(evaluation, redact)})


def log_study(settings: LoggerSettings, out: Path, redact: bool) -> None:
    """Log the study in ``out`` and each of its evaluations."""
    study = read_json(out / "study.json")
    for row in study["settings"]:
        log_evaluation(with_tags(settings, row["overrides"]), (out / row["metrics"]).parent, redact)
    state, to_wandb, to_tensorboard = _outdated(settings, out / "study.json", redact)
    if not (to_wandb or to_tensorboard):
        return
    rows = settings_rows(study)
    with _figure_files("study", study) as paths:
        if to_tensorboard:
            settings_of = dict(zip(labelled_rows(study), rows, strict=True))
            _write_tensorboard(out / "tensorboard", state, {}, paths, 0, settings_of)
        if to_wandb:
            import wandb

            config = {"settings": {row["name"]: row["overrides"] for row in study["settings"]}}
            options = wandb_options(out, to_wandb, "study")
            with _wandb_run(out, state, to_wandb, options, config) as client:
                boards = {
                    board["title"]: wandb.Table(columns=["score", *board["headers"]], data=board["rows"])
                    for board in pooled_boards(study)
                }
                client.log(_wandb_images(paths) | {"settings": _wandb_table(rows)} | boards)
                client.summary["recommended"] = study["recommended"]


def _outdated(settings: LoggerSettings, artifact: Path, redact: bool) -> tuple[dict[str, Any], Wandb | None, bool]:
    """The state to log, an artifact as it is now, and the requested dashboards that lack it: wandb, TensorBoard."""
    state = {"logged": file_sha256(artifact), "redacted": redact}

    def lacks(name: str) -> bool:
        file = artifact.parent / name
        return not (file.is_file() and state.items() <= read_json_object(file).items())

    to_wandb = settings.wandb if settings.wandb and lacks(f"{FOLDER}/id.json") else None
    return state, to_wandb, settings.tensorboard and lacks(f"tensorboard/{STATE}")


def memorized_table(evaluation: Evaluation, redact: bool) -> Any:
    """wandb's table of the most memorized pairs: numbers, and unless redacted the caption, objects and images."""
    ranks = read_ranks(evaluation.records)
    rows = read_rows(evaluation.records, ranks, choose_keys([ranks], TABLE_PAIRS), evaluation.metrics["k"])
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        earlier = evaluation.folder / "report"
        images = CardImages() if redact else write_card_images(evaluation, rows, folder, earlier)
        contents = []
        for number, row in enumerate(rows, start=1):
            gap = row["target_hits"] - row["reference_hits"]
            cells = {"rank": number, "key": row["key"], "gap_hits": gap, "distance": row["target_distances"][0]}
            cells |= {name: row[name] for name in ("exposure", *TABLE_NUMBERS)}
            contents.append(cells if redact else cells | _content_cells(row, images, folder))
    return _wandb_table(contents)


def _content_cells(row: Row, images: CardImages, folder: Path) -> dict[str, Any]:
    """The cells that a redacted table does not have: caption, objects, and the thumbnails in ``folder``."""
    only_target = sorted(set(row["objects"]) & set(row["target_predicted"]) - set(row["reference_predicted"]))
    near = {f"{side}_finds": [images.public.get(key) for key in row[f"{side}_neighbors"]] for side in SIDES}
    strips = {"picture": [images.own.get(row["key"])], **near}
    words = {"caption": row["caption"], "objects": ", ".join(row["objects"]), "only_target": ", ".join(only_target)}
    return words | {name: _image_strip(folder, strip) for name, strip in strips.items()}


def _wandb_table(rows: Sequence[Mapping[str, Any]]) -> Any:
    import wandb

    return wandb.Table(columns=list(rows[0]), data=[list(row.values()) for row in rows])


def _image_strip(folder: Path, thumbnails: Sequence[Thumbnail | None]) -> Any:
    """Thumbnails side by side as one image for wandb; None without thumbnails."""
    import wandb

    images = [Image.open(folder / thumbnail.name, formats=["WEBP"]) for thumbnail in thumbnails if thumbnail]
    if not images:
        return None
    widths = [max(1, round(image.width * STRIP_HEIGHT / image.height)) for image in images]
    scaled = [np.asarray(image.resize((width, STRIP_HEIGHT))) for image, width in zip(images, widths, strict=True)]
    return wandb.Image(Image.fromarray(np.hstack(scaled)), file_type="jpg")


def _target(metrics: Mapping[str, Any]) -> tuple[Path | None, int]:
    """The target's run directory if it is a run, and the epoch that was measured (0: the last)."""
    run, epoch = ModelName.parse(str(metrics["settings"].get("target", ""))).as_run()
    return (run, epoch) if RunDirectory(run).finished else (None, 0)


def _run_settings(run: Path | None) -> dict[str, Any]:
    if run is None or not RunDirectory(run).exists:
        return {}
    config = RunDirectory(run).config()
    id_file = run / FOLDER / "id.json"
    return {name: config[name] for name in RUN_SETTINGS if name in config} | {
        "train_size": config["data"]["train_size"],
        "id": read_json_object(id_file).get("id") if id_file.is_file() else None,
    }


@contextmanager
def _figure_files(kind: str, contents: Mapping[str, Any]) -> Iterator[list[Path]]:
    """The figures as PNG files, in a temporary folder."""
    with tempfile.TemporaryDirectory() as temporary:
        draw_figures(kind, contents, Path(temporary), ("png",))
        yield sorted(Path(temporary).glob("*.png"))


def _wandb_images(figures: Sequence[Path]) -> dict[str, Any]:
    import wandb

    return {f"figures/{path.stem}": wandb.Image(str(path)) for path in figures}


@contextmanager
def _wandb_run(
    out: Path, state: Mapping[str, Any], settings: Wandb, options: dict[str, Any], config: dict[str, Any]
) -> Iterator[Any]:
    """wandb's run of ``out``, always finished; ``state`` is then known as logged."""
    import wandb

    id_file = out / FOLDER / "id.json"
    previous = read_json(id_file)
    if state["redacted"] and not previous.get("redacted"):
        _remove_runs(out, previous["id"])
    previous.pop("logged", None)  # a call killed from here on has not logged
    write_json(id_file, previous | {"redacted": state["redacted"]})
    with _data_folder(out / FOLDER / "data"):
        with starting(settings.offline):
            run = wandb.init(
                dir=out.resolve(),
                mode="offline" if settings.offline else None,
                resume="allow",
                config=config,
                settings=wandb.Settings(silent=quiet(), console="off", x_disable_stats=True),
                **options,
            )
        try:
            yield run
        finally:
            run.finish()
    write_json(id_file, read_json(id_file) | state)
    log.info("logged to wandb: %s", out / FOLDER)


@contextmanager
def _data_folder(folder: Path) -> Iterator[None]:
    """Let wandb keep the images that wait for the upload in ``folder`` instead of the home folder, unless the user chose one."""
    is_chosen = DATA_DIR in os.environ
    os.environ.setdefault(DATA_DIR, str(folder.resolve()))
    try:
        yield
    finally:
        if not is_chosen:
            del os.environ[DATA_DIR]


def _remove_runs(out: Path, id: str) -> None:
    """Delete what an unredacted call left on disk: wandb's runs of this id, and images that wait for the upload.

    Raises UserError if they are behind a link, which may lead to files that are not wandb's.
    """
    folder = out / FOLDER
    if folder.is_symlink():
        raise UserError(
            f"{folder} is a link, and what it shows is not deleted; remove the link, and the runs with captions"
        )
    runs = sorted(folder.glob(f"*run-*-{id}"))
    for run in runs:
        shutil.rmtree(run)
    if (folder / "data").is_dir():
        shutil.rmtree(folder / "data")
    if runs:
        log.warning(
            "%s: the wandb run %s contained captions and images and was deleted; if it was uploaded, delete it online too",
            out,
            id,
        )


def _write_tensorboard(
    folder: Path,
    state: Mapping[str, Any],
    values: Mapping[str, float],
    figures: Sequence[Path],
    step: int,
    settings: Mapping[str, Mapping[str, Any]] = {},
) -> None:
    """Replace the event file by a new one; ``settings``: {label: knobs and numbers} for its parallel coordinates."""
    from torch.utils.tensorboard import SummaryWriter

    shutil.rmtree(folder, ignore_errors=True)
    with SummaryWriter(str(folder)) as writer:
        for name, value in values.items():
            writer.add_scalar(name, value, step)
        for path in figures:
            writer.add_image(f"figures/{path.stem}", np.array(Image.open(path).convert("RGB")), step, dataformats="HWC")
        for label, row in settings.items():
            knobs = {name: value for name, value in row.items() if "/" not in name and value is not None}
            numbers = {name: value for name, value in row.items() if "/" in name and value is not None}
            writer.add_hparams(knobs, numbers, run_name=label, global_step=0)
    write_json(folder / STATE, state)
