"""One evaluation as the report reads it, and what is written of it: page, cards, thumbnails, figures, model-card blocks."""

import csv
import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dejavu_lit.data.halves import source_sets
from dejavu_lit.data.objects import Objects, read_objects
from dejavu_lit.data.prepared import DataSpec
from dejavu_lit.data.shards import ShardSet
from dejavu_lit.measure.recompute import read_metrics
from dejavu_lit.models.model_name import ModelName
from dejavu_lit.report import page, sections
from dejavu_lit.report.cards import CardImages, Ranks, Row, choose_keys, read_ranks, read_rows, write_cards
from dejavu_lit.report.images import Boxes, read_boxes, write_thumbnails
from dejavu_lit.report.markup import Html
from dejavu_lit.report.modelcard import latex, markdown
from dejavu_lit.utils.errors import UserError
from dejavu_lit.utils.io import file_sha256, write_text
from dejavu_lit.utils.progress import progress

if TYPE_CHECKING:
    from dejavu_lit.report.figures import Plot

SCRIPTS = ("report.js", "cards.js")
NUMERIC_SUBGROUPS = ("caption_words", "object_count")  # their group names are numbers, so a redacted report keeps them
CARD_SIZE, NEIGHBOR_SIZE = 240, 112  # pixels of a thumbnail's longer side
GAP_PREFIX = "gap/"  # of the metrics that training logs about memorization
VALIDATION_METRICS = ("val_accuracy", "val_loss")  # shown beside the gaps of the same epochs
log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Evaluation:
    """An evaluation as the report reads it: its folder, its metrics.json, and the current location of its data."""

    folder: Path
    metrics: Mapping[str, Any]
    data: Path | None

    @classmethod
    def open(cls, folder: Path, data: Path | None = None) -> "Evaluation":
        """Read an evaluation's folder; ``data`` is the data folder if it was moved.

        Raises:
            UserError: metrics.json is missing or has another schema.
        """
        metrics = read_metrics(folder)
        recorded = metrics["settings"].get("data")
        return cls(folder, metrics, data or (Path(recorded) if recorded else None))

    @property
    def records(self) -> Path:
        """The records of A."""
        return self.folder / "records.parquet"

    def figure_data(self, redact: bool = False) -> Mapping[str, Any]:
        """What the figures draw: metrics.json, and the gaps over the epochs of training if the run is available.

        Args:
            redact: exclude the subgroups whose names are objects or values of the pairs' JSON.
        """
        contents = {**self.metrics, "epochs": gaps_over_epochs(self.folder, self.metrics["settings"])}
        if redact:
            subgroups = self.metrics.get("subgroups") or {}
            contents["subgroups"] = {name: groups for name, groups in subgroups.items() if name in NUMERIC_SUBGROUPS}
        return contents

    def public_name(self) -> str:
        """The name of the public set that was searched, as in the object artifact."""
        return self._data_spec().public_name

    def shards(self) -> tuple[ShardSet | None, ShardSet | None]:
        """The shards of A and of the public set; None if they are not available."""
        if self.data is None:
            return None, None
        spec = self._data_spec()
        public = _open_shards(self.public_name(), lambda: ShardSet.open(spec.public_folder()))
        return _open_shards("A", lambda: spec.shards("A")), public

    def objects_folder(self) -> Path | None:
        """The folder of the object artifact; None if it is not available."""
        recorded = Path(self.metrics["settings"].get("objects") or "")
        candidates = [recorded, *([self.data / "objects" / recorded.name] if self.data else [])]
        return next((path for path in candidates if recorded.name and (path / self.public_name()).is_dir()), None)

    def public_objects(self) -> Objects | None:
        """The objects of the public images at the evaluation's score threshold; None if they are not available."""
        folder = self.objects_folder()
        if folder is None:
            return None
        (objects,), _ = read_objects([folder / self.public_name()], self.metrics["settings"]["threshold"])
        return objects

    def _data_spec(self) -> DataSpec:
        config = self.metrics.get("provenance", {}).get("config", {}).get("data", {})
        options = {"public": self.metrics["settings"].get("public")}
        options |= {name: config.get(name) for name in ("public_sets", "half", "seed")}
        folder = str(self.data.absolute()) if self.data else None  # absolute, so it is a folder and never an address
        return DataSpec("evaluated", folder, **{name: value for name, value in options.items() if value})


def _open_shards(name: str, opened: Callable[[], ShardSet]) -> ShardSet | None:
    try:
        return opened()
    except UserError as error:
        log.warning("the report has no images of %s: %s", name, error)
        return None


def write_evaluation_report(
    folder: Path, evaluation: Evaluation, redact: bool, limit: int, earlier: Path | None
) -> None:
    """Write the report of one evaluation into ``folder``.

    Args: as for ``write_report``; ``earlier`` is the thumbnails folder of an earlier report.
    """
    ranks = read_ranks(evaluation.records)
    rows = read_rows(evaluation.records, ranks, choose_keys([ranks], limit), evaluation.metrics["k"])
    images = CardImages() if redact else write_card_images(evaluation, rows, folder / "thumbs", earlier)
    write_evaluation_page(folder, evaluation, ranks, rows, images, redact)


def write_card_images(evaluation: Evaluation, rows: list[Row], folder: Path, earlier: Path | None) -> CardImages:
    """Write the thumbnails of the rows' own images and of their neighbors, and read their boxes; missing images are skipped."""
    own, public = evaluation.shards()
    keys = [row["key"] for row in rows]
    neighbors = {key for row in rows for side in ("target", "reference") for key in row[f"{side}_neighbors"]}
    objects, threshold = evaluation.objects_folder(), evaluation.metrics["settings"]["threshold"]
    return CardImages(
        write_thumbnails(own, keys, CARD_SIZE, folder, earlier) if own else {},
        write_thumbnails(public, neighbors, NEIGHBOR_SIZE, folder, earlier) if public else {},
        _own_boxes(own, objects, keys, threshold) if own and objects else {},
        read_boxes(public, objects / evaluation.public_name(), neighbors, threshold) if public and objects else {},
    )


def _own_boxes(own: ShardSet, objects: Path, keys: list[str], threshold: float) -> dict[str, Boxes]:
    boxes = [read_boxes(own, objects / name, keys, threshold) for name in source_sets(own, "A")]
    return {key: found for part in boxes for key, found in part.items()}


def write_evaluation_page(
    folder: Path,
    evaluation: Evaluation,
    ranks: Ranks,
    rows: list[Row],
    images: CardImages,
    redact: bool,
    root: str = "",
    back: Html | None = None,
) -> None:
    """Write one evaluation's page, card data, figures, and model-card blocks into ``folder``.

    Args:
        rows: the records that get a card.
        images: the images of ``rows``.
        root: the relative path from ``folder`` to the report's folder (empty, or ending in a slash).
        back: a link above the page.
    """
    folder.mkdir(parents=True, exist_ok=True)
    public = None if redact else evaluation.public_objects()
    write_cards(folder / "data", rows, len(ranks.keys), public, images, redact)
    write_text(folder / "memorized-keys.txt", "".join(f"{row['key']}\n" for row in rows))
    write_text(folder / "modelcard.md", markdown(evaluation.metrics))
    write_text(folder / "modelcard.tex", latex(evaluation.metrics))
    figures = draw_figures("evaluation", evaluation.figure_data(redact), folder / "figures")
    artifacts = [evaluation.folder / "metrics.json", *sorted(evaluation.folder.glob("records*.parquet"))]
    body = page.evaluation_body(
        evaluation.metrics,
        figures,
        sections.pairs_section(len(rows), len(ranks.keys), redact, root),
        sections.provenance_section(evaluation.metrics, {path.name: file_sha256(path) for path in artifacts}),
        back,
    )
    write_text(folder / "index.html", sections.document("Déjà vu memorization report", body, SCRIPTS, root))


def draw_figures(kind: str, contents: Mapping[str, Any], folder: Path) -> list[sections.FigureInfo]:
    """Draw the figures of an ``evaluation`` (its ``figure_data``) or a ``study`` (its study.json).

    Returns [] if matplotlib is not installed.
    """
    try:
        from dejavu_lit.report.figures import save
    except ImportError:
        log.warning("the report has no figures: they require matplotlib (pip install 'dejavu-lit[report]')")
        return []
    from dejavu_lit.report.plots import evaluation_plots
    from dejavu_lit.report.study_plots import study_plots

    plots: Callable[[Mapping[str, Any]], list[Plot]] = study_plots if kind == "study" else evaluation_plots
    return [save(plot, folder) for plot in progress(plots(contents), "figures", unit="figure")]


def gaps_over_epochs(evaluation: Path, settings: Mapping[str, Any]) -> list[dict[str, float]]:
    """One row per epoch in which the gaps were measured during training.

    Args:
        evaluation: its folder; a study's runs are beside it.
        settings: of metrics.json; ``target`` names the run. Of RUN@EPOCH, rows up to EPOCH are returned.

    Returns:
        Rows {epoch (counted from 1), ppg, ppg_low, ppg_high, prg, aucg, null_ppg, corrected_ppg, and the validation
        metrics} in order; [] if the run is not available or measured no gaps.
    """
    run, last = ModelName.parse(str(settings.get("target", ""))).as_run()
    study = evaluation.parent.parent
    candidates = [run, *([study / "runs" / run.name] if (study / "study.json").is_file() else [])]
    path = next((p / "metrics.csv" for p in candidates if run.name and (p / "metrics.csv").is_file()), None)
    if path is None:
        return []
    gaps: dict[int, dict[str, float]] = {}
    validation: dict[int, dict[str, float]] = {}
    with open(path, newline="", encoding="utf-8", errors="replace") as file:
        for line in csv.DictReader(file):
            try:
                epoch, metric, value = int(line["epoch"]) + 1, line["metric"], float(line["value"])
            except (KeyError, TypeError, ValueError):
                continue  # a line cut short when the run was killed
            if metric.startswith(GAP_PREFIX):
                gaps.setdefault(epoch, {"epoch": epoch})[metric.removeprefix(GAP_PREFIX)] = value
            elif metric in VALIDATION_METRICS:
                validation.setdefault(epoch, {})[metric] = value
    end = last or max(gaps, default=0)
    return [gaps[epoch] | validation.get(epoch, {}) for epoch in sorted(gaps) if epoch <= end and "ppg" in gaps[epoch]]
