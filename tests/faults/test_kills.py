"""SIGKILL at random moments: started again, every command ends with what an undisturbed run leaves."""

import shutil
from functools import cached_property
from pathlib import Path

import pytest

from tests.conftest import SMALL
from tests.faults.kills import Case

DATA = [option for option in SMALL if option.startswith("data.")]
FEW = ["k=5", "ks=[1,5]", "statistics.bootstrap=200"]
SETTINGS = ["+settings.none=['mitigation.text_mask=0']", "+settings.stop=['mitigation.stop_epoch=1']"]
DETECTOR = ["annotator=torchvision", "annotator.model=tests.objects.tiny.detector", "annotator.batch=2"]

# A command, how often it is killed, and whether it is started as a user would, so that kills hit its imports, too.
QUICK = [("prepare", 2, False), ("annotate", 1, False), ("train", 2, False)]
LONG = [
    ("prepare", 8, False),
    ("prepare", 3, True),
    ("annotate", 6, False),
    ("train", 8, False),
    ("train", 3, True),
    ("train_workers", 4, False),
    ("evaluate", 8, False),
    ("evaluate", 3, True),
    ("sweep", 2, False),
    ("dedup", 3, False),
    ("study", 8, False),
]


class Cases:
    """The commands, each in folders of its own; what several of them need is made once, in peace."""

    def __init__(self, base: Path) -> None:
        self.base = base

    def _case(
        self, name: str, command: str, *options: str, out: Path | None = None, before: Path | None = None
    ) -> Case:
        return Case(command, list(options), out or self.base / name, self.base / f"{name}-aside", before)

    @cached_property
    def prepare(self) -> Case:
        options = [f"data.dir={self.base / 'prepare'}", *DATA, "pairs_per_shard=20", "workers=2"]
        return self._case("prepare", "prepare", *options)

    @cached_property
    def data(self) -> Path:
        """The folder that ``prepare`` makes."""
        self.prepare.undisturbed()
        return Path(shutil.copytree(self.prepare.whole, self.base / "data"))

    @cached_property
    def annotate(self) -> Case:
        import torch

        from tests.objects.tiny import detector

        torch.manual_seed(1)
        weights = self.base / "detector.pt"
        torch.save({"model": detector(6, 8, 16).state_dict(), "classes": list("abcde")}, weights)
        options = [*DETECTOR, "annotator.options={width: 8, hidden: 16}", f"annotator.weights={weights}"]
        more = [f"data.dir={self.data}", "name=found", "sets=[H,P,V]"]
        return self._case("annotate", "annotate", *options, *more, out=self.data / "objects" / "found")

    def _train(self, name: str, side: str, *more: str) -> Case:
        options = [f"side={side}", f"data.dir={self.data}", f"out={self.base / name}", *SMALL, *more]
        return self._case(name, "train", *options, "trainer.checkpoint_steps=2")

    @cached_property
    def train(self) -> Case:
        return self._train("train", "target")

    @cached_property
    def train_workers(self) -> Case:
        return self._train("train_workers", "target", "trainer.loader.workers=2")

    @cached_property
    def runs(self) -> Path:
        """A finished target and a finished reference run."""
        folder = self.base / "runs"
        for name, case in (("target", self.train), ("reference", self._train("reference", "reference"))):
            case.undisturbed()
            shutil.copytree(case.whole, folder / name)
        return folder

    def _measure(self, name: str, command: str, *options: str) -> Case:
        """A command on the two runs, which lie in its folder, because it keeps embeddings in them."""
        return self._case(name, command, *options, f"out={self.base / name / 'found'}", before=self.runs)

    @cached_property
    def evaluate(self) -> Case:
        sides = [f"{side}={self.base / 'evaluate' / side}" for side in ("target", "reference")]
        return self._measure("evaluate", "evaluate", *sides, *FEW)

    @cached_property
    def sweep(self) -> Case:
        return self._measure("sweep", "evaluate", f"sweep={self.base / 'sweep'}", *FEW)

    @cached_property
    def dedup(self) -> Case:
        return self._measure("dedup", "dedup", f"data.dir={self.data}", f"encoder={self.base / 'dedup' / 'target'}")

    @cached_property
    def study(self) -> Case:
        options = [f"data.dir={self.data}", f"out={self.base / 'study'}", *SMALL, *SETTINGS]
        return self._case("study", "mitigate", *options, *[f"evaluate.{option}" for option in FEW])


@pytest.fixture(scope="module")
def cases(tmp_path_factory: pytest.TempPathFactory) -> Cases:
    return Cases(tmp_path_factory.mktemp("kills"))


def killed(cases: Cases, name: str, kills: int, real: bool, seed: int) -> None:
    print(f"{name}{' (command line)' if real else ''}: {getattr(cases, name).killed(kills, seed, real)}")


@pytest.mark.parametrize(("name", "kills", "real"), QUICK)
def test_killed_and_started_again(cases: Cases, name: str, kills: int, real: bool) -> None:
    killed(cases, name, kills, real, seed=0)


@pytest.mark.slow
@pytest.mark.parametrize(("name", "kills", "real"), LONG)
def test_killed_often_and_started_again(cases: Cases, name: str, kills: int, real: bool) -> None:
    killed(cases, name, kills, real, seed=1)
