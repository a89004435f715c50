"""What a newcomer gets wrong, and the one sentence that each command says."""

import shlex
from pathlib import Path

import pytest

from tests.conftest import call

MISTAKES = {
    "train": "side is missing; give side=…, target (trains on A) or reference (trains on B)",
    "train side=targt": "side=targt must be target (trains on A) or reference (trains on B)",
    "train --side target": "--side is not an option; options have no dashes: side=target",
    "train side=target recipe.epohcs=3": "recipe.epohcs is not an option (did you mean 'recipe.epochs'?)",
    "train side=target lr=1e-3": "lr is not an option (did you mean 'recipe.lr'?)",
    "train side=target +foo=3": "+foo is not an option",
    "train side=target recipe.epochs=abc": "recipe.epochs=abc must be a whole number",
    "train side=target seed=null": "seed=null must be a whole number",
    "train side=target recipe.batch=0": "recipe.batch=0 must be at least 1",
    "train side=target mitigation.text_mask=1.5": "mitigation.text_mask=1.5 must be at least 0 and below 1",
    "train side=target data=fodler": "data=fodler is unknown (did you mean 'folder'?); there are coco, folder, of_target, ",
    "train side=target model=vitb32": "model=vitb32 is unknown (did you mean 'vit_b_32'?); there are rn50, tiny, vit_b_32",
    "train side=target data=prepared": "data.dir is missing; give data.dir=…, the folder of dejavu prepare",
    "train side=target data=prepared data.dir=nope": "data.dir=nope does not exist; create it with dejavu prepare data=…",
    "train side=target batch": "batch has no value; write batch=…",
    "train side=target data.reader.cuont=5": "data.reader.cuont is not an option (did you mean 'data.reader.count'?)",
    "train side=target 'data.sizes={A: many}'": "data.sizes={A: many} has a value of the wrong type; it is {set: number",
    "evaluate": "target is missing; give target=RUN or a model",
    "evaluate target=runs/nope reference=x": "target=runs/nope: runs/nope does not exist; give a run of dejavu train, or",
    "evaluate k=ten": "k=ten must be a whole number",
    "evaluate target=x@y reference=x@y 'fail_if=symmetric.ppg >'": "fail_if='symmetric.ppg >' is not a condition (",
    "evaluate target=x@y reference=x@y 'fail_if=symmetric.ppgg.value > 0'": "fail_if: symmetric.ppgg.value is not in metrics.json",
    "mitigate": "there are no settings; choose experiment=NAME, or add some, e.g. settings.mask=['mitigation.text_mask=0.5']",
    "mitigate experiment=dmo": "experiment=dmo is unknown (did you mean 'demo'?); there are cc3m, coco, ",
    "mitigate settings.foo=[a.b=0.3]": "settings.foo=[a.b=0.3]: quote each override in the list, as \"settings.foo=['a.b=0.3']\"",
    "mitigate \"settings.mask=['text_mask=0.3']\"": "settings.mask: text_mask is not an option (did you mean 'mitigation.text_",
    "prepare data=folder data.dir=OUT": "data.reader.path is missing; give data.reader.path=…",
    "annotate annotator=torchvison data.dir=x": "annotator=torchvison is unknown (did you mean 'torchvision'?); there are ",
    "annotate annotator=torchvision data.dir=x": "annotator.weights is missing; give annotator.weights=…",
    "power": "metrics is missing; give metrics=…, One or a list of metrics.json or study.json",
}


@pytest.mark.parametrize("line", MISTAKES)
def test_a_mistake_is_one_sentence(line: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    done = call(*shlex.split(line))
    assert done.returncode == 1
    assert done.stderr.startswith(f"error: {MISTAKES[line]}"), done.stderr
    assert done.stderr.count("\n") == 1
    assert list(tmp_path.iterdir()) == []  # nothing was written
