"""The report's folder: complete or absent, self-contained, escaped, redacted; the command; missing images."""

import html
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from dejavu_lit.cli.report import run
from dejavu_lit.data.key_lists import read_keys
from dejavu_lit.data.prepared import DataSpec
from dejavu_lit.evaluation.settings import ReportSettings
from dejavu_lit.measure.controls import beats_blind
from dejavu_lit.measure.figures import signed
from dejavu_lit.measure.recompute import read_metrics
from dejavu_lit.report.figure_files import FigureInfo
from dejavu_lit.report.membership import membership_sentence
from dejavu_lit.report.modelcard import markdown, study_markdown
from dejavu_lit.report.narrative import (
    comparison_summary,
    control_checks,
    exposure_summary,
    next_steps,
    study_sentence,
    study_steps,
)
from dejavu_lit.report.report import is_redacted, show_report, write_report
from dejavu_lit.report.scalars import scalars
from dejavu_lit.report.study import first_setting, second_setting, study_page
from dejavu_lit.report.terminal import show_evaluation, show_study
from dejavu_lit.study.table import read_study
from dejavu_lit.utils.errors import UserError
from dejavu_lit.utils.io import read_json, write_json
from tests.report.artifacts import FEW_FIGURES, HOSTILE, LABELS, make_evaluation

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def report(evaluation: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_report(evaluation, out=tmp_path_factory.mktemp("out") / "report").parent


def links(page: Path) -> list[str]:
    return re.findall(r'(?:src|href|srcset)="([^"#]+)"', page.read_text())


def test_the_folder_is_self_contained(report: Path) -> None:
    for page in report.rglob("*.html"):
        for link in links(page):
            assert "//" not in link
            assert (page.parent / link).resolve().is_file(), link
            assert (page.parent / link).resolve().is_relative_to(report.resolve())
    assert (report / "memorized-keys.txt").read_text().count("\n") == 39
    assert not [path for path in report.parent.iterdir() if path.name.endswith((".part", ".old"))]


def test_the_exported_keys_are_sorted_by_gap_and_readable_by_data_exclude(evaluation: Path, report: Path) -> None:
    table = pq.read_table(evaluation / "records.parquet").to_pylist()
    shown = [row for row in table if row["objects"]]
    ordered = sorted(shown, key=lambda row: row["reference_hits"] - row["target_hits"])  # stable: ties as in the table
    path = report / "memorized-keys.txt"
    assert read_keys(path, "data.exclude") == [row["key"] for row in ordered]
    assert DataSpec("made", exclude=str(path)).excluded == {row["key"] for row in shown}


def test_the_controls_warn_of_models_that_are_no_better_than_the_most_frequent_objects(evaluation: Path) -> None:
    metrics = read_json(evaluation / "metrics.json")
    better, worse = {"precision": 0.3, "recall": 0.8}, {"precision": 0.1, "recall": 0.8}
    blind = {"objects": 7, "blind": {"precision": 0.2, "recall": 0.6}, "target": better, "reference": better}

    def judged(baseline: dict[str, Any]) -> dict[str, Any]:
        return baseline | dict(zip(("beaten", "words"), beats_blind(baseline), strict=True))

    for baseline, state, words in (
        (
            judged(blind),
            "yes",
            "better than naming the 7 most frequent objects: precision 0.300 and 0.300 against 0.200",
        ),
        (judged(blind | {"reference": worse}), "caution", "the reference is not better in precision"),
        (blind, "unknown", "was not recorded"),  # by an earlier version
        (None, "unknown", "was not recorded"),
    ):
        _, (found, sentence) = control_checks(metrics | {"blind": baseline}).popitem()
        assert (found, words in sentence) == (state, True)


@pytest.mark.parametrize(
    ("null", "state"), [([0.01, -0.01, 0.03], "yes"), ([0.05, 0.03, 0.07], "caution"), ([0.25, 0.2, 0.3], "no")]
)
def test_the_null_is_a_caution_if_it_is_smaller_but_not_nothing(
    evaluation: Path, null: list[float], state: str
) -> None:
    metrics = read_json(evaluation / "metrics.json")
    metrics["null"]["ppg"] |= {"value": null[0], "ci95": null[1:]}
    metrics["symmetric"]["ppg"] |= {"value": 0.2}
    assert control_checks(metrics)["Null gap smaller than the measured gap"][0] == state


@pytest.fixture
def sound(evaluation: Path) -> dict[str, Any]:
    """An evaluation without cautions, with a found verdict."""
    metrics = read_json(evaluation / "metrics.json")
    return metrics | {"found": {"found": True}, "blind": None, "membership": None}


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({}, "Treat the model as"),
        ({"found": {"found": False}}, "Not shown is not absent"),
        ({"found": {"found": None}}, "train both models again with the same recipe and seed, or longer"),
        ({"found": {"found": None}, "swapped": None, "symmetric": None}, "an indication, not a verdict"),
        ({"found": {"found": None}, "null": None, "corrected": None}, "measure H."),
        (
            dict.fromkeys(("null", "swapped", "symmetric", "corrected")) | {"found": {"found": None}},
            "measure H and B.",
        ),
    ],
)
def test_the_page_says_what_follows_from_the_verdict(sound: dict[str, Any], change: dict[str, Any], words: str) -> None:
    verdict, seeds = next_steps(sound | change)
    assert words in verdict
    assert "three seed pairs" in seeds
    (of_study,) = next_steps(sound | change, of_study=True)
    assert words in of_study
    assert "mitigations" not in of_study


def test_the_page_of_a_study_says_what_follows_from_its_verdicts() -> None:
    def steps(found: list[bool | None], seeds: int = 3, **row: Any) -> list[str]:
        pooled = [{"found": {"found": each}, "seeds": list(range(seeds))} for each in found]
        return study_steps({"pooled": pooled, "settings": [{"name": "none", **row}]})

    treat, absent = steps([False, True, None])
    assert treat.startswith(
        "Treat a model for which memorization was found as you treat its training images: for some pairs"
    )
    assert absent.startswith("Not shown is not absent")
    assert steps([None]) == []
    (noise,) = steps([True], seeds=1, beats_blind=False)  # its models know too little for a verdict
    assert "three seed pairs" in noise


def test_a_caution_comes_first_and_the_verdict_is_not_settled(sound: dict[str, Any]) -> None:
    few = sound | {"counts": sound["counts"] | {"swapped": {"records": 19}}, "blind": {"beaten": False}}
    records, models, seeds = next_steps(few)
    assert records.startswith("Records with objects: 19 in B. Below about 20,")
    assert "train longer, or on more pairs" in models
    assert "three seed pairs" in seeds
    card = markdown(few | {"found": {"found": True, "words": "Found."}})
    assert f"Found. {records} {models}" in card.replace("\\", "")


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({}, "(AUC of the cosine 0.784 [0.770, 0.798]; guessing is 0.5)"),
        ({"auc": {"value": 1.0, "ci95": None}}, "(AUC of the cosine 1.000; guessing is 0.5)"),  # perfect separation
        ({"auc": {"value": 0.6, "ci95": [0.5, 0.7]}}, ""),
        ({"auc": None}, ""),
        ({"unseen": None}, "AUC of the cosine 0.784"),  # without B
        ({"unseen": {"value": 0.6, "ci95": [0.55, 0.65]}}, "do not rely on these scores"),
        ({"control": {"value": 0.4, "ci95": [0.35, 0.45]}}, "do not rely on these scores"),
    ],
)
def test_membership_is_named_by_the_cosine_if_its_controls_are_guesses(change: dict[str, Any], words: str) -> None:
    guess = {"value": 0.51, "ci95": [0.46, 0.56]}
    cosine = {"auc": {"value": 0.784, "ci95": [0.77, 0.798]}, "control": guess, "unseen": guess}
    board = {"pairs": {"A": 120, "H": 20}, "cosine": cosine | change}
    sentence = membership_sentence(board)
    assert words in sentence
    assert bool(words) == bool(sentence)
    for none in (None, board | {"cosine": None}, board | {"pairs": {"A": 120, "H": 19}}):
        assert membership_sentence(none) == ""


def test_few_records_are_named_on_the_page_and_the_terminal(
    plain: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = shutil.copytree(plain, tmp_path / "e", ignore=shutil.ignore_patterns("report"))
    metrics = read_json(folder / "metrics.json")
    metrics["counts"]["records"] = 7
    write_json(folder / "metrics.json", metrics)
    text = write_report(folder, limit=3).read_text()
    check, _, steps = text.partition("<h3>What to do next</h3>")
    few = "Records with objects: 7 in A. Below about 20, intervals are too narrow: measure more pairs before"
    assert f"<strong>Enough records</strong> (caution) {few}" in check
    assert f"<ul>\n<li>{few}" in steps
    show_evaluation(metrics, folder)
    assert few in capsys.readouterr().out


def test_models_that_were_not_trained_alike_are_a_caution(evaluation: Path, capsys: pytest.CaptureFixture[str]) -> None:
    metrics = read_json(evaluation / "metrics.json") | {
        "training_differences": {"epochs": [1, 25], "pairs": [500, 2000]}
    }
    alike = "Both models were trained alike"
    state, sentence = control_checks(metrics)[alike]
    assert state == "caution"
    assert "(epochs 1 and 25, pairs 500 and 2000)" in sentence
    show_evaluation(metrics, evaluation)
    assert sentence in capsys.readouterr().out
    assert control_checks(metrics | {"training_differences": {}})[alike][0] == "yes"
    assert alike not in control_checks(metrics | {"training_differences": None})


def test_the_terminal_and_metrics_say_whether_the_models_are_better_than_blind(
    evaluation: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    metrics = read_json(evaluation / "metrics.json")
    assert metrics["blind"]["beaten"] is False  # the reference of these artifacts retrieves at random
    show_evaluation(metrics, evaluation)
    assert metrics["blind"]["words"] in capsys.readouterr().out


def test_the_page_shows_the_verdict_and_the_numbers(report: Path, evaluation: Path) -> None:
    text = (report / "index.html").read_text()
    metrics = read_json(evaluation / "metrics.json")
    assert "Memorization was found" in text
    assert f"+{metrics['symmetric']['ppg']['value']:.3f}" in text
    assert f"+{metrics['population']['aucg']['value']:.3f}" in text
    assert "evaluate.py target=runs/target" in text
    assert "zero-shot top-1" in text
    assert "runs/&lt;reference&gt;" in text  # escaped
    assert "runs/<reference>" not in text
    assert "Content-Security-Policy" in text
    assert not re.search(r"<script(?![^>]* src=)|\son\w+=|\sstyle=", text)  # nothing inline


def test_the_page_itself_contains_no_caption(report: Path) -> None:
    text = (report / "index.html").read_text()
    assert not any(caption in text for caption in HOSTILE)


@pytest.mark.parametrize(
    ("found", "verdict"), [(False, "Memorization was not shown"), (None, "No verdict is possible")]
)
def test_the_verdict_is_that_of_the_rule(found: bool | None, verdict: str, plain: Path, tmp_path: Path) -> None:
    shutil.copytree(plain, tmp_path / "e", ignore=shutil.ignore_patterns("data", "report"))
    metrics = read_json(tmp_path / "e" / "metrics.json")
    metrics["found"] |= {"found": found, "words": f"{verdict}, because the interval is not entirely above 0: 0.1."}
    if found is None:
        metrics |= {"swapped": None, "symmetric": None, "reasons": {"symmetric": "the set B was not measured"}}
    write_json(tmp_path / "e" / "metrics.json", metrics)
    text = write_report(tmp_path / "e", limit=5).read_text()
    assert verdict in text
    assert "Memorization was found" not in text
    if found is None:
        assert "the set B was not measured" in text
        assert "<span>corrected PPG</span>" in text
        assert "PPG on A minus PPG on H" in text
        assert "the largest possible" not in text
        assert re.findall(r'<tr class="headline"><th scope="row">(\w+)', text) == ["corrected"]
        assert f"; PPG on A is {signed(metrics['population']['ppg']['value'])}." in text


def test_the_redacted_report_contains_no_caption_image_or_object(plain: Path, tmp_path: Path) -> None:
    out = tmp_path / "report"
    write_report(plain, out=out)
    assert list(out.rglob("*.webp"))
    write_report(plain, redact=True, out=out)  # replaces the full report completely
    assert not list(out.rglob("*.webp"))
    assert not (out / "thumbs").exists()
    everything = b"".join(path.read_bytes() for path in out.rglob("*") if path.is_file())
    assert b"in image 7" not in everything
    assert HOSTILE[0].encode() not in everything
    assert b"a00007" in everything  # keys stay
    assert "Redacted" in (out / "index.html").read_text()


def test_the_redacted_report_names_no_object_and_no_value_of_the_json(evaluation: Path, tmp_path: Path) -> None:
    out = write_report(evaluation, out=tmp_path / "full").parent
    assert (out / "figures" / "subgroups-object.csv").is_file()
    assert "soccer ball" in (out / "figures" / "subgroups-object.csv").read_text()
    folder = shutil.copytree(evaluation, tmp_path / "e", ignore=shutil.ignore_patterns("data", "report"))
    metrics = read_json(folder / "metrics.json")
    metrics["subgroups"]["city"] = metrics["subgroups"]["object"]  # as if grouped by a column of the pairs' JSON
    write_json(folder / "metrics.json", metrics)
    out = write_report(folder, redact=True, out=tmp_path / "redacted").parent
    assert (out / "figures" / "subgroups-object-count.csv").is_file()
    assert not list(out.rglob("*city*"))
    texts = [path for path in out.rglob("*") if path.suffix in (".html", ".js", ".csv", ".svg", ".md", ".tex", ".txt")]
    for path in texts:
        if path.parent.name != "static":
            found = path.read_text()
            assert not [label for label in LABELS if re.search(rf"(?<!\w){re.escape(label)}(?!\w)", found)], path


def test_additional_annotators_have_a_table_on_the_page(plain: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(plain, tmp_path / "e", ignore=shutil.ignore_patterns("report"))
    metrics = read_json(folder / "metrics.json")
    blocks = {name: metrics[name] for name in ("counts", "population", "null", "swapped", "symmetric", "corrected")}
    counts = metrics["counts"] | {"records": 0}
    none = dict.fromkeys(blocks) | {"counts": counts, "reason": "no record of A has an object in b"}
    metrics["by_objects"] = {"<other>": blocks, "b": none, "c": blocks | {"swapped": None, "symmetric": None}}
    write_json(folder / "metrics.json", metrics)
    text = write_report(folder, redact=True).read_text()
    assert '<th scope="row">&lt;other&gt;</th>' in text
    assert "no record of A has an object in b" in text
    assert '<th scope="row">c</th><td>corrected: A − H</td>' in text
    names = scalars(metrics)
    assert names["by_objects/<other>/symmetric/ppg"] == metrics["symmetric"]["ppg"]["value"]
    assert not [name for name in names if name.startswith("by_objects/b/")]


@pytest.mark.parametrize("redact", [False, True])
def test_the_base_and_the_groups_are_shown_without_their_names_if_redacted(
    plain: Path, tmp_path: Path, redact: bool
) -> None:
    folder = shutil.copytree(plain, tmp_path / "e", ignore=shutil.ignore_patterns("report"))
    metrics = read_json(folder / "metrics.json")
    group = {"group": "<Ann>", "records": 7, "ppg": 0.25, "prg": -0.5, "aucg": 0.125, "p": 0.5, "q": 0.75}
    group |= {"clipmem_auc": 0.875, "clipmem_p": 0.0123, "clipmem_q": None}
    too_small = {"groups": 3, "records": 4, "smallest": 5}
    metrics["groups"] = {"column": "meta.owner", "holdout": 9, "groups": [group], "too_small": too_small, "without": 2}
    blocks = {name: metrics[name] for name in ("population", "null", "corrected")}
    metrics["base"] = {"model": "ViT-B-32@openai", **blocks}
    write_json(folder / "metrics.json", metrics)
    text = write_report(folder, redact=redact).read_text()
    row = text.partition('aria-label="Gaps by group"')[2].partition("</tbody>")[0].partition("<tbody>")[2]
    cells = re.findall(r"<t[hd][^>]*>(?:<bdi>)?([^<]*)", row)
    name = "1" if redact else "&lt;Ann&gt;"
    assert cells == [name, "7", "+0.250", "−0.500", "+0.125", "0.5", "0.75", "0.875", "0.0123", "–"]
    assert ("Ann" in text) is not redact
    assert "Groups with fewer than 5 records are not shown: 3" in text
    assert scalars(metrics)["base/corrected/ppg"] == metrics["corrected"]["ppg"]["value"]
    metrics["groups"]["groups"] = [group] * 20_000
    write_json(folder / "metrics.json", metrics)
    text = write_report(folder, redact=redact).read_text()
    assert text.count(">0.0123<") == 200
    assert "The 200 with the smallest p of 20,000 are shown; groups.csv has all of them." in text


def test_public_images_in_a_folder_elsewhere(tmp_path: Path) -> None:
    folder = make_evaluation(tmp_path / "e", n=12, m=12, settings=FEW_FIGURES)
    os.rename(folder / "data" / "P", tmp_path / "other")
    objects = folder / "data" / "objects" / "made"
    os.rename(objects / "P", objects / "others-name-1a2b3c")
    write_json(folder / "context.json", {"public": "others-name-1a2b3c"})
    metrics = read_json(folder / "metrics.json")
    metrics["settings"]["public"] = str(tmp_path / "other")
    write_json(folder / "metrics.json", metrics)
    page = write_report(folder)
    chunk = (page.parent / "data" / "cards.js").read_text()
    assert ",null]" not in chunk  # neighbors have their objects and boxes
    assert not re.search(r'\["p\d+",null', chunk)  # and thumbnails


def test_without_images_or_objects_there_is_still_a_page(tmp_path: Path) -> None:
    folder = make_evaluation(tmp_path / "e", n=12, m=12, images=False, settings=FEW_FIGURES)
    assert write_report(folder).is_file()
    shutil.rmtree(folder / "data")
    page = write_report(folder)
    assert "Memorization" in page.read_text()
    assert not list(page.parent.rglob("*.webp"))


def test_data_names_the_folder_of_moved_data(tmp_path: Path) -> None:
    folder = make_evaluation(tmp_path / "e", n=12, m=12, settings=FEW_FIGURES)
    os.rename(folder / "data", tmp_path / "moved")
    page = write_report(folder, data=tmp_path / "moved")
    assert list(page.parent.rglob("*.webp"))
    chunk = (page.parent / "data" / "cards.js").read_text()
    assert ",null]" not in chunk  # neighbors have their objects


def test_other_folders_are_never_replaced(plain: Path, tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.tex").write_text("x")
    with pytest.raises(UserError, match="is not a report"):
        write_report(plain, out=tmp_path / "mine")
    assert (tmp_path / "mine" / "thesis.tex").exists()


def test_an_out_that_cannot_be_a_report_is_refused(
    plain: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match="is a file"):
        write_report(plain, out=tmp_path / "file")
    (tmp_path / "empty").mkdir()
    monkeypatch.chdir(tmp_path / "empty")
    with pytest.raises(UserError, match=r"out=\. is the current folder"):
        write_report(plain, out=".")
    assert not list((tmp_path / "empty").iterdir())


def test_links_in_place_of_reports_are_replaced_and_what_they_lead_to_stays(plain: Path, tmp_path: Path) -> None:
    elsewhere = write_report(plain, out=tmp_path / "elsewhere", limit=3).parent
    before = files_of(elsewhere)
    for name in ("report", ".report.part", ".report.old"):
        (tmp_path / name).symlink_to(elsewhere)
    for _ in range(2):
        assert write_report(plain, out=tmp_path / "report", limit=3).is_file()
    assert files_of(elsewhere) == before
    assert not (tmp_path / "report").is_symlink()
    assert sorted(path.name for path in tmp_path.iterdir() if not path.name.endswith(".lock")) == [
        "elsewhere",
        "report",
    ]


def test_an_earlier_report_that_cannot_be_removed_is_reported(
    plain: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    write_report(plain, out=tmp_path / "report", limit=3)
    monkeypatch.setattr(shutil, "rmtree", lambda *_, **__: None)  # as if another user owned the files
    write_report(plain, redact=True, out=tmp_path / "report", limit=3)
    assert f"{tmp_path / '.report.old'}, the earlier report" in caplog.text


def test_mistakes_are_reported_in_a_sentence(plain: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="contains neither"):
        write_report(tmp_path)
    with pytest.raises(UserError, match="did you mean 'path'"):
        run(["pat=x"])
    with pytest.raises(UserError, match="true or false"):
        run([f"path={plain}", "redact=maybe"])
    with pytest.raises(
        UserError, match="path is missing; give path=…: the out= folder of dejavu evaluate or dejavu mit"
    ):
        run([])
    with pytest.raises(UserError, match=r"^limit=many must be a whole number"):
        run([f"path={plain}", "limit=many"])
    with pytest.raises(UserError, match=r"^redact has no value; write redact=…"):
        run([f"path={plain}", "redact"])
    with pytest.raises(UserError, match=r"^--redact is not an option"):
        run([f"path={plain}", "--redact"])
    with pytest.raises(UserError, match=rf"^path is given twice: {tmp_path} and {plain}"):
        run([f"{tmp_path}", f"{plain}"])
    with pytest.raises(UserError, match="nowhere does not exist; give the out= folder of"):
        run([f"{tmp_path / 'nowhere'}"])
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(UserError, match="limit"):
        run([f"path={plain}", "limit=0"])
    write_json(tmp_path / "metrics.json", {"schema": 99})
    with pytest.raises(UserError, match="schema 99"):
        write_report(tmp_path)
    assert not [p for p in tmp_path.iterdir() if p.name.startswith(".report") and p.is_dir()]


def test_the_path_is_taken_as_it_stands(plain: Path, tmp_path: Path) -> None:
    page = tmp_path / "r" / "index.html"
    assert run([str(plain), "limit=3", f"out={page.parent}"]) == page
    (tmp_path / "lr=0.1").symlink_to(plain)
    assert run([str(tmp_path / "lr=0.1"), "limit=3", f"out={page.parent}"]) == page


def test_a_failed_call_leaves_the_earlier_report(plain: Path, tmp_path: Path) -> None:
    shutil.copytree(plain, tmp_path / "e", ignore=shutil.ignore_patterns("report"))
    page = write_report(tmp_path / "e", limit=3)
    before = page.read_bytes()
    (tmp_path / "e" / "records.parquet").write_bytes(b"broken")
    with pytest.raises(UserError, match="records file"):
        write_report(tmp_path / "e")
    assert page.read_bytes() == before


def test_the_command_needs_no_torch(plain: Path, tmp_path: Path) -> None:
    code = (
        "import sys; from dejavu_lit.cli.report import run; "
        f"print(run(['path={plain}', 'out={tmp_path / 'r'}', 'limit=3'])); "
        "assert not {'torch', 'hydra', 'faiss', 'wandb'} & set(sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    done = subprocess.run([sys.executable, "-m", "dejavu_lit", "report"], cwd=ROOT, capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.splitlines()[-1].startswith("error: path is missing")


def test_without_matplotlib_the_page_names_the_missing_package(
    plain: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    text = write_report(plain, out=tmp_path / "r", limit=3).read_text()
    assert "dejavu-lit[report]" in text
    assert "figures/" not in text


def test_the_command_on_the_page_can_be_pasted_whatever_the_folder_is_called(plain: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(plain, tmp_path / "e; touch ran", ignore=shutil.ignore_patterns("report"))
    page = write_report(folder, redact=True, limit=3, formats=("svg",)).read_text()
    assert f"<code>dejavu report &#39;path={folder}&#39;</code>" in page


def test_the_study_has_a_page_for_every_setting(small_study: Path, tmp_path: Path) -> None:
    out = write_report(small_study, out=tmp_path / "report").parent
    text = (out / "index.html").read_text()
    found = read_json(small_study / "study.json")
    assert f"Recommended: {found['recommended']}" in text
    assert f"{found['recommended']} removes " in text
    assert "What to do next" in text
    assert found["pooled"][1]["difference"]["words"][1:] in text  # the difference, or "not distinguishable"
    pages = [path / "index.html" for path in (out / "settings").iterdir()]
    assert len(pages) == len(found["settings"]) == 2
    assert "What to do next" in pages[0].read_text()
    assert "three seed pairs" not in pages[0].read_text()  # the study's own question
    for page in out.rglob("*.html"):
        for link in links(page):
            assert "//" not in link
            assert (page.parent / link).resolve().is_file(), (page, link)
    for row in found["settings"]:
        assert f"+{row['symmetric']['ppg']['value']:.3f}" in text or row["symmetric"]["ppg"]["value"] <= 0
    # Settings of one size show the same pairs, so that they can be compared.
    keys = [
        set((out / "settings" / s / "memorized-keys.txt").read_text().split()) for s in ("none-n60-s0", "mask-n60-s0")
    ]
    assert keys[0] == keys[1]


def test_a_study_of_one_setting_is_not_told_to_install_matplotlib(small_study: Path) -> None:
    study = read_json(small_study / "study.json")
    assert "matplotlib (pip install 'dejavu-lit[report]') and at least two settings" in page_text(study, [])
    alone = FigureInfo("frontier", "Frontier", "words", ("svg",))
    text = page_text(study, [alone])
    assert 'src="figures/frontier.svg"' in text
    assert 'id="figures"' not in text
    assert "matplotlib" not in text


def page_text(study: dict[str, Any], figures: list[FigureInfo]) -> str:
    return html.unescape(study_page(study, figures, [], {}, "source"))


def test_exposure_to_raw_shards_is_an_average_over_any_number_of_passes(plain: Path) -> None:
    metrics = read_json(plain / "metrics.json")
    assert exposure_summary(metrics).endswith("2.0 times (2 to 2). An epoch is one pass, without replacement.")
    expected = {"expected_exposure": {"target": 1.5, "reference": None}}
    metrics |= {"exposure": {"target": None, "reference": None}, "raw_shards": expected}
    sentence = "Exposure: the target saw each pair of A 1.5 times on average (raw shards)."
    assert exposure_summary(metrics) == sentence
    metrics["raw_shards"] = None
    assert exposure_summary(metrics) == "Exposure: how often training saw each pair is unknown."


def test_a_study_says_at_its_head_what_ppg_is(small_study: Path) -> None:
    head = study_page(read_json(small_study / "study.json"), [], [], {}, "source").partition("<h2>")[0]
    assert "PPG: share of pairs for which the target is the more precise" in head
    assert "with a target model, which was trained on these pairs" in head


def test_the_rows_of_a_study_are_not_on_its_page_as_json(small_study: Path) -> None:
    study = read_json(small_study / "study.json")
    sizes = [len(study_page(study | {"settings": study["settings"] * n}, [], [], {}, "source")) for n in (1, 11)]
    assert sizes[1] - sizes[0] < 10 * len(study["settings"]) * 5_000  # bytes of a row of the table


def test_the_redacted_study_contains_no_caption_or_image(small_study: Path, tmp_path: Path) -> None:
    out = write_report(small_study, redact=True, out=tmp_path / "report").parent
    everything = b"".join(path.read_bytes() for path in out.rglob("*") if path.is_file())
    assert b"in image" not in everything
    assert not list(out.rglob("*.webp"))


def test_a_damaged_memorization_is_reported_in_a_sentence(small_study: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(small_study, tmp_path / "s", ignore=shutil.ignore_patterns("report"))
    (folder / "memorization.parquet").write_bytes(b"broken")
    with pytest.raises(UserError, match=r"memorization\.parquet is not a records file"):
        write_report(folder)


def test_the_comparison_starts_with_two_similar_settings() -> None:
    def second(*found: tuple[str, int, int]) -> str:
        rows = {f"{n}-{size}-{seed}": {"name": n, "train_size": size, "seed": seed} for n, size, seed in found}
        return second_setting(rows, next(iter(rows)))

    assert second(("none", 9, 0), ("none", 9, 1), ("mask", 9, 1), ("mask", 9, 0)) == "mask-9-0"
    assert second(("none", 9, 0), ("none", 5, 0), ("mask", 5, 0)) == "mask-5-0"
    assert second(("none", 9, 0), ("none", 9, 1)) == "none-9-1"


def test_examples_are_of_the_default_at_the_largest_size() -> None:
    rows = [{"name": n, "train_size": size} for size in (50, 100, 20) for n in ("none", "mask")]
    ranking = [{"train_size": size, "default": "none"} for size in (50, 100, 20)]
    labelled = {f"{row['name']}-{row['train_size']}": row for row in rows}
    assert first_setting({"ranking": ranking}, labelled) == "none-100"
    del labelled["none-100"]  # no evaluation
    assert first_setting({"ranking": ranking}, labelled) == "none-50"
    assert first_setting({"ranking": ranking}, {}) is None


def test_the_page_states_what_was_compared(plain: Path) -> None:
    metrics = read_json(plain / "metrics.json")
    test = metrics["population"]["ppg"]["sign_test"]
    assert comparison_summary(metrics) == (
        "For 39 training pairs with annotated objects, the caption alone was used to look up the 5 nearest of 30 public images, "
        "once with the target model, which was trained on these pairs, and once with the reference model, which was not. "
        "The neighbors named the objects of the training image more precisely with the target model for "
        f"{test['wins']} pairs, and with the reference model for {test['losses']} pairs."
    )
    metrics["settings"] |= {"reference": "text:mini"}
    summary = comparison_summary(metrics)
    assert "these pairs, and once with the text model mini, which searched the public captions" in summary
    metrics["settings"] |= {"public_modality": "text"}
    assert "public captions, once with the target model" in comparison_summary(metrics)
    assert "30 public captions, k = 5" in markdown(metrics)


def files_of(folder: Path) -> dict[str, tuple[int, bytes]]:
    """{file: (place on the disk, content)} below a folder."""
    return {str(p.relative_to(folder)): (p.stat().st_ino, p.read_bytes()) for p in folder.rglob("*") if p.is_file()}


def test_only_what_changed_is_rendered(plain: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(plain, tmp_path / "e", ignore=shutil.ignore_patterns("report"))
    settings = ReportSettings(write=True)
    page = show_report(settings, folder)
    assert page is not None
    before = files_of(page.parent)
    assert show_report(settings, folder) == page
    assert files_of(page.parent) == before  # the same files, untouched

    metrics = read_json(folder / "metrics.json")
    metrics["curves"]["recall"]["target"][0] = 0.5  # what one figure shows
    write_json(folder / "metrics.json", metrics)
    show_report(settings, folder)
    after = files_of(page.parent)
    changed = {name for name in before if after[name] != before[name]}
    assert {name for name in changed if name.startswith("thumbs/") and name.endswith(".webp")} == set()
    assert {name for name in changed if name.startswith("figures/") and name.endswith(".svg")} == {
        f"figures/recall{end}.svg" for end in ("", "-dark", "-narrow", "-narrow-dark")
    }

    marker = read_json(page.parent / "report.json")  # of somebody else, who may write anything into it
    write_json(page.parent / "report.json", marker | {"formats": 3, "data": 3})
    assert show_report(settings, folder) == page
    assert read_json(page.parent / "report.json") == marker


def test_a_redacted_report_stays_redacted_until_the_full_one_is_asked_for(plain: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(plain, tmp_path / "e", ignore=shutil.ignore_patterns("report"))
    page = write_report(folder, redact=True, limit=3)
    metrics = read_json(folder / "metrics.json")
    write_json(folder / "metrics.json", metrics | {"k": 1})
    assert show_report(ReportSettings(), folder) == page
    assert not (page.parent / "thumbs").exists()
    assert is_redacted(ReportSettings(), folder)  # the dashboards follow
    write_report(folder, limit=3)
    assert (page.parent / "thumbs").is_dir()
    assert not is_redacted(ReportSettings(), folder)
    assert is_redacted(ReportSettings(redact=True), folder)


def test_a_report_from_moved_data_keeps_its_images(plain: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(plain, tmp_path / "e", ignore=shutil.ignore_patterns("report"))
    moved = shutil.copytree(folder / "data", tmp_path / "moved")
    metrics = read_json(folder / "metrics.json")
    metrics["settings"]["data"] = str(tmp_path / "old")
    metrics["settings"]["objects"] = str(tmp_path / "old" / "objects" / Path(metrics["settings"]["objects"]).name)
    write_json(folder / "metrics.json", metrics)
    page = write_report(folder, data=moved, formats=("svg",))
    before = files_of(page.parent)
    assert any(name.startswith("thumbs/") for name in before)
    assert show_report(ReportSettings(), folder) == page
    assert files_of(page.parent) == before
    metrics["curves"]["recall"]["target"][0] = 0.5
    write_json(folder / "metrics.json", metrics)
    show_report(ReportSettings(), folder)
    assert any(name.startswith("thumbs/") for name in files_of(page.parent))


def test_the_study_in_a_sentence(small_study: Path) -> None:
    study = read_json(small_study / "study.json")
    (row,) = [r for r in study["ranking"] if r["recommended"]]
    choice = row["recommended"]
    choice["utility_loss"], choice["drop"] = -0.1, 0.36
    study["pooled"][1]["symmetric"]["ppg"]["mean"] = 0.149
    study["pooled"][1]["found"]["found"] = True
    assert (
        study_sentence(study) == "mask removes 71 % of PPG at no loss of accuracy; memorization is still found, 0.149"
    )
    choice["utility_loss"], study["pooled"][1]["found"]["found"] = 0.012, False
    assert "at a loss of 1.2 points of accuracy; memorization is no longer shown" in study_sentence(study)
    study["pooled"][1]["symmetric"]["ppg"]["mean"] = -0.07  # which is no negative amount of memorization
    assert study_sentence(study).startswith("mask removes all of PPG at a loss")
    assert study_sentence(study).endswith("no longer shown, −0.070")
    study |= {"recommended": None, "rule": "the rule"}
    assert study_sentence(study) == "no setting qualifies (rule: the rule)"


def test_a_study_says_which_models_know_nothing_and_which_sets_are_small(
    small_study: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    study = read_json(small_study / "study.json")
    for row in study["settings"]:
        assert row["beats_blind"] is read_json(small_study / row["metrics"])["blind"]["beaten"]
        assert row["few_records"] is False
    study["settings"][0] |= {"beats_blind": True, "few_records": True}
    study["settings"][1]["beats_blind"] = False
    show_study(study, Path("out"), 100)
    terminal = " ".join(capsys.readouterr().out.split())
    page = study_page(study, [], [], {}, "source")
    assert '<li class="caution">' in page
    for sentence in (
        "Models of mask do not beat the blind baseline (naming the most frequent objects)",
        "Evaluations of none have a set of fewer than 20 records with objects",
    ):
        assert page.count(sentence) == 1
        assert sentence in study_markdown(study)
        assert sentence in terminal
    study["settings"][1]["beats_blind"] = None  # not measured
    del study["settings"][0]["few_records"]  # of an earlier version
    assert '<li class="caution">' not in study_page(study, [], [], {}, "source")


def test_a_study_from_elsewhere_is_neither_written_nor_read_outside_its_folder(
    small_study: Path, tmp_path: Path
) -> None:
    study = shutil.copytree(small_study, tmp_path / "given" / "study")
    contents = read_json(study / "study.json")
    contents["settings"][0]["seed"] = "0/../../../../../victim"
    write_json(study / "study.json", contents)
    with pytest.raises(
        UserError, match=r"study\.json is damaged \(\$\.settings\[0\]\.seed: .* is not of type 'integer'\)"
    ):
        write_report(study)
    assert [path.name for path in tmp_path.iterdir()] == ["given"]
    contents["settings"][0]["seed"] = 0
    for place in (
        str(small_study / "evaluations" / "private" / "metrics.json"),
        "../private/metrics.json",
        "a\n/../../b",
    ):
        contents["settings"][0]["metrics"] = place
        write_json(study / "study.json", contents)
        with pytest.raises(UserError, match=r"study\.json is damaged \(\$\.settings\[0\]\.metrics"):
            write_report(study)


@pytest.mark.parametrize(
    "path",
    [
        "settings.membership.cosine.symmetric",
        "settings.membership.cosine",
        "settings.utility.target",
        "settings.exposure",
        "settings.few_records",
        "pooled.symmetric",
        "pooled.symmetric.ppg",
        "pooled.symmetric.ppg.mean",
        "pooled.null.ppg.sd",
        "pooled.membership.cosine.tpr_at_fpr",
        "pooled.membership.cosine.ci95",
        "pooled.memorization",
        "pooled.memorization.reliability",
        "pooled.memorization.reliability.hits",
        "pooled.memorization.reasons.rmia",
        "pooled.memorization.lira.auc.mean",
        "pooled.memorization.lira.tpr_at_fpr",
    ],
)
def test_a_study_with_figures_of_another_type_is_damaged(path: str, small_study: Path, tmp_path: Path) -> None:
    contents = read_json(small_study / "study.json")
    figure = {"mean": 0.9, "sd": None, "ci95": None}
    attack = {"auc": figure, "tpr_at_fpr": {"0.01": figure, "0.001": None}}
    for pooled in contents["pooled"]:
        pooled["membership"]["cosine"] = {**figure, "tpr_at_fpr": {"0.01": None}}
        pooled["memorization"] = {"halves": 4, "pairs": 80, "reliability": {"hits": 0.5, "alignment": None}} | {
            "lira": attack, "rmia": None, "reasons": {"rmia": "none"}
        }  # fmt: skip
    write_json(tmp_path / "study.json", contents)
    assert read_study(tmp_path / "study.json") == contents
    top, *parents, last = path.split(".")
    place = contents[top][0]
    for name in parents:
        place[name] = place.get(name) or {}
        place = place[name]
    place[last] = 7 if last in ("few_records", "rmia") else "text"
    write_json(tmp_path / "study.json", contents)
    with pytest.raises(UserError, match=r"study\.json is damaged \(\$\..*(is not of type|is not valid under any)"):
        read_study(tmp_path / "study.json")


@pytest.mark.parametrize("path", ["curves.recall.x", "curves.sample.0.hits.top"])
def test_lists_of_a_curve_that_differ_in_length_are_damage(path: str, evaluation: Path, tmp_path: Path) -> None:
    metrics = read_json(evaluation / "metrics.json")
    *parents, last = path.split(".")
    place = metrics
    for name in parents:
        place = place[int(name) if name.isdecimal() else name]
    place[last].append(1)
    write_json(tmp_path / "metrics.json", metrics)
    with pytest.raises(UserError, match=r"metrics\.json is damaged \(the lists of a curve differ in length\); run"):
        read_metrics(tmp_path)


def test_the_home_folder_is_found_in_options(plain: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A shell leaves ``out=~/report`` as it is, and a folder named ~ invites somebody to remove it with all else."""
    monkeypatch.setenv("HOME", str(plain.parent))
    monkeypatch.chdir(tmp_path)
    page = run([f"path=~/{plain.name}", "out=~/at-home", "redact=true", "limit=1"])
    assert page == plain.parent / "at-home" / "index.html"
    assert list(tmp_path.iterdir()) == []


def test_a_number_beyond_every_float_is_damage(plain: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(plain, tmp_path / "gap", ignore=shutil.ignore_patterns("report"))
    text = (folder / "metrics.json").read_text()
    (folder / "metrics.json").write_text(text.replace('"seed": 0', f'"seed": {"9" * 400}', 1))
    with pytest.raises(UserError, match=r"metrics\.json is not valid JSON"):
        write_report(folder)


def test_a_setting_without_records_has_no_page_and_the_others_do(
    small_study: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    study = shutil.copytree(small_study, tmp_path / "study", ignore=shutil.ignore_patterns("report"))
    lost = study / read_json(study / "study.json")["settings"][1]["metrics"]
    (lost.parent / "records.parquet").unlink()
    page = write_report(study)
    assert [path.name for path in (page.parent / "settings").iterdir()] == ["none-n60-s0"]
    assert caplog.text.count("no page for mask-n60-s0: metrics.json or records.parquet is missing") == 1


def test_a_gate_is_judged_on_the_evaluation_or_on_each_of_a_study(
    plain: Path, small_study: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    found = {row["name"]: row["symmetric"]["ppg"]["value"] for row in read_json(small_study / "study.json")["settings"]}
    between = f"fail_if=symmetric.ppg.value > {sum(found.values()) / 2}"
    assert found["none"] > found["mask"]
    with pytest.raises(SystemExit) as end:
        run([str(small_study), between])
    assert end.value.code == 3
    assert capsys.readouterr().err.endswith(f"fail_if is true for none-n60-s0: {between.partition('=')[2]}\n")
    bare = shutil.copytree(plain, tmp_path / "bare", ignore=shutil.ignore_patterns("report"))
    assert run([str(bare), "fail_if=symmetric.ppg.value > 1"]) is None
    assert not (bare / "report").exists()
    with pytest.raises(UserError, match="did you mean 'symmetric'"):
        run([str(bare), "fail_if=symetric.ppg.value > 1"])
    with pytest.raises(UserError, match="writes no report; drop redact="):
        run([str(bare), "fail_if=k > 1", "redact=true"])
    study = shutil.copytree(small_study, tmp_path / "study", ignore=shutil.ignore_patterns("report"))
    write_json(study / "study.json", {**read_json(study / "study.json"), "failed": {"mask-s1": "no memory"}})
    with pytest.raises(UserError, match="mask-s1 has no result, so fail_if cannot be judged"):
        run([str(study), "fail_if=k > 1000"])


def test_an_earlier_report_shows_no_other_files(plain: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(plain, tmp_path / "evaluation")
    report = write_report(folder, formats=("svg",)).parent
    (folder / "secret.webp").write_text("secret")
    lists = sorted((report / "thumbs").glob("*.json"))
    changed = read_json(lists[0])
    link, outside = list(changed["thumbnails"])[:2]
    linked = report / "thumbs" / changed["thumbnails"][link][0]
    linked.unlink()
    linked.symlink_to(folder / "secret.webp")
    changed["thumbnails"][outside][0] = "../../secret.webp"
    write_json(lists[0], changed)
    write_json(lists[1], read_json(lists[1]) | {"thumbnails": {"damaged": []}})
    drawing = report / "figures" / "gaps.svg"
    drawing.unlink()
    drawing.symlink_to(folder / "secret.webp")
    write_report(folder, formats=("svg",))
    assert not [path for path in report.rglob("*") if path.is_symlink()]
    assert len(read_json(report / "thumbs" / lists[0].name)["thumbnails"]) == len(changed["thumbnails"])
    assert "secret" not in (report / "thumbs" / lists[0].name).read_text()
    assert "<svg" in drawing.read_text()
    write_json(report / "figures" / "figures.json", ["damaged"])
    write_report(folder, formats=("svg",))
    assert read_json(report / "figures" / "figures.json")
