"""The Markdown and LaTeX blocks: the numbers, and the escaping of special characters."""

import re
from pathlib import Path

import pytest
import yaml

from dejavu_lit.measure.membership import scoreboard
from dejavu_lit.report.modelcard import MARKDOWN, latex, markdown, study_latex, study_markdown
from dejavu_lit.report.scalars import scalars
from dejavu_lit.utils.io import read_json
from tests.measure.test_membership import SETTINGS, sets


def test_markdown(evaluation: Path) -> None:
    metrics = read_json(evaluation / "metrics.json")
    text = markdown(metrics)
    low, high = metrics["symmetric"]["prg"]["ci95"]
    assert f"**+{metrics['symmetric']['prg']['value']:.3f} [+{low:.3f}, +{high:.3f}]**" in text
    assert "zero-shot top-1 | 43.0 % | 43.0 %" in text
    assert "k = 5" in text
    alone = markdown(metrics | {"swapped": None, "symmetric": None})
    assert [line[:16] for line in alone.splitlines() if "**" in line] == ["| **corrected: A"]
    for row in [line for line in text.splitlines() if line.startswith("|")]:
        assert row.count("|") in (4, 5)


def test_the_head_is_the_model_index_of_hugging_face(evaluation: Path, study: Path) -> None:
    huggingface_hub = pytest.importorskip("huggingface_hub")
    metrics = read_json(evaluation / "metrics.json")
    metrics["settings"] |= {"target": "runs/a: 'target' # [x]", "data": "data/co co"}
    card = huggingface_hub.ModelCard(markdown(metrics))
    assert card.data.model_name == "a: 'target' # [x]"
    results = {result.metric_type: result for result in card.data.eval_results}
    for block in ("population", "swapped", "symmetric", "null", "corrected"):
        for figure in ("ppg", "prg", "aucg"):
            result = results[f"{block}_{figure}"]
            assert result.metric_value == pytest.approx(metrics[block][figure]["value"], abs=1e-6)
            assert result.metric_args["ci95"] == pytest.approx(metrics[block][figure]["ci95"], abs=1e-6)
            assert result.dataset_name == "co co"
            assert result.task_type == "feature-extraction"
    assert results["zeroshot_top1"].task_type == "zero-shot-image-classification"
    assert results["zeroshot_top1"].metric_value == pytest.approx(metrics["utility"]["target"]["zeroshot_top1"])
    assert card.text.lstrip().startswith("## Déjà vu memorization")

    contents = read_json(study / "study.json")
    text = study_markdown(contents)
    index = yaml.safe_load(text.split("---\n")[1])["model-index"]
    assert len({model["name"] for model in index}) == len(contents["settings"])


def test_the_scoreboard_is_a_table_of_the_card_and_has_stable_names_on_dashboards(evaluation: Path) -> None:
    board = scoreboard(sets(2.0), SETTINGS)
    assert board is not None
    metrics = read_json(evaluation / "metrics.json") | {"membership": board}
    text = markdown(metrics)
    auc = board["clipmem"]["auc"]
    assert f"| CLIPMem | {auc['value']:.3f} [{auc['ci95'][0]:.3f}, {auc['ci95'][1]:.3f}] |" in text
    assert f"ε is at least {int(100 * board['epsilon']['epsilon']) / 100:.2f}" in text
    values = scalars(metrics)
    assert values["membership/clipmem/auc"] == auc["value"]
    assert values["membership/clipmem/auc_low"] == auc["ci95"][0]
    assert values["membership/cosine/tpr_0.01"] == board["cosine"]["tpr_at_fpr"]["0.01"]["value"]
    assert "membership/cosine/tpr_0.001" not in values
    assert values["membership/epsilon"] == board["epsilon"]["epsilon"]


def test_latex_is_balanced_and_escaped(evaluation: Path, study: Path) -> None:
    metrics = read_json(evaluation / "metrics.json")
    metrics["found"]["words"] = r"100 % of #1 & $x_2$ ~ {a} \input{secret} ^"
    text = latex(metrics)
    assert r"100 \% of \#1 \& \$x\_2\$" in text
    assert r"\input" not in text
    metrics["found"]["words"] = "It was found:\n\n---\n\x1b[31mred"  # a blank line would end the caption's argument
    for card in (latex(metrics), markdown(metrics)):
        assert [line for line in card.splitlines() if "red" in line and "It was found:  --- " in line.replace("\\", "")]
        assert "\x1b" not in card
    for table in (text, study_latex(read_json(study / "study.json"))):
        assert table.count(r"\begin{") == table.count(r"\end{") == 2
        bare = re.sub(r"\\[{}]", "", table)
        assert bare.count("{") == bare.count("}")
        rows = [line for line in table.splitlines() if line.endswith(r"\\")]
        assert len({len(re.findall(r"(?<!\\)&", row)) for row in rows}) == 1
        assert table.isascii() or "→" not in table


def test_study_markdown(study: Path) -> None:
    found = read_json(study / "study.json")
    text = study_markdown(found)
    assert f"Recommended setting: {found['recommended']}" in text
    assert text.count("\n| ") == 1 + len(found["settings"])
    bullets = [line for line in text.splitlines() if line.startswith("- ") and " pairs: " in line]
    assert len(bullets) == len(found["pooled"])
    assert found["pooled"][0]["found"]["words"].translate(MARKDOWN) in bullets[0]
