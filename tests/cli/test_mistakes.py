"""What a newcomer gets wrong, and the one sentence that each command says."""

import json
import os
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import ROOT, call

MISTAKES = {
    "train": "side is missing; give side=…: target (trains on A) or reference (trains on B)",
    "train side=targt": "side=targt is unknown (did you mean 'target'?); choose one of target, reference",
    "train --side target": "--side is not an option; options have no dashes: side=target",
    "train side=target recipe.epohcs=3": "recipe.epohcs is not an option (did you mean 'recipe.epochs'?)",
    "train side=target lr=1e-3": "lr is not an option (did you mean 'recipe.lr'?)",
    "train side=target +foo=3": "+foo is not an option",
    "train side=target model.config.quick_gelu=true": (
        "model.config.quick_gelu is not in the config of this model; put a + before it to add it (+model.config.quick_gelu=…)"
    ),
    "train side=target recipe.epochs=abc": "recipe.epochs=abc must be a whole number",
    "train side=target seed=null": "seed=null must be a whole number",
    "train side=target recipe.batch=0": "recipe.batch=0 must be at least 1",
    "train side=target mitigation.text_mask=1.5": "mitigation.text_mask=1.5 must be at least 0 and below 1",
    "train side=target data=fodler": "data=fodler is unknown (did you mean 'folder'?); choose one of coco, folder, of_target, ",
    "train side=target model=vitb32": "model=vitb32 is unknown (did you mean 'vit_b_32'?); choose one of rn50, tiny, vit_b_32, "
    "or another architecture of open_clip by model=vit_b_32 model.name=ARCH",
    "train side=target model.name=ViT-B-16": "model.name=ViT-B-16 is an architecture of open_clip, but model.config would ",
    "train side=target data=prepared": "data.dir is missing; give data.dir=…: the folder of dejavu prepare",
    "train side=target data=prepared data.dir=nope": "data.dir=nope does not exist in ",
    "train side=target trainer.accelerator=gup": "trainer.accelerator=gup is unknown (did you mean 'gpu'?); choose one of cpu, ",
    "train side=target trainer.precision=bf17": "trainer.precision=bf17 is unknown (did you mean 'bf16'?); choose one of 32-true",
    "evaluate sweep=": "sweep= is empty; give the folder of a multirun of dejavu train",
    "train side=target model.init=": "model.init= is empty; give a model, or null to train from scratch",
    "train side=target model.init=ViT-B-32@of/nope.pt": "model.init=ViT-B-32@of/nope.pt: of/nope.pt does not exist; give a run",
    "train side=target model.init=ViT-B-32@nope.pt": "model.init=ViT-B-32@nope.pt: nope.pt does not exist; give a run",
    "train side=target gaps.reference=runs/nope": "gaps.reference=runs/nope: runs/nope does not exist; give a run of dejavu",
    "train side=target model=vit_b_32 model.name=ViT-B-33": "model.name=ViT-B-33 is not an open_clip architecture (did you mean ",
    "train side=target model=vit_b_32 model.name=ViT-B-32:openai": "model.name=ViT-B-32:openai is not an open_clip architecture",
    "train side=target batch": "batch has no value; write batch=…",
    "mitigate \"settings.a name, b=['mitigation.ema=0.9']\"": (
        "settings.a name, b=['mitigation.ema=0.9']: Hydra cannot read the name 'settings.a name, b'; use only letters, digits"
    ),
    "train side=target out=runs/a,b": (
        "out=runs/a,b: a comma separates the values of a multirun (-m); a list is out=[runs/a,b], a text 'out=\"runs/a,b\"'"
    ),
    "evaluate ks=1,5": "ks=1,5: a comma separates the values of a multirun (-m); a list is ks=[1,5], a text 'ks=\"1,5\"'",
    "power metrics=[~/a.json]": "metrics=[~/a.json]: quote each text in the list, as \"metrics=['~/a.json']\"",
    "evaluate runs/a": "runs/a has no name; write OPTION=runs/a",
    f"report {ROOT}/README.md": f"{ROOT}/README.md is a file; give the out= folder of dejavu evaluate or dejavu mitigate",
    "train side=target data.reader.cuont=5": "data.reader.cuont is not an option (did you mean 'data.reader.count'?)",
    "train side=target 'data.sizes={A: many}'": "data.sizes={A: many} has a value of the wrong type; expected: {set: number",
    "evaluate": "target is missing; give target=RUN or a model",
    "evaluate target=runs/nope reference=x": "target=runs/nope: runs/nope does not exist; give a run of dejavu train, or",
    "evaluate k=ten": "k=ten must be a whole number",
    "evaluate target=x@y reference=x@y 'fail_if=symmetric.ppg >'": "fail_if='symmetric.ppg >' is not a condition (",
    "evaluate target=x@y reference=x@y 'fail_if=found.fond > 0'": "fail_if: found.fond is not in metrics.json (did you mean ",
    "evaluate target=ViT-B-32@of/nope.pt reference=x@y": "target=ViT-B-32@of/nope.pt: of/nope.pt does not exist; give a run of",
    "evaluate target=x@y reference=text:nope": "text:nope is neither a sentence-transformers folder (with modules.json) nor an",
    "evaluate target=x@y reference=x@y base=runs/nope": "base=runs/nope: runs/nope does not exist; give a run of dejavu train",
    "evaluate target=x@y reference=x@y keys=nope.txt": "keys=nope.txt cannot be read",
    "mitigate": "there are no settings; choose experiment=NAME, or add some, e.g. \"settings.mask=['mitigation.text_mask=0.5']\"",
    "mitigate experiment=dmo": "experiment=dmo is unknown (did you mean 'demo'?); choose one of cc3m, coco, ",
    "mitigate settings.foo=[a.b=0.3]": "settings.foo=[a.b=0.3]: quote each text in the list, as \"settings.foo=['a.b=0.3']\"",
    "mitigate \"settings.mask=['text_mask=0.3']\"": "settings.mask: text_mask is not an option (did you mean 'mitigation.text_",
    "mitigate experiment=demo halves=1000000": "halves=1000000 must be at least 1 and at most 1000",
    "prepare data=folder data.dir=OUT": "data.reader.path is missing; give data.reader.path=…",
    "annotate annotator=torchvison data.dir=x": "annotator=torchvison is unknown (did you mean 'torchvision'?); choose one of ",
    "prepare data=scenes data.sizes={A:": "data.sizes={A:: Hydra cannot read this value; quote the whole option, or complete",
    "prepare data=scenes data.sizes=A:0.4": "data.sizes=A:0.4 must be a mapping, as 'data.sizes={…}'",
    "mitigate experiment=demo seeds=3": "seeds=3 must be a list, as 'seeds=[…]'",
    "prepare data.reader.path=PAIRS.csv data.dir=x": (
        "data.reader.path is not an option of the chosen data; choose one that has it with data=NAME"
    ),
    "annotate annotator=captions annotator.path=x data.dir=x": "annotator.path is not an option of the chosen annotator; choose",
    "report path=x redact=treu": "redact=treu must be true or false",
    "annotate annotator=torchvision data.dir=x": "annotator.weights is missing; give annotator.weights=…",
    "dedup data.dir=x encoder=runs/nope": "encoder=runs/nope: runs/nope does not exist; give a run of dejavu train, or a model",
    "report": "path is missing; give path=…: the out= folder of dejavu evaluate or dejavu mitigate",
    "report runs/nope": "runs/nope does not exist; give the out= folder of dejavu evaluate or dejavu mitigate",
    "power": "metrics is missing; give metrics=…: a metrics.json or study.json of earlier evaluations",
}


NO_GPU = "train side=target trainer=gpu"
WITH_DATA = {
    "train side=target recipe.batch=200": "96 training pairs cannot fill one batch (1 rank × 200 pairs); lower recipe.batch=",
    "train side=target recipe.batch=32 trainer.devices=3 out=out": "recipe.batch=32 is not divisible by the 3 ranks; choose",
    "evaluate target=x@y reference=x@y data=prepared": "this data has no objects of its own; detect them with dejavu annotate, ",
}


@pytest.fixture(scope="module")
def said(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """{line: [exit code, what it said, the files then there, whether torch was imported]}, all of one new process."""
    code = (
        "import json, os, shlex, sys; from tests.cli.test_mistakes import MISTAKES; from tests.conftest import call\n"
        "for line in MISTAKES:\n"
        "    done = call(*shlex.split(line))\n"
        "    print(json.dumps([line, [done.returncode, done.stderr, os.listdir(), 'torch' in sys.modules]]))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=tmp_path_factory.mktemp("mistakes"),
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    return dict(map(json.loads, done.stdout.splitlines()))


@pytest.mark.parametrize("line", MISTAKES)
def test_a_mistake_is_one_sentence_and_costs_no_import_of_torch(line: str, said: dict[str, Any]) -> None:
    code, text, files, torch = said[line]
    assert code == 1
    assert text.startswith(f"error: {MISTAKES[line]}"), text
    assert text.count("\n") == 1
    assert files == []  # nothing was written
    assert not torch


def say(line: str, sentence: str) -> None:
    """A command ends with this one sentence."""
    done = call(*shlex.split(line))
    assert done.returncode == 1
    assert done.stderr.startswith(f"error: {sentence}"), done.stderr
    assert done.stderr.count("\n") == 1


def test_a_missing_gpu_is_said_before_data_are_generated(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    for line in (NO_GPU, "mitigate experiment=demo trainer=gpu"):
        where = "settings.none: " if line.startswith("mitigate") else ""
        say(line, f"{where}trainer.accelerator=gpu: no GPU found; choose trainer=cpu, or a machine with a GPU")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("line", WITH_DATA)
def test_what_does_not_fit_the_data_is_one_sentence(
    line: str, scenes: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "data").mkdir()
    for path in scenes.iterdir():
        if path.name != "objects":
            (tmp_path / "data" / path.name).symlink_to(path)
    monkeypatch.chdir(tmp_path)
    say(f"{line} data.dir=data", WITH_DATA[line])
    assert [path.name for path in tmp_path.iterdir()] == ["data"]
