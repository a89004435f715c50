"""One evaluation as the report reads it, and what is written of it: page, cards, thumbnails, figures, model-card blocks."""

import csv
import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dejavu_lit.data.objects import Objects, read_objects
from dejavu_lit.data.prepared import DataSpec
from dejavu_lit.data.shards import ShardSet
from dejavu_lit.measure.recompute import read_metrics
from dejavu_lit.report import page, parts
from dejavu_lit.report.cards import Images, Ranks, Row, choose, read_ranks, read_rows, write_cards
from dejavu_lit.report.images import boxes, thumbnails
from dejavu_lit.report.markup import Html
from dejavu_lit.report.modelcard import latex, markdown
from dejavu_lit.utils.errors import UserError
from dejavu_lit.utils.io import file_sha256, write_text
from dejavu_lit.utils.progress import progress

SCRIPTS = ("report.js", "cards.js")
COUNTED = ("caption_words", "object_count")  # subgroups whose names are numbers
OWN, NEIGHBOR = 240, 112  # pixels of the longer side
log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Evaluation:
    """An evaluation as the report reads it: its folder, metrics.json and where the data lie now."""

    folder: Path
    metrics: Mapping[str, Any]
    data: Path | None

    @classmethod
    def open(cls, folder: Path, data: Path | None = None) -> "Evaluation":
        """Read an evaluation's folder; ``data``: the data folder, where it was moved.

        Raises:
            UserError: no metrics.json, or one of another schema.
        """
        metrics = read_metrics(folder)
        named = metrics["settings"].get("data")
        return cls(folder, metrics, data or (Path(named) if named else None))

    def drawn(self, redact: bool = False) -> Mapping[str, Any]:
        """What the figures show: metrics.json, and the gaps over the epochs of training where the run is at hand.

        Args:
            redact: leave out the subgroups whose names are objects or values of the pairs' JSON.
        """
        shown = {**self.metrics, "epochs": gaps_over_epochs(self.folder, self.metrics["settings"])}
        if redact:
            groups = self.metrics.get("subgroups") or {}
            shown["subgroups"] = {column: found for column, found in groups.items() if column in COUNTED}
        return shown

    @property
    def records(self) -> Path:
        """Its records of A."""
        return self.folder / "records.parquet"

    def public(self) -> str:
        """The name of the public set that was searched, under which the object artifact holds it."""
        spec = self._spec()
        return spec.public_sets.get(spec.public, Path(spec.public).name)

    def _spec(self) -> DataSpec:
        """The data as far as the report reads them: where they lie now, and the public set."""
        config = self.metrics.get("provenance", {}).get("config", {}).get("data", {})
        chosen = {"public": self.metrics["settings"].get("public"), "public_sets": config.get("public_sets")}
        return DataSpec("evaluated", str(self.data), **{name: value for name, value in chosen.items() if value})

    def shards(self) -> tuple[ShardSet | None, ShardSet | None]:
        """The shards of A and of the public set; None where they are not at hand."""
        if self.data is None:
            return None, None
        spec = self._spec()
        found: list[ShardSet | None] = []
        for name in ("A", self.public()):
            try:
                found.append(ShardSet.open(spec.folder / "A" if not found else spec.public_folder()))
            except UserError as error:
                log.warning("images of %s are not at hand, the report goes without: %s", name, error)
                found.append(None)
        return found[0], found[1]

    def artifact(self) -> Path | None:
        """The folder of the object artifact; None where it is not at hand."""
        named = Path(self.metrics["settings"].get("objects") or "")
        places = [named, *([self.data / "objects" / named.name] if self.data else [])]
        return next((place for place in places if named.name and (place / self.public()).is_dir()), None)

    def objects(self) -> Objects | None:
        """The public images' objects at the measurement's threshold; None where they are not at hand."""
        folder = self.artifact()
        if folder is None:
            return None
        (objects,), _ = read_objects([folder / self.public()], self.metrics["settings"]["threshold"])
        return objects


def write_single(part: Path, found: Evaluation, redact: bool, limit: int, earlier: Path | None) -> None:
    """Write the report of one evaluation into ``part``; the arguments are those of ``write_report``."""
    ranks = read_ranks(found.records)
    rows = read_rows(found.records, ranks, choose([ranks], limit), found.metrics["k"])
    names = images(found, rows, part / "thumbs", earlier) if not redact else Images()
    write_evaluation(part, found, ranks, rows, names, redact)


def images(found: Evaluation, rows: list[Row], folder: Path, earlier: Path | None) -> Images:
    """The thumbnails and boxes of the rows' own images and of their neighbors; without those that are not at hand."""
    own, public = found.shards()
    keys = [row["key"] for row in rows]
    near = {n for row in rows for side in ("target", "reference") for n in row[f"{side}_neighbors"]}
    artifact, threshold = found.artifact(), found.metrics["settings"]["threshold"]
    return Images(
        thumbnails(own, keys, OWN, folder, earlier) if own else {},
        thumbnails(public, near, NEIGHBOR, folder, earlier) if public else {},
        boxes(own, artifact / "A", keys, threshold) if own and artifact else {},
        boxes(public, artifact / found.public(), near, threshold) if public and artifact else {},
    )


def write_evaluation(
    folder: Path,
    found: Evaluation,
    ranks: Ranks,
    rows: list[Row],
    names: Images,
    redact: bool,
    root: str = "",
    back: Html | None = None,
) -> None:
    """Write one evaluation's page, data, figures and blocks for model cards into ``folder``.

    Args:
        rows: the records that get a card; names: their images; root: the way from ``folder`` to the report's folder.
    """
    folder.mkdir(parents=True, exist_ok=True)
    write_cards(folder / "data", rows, len(ranks.keys), None if redact else found.objects(), names, redact)
    write_text(folder / "memorized-keys.txt", "".join(f"{row['key']}\n" for row in rows))
    write_text(folder / "modelcard.md", markdown(found.metrics))
    write_text(folder / "modelcard.tex", latex(found.metrics))
    plots = draw("evaluation", found.drawn(redact), folder / "figures")
    artifacts = [found.folder / "metrics.json", *sorted(found.folder.glob("records*.parquet"))]
    hashes = {path.name: file_sha256(path) for path in artifacts}
    body = page.evaluation(
        found.metrics,
        plots,
        parts.pairs_section(len(rows), len(ranks.keys), redact, root),
        parts.provenance(found.metrics, hashes),
        back,
    )
    write_text(folder / "index.html", parts.document("Déjà vu memorization report", body, SCRIPTS, root))


def draw(kind: str, value: Mapping[str, Any], folder: Path) -> list[parts.Shown]:
    """Draw the figures of an ``evaluation`` (its metrics) or a ``study``; none where matplotlib is not installed."""
    try:
        from dejavu_lit.report.figures import Plot, save
    except ImportError:
        log.warning("no figures: they need matplotlib (pip install 'dejavu-lit[report]')")
        return []
    from dejavu_lit.report.plots import evaluation_plots
    from dejavu_lit.report.study_plots import study_plots

    plots: Callable[[Mapping[str, Any]], list[Plot]] = study_plots if kind == "study" else evaluation_plots
    return [save(plot, folder) for plot in progress(plots(value), "figures", unit="figure")]


GAPS = "gap/"


BESIDE = ("val_accuracy", "val_loss")  # of the same epochs


def run_and_epoch(name: str) -> tuple[Path, int]:
    """The folder and the epoch of RUN[@EPOCH], 0 for the end of the run; a folder may have an @ in its path."""
    run, at, epoch = name.rpartition("@")
    if not (at and epoch.isdecimal()) or (Path(name).expanduser() / "config.yaml").is_file():
        run, epoch = name, "0"
    return Path(run).expanduser(), int(epoch)


def gaps_over_epochs(evaluation: Path, settings: Mapping[str, Any]) -> list[dict[str, float]]:
    """One row an epoch that was measured: epoch (counted from 1), ppg, ppg_low, ppg_high, prg, aucg, null_ppg, corrected_ppg.

    Args:
        evaluation: its folder; a study's runs lie beside it.
        settings: of metrics.json; ``target`` names the run, whose epochs up to that of RUN@EPOCH are given.

    Returns:
        The rows in order, [] where the run is not at hand or nothing was measured in it.
    """
    run, last = run_and_epoch(str(settings.get("target", "")))
    study = evaluation.parent.parent
    places = [run, *([study / "runs" / run.name] if (study / "study.json").is_file() else [])]
    path = next((place / "metrics.csv" for place in places if run.name and (place / "metrics.csv").is_file()), None)
    if path is None:
        return []
    rows: dict[int, dict[str, float]] = {}
    beside: dict[int, dict[str, float]] = {}
    with open(path, newline="", encoding="utf-8", errors="replace") as file:
        for line in csv.DictReader(file):
            try:
                epoch, metric, value = int(line["epoch"]) + 1, line["metric"], float(line["value"])
            except (KeyError, TypeError, ValueError):
                continue  # a line cut short when the run was killed
            if metric.startswith(GAPS):
                rows.setdefault(epoch, {"epoch": epoch})[metric.removeprefix(GAPS)] = value
            elif metric in BESIDE:
                beside.setdefault(epoch, {})[metric] = value
    end = last or max(rows, default=0)
    return [rows[epoch] | beside.get(epoch, {}) for epoch in sorted(rows) if epoch <= end and "ppg" in rows[epoch]]
