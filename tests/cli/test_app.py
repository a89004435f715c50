"""The frame around every command: which jobs failed, which option is wrong, and how to quote a value."""

import errno
import json
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import yaml
from hydra.core.override_parser.overrides_parser import OverridesParser

from dejavu_lit import settings
from dejavu_lit.cli import commands
from dejavu_lit.cli.app import CONF
from dejavu_lit.cli.mistakes import _quotes_hint, quoted
from dejavu_lit.data.prepared import DataSpec
from dejavu_lit.report.terminal import console
from dejavu_lit.study.slurm import KILL_OTHERS, SlurmSettings
from dejavu_lit.utils.config import read
from dejavu_lit.utils.errors import UserError
from dejavu_lit.utils.exit_codes import REPLACED, clean_exit
from tests.conftest import ROOT, call, run


def test_a_local_multirun_names_every_job_that_failed(tmp_path):
    # -m in any place
    done = call("power", f"metrics={tmp_path}/x.json,{tmp_path}/y.json", "-m", f"hydra.sweep.dir={tmp_path / 'sweep'}")
    assert done.returncode == 1
    (said,) = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert said.startswith("error: 2 jobs failed: ")
    for number, name in enumerate(("x.json", "y.json")):
        assert re.search(rf"sweep/{number}: [^;]*{name}", said)


def test_bash_completes_the_options(monkeypatch):
    assert "complete -o nospace" in call("train", "-sc", "install=bash").stdout
    monkeypatch.setenv("COMP_LINE", "train.py mitigation=text_")
    assert "mitigation=text_mask" in call("train", "-sc", "query=bash").stdout.split()


def test_bash_completes_the_commands_and_their_options(monkeypatch, capsys):
    def completed(line):
        monkeypatch.setattr(sys, "argv", ["dejavu", "-sc", "query=bash"])
        monkeypatch.setenv("COMP_LINE", line)
        commands.main()
        return capsys.readouterr().out.split()

    assert completed("dejavu tr") == list(commands.COMMANDS)
    assert "mitigation=text_mask" in completed("dejavu train mitigation=text_")
    assert "experiment=halves" in completed("dejavu mitigate experiment=")
    assert completed("dejavu report outputs/") == []
    monkeypatch.setattr(sys, "argv", ["dejavu", "-sc", "install=bash"])
    commands.main()
    assert capsys.readouterr().out.endswith("hydra_bash_completion dejavu\n")


def test_a_multirun_on_slurm_has_the_defaults_of_a_study():
    launcher = yaml.safe_load((CONF / "hydra" / "launcher" / "slurm.yaml").read_text())
    defaults = SlurmSettings()
    assert launcher["max_num_timeout"] == defaults.requeues
    assert launcher["setup"] == [KILL_OTHERS]
    for name in ("timeout_min", "array_parallelism", "signal_delay_s"):
        assert launcher[name] == getattr(defaults, name)


def test_an_unknown_launcher_is_not_a_missing_plugin(tmp_path):
    done = call("power", "-m", "metrics=x", "hydra/launcher=slrum", f"hydra.sweep.dir={tmp_path}")
    assert done.returncode == 1
    assert "hydra/launcher=slrum is unknown (did you mean 'slurm'?); choose one of basic, " in done.stderr
    assert "plugin" not in done.stderr


@pytest.mark.parametrize("path", ["runs/lr=0.1", "run (1)", "~/x", "a#b", "naïve", "it's", "a;b", "a&b=c"])
def test_a_value_that_hydra_cannot_read_is_shown_in_quotes(path):
    hint = _quotes_hint([f"metrics={path}"])
    assert hint is not None
    shown = hint.partition("quote it: ")[2]
    (argument,) = shlex.split(shown)
    assert argument == f'metrics="{path}"'
    assert _quotes_hint([argument]) is None


@pytest.mark.parametrize("argument", ["k=5", "out=runs/a", "~logger", "--cfg"])
def test_other_arguments_get_no_hint(argument):
    assert _quotes_hint([argument]) is None


def test_the_hint_is_what_the_command_says():
    done = call("power", "gap=lr=0.1")
    assert done.returncode == 1
    hint = done.stderr.rpartition("quote it: ")[2].strip()
    assert shlex.split(hint) == ['gap="lr=0.1"']


@pytest.mark.parametrize(
    "error",
    [
        MemoryError("Unable to allocate 8.00 TiB for an array"),
        MemoryError(),
        OSError(errno.ENOMEM, "Cannot allocate memory"),
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB"),
        RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 8 bytes"),
        ImportError("libtorch_cpu.so: failed to map segment from shared object"),
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


def test_a_closed_output_ends_no_command(monkeypatch):
    command = f"{shlex.quote(sys.executable)} -m dejavu_lit --help >&-"
    done = subprocess.run(["sh", "-c", command], cwd=ROOT, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
    monkeypatch.setattr(sys, "stdout", None)
    monkeypatch.setattr(sys, "stderr", None)
    with clean_exit():
        console().print("lost")
        assert not sys.stderr.isatty()
    with pytest.raises(SystemExit) as end, clean_exit():
        raise UserError("lost, too")
    assert end.value.code == 1


def test_another_error_keeps_its_traceback():
    with pytest.raises(RuntimeError, match="a bug"), clean_exit():
        raise RuntimeError("a bug")


@pytest.mark.parametrize(
    "path",
    [
        "20261128",
        "2024_01",
        "1.50",
        "true",
        "lr=0.1",
        "run (1)",
        "a~b",
        "a#b",
        "[x]/b",
        "/a/[x]",
        "naïve",
        "it's",
        "a;b",
        "a&b",
    ],
)
@pytest.mark.parametrize(
    "option",
    [
        "train out",
        "train data.dir",
        "train data.shards",
        "train model.init",
        "prepare +data.reader.path",
        "prepare data.reader.caption",
        "prepare data.extra.labelled.path",
        "prepare keys.A",
        "evaluate target",
        "evaluate sweep",
        "evaluate base",
        "evaluate objects",
        "power metrics",
        *(f"annotate annotator.{name}" for name in ("model", "config", "names", "classifier")),
        "train hydra.sweep.dir",
    ],
)
def test_a_text_is_taken_as_it_is_typed(option, path):
    command, name = option.split()
    assert OverridesParser.create().parse_override(quoted(f"{name}={path}", command)).value() == path


def test_planted_memory_takes_numbers_and_lists_of_them():
    """Their type is any, and a path would be quoted."""
    for share, times in (("0.5", "2"), ("[0.1,0.2]", "[2,3]")):
        given = [f"data.repeat.share={share}", f"data.repeat.times={times}"]
        repeat = settings("train", "data=scenes", "side=target", *given).data.repeat
        assert (repeat.share, repeat.times) == (json.loads(share), json.loads(times))


def test_a_text_is_taken_as_it_is_typed_in_python_too():
    assert (
        settings("train", "data=stream", "data.shards=2024_01", "data.dir=1_0", "side=target").data.shards == "2024_01"
    )


def test_a_path_may_begin_at_the_home_directory():
    assert quoted("sweep=~/x", "evaluate") == f"sweep={Path.home() / 'x'}"
    assert quoted("data.reader.delimiter=~", "prepare") == "data.reader.delimiter='~'"


def test_the_home_folder_is_found_in_lists_and_mappings() -> None:
    """Of what is typed: saved settings are data, in which nothing is replaced."""
    assert read(DataSpec, {"name": "x", "dir": "~/${oc.env:HOME}"}).dir == "~/${oc.env:HOME}"
    home = Path.home()
    data = settings("train", "side=target", "data=stream", "data.shards=['~/{0..9}.tar','b/~/c','~']").data
    assert data.shards == [f"{home}/{{0..9}}.tar", "b/~/c", "~"]
    data = settings(
        "prepare", "data=shards", "data.reader.path=['~/a']", "data.dir=x", "+data.extra.L={type:folder,path:'~/l'}"
    )
    assert data.data.reader["path"] == [f"{home}/a"]
    assert data.data.extra["L"]["path"] == f"{home}/l"


@pytest.mark.parametrize(
    "argument",
    [
        "out=null",
        "out='7'",
        "target=a,b",
        "metrics=[a,b]",
        "out=runs/${seed}",
        "seed=7",
        "gaps.public=512",
        "data.sizes.A=100",
        "data.extra.single.count=100",
        "model.config.embed_dim=32",
        "~out",
        "-m",
    ],
)
def test_other_arguments_are_not_quoted(argument):
    assert quoted(argument, "evaluate" if argument.startswith("target") else "train") == argument


def test_the_folder_has_the_name_that_was_typed(tmp_path):
    for name in ("2024_01", "lr=0.1 (1)"):
        done = run("dedup", "data=prepared", f"data.dir={tmp_path / 'none'}", f"out={name}", cwd=tmp_path, check=False)
        assert done.stderr.startswith("error: ")
        assert "Traceback" not in done.stderr


def test_signs_that_the_output_lacks_are_replaced(monkeypatch):
    monkeypatch.setenv("PYTHONIOENCODING", "ascii")
    done = run("--help")
    assert "Measure and mitigate d?j? vu memorization" in done.stdout
    assert "PPG −0.5 in é".encode("ascii", REPLACED) == b"PPG -0.5 in ?"  # a lost sign would be another number


def test_the_home_folder_is_found_in_a_quoted_out(
    scenes: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "work").mkdir()
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path / "work")
    done = call("dedup", f"data.dir={scenes}", "sets=[A,B]", 'out="~/a, b"')
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "a, b" / "report.json").is_file()
    assert list((tmp_path / "work").iterdir()) == []
