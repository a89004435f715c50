"""The Python interface: the lines that docs/api.md shows, on a few images."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from dejavu_lit import settings, write_report
from dejavu_lit.utils.errors import UserError
from tests.conftest import ROOT, SMALL


def test_the_lines_of_the_page_do_what_the_commands_do(scenes, tmp_path, monkeypatch):
    page = (ROOT / "docs" / "api.md").read_text(encoding="utf-8")
    code = re.findall(r"^```python\n(.*?)^```", page, re.MULTILINE | re.DOTALL)[0]
    small = ", ".join(repr(option) for option in [*SMALL, f"data.dir={scenes}"])
    code = code.replace('"data=scenes"', f'"data=scenes", {small}')
    code = code.replace('"evaluate", ', '"evaluate", "statistics.bootstrap=100", ')
    monkeypatch.chdir(tmp_path)
    names: dict[str, object] = {}
    exec(code, names)
    assert (tmp_path / "outputs" / "target" / "run.json").is_file()
    assert (tmp_path / "outputs" / "gap" / "metrics.json").is_file()
    assert set(names["metrics"]["population"]) == {"ppg", "prg", "aucg"}
    assert write_report("outputs/gap", redact=True, formats=()) == Path("outputs/gap/report/index.html")


def test_ranks_left_over_in_the_environment_of_a_notebook_are_forgotten(scenes, tmp_path):
    """A rank above 0 would train without settings, lock and loggers."""
    options = ["side=target", *SMALL, f"data.dir={scenes}", "recipe.epochs=1"]
    code = f"from dejavu_lit import settings, train; train(settings('train', *{options}), {str(tmp_path / 'run')!r})"
    left_over = {"MASTER_ADDR": "n1", "NODE_RANK": "1", "LOCAL_RANK": "1", "PYTHONPATH": str(ROOT)}
    done = subprocess.run([sys.executable, "-c", code], env=os.environ | left_over, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert {"config.yaml", "metrics.csv", "run.json"} <= {path.name for path in (tmp_path / "run").iterdir()}


def test_wrong_options_are_the_sentence_of_the_command():
    with pytest.raises(UserError, match=r"^recipe.epohcs is not an option \(did you mean 'recipe.epochs'\?\)$"):
        settings("train", "side=target", "recipe.epohcs=3")
    with pytest.raises(
        UserError, match=r"^command=eval is unknown \(did you mean 'evaluate'\?\); choose one of train, "
    ):
        settings("eval")


def test_nothing_heavy_is_imported_with_the_package():
    code = "import sys; from dejavu_lit import evaluate, mitigate, prepare, settings, train; assert 'torch' not in sys.modules"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
