"""The commands that the docs show compose: every option and group in them exists."""

import json
import re
import shlex
from pathlib import Path

import hydra
import pytest

from tests.conftest import ROOT

PAGES = ("public_sets.md", "audit_clip.md", "finetuning.md")


def commands_of(page: str) -> list[list[str]]:
    """The words of each complete ``dejavu`` command in the code blocks of a page."""
    text = (ROOT / "docs" / page).read_text(encoding="utf-8").replace("\\\n", " ")
    blocks = re.findall(r"^```\n(.*?)^```", text, re.MULTILINE | re.DOTALL)
    lines = [line for block in blocks for line in block.splitlines() if line.startswith("dejavu ") and "…" not in line]
    return [shlex.split(line, comments=True)[1:] for line in lines]


@pytest.mark.parametrize("page", PAGES)
def test_the_commands_of_a_page_compose(page: str) -> None:
    commands = commands_of(page)
    assert len(commands) >= 5
    with hydra.initialize_config_dir(str(Path(ROOT, "conf")), version_base="1.3"):
        for command, *overrides in commands:
            if Path(ROOT, "conf", f"{command}.yaml").is_file():  # report and power take plain options
                hydra.compose(command, overrides)


def test_the_page_of_public_sets_has_a_command_for_each_scenario() -> None:
    shown = [" ".join(words) for words in commands_of("public_sets.md")]
    for option in ("data.public=IMAGENET_SHARDS/P", "data.public=SECOND/P", "data.labelled=IMAGENET_SHARDS/P"):
        assert any(text.startswith("evaluate") and option in text for text in shown)
    assert sum(text.startswith("annotate") for text in shown) == 3


def test_the_config_for_weights_of_a_released_model_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    text = (ROOT / "docs/open_clip_checkpoints.md").read_text(encoding="utf-8")
    (code,) = re.findall(r"^```\n(.*?)^```", text, re.MULTILINE | re.DOTALL)
    monkeypatch.chdir(tmp_path)
    exec(code, {})  # a user pastes it into Python
    config = json.loads((tmp_path / "FOLDER/open_clip_config.json").read_text())
    assert config["model_cfg"]["quick_gelu"] is True
    assert config["model_cfg"]["embed_dim"] == 768
    assert config["preprocess_cfg"]["interpolation"] == "bicubic"
