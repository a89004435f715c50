"""The run directory: what happens to the traces of a failed run whose directory another one takes over."""

from pathlib import Path

import pytest

from dejavu_lit.utils.errors import UserError
from dejavu_lit.utils.io import write_json
from dejavu_lit.utils.run_directory import RunDirectory, first_difference


def test_other_settings_get_a_dashboard_run_of_their_own(tmp_path: Path) -> None:
    directory = RunDirectory(tmp_path)
    directory.save({"recipe": {"lr": 1e-3}})
    write_json(tmp_path / "wandb" / "id.json", {"id": "abc"})
    (tmp_path / "tensorboard").mkdir()
    directory.save({"recipe": {"lr": 1e-3}, "trainer": {"devices": 2}})  # the same run on other devices
    assert (tmp_path / "wandb" / "id.json").exists()
    assert (tmp_path / "tensorboard").exists()
    directory.save({"recipe": {"lr": 1e-4}})
    assert not (tmp_path / "wandb" / "id.json").exists()
    assert not (tmp_path / "tensorboard").exists()


def test_other_settings_do_not_inherit_the_weights_of_the_run_before(tmp_path: Path) -> None:
    """They would be evaluated as the new run's. Other files are not ours to remove."""
    directory = RunDirectory(tmp_path)
    directory.save({"recipe": {"lr": 1e-3}})
    own = [directory.checkpoint(5), directory.checkpoint(30), directory.model / "open_clip_model.safetensors"]
    others = [directory.checkpoint("mine"), directory.model / "notes.txt"]
    for path in (*own, *others):
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(b"weights")
    directory.save({"recipe": {"lr": 1e-3}, "trainer": {"devices": 2}})  # the same run on other devices
    assert directory.saved_epochs() == [5, 30]
    directory.save({"recipe": {"lr": 1e-4}})
    assert [path for path in (*own, *others) if path.exists()] == others


@pytest.mark.parametrize("name", ["checkpoints", "model", "wandb"])
def test_weights_behind_a_link_are_not_removed(tmp_path: Path, name: str) -> None:
    """A folder from elsewhere may link to weights of the user's."""
    directory, elsewhere = RunDirectory(tmp_path / "run"), tmp_path / "elsewhere"
    directory.save({"recipe": {"lr": 1e-3}})
    elsewhere.mkdir()
    for file in ("epoch=0005.ckpt", "mine.safetensors", "id.json"):
        (elsewhere / file).touch()
    (directory.path / name).symlink_to(elsewhere)
    other = {"recipe": {"lr": 1e-4}}
    with pytest.raises(UserError, match=rf"run/{name} is a link.*remove the link"), directory.opened(other):
        pass
    files = list(elsewhere.iterdir())
    assert len(files) == 3
    assert directory.config() == {"recipe": {"lr": 1e-3}}
    for file in files:
        file.unlink()
    with directory.opened(other):  # a link to a folder on a larger disk, still empty
        assert directory.config() == other


def test_the_folder_of_another_program_is_left_as_it_is(tmp_path: Path) -> None:
    """It has a config.yaml, too, and perhaps weights and event files at the same places."""
    events = tmp_path / "tensorboard" / "events"
    events.parent.mkdir()
    events.touch()
    (tmp_path / "config.yaml").write_text("name: other\n")
    with pytest.raises(UserError, match="start over in another directory"), RunDirectory(tmp_path).opened({"seed": 1}):
        pass
    assert events.exists()
    assert (tmp_path / "config.yaml").read_text() == "name: other\n"


@pytest.mark.parametrize(
    "name", ["metrics.csv", "run.json", "checkpoints/last.ckpt", "model/open_clip_model.safetensors"]
)
def test_files_of_another_program_are_not_replaced(tmp_path: Path, name: str) -> None:
    """They are at the places of a run's files, but there is no config.yaml."""
    (tmp_path / name).parent.mkdir(exist_ok=True)
    (tmp_path / name).write_text("theirs")
    with (
        pytest.raises(UserError, match=rf"{name} would be replaced.*choose another out="),
        RunDirectory(tmp_path).opened({}),
    ):
        pass
    assert [path.name for path in tmp_path.rglob("*") if path.is_file()] == [Path(name).name]


def test_every_rank_checks_the_directory_before_it_writes_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Under torchrun they start together, and another than rank 0 may be the first to export the model's config."""
    monkeypatch.setenv("LOCAL_RANK", "1")
    directory = RunDirectory(tmp_path)
    with directory.opened({"seed": 1}):
        assert not directory.exists
    (tmp_path / "metrics.csv").write_text("theirs")
    with pytest.raises(UserError, match=r"metrics.csv would be replaced"), directory.opened({"seed": 1}):
        pass


def test_the_model_s_config_of_a_faster_rank_is_its_own(tmp_path: Path) -> None:
    """All ranks export the config, and rank 0 may be the last to get there."""
    directory = RunDirectory(tmp_path)
    write_json(directory.model / "open_clip_config.json", {})
    with directory.opened({"seed": 1}):
        assert directory.exists


@pytest.mark.parametrize(
    "value", [".nan", "-.inf", "2024-01-02", "1" * 400, '"\\ud800"', "&a [*a]", "!!set {x}", "!!binary aGk="]
)
def test_settings_that_no_json_holds_are_refused(tmp_path: Path, value: str) -> None:
    """An evaluation of the run writes its settings to JSON."""
    (tmp_path / "config.yaml").write_text(f"schema: 2\nmodel: {value}\n")
    with pytest.raises(UserError, match=rf"{tmp_path}/config.yaml cannot be read as settings .*; restore it"):
        RunDirectory(tmp_path).config()


def test_a_difference_shows_letters_as_they_are() -> None:
    old, new = {"data": {"dir": "/data/né"}}, {"data": {"dir": "/data/日本" + "x" * 1500}}
    assert first_difference(old, new) == f"data.dir: /data/né → /data/日本{'x' * 1500}"


@pytest.mark.parametrize("text", ["[1, 2]", "{schema: 2, mitigation: [dedup]}"])
def test_settings_that_are_not_a_mapping_are_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / "config.yaml").write_text(text)
    with pytest.raises(UserError, match=r"config.yaml is not a mapping of settings; restore it"):
        RunDirectory(tmp_path).config()


@pytest.mark.parametrize("name", ["epochs", "train_size", "seconds"])
@pytest.mark.parametrize("value", ["many", None, [2]])
def test_a_record_whose_counts_are_not_numbers_is_refused(tmp_path: Path, name: str, value: object) -> None:
    write_json(tmp_path / "run.json", {name: value})
    with pytest.raises(
        UserError, match=rf"run.json is damaged: its entry {name} is not a number; restore it, or train again"
    ):
        RunDirectory(tmp_path).record()
