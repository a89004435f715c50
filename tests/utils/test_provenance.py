"""The command of a result can be pasted into a shell."""

import shlex
import sys

import pytest

from dejavu_lit.utils.provenance import provenance


@pytest.mark.parametrize(
    ("program", "words"),
    [
        ("/venv/bin/dejavu", ["dejavu"]),
        ("/venv/lib/dejavu_lit/__main__.py", ["python", "-m", "dejavu_lit"]),
        ("evaluate.py", ["python", "evaluate.py"]),
        ("/with blanks/evaluate.py", ["python", "/with blanks/evaluate.py"]),
    ],
)
def test_the_command_keeps_its_quotes(program: str, words: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    arguments = ["evaluate", "out=runs/a b", "keys.P=it's", "fail_if=symmetric.ppg.ci95[0] > 0.05"]
    monkeypatch.setattr(sys, "argv", [program, *arguments])
    assert shlex.split(provenance()["command"]) == [*words, *arguments]
