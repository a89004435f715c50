"""``--help`` of every command: what it is for, commands that work, the groups with a line each, and every option."""

import re
import shlex
import subprocess
import sys
import tomllib
from importlib import import_module
from pathlib import Path

import hydra
import pytest
import yaml

from dejavu_lit import __version__
from dejavu_lit.cli import commands, help
from dejavu_lit.cli.app import CONF
from dejavu_lit.cli.options import register
from tests.conftest import ROOT, call, run

sys.path.insert(0, str(ROOT / ".ci"))  # what writes docs/options.md is no part of the package
reference = import_module("reference")
sys.path.pop(0)
COMMANDS = sorted(path.stem for path in CONF.glob("*.yaml"))


@pytest.mark.parametrize("command", COMMANDS)
def test_help(command: str) -> None:
    done = call(command, "--help")
    assert done.returncode == 0
    lines = done.stdout.splitlines()
    assert lines[0].endswith(".")
    assert len(worked(command)) >= 3
    for option in help.own_options(command):
        assert option.meaning, option
        assert any(re.match(rf"  {re.escape(option.name)}\b", line) for line in lines), option
    for group, _ in help.defaults(yaml.safe_load((CONF / f"{command}.yaml").read_text())):
        ((place, line),) = [(i, line) for i, line in enumerate(lines) if line.startswith(f"  {group} ")]
        rest = " ".join([line, *lines[place + 1 : place + 12]])  # a narrow terminal needs more lines
        for choice in help.choices(CONF, group):
            assert choice in rest, choice


@pytest.mark.parametrize("command", COMMANDS)
def test_the_options_fit_a_narrow_terminal(command: str, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = help.text(CONF, command)
    monkeypatch.setattr(help, "WIDTH", 60)
    narrow = help.text(CONF, command)
    of_narrow, of_whole = (re.sub(r"-\s+", "-", text).split() for text in (narrow, whole))
    assert of_narrow == of_whole  # no word is broken but at its hyphen
    too_long = [line for line in narrow.partition("Options of")[2].splitlines() if len(line) > 60]
    assert [
        line for line in too_long if len(line.partition("  # ")[2].split()) > 1
    ] == []  # but for a long name and default


def worked(command: str) -> list[list[str]]:
    """The overrides of the commands that the help shows."""
    text = help.text(CONF, command).split("Groups:")[0].split("Options of")[0]
    rows = [shlex.split(line) for line in text.splitlines() if line.startswith("  dejavu ")]
    return [[word for word in row[2:] if word not in ("-m", "…")] for row in rows]


@pytest.mark.parametrize("command", [c for c in COMMANDS if c != "dedup"])
def test_the_commands_that_it_shows_are_understood(command: str) -> None:
    with hydra.initialize_config_dir(str(CONF), version_base="1.3"):
        register(command)
        for overrides in worked(command):
            single = [o.split(",")[0] if o.count("=") == 1 and "[" not in o and "{" not in o else o for o in overrides]
            hydra.compose(command, single)


def test_every_preset_opens_with_its_command() -> None:
    for path in CONF.glob("*/*.yaml"):
        lines = [line for line in path.read_text(encoding="utf-8").splitlines()[:3] if line.startswith("# dejavu ")]
        assert path.parent.name == "hydra" or any(f" {path.parent.name}={path.stem}" in line for line in lines), path


def test_every_group_has_a_line() -> None:
    assert {path.name for path in CONF.iterdir() if path.is_dir()} - {"hydra"} == {*help.GROUPS} - {"annotator"}


@pytest.mark.parametrize("command", ["train", "evaluate", "mitigate", "dedup"])
def test_help_is_quick_and_needs_no_torch(command: str) -> None:
    code = (
        f"import sys; sys.argv = ['{command}.py', '--help']; from dejavu_lit.cli.{command} import main; main(); "
        "heavy = {'torch', 'pytorch_lightning', 'faiss', 'wandb', 'matplotlib', 'numba', 'scipy'}; "
        "assert not heavy & set(sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert f"  dejavu {command} " in done.stdout


def test_the_report_has_help_of_its_own(tmp_path: Path) -> None:
    done = run("report", "--help", cwd=tmp_path)
    assert done.stdout.count("dejavu report ") >= 4
    for option in ("path", "redact", "out", "data", "limit"):
        assert f"\n  {option}=" in done.stdout


def test_the_page_on_options_is_not_stale() -> None:
    page = (ROOT / "docs" / "options.md").read_text(encoding="utf-8")
    assert page == reference.reference(CONF), "run make docs"


def test_every_option_on_the_page_has_a_meaning() -> None:
    page = reference.reference(CONF)
    rows = [row.group(1, 2) for row in re.finditer(r"^\| `([\w.]+)` \|.*\| ?(.*?) \|$", page, re.MULTILINE)]
    assert len(rows) > 150
    assert [name for name, meaning in rows if not meaning.strip()] == []


def test_every_variable_of_the_environment_is_on_the_page() -> None:
    places = [
        *(ROOT / "dejavu_lit").rglob("*.py"),
        *(ROOT / "tests").rglob("*.py"),
        ROOT / ".ci" / "run",
        ROOT / "Makefile",
    ]
    used = {name for path in places for name in re.findall(r"DEJAVU_[A-Z_]+[A-Z]", path.read_text(encoding="utf-8"))}
    assert used == {*reference.VARIABLES, *reference.INTERNAL}


def test_every_extra_that_is_named_exists() -> None:
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["optional-dependencies"]
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    installed = re.findall(r"^EXTRAS := (.+)$", makefile, re.MULTILINE)
    assert len(installed) == 1
    places = [ROOT / "Makefile", ROOT / "README.md", *(ROOT / "docs").glob("*.md"), *(ROOT / "containers").iterdir()]
    texts = [path.read_text(encoding="utf-8") for path in [*places, *(ROOT / "dejavu_lit").rglob("*.py")]]
    lists = re.findall(r"(?:dejavu-lit|'\.|\.whl)\[([\w,]+)\]", "\n".join(texts))
    assert "mutants" in lists
    named = {name for names in [*installed, *lists] for name in names.split(",")}
    assert named <= set(extras)
    table = (
        (ROOT / "docs" / "installation.md").read_text(encoding="utf-8").partition("| extra |")[2].partition("\n\n")[0]
    )
    rows = re.findall(r"^\| (`.*?) \|", table, re.MULTILINE)
    assert {name for row in rows for name in re.findall(r"`(\w+)`", row)} == set(extras)


@pytest.mark.parametrize("arguments", [["--version"], ["train", "--version"], ["report", "--version"]])
def test_every_command_says_the_version(
    arguments: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["dejavu", *arguments])
    commands.main()
    assert capsys.readouterr().out == f"dejavu-lit {__version__}\n"


def test_dejavu_lists_the_commands_with_a_line_each(tmp_path: Path) -> None:
    done = run("--help", cwd=tmp_path)
    lines = [line.split(maxsplit=1) for line in done.stdout.splitlines() if line.startswith("  ")]
    assert [name for name, _ in lines] == list(commands.COMMANDS)
    assert all(len(words) > 15 for _, words in lines)
    done = run("trian", cwd=tmp_path, check=False)
    assert done.returncode == 1
    assert done.stderr.startswith(
        "error: dejavu trian is not a command (did you mean 'train'?); choose one of train, evaluate"
    )
