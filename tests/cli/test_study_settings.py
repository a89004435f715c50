"""The settings of a study that was begun."""

from pathlib import Path

import pytest

from dejavu_lit import settings
from dejavu_lit.cli.study_settings import planned_rows
from dejavu_lit.utils.errors import UserError
from dejavu_lit.utils.run_directory import RunDirectory
from tests.conftest import SMALL


def test_a_study_that_was_begun_may_have_lost_its_initial_weights(scenes: Path, tmp_path: Path) -> None:
    """Its runs have them in their checkpoints; those of another setting are still needed."""
    study = settings("mitigate", f"data.dir={scenes}", *SMALL, "model.init=runs/base", "+settings.x=[]")
    with pytest.raises(UserError, match=r"^settings\.x: model\.init=runs/base: runs/base does not exist"):
        planned_rows(study, tmp_path)
    started = RunDirectory(tmp_path / "runs" / "x-s0-target")
    started.save({"model": {"name": "tiny", "init": "runs/base"}})
    started.last_checkpoint.parent.mkdir()
    started.last_checkpoint.touch()
    (row,) = planned_rows(study, tmp_path)
    assert row.runs["target"].model.init == "runs/base"
    study = settings("mitigate", *study.typed, "+settings.y=['model.init=runs/bsae']")
    with pytest.raises(UserError, match=r"^settings\.y: model\.init=runs/bsae: runs/bsae does not exist"):
        planned_rows(study, tmp_path)
