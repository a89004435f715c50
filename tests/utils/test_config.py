"""Config nodes become typed values, wrong ones a sentence, and no config calls what is not ours."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pytest

from dejavu_lit.utils.config import build, check_fields
from dejavu_lit.utils.errors import UserError
from tests.conftest import SMALL, call


@dataclass(frozen=True)
class Sample:
    number: int
    share: float | Sequence[float] = 0.5
    text: str | None = None
    table: Mapping[str, int] | None = None
    anything: Any = None


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"number": True}, "sample.number=True must be a whole number"),
        ({"number": 1.0}, "sample.number=1.0 must be a whole number"),
        ({"share": "half"}, r"sample.share=half must be a number or \[value, …\]"),
        ({"text": 3}, "sample.text=3 must be a text or null"),
        ({"table": [1]}, r"sample.table=\[1\] must be {name: value, …} or null"),
    ],
)
def test_wrong_types_are_named(values, words):
    with pytest.raises(UserError, match=words):
        check_fields(Sample, values, "sample")


def test_right_types_pass_and_functions_are_checked_too():
    check_fields(Sample, {"number": 1, "share": [1, 0.5], "text": None, "table": {"a": 1}, "anything": object()}, "")

    def work(count: int) -> None:
        """Nothing."""

    with pytest.raises(UserError, match=r"^count=x must be a whole number"):
        check_fields(work, {"count": "x"}, "")


@pytest.mark.parametrize("place", ["here", "below", "listed"])
def test_a_config_cannot_call_what_is_not_ours(place, tmp_path):
    attack = {"_target_": "pathlib.Path.touch", "self": str(tmp_path / "owned")}
    node = {"here": attack, "below": {"_target_": "dejavu_lit.x", "a": {"b": attack}}, "listed": [attack]}[place]
    with pytest.raises(UserError, match=r"_target_=pathlib.Path.touch is not part of dejavu_lit"):
        build(node, "data")
    assert not (tmp_path / "owned").exists()


def test_the_command_line_and_a_given_run_cannot_either(scenes, tmp_path):
    owned = tmp_path / "owned"
    attack = ["recipe._target_=subprocess.check_call", f"+recipe.args=[touch,{owned}]"]
    done = call("train", "side=target", f"data.dir={scenes}", f"out={tmp_path / 'run'}", *SMALL, *attack)
    assert done.returncode == 1
    assert "recipe._target_=subprocess.check_call is not part of dejavu_lit" in done.stderr
    assert not owned.exists()


def test_a_trusted_package_is_allowed_by_the_environment(monkeypatch):
    monkeypatch.setenv("DEJAVU_TARGETS", "collections,tests")
    assert build({"_target_": "collections.Counter", "a": 2}, "data")["a"] == 2


def test_our_own_values_are_built():
    found = build({"_target_": "dejavu_lit.mitigation.Mitigation", "text_mask": 0.5}, "mitigation")
    assert found.text_mask == 0.5
