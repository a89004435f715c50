"""Settings are read into dataclasses, wrong ones become a sentence, and no config calls anything."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import yaml

from dejavu_lit.utils.choices import Choices
from dejavu_lit.utils.config import flatten, options, read, to_plain
from dejavu_lit.utils.errors import UserError
from dejavu_lit.utils.run_directory import CONFIG_SCHEMA, RunDirectory
from dejavu_lit.utils.wandb import LoggerSettings, Wandb


@dataclass(frozen=True)
class Part:
    """A part."""

    size: int = 3
    """How large."""
    numbers: list[int] = field(default_factory=list)
    """Numbers."""


@dataclass(frozen=True)
class Sample:
    """Settings with every kind of field."""

    number: int
    """A number."""
    share: float | None = 0.5
    """A share."""
    names: tuple[str, ...] = ()
    """Names."""
    table: dict[str, int | None] = field(default_factory=dict)
    """A table."""
    anything: Any = None
    """Anything."""
    place: str | Path = "here"
    """A place."""
    part: Part = field(default_factory=Part)
    """A part."""

    def __post_init__(self) -> None:
        if self.number < 0:
            raise UserError(f"number={self.number} must be at least 0")


@pytest.mark.parametrize(
    ("values", "sentence"),
    [
        ({"number": "x"}, "sample.number=x must be a whole number"),
        ({"number": 1.5}, "sample.number=1.5 must be a whole number"),
        ({"number": None}, "sample.number=null must be a whole number"),
        ({"number": 1, "share": "half"}, "sample.share=half must be a number or null"),
        ({"number": 1, "names": "a"}, "sample.names must be a list, as 'sample.names=[…]'"),
        ({"number": 1, "names": "${a}"}, "sample.names=${a} must be a list or a mapping"),
        ({"number": 1, "part": "${oc.env:HOME}"}, "sample.part=${oc.env:HOME} must be a list or a mapping"),
        ({"number": 1, "table": {"a": "b"}}, "sample.table.a has a value of the wrong type; expected: A table."),
        ({"number": 1, "part": {"size": "big"}}, "sample.part.size=big must be a whole number"),
        (
            {"number": 1, "part": {"numbers": ["x"]}},
            "sample.part.numbers[0] has a value of the wrong type; expected: Numbers.",
        ),
        ({"number": 1, "part": {"siez": 1}}, "sample.part.siez is not an option (did you mean 'sample.part.size'?)"),
        ({"number": 1, "shares": 1}, "sample.shares is not an option (did you mean 'sample.share'?)"),
        ({}, "sample.number is missing; give sample.number=…: a number"),
        ({"number": -1}, "number=-1 must be at least 0"),
    ],
)
def test_wrong_settings_are_a_sentence(values: dict[str, Any], sentence: str) -> None:
    with pytest.raises(UserError) as error:
        read(Sample, values, "sample")
    assert str(error.value) == sentence


def test_settings_survive_being_saved() -> None:
    texts = ["${oc.env:HOME}", "${oc.create:{_target_: os.getcwd}}", "a${b", "\\${x}", "back\\slash\\"]
    given = Sample(3, None, ("a", *texts), {"a": 1, "b": None}, {"c": [texts]}, texts[0], Part(7))
    saved = yaml.safe_load(yaml.safe_dump(to_plain(given)))
    assert to_plain(read(Sample, saved)) == to_plain(given)
    assert dict(flatten(saved))["part.size"] == 7
    logger = LoggerSettings(Wandb("mine", tags=["a"], offline=False))
    assert read(LoggerSettings, to_plain(logger)) == logger  # a part that is null by default


def test_a_field_describes_its_option() -> None:
    found = {option.name: option for option in options(Sample)}
    assert [found["number"].default, found["names"].default, found["table"].default] == ["???", "[]", "{}"]
    assert found["share"].kind == "a number or null"
    assert (found["part.size"].meaning, found["part"].group) == ("How large.", True)


def test_a_class_is_chosen_by_its_name() -> None:
    choices = Choices("thing", "dejavu_lit.none", {"part": f"{__name__}:Part", "gone": "dejavu_lit.gone:X"})
    assert choices.build({"type": "part", "size": 5}) == Part(5)
    assert choices.node("part") == {"type": "part", "size": 3, "numbers": []}
    for node, words in (
        ({"type": "prat"}, r"^thing.type=prat is unknown \(did you mean 'part'\?\); choose one of part, gone$"),
        ({"type": "gone"}, r"^thing.type=gone: dejavu_lit.gone:X cannot be imported"),
        ({"type": "part", "siez": 1}, r"^thing.siez is not an option \(did you mean 'thing.size'\?\)$"),
        ({"size": 1}, "^thing.type=None is unknown"),
        ("part", "^thing=part must be a mapping with type: one of part, gone$"),
    ):
        with pytest.raises(UserError, match=words):
            choices.build(node)
    with pytest.raises(UserError, match=r"^extra\.L\.type=prat is unknown"):
        choices.build({"type": "prat"}, "extra.L")


def test_another_package_adds_a_choice(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "mine.py").write_text(
        "from dataclasses import dataclass\n@dataclass(frozen=True)\nclass Mine:\n    path: str = 'x'\n"
    )
    info = tmp_path / "mine-1.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: mine\nVersion: 1\n")
    (info / "entry_points.txt").write_text("[dejavu_lit.tried]\nmine = mine:Mine\n")
    monkeypatch.syspath_prepend(tmp_path)
    assert Choices("data.reader", "dejavu_lit.tried", {}).build({"type": "mine", "path": "y"}).path == "y"
    (tmp_path / "faulty.py").write_text("1 / 0\n")
    with pytest.raises(ZeroDivisionError):  # with the traceback that its author needs
        Choices("data.reader", "dejavu_lit.none", {"faulty": "faulty:Mine"}).load("faulty")


def test_a_run_directory_refuses_what_it_does_not_know(tmp_path: Path) -> None:
    run = RunDirectory(tmp_path)
    run.save(Sample(3))
    assert to_plain(run.read(Sample)) == to_plain(Sample(3))
    assert run.read(Part, "part") == Part()
    saved = yaml.safe_load(run.config_file.read_text())
    assert saved["schema"] == CONFIG_SCHEMA
    for change, words in (
        ({"new": 1}, r"config.yaml does not fit this version: new is not an option"),
        ({"schema": 3}, "has version 3 of the settings, and this is version 2"),
        ({"schema": None}, "has version None of the settings"),
    ):
        run.config_file.write_text(yaml.safe_dump(saved | change))
        with pytest.raises(UserError, match=words):
            run.read(Sample)
    run.config_file.write_text("data: {_target_: dejavu_lit.data.prepared.DataSpec, name: scenes}\nside: target\n")
    with pytest.raises(UserError, match=r"config.yaml has version 1 of the settings, and this is version 2; use the"):
        run.config()


def test_a_run_without_a_checkpoint_is_taken_over(tmp_path: Path) -> None:
    run = RunDirectory(tmp_path)
    for number in (3, 4):
        with run.opened(Sample(number)):
            assert run.read(Sample).number == number
    run.last_checkpoint.parent.mkdir()
    run.last_checkpoint.touch()
    with pytest.raises(UserError, match=r"has a run with other settings \(number: 4 → 5\)"), run.opened(Sample(5)):
        pass
    assert run.read(Sample).number == 4
