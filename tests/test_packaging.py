"""What pyproject.toml, the containers' recipes and the installation guide name is what the package and the checkout have."""

import ast
import re
import shutil
import subprocess
import sys
import tarfile
import tomllib
from functools import cache
from importlib import import_module
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from tests.conftest import ROOT

sys.path.insert(0, str(ROOT / ".ci"))  # what the release runs is no part of the package
addresses = import_module("addresses")
sys.path.pop(0)
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
distributions = cache(packages_distributions)
ELSEWHERE = {"detectron2"}  # on no package index; docs/installation.md says how it comes


def imported(code: str) -> set[str]:
    """The names of the packages that a module imports, on top or within a function."""
    nodes = list(ast.walk(ast.parse(code)))
    names = [alias.name for node in nodes if isinstance(node, ast.Import) for alias in node.names]
    names += [node.module or "" for node in nodes if isinstance(node, ast.ImportFrom) and not node.level]
    return {name.partition(".")[0] for name in names}


def undeclared(name: str, declared: set[str]) -> bool:
    """Whether no declared distribution brings what is imported by this name."""
    providers = distributions().get(name, [name])
    return not declared & {canonicalize_name(provider) for provider in providers}


def test_every_package_that_is_imported_is_declared():
    lines = [*PROJECT["dependencies"], *(one for extra in PROJECT["optional-dependencies"].values() for one in extra)]
    declared = {canonicalize_name(Requirement(line).name) for line in lines}
    own = sys.stdlib_module_names | ELSEWHERE | {"dejavu_lit"}
    users: dict[str, list[str]] = {}
    for path in sorted((ROOT / "dejavu_lit").rglob("*.py")):
        for name in imported(path.read_text(encoding="utf-8")) - own:
            users.setdefault(name, []).append(path.relative_to(ROOT).as_posix())
    assert {"torch", "wandb", "yaml"} <= users.keys()
    assert {name: paths for name, paths in users.items() if undeclared(name, declared)} == {}


def test_an_import_within_a_function_is_seen():
    code = "import os.path as p\ndef f():\n    from timm.data import x\n    from . import y\nif 1:\n    import yaml, PIL.Image"
    assert imported(code) == {"os", "timm", "yaml", "PIL"}
    assert undeclared("yaml", {"torch"})
    assert not undeclared("yaml", {"pyyaml"})


def copied(recipe: str) -> list[str]:
    """What a Dockerfile's COPY lines or an Apptainer file's %files section take from the checkout."""
    text = (ROOT / "containers" / recipe).read_text(encoding="utf-8")
    if recipe == "Dockerfile":
        return [name for line in re.findall(r"^COPY (.+)$", text, re.MULTILINE) for name in line.split()[:-1]]
    section = re.search(r"^%files\n(.+?)^%", text, re.MULTILINE | re.DOTALL)
    assert section
    return [line.split()[0] for line in section[1].splitlines() if line.strip()]


def test_the_containers_take_what_the_checkout_has_and_the_same():
    found = {recipe: copied(recipe) for recipe in ("Dockerfile", "apptainer.def")}
    assert sorted(found["Dockerfile"]) == sorted(found["apptainer.def"])
    assert {"pyproject.toml", "constraints.txt", "dejavu_lit", "conf"} <= set(found["Dockerfile"])
    assert [name for name in found["Dockerfile"] if not (ROOT / name).exists()] == []


@pytest.mark.parametrize("page", ["docs/installation.md", "containers/Dockerfile", "containers/apptainer.def"])
def test_the_extras_that_are_installed_exist(page):
    text = Path(ROOT / page).read_text(encoding="utf-8")
    named = [name for names in re.findall(r"(?:'\.|dejavu-lit)\[([\w,-]+)\]'", text) for name in names.split(",")]
    assert {"cpu", "demo", "report", "slurm"} <= set(named)
    assert set(named) <= PROJECT["optional-dependencies"].keys()


def test_an_sdist_has_the_listed_files_and_nothing_that_evaluations_left_behind(tmp_path):
    clone, dist = tmp_path / "clone", tmp_path / "dist"
    hidden = (
        ".git",
        ".venv",
        ".cache",
        ".mypy_cache",
        ".ruff_cache",
        "__pycache__",
        "build",
        "dist",
        "outputs",
        "site",
    )
    shutil.copytree(ROOT, clone, ignore=shutil.ignore_patterns(*hidden))
    private = (
        "outputs/eval/report/data/cards.js",
        "report/modelcard.md",
        "runs/gap/docs/a.md",
        "gap/conf/config.yaml",
        "notes.md",
        "own.py",
    )
    for name in private:
        (clone / name).parent.mkdir(parents=True, exist_ok=True)
        (clone / name).write_text("a caption of a training image\n")
    command = [sys.executable, "-m", "hatchling", "build", "-t", "sdist", "-d", str(dist)]
    done = subprocess.run(command, cwd=clone, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    (built,) = dist.glob("*.tar.gz")
    with tarfile.open(built) as content:
        names = {name.partition("/")[2] for name in content.getnames()}
    assert {
        "dejavu_lit/py.typed",
        "conf/train.yaml",
        "tests/conftest.py",
        ".ci/run",
        "docs/cards.png",
        "mkdocs.yml",
    } <= names
    assert names & set(private) == set()
    assert {name.partition("/")[0] for name in names} <= {path.name for path in ROOT.iterdir()} | {"PKG-INFO"}


def test_the_release_gives_pypi_absolute_links_to_files_that_exist():
    url, tag = "https://example.org/owner/name", "v9.9"
    text = addresses.absolute((ROOT / "README.md").read_text(encoding="utf-8"), url, tag)
    targets = re.findall(r"\]\(([^)]+)\)", text)
    assert len(targets) > 15
    assert [target for target in targets if not target.startswith(("https://", "#"))] == []
    own = [
        re.sub(rf"^{url}/(raw|blob)/{tag}/", "", target).partition("#")[0]
        for target in targets
        if target.startswith(url)
    ]
    assert [path for path in own if not (ROOT / path).is_file()] == []
    assert "![A training pair" in text
    assert f"({url}/raw/{tag}/docs/cards.png)" in text
    project = tomllib.loads(addresses.with_addresses((ROOT / "pyproject.toml").read_text(encoding="utf-8"), url, tag))
    assert project["project"]["urls"]["Repository"] == url
    assert project["project"]["urls"] | PROJECT["urls"] == project["project"]["urls"]
