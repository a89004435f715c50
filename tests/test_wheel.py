"""The built wheel carries all that the commands need, and works where there is no checkout."""

import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from tests.conftest import ROOT, SMALL


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("wheel")
    command = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(out)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    (built,) = out.glob("*.whl")
    return built


@pytest.fixture(scope="module")
def installed(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the package alone, as pip puts it there."""
    out = tmp_path_factory.mktemp("installed")
    command = [
        sys.executable,
        "-m",
        "pip",
        "install",
        "-q",
        "--no-deps",
        "--no-index",
        "--target",
        str(out),
        str(wheel),
    ]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    return out


def call(installed: Path, cwd: Path, *command: str, timeout: int = 300) -> subprocess.CompletedProcess[str]:
    """``dejavu COMMAND …`` of the installed package."""
    environment = {**os.environ, "PYTHONPATH": str(installed)}
    return subprocess.run(
        [sys.executable, str(installed / "bin" / "dejavu"), *command],
        cwd=cwd,
        env=environment,
        capture_output=True,
        text=True,
        timeout=timeout,
    )


def test_it_holds_every_file_of_the_package_and_the_configuration(wheel):
    names = {name for name in zipfile.ZipFile(wheel).namelist() if ".dist-info/" not in name}
    package = {
        path.relative_to(ROOT).as_posix()
        for path in (ROOT / "dejavu_lit").rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }
    conf = {f"dejavu_lit/{path.relative_to(ROOT).as_posix()}" for path in (ROOT / "conf").rglob("*.yaml")}
    assert len(conf) > 50
    assert names == package | conf
    files = ("measure/metrics.schema.json", "study/study.schema.json", "report/templates/base.html.j2")
    assert {f"dejavu_lit/{file}" for file in files} <= names


def test_it_says_what_it_needs_and_is_licensed(wheel):
    content = zipfile.ZipFile(wheel)
    (metadata,) = (name for name in content.namelist() if name.endswith(".dist-info/METADATA"))
    text = content.read(metadata).decode()
    for line in (
        "Name: dejavu-lit",
        "License-Expression: Apache-2.0",
        "Requires-Python: >=3.11",
        "Provides-Extra: demo",
    ):
        assert line in text
    assert any(name.endswith(".dist-info/licenses/LICENSE") for name in content.namelist())


def test_commands_work_and_are_called_by_their_names_where_there_is_no_checkout(installed, tmp_path):
    said = call(installed, tmp_path, "mitigate", "--help")
    assert said.returncode == 0, said.stderr
    assert "  dejavu mitigate experiment=demo" in said.stdout
    said = call(installed, tmp_path, "train", "side=target", "mitigation=mask", f"out={tmp_path / 'run'}")
    assert said.returncode == 1
    assert "mitigation=mask is unknown" in said.stderr
    assert "text_mask" in said.stderr
    for module in ("prepare", "annotate", "dedup", "power", "report", "resume"):
        said = call(installed, tmp_path, module, "--help")
        assert said.returncode == 0, said.stderr
        assert f"dejavu {module}" in said.stdout
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
def test_a_study_runs_outside_of_the_checkout(installed, tmp_path):
    options = [*SMALL, "recipe.epochs=1", "experiment=demo", "out=study", f"data.dir={tmp_path / 'scenes'}"]
    done = call(installed, tmp_path, "mitigate", *options, "evaluate.statistics.bootstrap=100", timeout=900)
    assert done.returncode == 0, done.stderr
    study = tmp_path / "study"
    assert (study / "report" / "index.html").is_file()
    said = call(installed, tmp_path, "report", f"path={study}", "redact=true", f"out={tmp_path / 'redacted'}")
    assert said.returncode == 0, said.stderr
    runs = study / "runs"
    target, reference = (next(runs.glob(f"none-*-{side}")) for side in ("target", "reference"))
    said = call(installed, tmp_path, "evaluate", f"target={target}", f"reference={reference}", "out=gap")
    assert said.returncode == 0, said.stderr
    said = call(installed, tmp_path, "power", f"metrics={tmp_path / 'gap' / 'metrics.json'}")
    assert said.returncode == 0, said.stderr
    said = call(installed, tmp_path, "resume", str(target))
    assert said.returncode == 0, said.stderr
