"""Which mistakes in ``data=`` are refused, each with its message, and where a DataSpec finds its parts."""

import json
from dataclasses import replace
from pathlib import Path

import pytest

from dejavu_lit.cli.app import settings
from dejavu_lit.data.key_lists import keys_fingerprint
from dejavu_lit.data.loader import loader_failure
from dejavu_lit.data.prepared import DataSpec, prepare_data
from dejavu_lit.data.readers.folder import FolderReader
from dejavu_lit.data.readers.shards import ShardReader
from dejavu_lit.data.readers.table import TableReader
from dejavu_lit.data.settings import LoaderSettings
from dejavu_lit.evaluation.class_names import check_labelled, class_list
from dejavu_lit.evaluation.run import changed_data
from dejavu_lit.models.settings import ModelSpec
from dejavu_lit.objects.annotators.coco import CocoLookup
from dejavu_lit.training.resume import run_training
from dejavu_lit.training.settings import Recipe, TrainingRun
from tests.conftest import message_of


def test_a_folder_that_was_not_prepared_is_refused(tmp_path: Path) -> None:
    assert message_of(DataSpec("mine", dir=str(tmp_path)).check) == (
        f"data.dir={tmp_path} has no manifest.json; create it with dejavu prepare data=…"
    )
    (tmp_path / "manifest.json").write_text('{"schema": 99}')
    assert "99" in message_of(DataSpec("mine", dir=str(tmp_path)).check)
    (tmp_path / "manifest.json").write_text('{"schema": 1}')
    assert message_of(DataSpec("mine", dir=str(tmp_path), shards="0.tar").check) == (
        f"data.dir={tmp_path} was not drawn from raw shards; give the folder of their samples"
    )


@pytest.mark.parametrize("name", ["settings", "sets", "duplicates", "raw_shards"])
@pytest.mark.parametrize("value", [None, "x", [1]])
def test_a_manifest_whose_entries_are_not_objects_is_refused(tmp_path: Path, name: str, value: object) -> None:
    (tmp_path / "manifest.json").write_text(json.dumps({"schema": 1, name: value}))
    assert message_of(DataSpec("mine", dir=str(tmp_path)).check) == (
        f"{tmp_path}/manifest.json is damaged: its entry {name} is not an object; prepare the data again"
    )


def test_data_of_another_source_are_not_taken_for_generated_data(tmp_path: Path) -> None:
    (tmp_path / "manifest.json").write_text('{"schema": 1, "settings": {"reader": {"reader": "coco"}}}')
    settings("dedup", "data=prepared", f"data.dir={tmp_path}").data.check()
    assert message_of(settings("dedup", f"data.dir={tmp_path}").data.check) == (
        f"data.dir={tmp_path} was prepared with data=coco; give data=prepared"
    )


def test_the_default_folder_is_named_after_its_contents() -> None:
    first, same, reseeded = (DataSpec("mine", seed=seed).folder for seed in (0, 0, 1))
    assert first == same != reseeded
    assert first.parent == Path("outputs/data")


@pytest.mark.parametrize("path", ["", None, []])
def test_an_empty_path_is_not_the_current_folder(path: str | list | None) -> None:
    for kind in (FolderReader, ShardReader, TableReader):
        assert message_of(kind(path).keys) == "data.reader.path= is empty; give a file or a folder"
    assert message_of(lambda: CocoLookup(path).annotator).startswith("annotator.instances= is empty")
    assert message_of(lambda: DataSpec("mine", dir="")) == "data.dir= is empty; give the folder"
    assert message_of(lambda: DataSpec("mine", shards="")).startswith("data.shards= is empty")


def test_excluded_keys_must_stay_the_same(tmp_path: Path) -> None:
    path = tmp_path / "keys.txt"
    path.write_text("a\nb\n")
    before = keys_fingerprint(frozenset("ab"))
    for same in ("a\nb\n", "b\na"):
        path.write_text(same)
        assert DataSpec("mine", exclude=str(path), exclude_fingerprint=before).excluded == frozenset("ab")
    path.write_text("a\n")
    assert message_of(lambda: DataSpec("mine", exclude=str(path), exclude_fingerprint=before).excluded) == (
        f"data.exclude={path} lists other keys than when the run started; restore the file, or train again"
    )
    assert DataSpec("mine").excluded == frozenset()


def test_public_sets_are_chosen_by_name_or_folder(tmp_path: Path) -> None:
    sets = {"P": "P", "food": "P_food"}
    folders = {public: DataSpec("mine", dir="d", public=public, public_sets=sets).public_folder() for public in sets}
    assert folders == {"P": Path("d/P"), "food": Path("d/P_food")}
    assert DataSpec("mine", dir="d", public=str(tmp_path), public_sets=sets).public_folder() == tmp_path
    message = message_of(DataSpec("mine", dir="d", public="fod", public_sets=sets).public_folder)
    assert message.startswith("data.public=fod is neither one of P, food")
    assert message.endswith(" nor a folder of shards")


def test_sets_elsewhere_have_names_of_their_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("data/P", "data/single", "second/P", "second/B", "imagenet", "more/second/P"):
        (tmp_path / name).mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    sets = {"P": "P", "second": str(tmp_path / "second/P")}
    data = DataSpec("mine", dir=str(tmp_path / "data"), public_sets=sets)
    assert [data.set_name(name) for name in ("P", "single", "data/P")] == ["P", "single", "P"]
    elsewhere = ("second/P", "more/second/P", "second/B", "imagenet")
    names = [data.set_name(name) for name in elsewhere]
    assert [name.rpartition("-")[0] for name in names] == [
        "second-P",
        "second-P",
        "second-B",
        f"{tmp_path.name}-imagenet",
    ]
    assert len(set(names)) == 4
    assert names == [data.set_name(f"{tmp_path}/{name}/.") for name in elsewhere]
    (tmp_path / "link").symlink_to("data")
    assert replace(data, dir="link").set_name(f"{tmp_path}/data/P") == "P"
    assert data.public_name == "P"
    assert replace(data, public="second").public_name == replace(data, public="second/P").public_name == names[0]
    assert replace(data, public="single").public_folder() == tmp_path / "data/single"  # of data.extra
    assert replace(data, public="second").public_folder() == tmp_path / "second/P"
    assert data.set_folder("second/../imagenet").resolve() == tmp_path / "imagenet"
    check_labelled(replace(data, labelled="imagenet"))


def test_labelled_sets_and_objects(tmp_path: Path) -> None:
    assert message_of(lambda: check_labelled(DataSpec("mine", dir=str(tmp_path), labelled="L"))) == (
        f"data.labelled=L is not a set of {tmp_path} nor a folder of shards; name one, or leave it empty for none "
        "(data.labelled=)"
    )
    (tmp_path / "L").mkdir()
    check_labelled(DataSpec("mine", dir=str(tmp_path), labelled="L"))


def test_an_empty_labelled_set_replaces_that_of_a_run(tmp_path: Path) -> None:
    run = DataSpec("mine", dir=str(tmp_path), labelled="gone", classes="gone.txt", classes_by="order")
    given = settings("evaluate", "target=x", "reference=y", "data.labelled=", "data.classes_by=").data
    changed = changed_data(run, given)
    check_labelled(changed)
    assert class_list(["cat", "dog"], ["dog"], changed.classes_by)[1] == {"dog": 1}


def test_without_a_choice_the_only_objects_are_taken(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    data = DataSpec("mine", dir=str(tmp_path))
    assert message_of(data.objects_folder) == (
        "this data has no objects of its own; detect them with dejavu annotate, and give objects=NAME or FOLDER"
    )
    for artifact in ("coco", "failed", "captions"):
        (tmp_path / "objects" / artifact / "A").mkdir(parents=True)
    (tmp_path / "objects/coco/A/00000.parquet").touch()
    (tmp_path / "objects/failed/annotator.json").touch()  # what an annotation leaves that failed at once
    (tmp_path / "objects/.coco.lock").touch()
    with caplog.at_level("INFO"):
        assert data.objects_folder() == tmp_path / "objects/coco"
    assert f"objects=coco: the only object artifact of {tmp_path}" in caplog.messages
    (tmp_path / "objects/captions/A/00000.parquet").touch()
    assert message_of(data.objects_folder) == "objects is missing; give objects=NAME, one of captions, coco"
    assert data.objects_folder("coco") == replace(data, objects="coco").objects_folder() == tmp_path / "objects/coco"


@pytest.mark.parametrize("option", [{"fractions": {"A": 1.0}}, {"pairs": 9}, {"shuffle": 9}, {"resampled": True}])
def test_options_of_raw_shards_are_refused_for_prepared_data(option: dict, tmp_path: Path) -> None:
    data = DataSpec("mine", dir="d", near_duplicates=None, half=1, train_size=3)
    data.check_options()
    wrong = replace(data, **option)
    run = TrainingRun(data=wrong, model=ModelSpec("tiny"), recipe=Recipe(1, 8, 1e-3), side="target")
    for use in (lambda: run_training(run, tmp_path), lambda: prepare_data(wrong)):
        assert message_of(use).startswith(f"data.{next(iter(option))} needs raw shards; ")


def test_the_choices_of_data_pass() -> None:
    for given in (
        ["data=scenes"],
        ["data=prepared"],
        ["data=stream", "data.shards=x"],
        ["data=coco", "data.reader.root=x"],
    ):
        settings("train", "side=target", *given).data.check_options()


@pytest.mark.parametrize("wrong", [{"workers": -1}, {"cache_mb": -1}, {"prefetch": 0}, {"bad_share": 1.5}])
def test_loader_settings_have_bounds(wrong: dict) -> None:
    name, value = next(iter(wrong.items()))
    assert f"{name}={value}" in message_of(lambda: LoaderSettings(**wrong))


def test_a_killed_loader_is_distinguished_from_a_stalled_one() -> None:
    assert "has stalled" in loader_failure(RuntimeError("DataLoader timed out after 5 seconds"))
    assert "process was killed" in loader_failure(RuntimeError("DataLoader worker (pid 7) exited unexpectedly"))
