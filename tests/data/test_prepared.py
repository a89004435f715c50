"""What ``data=`` refuses, each with its sentence, and where it finds its parts."""

from collections.abc import Callable
from pathlib import Path

import pytest

from dejavu_lit.data.exclude import keys_fingerprint
from dejavu_lit.data.module import LoaderSettings, loader_failure
from dejavu_lit.data.prepared import DataSpec
from dejavu_lit.utils.errors import UserError


def said(mistake: Callable[[], object]) -> str:
    with pytest.raises(UserError) as error:
        mistake()
    return str(error.value)


def test_a_folder_that_was_not_prepared(tmp_path: Path) -> None:
    assert said(DataSpec("mine", dir=str(tmp_path)).check) == (
        f"data.dir={tmp_path} holds no manifest.json; make it with dejavu prepare data=…"
    )
    (tmp_path / "manifest.json").write_text('{"schema": 99}')
    assert "99" in said(DataSpec("mine", dir=str(tmp_path)).check)


def test_without_a_folder_its_name_holds_what_is_in_it() -> None:
    one, same, other = (DataSpec("mine", seed=seed).folder for seed in (0, 0, 1))
    assert one == same != other
    assert one.parent == Path("outputs/data")


def test_left_out_keys_must_stay_the_same(tmp_path: Path) -> None:
    path = tmp_path / "keys.txt"
    path.write_text("a\nb\n")
    before = keys_fingerprint(frozenset("ab"))
    assert DataSpec("mine", exclude=str(path), exclude_fingerprint=before).excluded == frozenset("ab")
    path.write_text("a\n")
    assert said(lambda: DataSpec("mine", exclude=str(path), exclude_fingerprint=before).excluded) == (
        f"data.exclude={path} holds other keys than when the run began; restore the file, or train anew"
    )


def test_public_sets_by_name_or_folder(tmp_path: Path) -> None:
    sets = {"P": "P", "food": "P_food"}
    found = {public: DataSpec("mine", dir="d", public=public, public_sets=sets).public_folder() for public in sets}
    assert found == {"P": Path("d/P"), "food": Path("d/P_food")}
    assert DataSpec("mine", dir="d", public=str(tmp_path), public_sets=sets).public_folder() == tmp_path
    told = said(DataSpec("mine", dir="d", public="fod", public_sets=sets).public_folder)
    assert told.startswith("data.public=fod is neither one of P, food")
    assert told.endswith(" nor a folder of shards")


def test_labelled_sets_and_objects(tmp_path: Path) -> None:
    assert said(DataSpec("mine", dir=str(tmp_path), labelled="L").check_labelled) == (
        f"data.labelled=L is no set of {tmp_path}; name one, or give data.labelled=null"
    )
    (tmp_path / "L").mkdir()
    DataSpec("mine", dir=str(tmp_path), labelled="L").check_labelled()
    assert said(DataSpec("mine", dir=str(tmp_path)).objects_folder).startswith("this data brings no objects;")


@pytest.mark.parametrize("wrong", [{"workers": -1}, {"cache_mb": -1}, {"prefetch": 0}, {"bad_share": 1.5}])
def test_a_loader_s_settings_have_bounds(wrong: dict) -> None:
    name, value = next(iter(wrong.items()))
    assert f"{name}={value}" in said(lambda: LoaderSettings(**wrong))


def test_a_loader_that_ended_is_told_from_one_that_waits() -> None:
    assert "has stalled" in loader_failure(RuntimeError("DataLoader timed out after 5 seconds"))
    assert "killed from outside" in loader_failure(RuntimeError("DataLoader worker (pid 7) exited unexpectedly"))
