"""One evaluation as the report reads it, and what is written of it: page, cards, thumbnails, figures, model-card blocks."""

import csv
import logging
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from dejavu_lit.data.halves import POOL, DealtSet, open_pool
from dejavu_lit.data.prepared import DataSpec
from dejavu_lit.data.shards import ShardSet
from dejavu_lit.evaluation.context import CONTEXT
from dejavu_lit.measure.figures import FIGURES
from dejavu_lit.measure.recompute import read_metrics
from dejavu_lit.measure.records import read_columns
from dejavu_lit.models.model_name import ModelName
from dejavu_lit.report.cards import (
    CardImages,
    Rankings,
    Row,
    cards,
    choose_keys,
    neighbors,
    read_ranks,
    read_rows,
    write_script,
)
from dejavu_lit.report.figure_files import draw_figures
from dejavu_lit.report.images import read_image_objects, write_thumbnails
from dejavu_lit.report.modelcard import latex, markdown
from dejavu_lit.report.page import evaluation_page
from dejavu_lit.utils.errors import UserError
from dejavu_lit.utils.io import file_sha256, read_json_object
from dejavu_lit.utils.progress import progress

THUMBS = "thumbs"  # of all pages, below the report's folder
NUMERIC_SUBGROUPS = ("caption_words", "object_count")  # their group names are numbers, so a redacted report keeps them
CARD_SIZE, NEIGHBOR_SIZE = 320, 160  # pixels of a thumbnail's longer side
GAP_PREFIX = "gap/"  # of the metrics that training logs about memorization
DRAWN_GAPS = {*FIGURES, "ppg_low", "ppg_high", "null_ppg"}
VALIDATION_METRICS = ("val_accuracy", "val_loss")  # shown beside the gaps of the same epochs
log = logging.getLogger(__name__)


@dataclass(frozen=True)
class ReportOptions:
    """What the pages of a report contain."""

    redact: bool = False
    """Exclude captions, images and objects; statistics and keys stay."""
    limit: int = 500
    """The largest number of pairs that get a card."""
    formats: tuple[str, ...] = ("svg",)
    """The files of each figure; a page shows the SVG."""
    earlier: Path | None = None
    """The folder of an earlier report, whose thumbnails and figures are used again."""


@dataclass(frozen=True)
class Evaluation:
    """An evaluation as the report reads it: its folder, its metrics.json, and the current location of its data."""

    folder: Path
    metrics: Mapping[str, Any]
    data: Path | None

    @classmethod
    def open(cls, folder: Path, data: Path | None = None) -> "Evaluation":
        """Read a folder; ``data``: where its data were moved. Raises UserError if metrics.json cannot be read."""
        metrics = read_metrics(folder)
        recorded = metrics["settings"].get("data")
        return cls(folder, metrics, data or (Path(recorded) if recorded else None))

    @property
    def records(self) -> Path:
        """The records of A."""
        return self.folder / "records.parquet"

    def artifacts(self) -> list[Path]:
        """The files that the report is made of."""
        return [self.folder / "metrics.json", *sorted(self.folder.glob("records*.parquet"))]

    def figure_data(self, redact: bool = False) -> Mapping[str, Any]:
        """What the figures draw: metrics.json, the gaps over the epochs of training, and the scores of single pairs.

        With ``redact`` the subgroups whose names are objects or values of the pairs' JSON are left out.
        """
        contents = {**self.metrics, "epochs": self.epochs()}
        if self.metrics.get("membership"):
            contents["pairs"] = scores_of_pairs(self.records)
        if redact:
            subgroups = self.metrics.get("subgroups") or {}
            contents["subgroups"] = {name: groups for name, groups in subgroups.items() if name in NUMERIC_SUBGROUPS}
        return contents

    def epochs(self) -> list[dict[str, float]]:
        """The epochs, up to EPOCH of RUN@EPOCH, in which the gaps were measured during training; [] without any.

        Each has epoch (from 1), ppg, ppg_low, ppg_high, prg, aucg, null_ppg, corrected_ppg and the validation metrics.
        """
        run, last = ModelName.parse(str(self.metrics["settings"].get("target", ""))).as_run()
        study = self.folder.parent.parent  # its runs are beside it
        candidates = [run, *([study / "runs" / run.name] if (study / "study.json").is_file() else [])]
        path = next((p / "metrics.csv" for p in candidates if run.name and (p / "metrics.csv").is_file()), None)
        if path is None:
            return []
        epochs: dict[int, dict[str, float]] = {}
        # What follows damage is not read.
        with suppress(csv.Error), open(path, newline="", encoding="utf-8", errors="replace") as file:
            for line in csv.DictReader(file):
                try:
                    epoch, metric, value = int(line["epoch"]) + 1, line["metric"], float(line["value"])
                except (KeyError, TypeError, ValueError):
                    continue  # a line cut short when the run was killed
                if metric.startswith(GAP_PREFIX) or metric in VALIDATION_METRICS:
                    epochs.setdefault(epoch, {"epoch": epoch})[metric.removeprefix(GAP_PREFIX)] = value
        measured = [epoch for epoch in sorted(epochs) if epochs[epoch].keys() >= DRAWN_GAPS]
        return [epochs[epoch] for epoch in measured if not last or epoch <= last]

    def public_name(self) -> str:
        """The name of the public set that was searched, as in the object artifact: it stays if the set was moved since."""
        path = self.folder / CONTEXT
        recorded = read_json_object(path).get("public") if path.is_file() else None
        return str(recorded) if recorded else self._data_spec().public_name

    def shards(self) -> tuple[ShardSet | None, ShardSet | None]:
        """The shards of A, of which a random half is a part of A and B, and of the public set; None if not available."""
        if self.data is None:
            return None, None
        if not self.data.is_dir():
            log.warning(
                "the report has no images: %s does not exist; if the data was moved, give dejavu report data=FOLDER",
                self.data,
            )
            return None, None
        spec = self._data_spec()
        public = _open_shards(self.public_name(), lambda: ShardSet.open(spec.public_folder()))
        return _open_shards("A", lambda: open_pool(spec.folder) if spec.half else spec.shard_set("A")), public

    def objects_folder(self) -> Path | None:
        """The folder of the object artifact; None if it is not available."""
        recorded = Path(self.metrics["settings"].get("objects") or "")
        candidates = [recorded, *([self.data / "objects" / recorded.name] if self.data else [])]
        return next((path for path in candidates if recorded.name and (path / self.public_name()).is_dir()), None)

    def _data_spec(self) -> DataSpec:
        config = self.metrics.get("provenance", {}).get("config", {}).get("data", {})
        options = {"public": self.metrics["settings"].get("public")}
        options |= {name: config.get(name) for name in ("public_sets", "half")}
        folder = str(self.data.absolute()) if self.data else None  # absolute, so it is a folder and never an address
        return DataSpec("evaluated", folder, **{name: value for name, value in options.items() if value})


def _open_shards(name: str, opened: Callable[[], ShardSet]) -> ShardSet | None:
    try:
        return opened()
    except UserError as error:
        log.warning("the report has no images of %s: %s", name, error)
        return None


def write_pages(
    folder: Path,
    evaluations: Mapping[str, Path],
    options: ReportOptions,
    data: Path | None,
    memorization: Mapping[str, Mapping[str, Mapping[str, Any]] | None] = {},
) -> None:
    """Write the page, card data, figures and model-card blocks of evaluations, which all show the same pairs.

    Args:
        folder: of the report; evaluations: {place of the page below it: folder of the evaluation}. One is in memory at a time.
        data: where their data were moved.
        memorization: {place: {key: the pair's counterfactual memorization}}.
    """
    earlier = options.earlier

    def opened(place: str) -> tuple[Evaluation, Rankings]:
        evaluation = Evaluation.open(evaluations[place], data)
        return evaluation, read_ranks(evaluation.records, memorization.get(place))

    chosen = choose_keys((opened(place)[1] for place in evaluations), options.limit)
    for place in progress(evaluations, "pages", unit="page"):
        evaluation, ranks = opened(place)
        page, before = folder / place, earlier / place / "figures" if earlier else None
        drawn = evaluation.figure_data(options.redact)
        figures = draw_figures("evaluation", drawn, page / "figures", options.formats, before)
        rows = read_rows(evaluation.records, ranks, chosen, evaluation.metrics["k"])
        images = CardImages() if options.redact else write_card_images(evaluation, rows, folder / THUMBS, earlier)
        write_script(page / "data" / "cards.js", cards(rows, images, options.redact))
        halves = any(row["memorization"] for row in rows)
        pairs = {"shown": len(rows), "total": len(ranks.keys), "counterfactual": halves}
        hashes = {path.name: file_sha256(path) for path in evaluation.artifacts()}
        root, source = "../" * len(Path(place).parts), str(evaluation.folder)
        texts = {
            "memorized-keys.txt": "".join(f"{row['key']}\n" for row in rows),
            "modelcard.md": markdown(evaluation.metrics),
            "modelcard.tex": latex(evaluation.metrics),
            "index.html": evaluation_page(evaluation.metrics, figures, pairs, hashes, options.redact, source, root),
        }
        for name, text in texts.items():
            (page / name).write_text(text, encoding="utf-8")


def write_card_images(evaluation: Evaluation, rows: list[Row], folder: Path, earlier: Path | None) -> CardImages:
    """Write the thumbnails of the rows' own images and of their neighbors, and read their objects; missing ones are skipped.

    Those of ``earlier``, the folder of an earlier report, are used again.
    """
    own, public = evaluation.shards()
    keys, near = [row["key"] for row in rows], neighbors(rows)
    earlier = earlier / THUMBS if earlier else None
    thumbnails = write_thumbnails(own, keys, CARD_SIZE, folder, earlier) if own else {}
    near_thumbnails = write_thumbnails(public, near, NEIGHBOR_SIZE, folder, earlier) if public else {}
    if (objects := evaluation.objects_folder()) is None:
        return CardImages(thumbnails, near_thumbnails)
    own_sets, threshold = POOL if isinstance(own, DealtSet) else ("A",), evaluation.metrics["settings"]["threshold"]
    own_objects = read_image_objects([objects / name for name in own_sets], keys, threshold)
    near_objects = read_image_objects([objects / evaluation.public_name()], near, threshold)
    return CardImages(thumbnails, near_thumbnails, own_objects, near_objects)


def scores_of_pairs(records: Path) -> list[dict[str, float]]:
    """{gap_in_hits, clipmem} of every pair of A that has objects and was drawn for the membership scores."""
    _, columns = read_columns(records, ("hits", "alignment"))
    gaps, clipmem = (columns[f"target_{name}"] - columns[f"reference_{name}"] for name in ("hits", "alignment"))
    both = np.isfinite(gaps) & np.isfinite(clipmem)
    return [{"gap_in_hits": g, "clipmem": c} for g, c in zip(gaps[both].tolist(), clipmem[both].tolist(), strict=True)]
