"""What an attacker may try with a configuration, a run, or a finished artifact, tried first; SECURITY.md lists the rest."""

import io
import json
import pickletools
import re
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import pytest
import torch
import yaml

from dejavu_lit.utils.errors import UserError
from dejavu_lit.utils.run_directory import RunDirectory
from dejavu_lit.utils.wandb import Wandb
from tests.conftest import ROOT, SMALL, call


def refused(command: str, *options: str) -> str:
    """What a command says that must refuse its options."""
    done = call(command, *options)
    assert done.returncode == 1, done.stdout
    assert done.stderr.startswith("error: ")
    return done.stderr


def test_settings_of_a_given_run_stay_text(monkeypatch, tmp_path):
    monkeypatch.setenv("SOME_TOKEN", "5ec2e7-token")
    run = RunDirectory(tmp_path)
    for text in ("${oc.env:SOME_TOKEN}", "${oc.create:{_target_: os.getcwd}}"):
        run.save({"wandb": {"project": text}})
        assert run.read(Wandb, "wandb").project == text


def test_a_given_run_cannot_call_what_it_likes(runs, tmp_path):
    run, owned = tmp_path / "run", tmp_path / "owned"
    run.mkdir()
    config = yaml.safe_load((runs["target"] / "config.yaml").read_text())
    attack = {"_target_": "shutil.copy", "src": "/etc/hostname", "dst": str(owned)}
    for data in (attack, config["data"] | {"reader": attack, "dir": str(tmp_path / "none"), "automatic": True}):
        (run / "config.yaml").write_text(yaml.safe_dump(config | {"data": data}))
        refused("evaluate", f"target={run}", f"reference={run}", f"out={tmp_path / 'out'}")
        assert not owned.exists()
    (run / "config.yaml").write_text(f"data: !!python/object/apply:os.mkdir ['{owned}']")
    assert "cannot be read as settings" in refused("evaluate", f"target={run}", f"reference={run}")
    assert not owned.exists()


COPY = "{_target_: shutil.copy, src: /etc/hostname, dst: OWNED}"


@pytest.mark.parametrize("option", [f"+trainer.callbacks=[{COPY}]", "+trainer.plugins=[x]", f"trainer.loader={COPY}"])
def test_lightning_gets_nothing_but_listed_options(option, tmp_path):
    owned = tmp_path / "owned"
    said = refused("train", "side=target", *SMALL, f"out={tmp_path / 'run'}", option.replace("OWNED", str(owned)))
    assert "trainer" in said
    assert not owned.exists()
    assert not (tmp_path / "run").exists()


def has_code(content: bytes) -> bool:
    """Whether the bytes are a pickle that would import or call something."""
    try:
        found = list(pickletools.genops(content))
    except Exception:  # no pickle
        return False
    whole = bool(found) and found[-1][2] == len(content) - 1
    return whole and any(op.name in ("GLOBAL", "STACK_GLOBAL", "INST", "NEWOBJ", "REDUCE") for op, *_ in found)


def test_the_hunt_for_pickles_finds_one():
    import pickle

    assert has_code(pickle.dumps(Path("x")))
    assert not has_code(b"key,caption\n")


def test_no_artifact_is_a_pickle_and_every_checkpoint_loads_without_code(runs, scenes, tmp_path):
    out = tmp_path / "gap"
    done = call(
        "evaluate",
        f"target={runs['target']}",
        f"reference={runs['reference']}",
        f"out={out}",
        "statistics.bootstrap=100",
    )
    assert done.returncode == 0, done.stderr
    found = [path for top in (*runs.values(), scenes, out) for path in top.rglob("*") if path.is_file()]
    assert {".ckpt", ".safetensors", ".parquet", ".json", ".npy", ".tar"} <= {path.suffix for path in found}
    for path in found:
        content = path.read_bytes()
        if path.suffix == ".ckpt":  # torch's own format: a pickle that names nothing but tensors and numbers
            torch.load(io.BytesIO(content), weights_only=True, map_location="cpu")
            continue
        assert path.suffix not in (".pkl", ".pickle", ".pt", ".pth", ".joblib"), path
        assert not has_code(content), path
        if content[:4] == b"PK\x03\x04":  # .npz
            members = zipfile.ZipFile(io.BytesIO(content))
            assert not any(has_code(members.read(name)) for name in members.namelist()), path
        if path.suffix == ".npy":
            assert b"'descr': '|O'" not in content[:128], path


def test_yaml_is_only_read_safely():
    sources = "\n".join(path.read_text(encoding="utf-8") for path in sorted((ROOT / "dejavu_lit").rglob("*.py")))
    assert not re.findall(r"yaml\.(?:load|load_all|unsafe_load|full_load|Loader|UnsafeLoader)\b", sources)
    assert not re.findall(
        r"allow_pickle=True|weights_only=False|jit\.load|\bpickle\.loads?\b|\bjoblib\b|\bdill\b", sources
    )
    assert all("weights_only=True" in one for one in re.findall(r"torch\.load\([^\n]*", sources))


SECRET = "5ec2e7" + "a1" * 10


@pytest.mark.parametrize(
    "option",
    [
        "logger.wandb.project=${oc.env:WANDB_API_KEY}",
        f"logger.wandb.group=x-{SECRET}",
        f"data.templates=['a {SECRET}']",
        "data.dir=https://user:passw0rd@host/data",
        "data.dir=https://hf_5ec2e7@host/data",
        "data.dir='https://host/data/{0..9}.tar?sv=2024&sig=2rN%2Bx'",
        "data.dir='https://host/data.tar?X-Amz-Signature=5ec2e7'",
    ],
)
def test_settings_with_a_secret_are_refused_before_they_are_saved(option, monkeypatch, tmp_path):
    monkeypatch.setenv("WANDB_API_KEY", SECRET)
    run = tmp_path / "run"
    said = refused("train", "side=target", "logger=wandb", f"out={run}", *SMALL, option)
    assert "set it only as an environment variable" in said
    assert SECRET not in said
    assert not run.exists()


def test_what_is_no_secret_passes(monkeypatch, tmp_path):
    from dejavu_lit.cli.secrets import check_secrets

    monkeypatch.setenv("TOKENIZERS_PARALLELISM", "outputs/data")
    monkeypatch.setenv("SSH_PRIVATE_KEY", str(tmp_path))  # a place, not the key
    monkeypatch.setenv("SHORT_TOKEN", "a")
    monkeypatch.setenv("DB_PASSWORD", "postgres")  # a word, which a path may hold
    check_secrets(
        {
            "dir": ["outputs/data", f"{tmp_path}/x", "/home/postgres/data"],
            "n": 3,
            "eos_token_id": 49407,
            "tokenizer_kwargs": {"pad_token": "<|endoftext|>"},
            "slurm": {"setup": ["export WANDB_API_KEY=$(cat key)"]},
            "sftp": ["sftp://user@host/data", "https://host/data@2024/a.tar", "https://host?mail=a@b"],
            "shards": "pipe:curl -s https://$TOKEN@host/a 'https://host/{}?version=2&sig='$SIG https://host/design=1?config=2",
        }
    )
    with pytest.raises(UserError, match=r"the value of \$DB_PASSWORD"):
        check_secrets({"name": "postgres"})
    with pytest.raises(UserError, match=r"^a name in the settings contains the value of \$DB_PASSWORD"):
        check_secrets({"x": {"postgres": 1}})


def audit(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(ROOT / ".ci" / "audit.py"), *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=300)


def test_pins_agree_and_known_weaknesses_are_found_without_a_network(tmp_path):
    sys.path.insert(0, str(ROOT / ".ci"))
    try:
        import audit as module
    finally:
        sys.path.pop(0)
    pinned = module.pins((ROOT / "constraints.txt").read_text())
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    outside = [one for one in module.disagreements(pinned, project) if "is outside of" in one]
    assert outside == []
    older = module.disagreements(pinned | {"torch": "2.0.0"}, project)
    assert any("torch==2.0.0 is outside of torch>=2.6" in one for one in older)
    assert module.unused(project) == []
    assert module.unused({"dependencies": ["pytest>=8"]}) == ["pytest is declared and imported nowhere"]
    with pytest.raises(ValueError, match="is not a pin"):
        module.pins("torch>=2.6")

    def advisory(number: str, package: str, **affected: object) -> dict[str, object]:
        return {"id": number, "summary": "bad", "affected": [{"package": {"name": package}, **affected}]}

    events = [{"introduced": "0"}, {"fixed": "1!99"}]
    entries = [
        advisory("A-1", "Pillow", versions=[pinned["pillow"]]),
        advisory("A-2", "numpy", ranges=[{"type": "ECOSYSTEM", "events": events}]),
        advisory("A-3", "numpy", versions=["1.0"]),
        advisory("A-4", "torch", ranges=[{"type": "ECOSYSTEM", "events": [{"introduced": "0"}, {"fixed": "1.0"}]}]),
        advisory("A-5", "torch", versions=[pinned["torch"]]) | {"withdrawn": "2026-01-01"},
        advisory("A-6", "unknown", versions=["1"]),
    ]
    with zipfile.ZipFile(tmp_path / "all.zip", "w") as content:
        for entry in entries:
            content.writestr(f"{entry['id']}.json", json.dumps(entry))
    found = module.weaknesses(pinned, tmp_path / "all.zip")
    assert [one.split(": ")[1] for one in found] == ["A-2 bad", "A-1 bad"]
    done = audit(str(tmp_path / "all.zip"))
    assert done.returncode == 1
    assert "pillow==" in done.stdout


def test_the_tests_that_the_page_names_exist():
    named = set(re.findall(r"`(test_\w+)`", (ROOT / "SECURITY.md").read_text()))
    sources = "\n".join(path.read_text(encoding="utf-8") for path in (ROOT / "tests").rglob("*.py"))
    assert named - set(re.findall(r"def (test_\w+)\(", sources)) == set()
    assert len(named) > 20
