"""The frame around every command: which jobs failed, which option is wrong, and how to quote a value."""

import errno
import re
import shlex

import pytest
import torch

from dejavu_lit.cli.app import _quotes_hint
from dejavu_lit.utils.exit_codes import clean_exit
from tests.conftest import call


def test_a_local_multirun_names_every_job_that_failed(tmp_path):
    done = call("power", "-m", f"metrics={tmp_path}/x.json,{tmp_path}/y.json", f"hydra.sweep.dir={tmp_path / 'sweep'}")
    assert done.returncode == 1
    (said,) = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert said.startswith("error: 2 jobs failed: ")
    for number, name in enumerate(("x.json", "y.json")):
        assert re.search(rf"sweep/{number}: [^;]*{name}", said)


def test_an_unknown_launcher_is_not_a_missing_plugin(tmp_path):
    done = call("power", "-m", "metrics=x", "hydra/launcher=slrum", f"hydra.sweep.dir={tmp_path}")
    assert done.returncode == 1
    assert "hydra/launcher=slrum is unknown (did you mean 'slurm'?); there are basic, " in done.stderr
    assert "plugin" not in done.stderr


@pytest.mark.parametrize("path", ["runs/lr=0.1", "run (1)", "~/x", "a#b", "naïve", "it's", "a;b", "a&b=c"])
def test_a_value_that_hydra_cannot_read_is_shown_in_quotes(path):
    hint = _quotes_hint([f"metrics={path}"])
    assert hint is not None
    quoted = hint.partition("quote it, as ")[2]
    (argument,) = shlex.split(quoted)
    assert argument == f'metrics="{path}"'
    assert _quotes_hint([argument]) is None


@pytest.mark.parametrize("argument", ["ks=[1,2", "settings={a: 1", 'out="a', "k=5", "out=runs/a", "~logger", "--cfg"])
def test_other_arguments_get_no_hint(argument):
    assert _quotes_hint([argument]) is None


def test_the_hint_is_what_the_command_says(tmp_path):
    path = tmp_path / "lr=0.1.json"
    done = call("power", f"metrics={path}")
    assert done.returncode == 1
    hint = done.stderr.rpartition("quote it, as ")[2].strip()
    again = call("power", *shlex.split(hint))
    assert again.returncode == 1
    assert f"{path} does not exist" in again.stderr


@pytest.mark.parametrize(
    "error",
    [
        MemoryError("Unable to allocate 8.00 TiB for an array"),
        MemoryError(),
        OSError(errno.ENOMEM, "Cannot allocate memory"),
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB"),
        RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 8 bytes"),
    ],
)
def test_too_little_memory_is_a_sentence(error, capsys):
    with pytest.raises(SystemExit) as end, clean_exit():
        raise error
    assert end.value.code == 1
    said = capsys.readouterr().err
    assert said.startswith("error: ")
    assert said.endswith("give the command more memory, or choose a smaller batch or fewer workers\n")
    assert said.count("\n") == 1


def test_another_error_keeps_its_traceback():
    with pytest.raises(RuntimeError, match="a bug"), clean_exit():
        raise RuntimeError("a bug")
