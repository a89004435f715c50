"""Runs that die right after a checkpoint was written: started again, they leave the metrics.csv of an undisturbed run."""

import shutil
import tarfile
from pathlib import Path
from typing import Any

import pytest

from dejavu_lit.training.checkpoints import AtomicCheckpointIO, restoring
from tests.conftest import SMALL, call


class Killed(BaseException):
    """Ends a run."""


@pytest.fixture(scope="module")
def data(scenes: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The scenes, with three images in A that cannot be read, so that every epoch replaces three pairs."""
    folder = Path(shutil.copytree(scenes, tmp_path_factory.mktemp("damaged") / "scenes"))
    shard = min((folder / "A").glob("*.tar"))
    with tarfile.open(shard) as tar:
        images = [member for member in tar if member.name.endswith((".png", ".jpg"))]
    with open(shard, "r+b") as file:
        for image in images[:3]:
            file.seek(image.offset_data)
            file.write(bytes(image.size))
    return folder


def train(data: Path, reference: Path, out: Path) -> Path:
    options = [f"data.dir={data}", f"out={out}", *SMALL, "trainer.log_every=1", "trainer.checkpoint_steps=2"]
    gaps = [f"gaps.reference={reference}", "gaps.every=1", "gaps.sample=20", "gaps.k=5"]
    done = call("train", "side=target", *options, *gaps, "trainer.loader.bad_share=0.1")
    assert done.returncode == 0, done.stderr
    return out


def rows(run: Path) -> list[str]:
    """The rows of metrics.csv, in their order, without throughputs."""
    return [row for row in (run / "metrics.csv").read_text().splitlines() if "pairs/s" not in row]


@pytest.fixture(scope="module")
def reference(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("reference") / "run"
    done = call("train", "side=reference", f"data.dir={data}", f"out={out}", *SMALL)
    assert done.returncode == 0, done.stderr
    return out


@pytest.fixture(scope="module")
def undisturbed(data: Path, reference: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return train(data, reference, tmp_path_factory.mktemp("undisturbed") / "run")


def test_the_undisturbed_run_replaces_pairs(undisturbed: Path) -> None:
    assert [row for row in rows(undisturbed) if ",replaced," in row] == ["5,0,replaced,3.0", "11,1,replaced,3.0"]
    assert sum(",loss," in row for row in rows(undisturbed)) == 12


# Written in this order: steps 2 and 4, the weights of epoch 1, its end, steps 8 and 10, the weights of epoch 2, its end.
@pytest.mark.parametrize("written", [2, 3, 4, 8])
def test_what_a_run_has_done_before_a_checkpoint_is_in_its_metrics(
    data: Path, reference: Path, undisturbed: Path, tmp_path: Path, written: int
) -> None:
    save, left = AtomicCheckpointIO.save_checkpoint, written

    def save_and_die(self: AtomicCheckpointIO, *args: Any, **kwargs: Any) -> None:
        nonlocal left
        save(self, *args, **kwargs)
        left -= 1
        if left == 0:
            raise Killed

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(AtomicCheckpointIO, "save_checkpoint", save_and_die)
        with pytest.raises(Killed):
            train(data, reference, tmp_path / "run")
    assert rows(train(data, reference, tmp_path / "run")) == rows(undisturbed)


def test_an_error_from_elsewhere_does_not_mean_that_the_checkpoint_is_damaged(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="of a logger"), restoring(tmp_path / "checkpoints" / "last.ckpt"):
        raise ValueError("of a logger")
