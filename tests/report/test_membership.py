"""Membership in the report: the section's table and figures, the study's figures, and pairs ranked over random halves."""

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from markupsafe import escape

pytest.importorskip("matplotlib")

from dejavu_lit.measure.figures import MEMBERSHIP
from dejavu_lit.report.evaluation import Evaluation
from dejavu_lit.report.figures import Plot
from dejavu_lit.report.membership import epsilon_sentence
from dejavu_lit.report.plots import evaluation_plots
from dejavu_lit.report.report import write_report
from dejavu_lit.report.study_plots import scores_of_settings, study_plots
from dejavu_lit.report.study_points import points
from dejavu_lit.report.terminal import show_study
from dejavu_lit.utils.io import read_json, write_json
from tests.report.artifacts import FEW_FIGURES, make_evaluation, make_study

from .test_figures import forest_rows, lines, no_label_is_cut_or_overlaps_another
from .test_study_figures import MITIGATIONS, row, study_of


@pytest.fixture(scope="module")
def scored(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An evaluation with membership scores: 120 pairs of H, enough for a TPR at 1 % FPR and too few for one at 0.1 %."""
    folder = tmp_path_factory.mktemp("scored") / "evaluation"
    return make_evaluation(folder, n=120, images=False, membership=True, settings=FEW_FIGURES)


@pytest.fixture(scope="module")
def plots(scored: Path) -> dict[str, Plot]:
    return {plot.name: plot for plot in evaluation_plots(Evaluation.open(scored).figure_data())}


def test_the_page_shows_every_score_and_why_figures_are_missing(scored: Path, tmp_path: Path) -> None:
    text = write_report(scored, out=tmp_path / "r", limit=3).read_text()
    board = read_json(scored / "metrics.json")["membership"]
    for name in MEMBERSHIP:
        shown = [
            board[name]["auc"],
            board[name]["tpr_at_fpr"]["0.01"],
            board[name]["symmetric"],
            board[name]["control"],
        ]
        for figure in shown:
            low, high = figure["ci95"]
            assert f">{figure['value']:.3f}<small>{low:.3f} to {high:.3f}</small></td>" in text
        assert f"<dd>{escape(MEMBERSHIP[name].meaning)}</dd>" in text
    spearman = board["clipmem"]["spearman"]
    shown = f">{spearman['value']:.3f}<small>{spearman['ci95'][0]:.3f} to {spearman['ci95'][1]:.3f}</small>"
    assert shown.replace("-", "−") in text
    assert "TPR at 0.1 % FPR of cosine" in text
    assert "119 non-members are fewer than 1 / 0.001." in text
    assert f"differential privacy: ε is at least {int(100 * board['epsilon']['epsilon']) / 100:.2f} (" in text


def test_a_lower_bound_is_rounded_down() -> None:
    audit = {"epsilon": 5.5856, "right": 800, "guesses": 800, "pairs": 4000}
    assert "ε is at least 5.58 (800 of 800 guesses were right, among 4,000 pairs" in str(
        epsilon_sentence({"epsilon": audit})
    )
    assert "no ε is refuted (" in str(epsilon_sentence({"epsilon": audit | {"epsilon": 0.009}}))


def test_the_page_says_that_no_scores_were_measured_also_of_the_first_schema(
    plain: Path, scored: Path, tmp_path: Path
) -> None:
    assert "Not measured: no reason was given." in write_report(plain, out=tmp_path / "r", limit=3).read_text()
    metrics = read_json(scored / "metrics.json")
    metrics |= {"membership": None, "reasons": {"membership": "membership=null left them out"}}
    (tmp_path / "e").mkdir()
    for path in scored.glob("*.parquet"):
        (tmp_path / "e" / path.name).symlink_to(path)
    write_json(tmp_path / "e" / "metrics.json", metrics)
    text = write_report(tmp_path / "e", limit=3).read_text()
    assert "Not measured: membership=null left them out." in text


def test_the_roc_and_the_scatter_show_the_scores(plots: dict[str, Plot], scored: Path) -> None:
    board = read_json(scored / "metrics.json")["membership"]
    axis = plots["roc"].drawn().axes[0]
    assert (axis.get_xscale(), axis.get_yscale()) == ("log", "log")
    for name, (x, y) in zip(MEMBERSHIP, lines(axis).values(), strict=True):
        curve = zip(board[name]["roc"]["fpr"], board[name]["roc"]["tpr"], strict=True)
        assert list(zip(x, y, strict=True)) == [(f, t) for f, t in curve if f > 0 and t > 0]

    table = pq.read_table(scored / "records.parquet").to_pylist()
    columns = pq.read_table(scored / "records.columns.parquet").to_pylist()
    expected = [
        (
            r["target_hits"] - r["reference_hits"],
            json.loads(c["target_alignment"]) - json.loads(c["reference_alignment"]),
        )
        for r, c in zip(table, columns, strict=True)
        if r["objects"] and json.loads(c["target_alignment"]) is not None
    ]
    assert len(expected) == 118  # one pair was not drawn, one has no objects
    assert [(r["gap_in_hits"], r["clipmem"]) for r in plots["clipmem"].rows] == expected
    x, y = lines(plots["clipmem"].drawn().axes[0])["pairs of A"]
    assert list(zip(x, y, strict=True)) == expected
    for name in ("roc", "clipmem"):
        no_label_is_cut_or_overlaps_another(plots[name])


def with_membership(row: dict[str, Any]) -> dict[str, Any]:
    """A row whose AUC of each score is 0.5 plus a part of its PPG."""
    scores = {}
    for number, name in enumerate(MEMBERSHIP):
        value = 0.5 + row["symmetric"]["ppg"]["value"] / (number + 2)
        figure = {"value": value, "ci95": [value - 0.01, value + 0.02]}
        scores[name] = {"auc": {"value": 0.9, "ci95": None}, "symmetric": figure, "tpr_at_fpr": {}}
    return row | {"membership": scores}


def drawn(rows: list[dict[str, Any]]) -> dict[str, Plot]:
    return {plot.name: plot for plot in study_plots(study_of([with_membership(r) for r in rows]))}


def test_every_setting_under_every_score() -> None:
    plot = drawn(MITIGATIONS)["scores"]
    gaps, aucs = plot.drawn().axes
    assert [text.get_text() for text in gaps.get_yticklabels()] == [r["name"] for r in MITIGATIONS]
    assert [value for _, value, _ in forest_rows(gaps)] == [r["symmetric"]["ppg"]["value"] for r in MITIGATIONS]
    expected = [with_membership(r)["membership"][name]["symmetric"] for r in MITIGATIONS for name in MEMBERSHIP]
    _, values, intervals = zip(*forest_rows(aucs), strict=True)
    assert list(values) == [figure["value"] for figure in expected]
    np.testing.assert_allclose(intervals, [figure["ci95"] for figure in expected])
    assert "Other settings with a lower PPG than default: 7 of 8; of these, with a lower AUC: 7 by cosine" in plot.text
    no_label_is_cut_or_overlaps_another(plot)


def test_an_auc_of_1_has_no_interval_and_is_drawn(tmp_path: Path) -> None:
    """Scores that separate members perfectly: DeLong's variance is 0."""
    evaluation = make_evaluation(tmp_path, n=30, strength=20.0, images=False, membership=True, settings=FEW_FIGURES)
    board = read_json(evaluation / "metrics.json")["membership"]
    assert board["cosine"]["symmetric"] == {"value": 1.0, "se": None, "ci95": None}
    separated = [row | {"membership": board} for row in MITIGATIONS[:2]]
    point = points(study_of(separated))[0]
    assert (point["cosine"]["value"], point["cosine"]["low"], point["cosine"]["high"]) == (1.0, 1.0, 1.0)
    assert forest_rows(scores_of_settings(study_of(separated)).drawn().axes[1])
    assert "Interval of AUC of cosine" in write_report(evaluation, out=tmp_path / "r", limit=3).read_text()


def test_the_law_over_exposure_has_the_planted_slope() -> None:
    noise = {25: 1.0, 50: 1.1, 100: 0.95, 200: 1.02}
    rows = [
        row(f"none, {series}", 0.03 * seen**0.5 * noise[seen], 0.2, size, series=series, exposure=seen)
        for series, exposures in (("equal pairs", (200, 100, 50, 25)), ("equal epochs", (25,)))
        for size, seen in zip((250, 500, 1000, 2000), exposures, strict=False)
    ]
    rows[-1] |= {"train_size": 2000}  # the model that both series share counts once
    plot = drawn(rows)["law"]
    for name in ("ppg", "cosine", "dejavu"):
        line = [r for r in plot.rows if r["measure"] == name]
        assert [r["exposure"] for r in line] == [200, 100, 50, 25]
        x, y = (np.log(np.array([r[part] for r in line])) for part in ("exposure", "value"))
        slope, intercept = np.polyfit(x, y, 1)
        residuals = y - slope * x - intercept
        half = 4.302652730 * np.sqrt(
            (residuals**2).sum() / 2 / ((x - x.mean()) ** 2).sum()
        )  # t of 2 degrees of freedom
        assert line[0]["slope"] == pytest.approx(slope)
        assert [line[0]["slope_low"], line[0]["slope_high"]] == pytest.approx([slope - half, slope + half])
        assert slope == pytest.approx(0.5, abs=0.1)
    assert "PPG (none) 0.4" in plot.text
    no_label_is_cut_or_overlaps_another(plot)
    assert "law" not in drawn([r | {"exposure": {"target": {"mean": 25.0}}} for r in rows])  # one T/N has no slope


def test_pairs_are_ranked_by_counterfactual_memorization(tmp_path: Path) -> None:
    study = make_study(tmp_path / "s", {"none": 0.9, "mask": 0.0}, (40,), settings=FEW_FIGURES, membership=True)
    keys = [f"a{i:05d}" for i in range(40)]
    hits = np.random.default_rng(0).permutation(40) / 10
    table = {"setting": ["none"] * 40, "train_size": [40] * 40, "key": keys, "hits": hits, "hits_se": [0.25] * 40}
    table |= {"alignment": [None] * 40, "alignment_se": [None] * 40, "hits_halves": [4] * 40}
    pq.write_table(pa.table(table), study / "memorization.parquet")
    settings = write_report(study).parent / "settings"
    shown = (settings / "none-n40-s0" / "memorized-keys.txt").read_text().split()
    order = np.array(keys)[np.argsort(-hits, kind="stable")].tolist()
    assert shown == [key for key in order if key != "a00039"]  # which has no objects
    text = (settings / "none-n40-s0" / "data" / "cards.js").read_text()
    card = json.loads(text.removeprefix("dejavu(").removesuffix(")\n"))["cards"][0]
    assert card["memorization"] == {
        "hits": hits.max(), "hits_se": 0.25, "alignment": None, "alignment_se": None, "halves": 4
    }  # fmt: skip
    assert 'value="memorization"' in (settings / "none-n40-s0" / "index.html").read_text()
    assert 'value="memorization"' not in (settings / "mask-n40-s0" / "index.html").read_text()


def test_the_attacks_over_halves_are_rows_of_one_table_with_the_scores(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = make_study(tmp_path / "s", {"none": 0.9}, (40,), settings=FEW_FIGURES, membership=True)
    study = read_json(path / "study.json")
    figure = {"values": [0.9, 0.8, 0.9, 0.8], "mean": 0.85, "sd": 0.058, "ci95": [0.758, 0.942]}
    lira = {"auc": figure, "tpr_at_fpr": {"0.01": figure | {"mean": 0.25, "ci95": [-0.1, 0.6]}, "0.001": None}}
    reasons = {"rmia": "half 2 dealt all pairs with a loss under every model to one side"}
    (pooled,) = study["pooled"]
    pooled["memorization"] = {"halves": 4, "pairs": 80, "reliability": {"hits": 0.5, "alignment": None}} | {
        "lira": lira, "rmia": None, "reasons": reasons
    }  # fmt: skip
    write_json(path / "study.json", study)
    text = write_report(path, out=tmp_path / "r", limit=1).read_text()
    assert "Membership under none, over 4 halves and both directions" in text
    found = re.findall(r'<th scope="row">(.*?)</th>' + 3 * r"\s*<td[^>]*>(.*?)</td>", text)
    rows = {row[0]: row[1:] for row in found}
    assert rows["LiRA"] == ("0.850<small>0.758 to 0.942</small>", "0.250<small>0.000 to 0.600</small>", "–")
    assert rows["RMIA"] == ("–", "–", "–")
    cosine = pooled["membership"]["cosine"]
    assert rows["cosine"][0].startswith(f"{cosine['mean']:.3f}")
    assert "No RMIA: half 2 dealt all pairs" in text
    show_study(study, tmp_path, 80)
    lines = capsys.readouterr().out.splitlines()
    assert any("LiRA" in line and "0.850" in line for line in lines)
