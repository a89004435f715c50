"""Pickled numbers are read and pickled code is refused, with or without detectron2."""

import os
import pickle
from pathlib import Path

import numpy as np
import pytest

from dejavu_lit.objects.annotators.detectron2 import PAGE, Detectron2Detector
from dejavu_lit.objects.annotators.detectron2_weights import read_arrays, read_weights
from dejavu_lit.utils.errors import UserError


class Harm:
    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple:
        return os.mkdir, (str(self.path),)


@pytest.mark.parametrize("protocol", [2, 4, 5])
def test_arrays_are_read_back(tmp_path: Path, protocol: int) -> None:
    arrays = {"a": np.arange(6, dtype=np.float32).reshape(2, 3), "b": np.float64(3.5), "c": np.arange(3)[::-1]}
    (tmp_path / "zoo.pkl").write_bytes(pickle.dumps({"model": arrays, "__author__": "x"}, protocol))
    weights = read_arrays(tmp_path / "zoo.pkl")["model"]
    for name, array in arrays.items():
        np.testing.assert_array_equal(weights[name], array)
    assert {name: tuple(t.shape) for name, t in read_weights(tmp_path / "zoo.pkl").items()} == {
        "a": (2, 3),
        "b": (),
        "c": (3,),
    }


def test_code_is_refused(tmp_path: Path) -> None:
    harm = tmp_path / "harm"
    for content in (Harm(harm), {"model": {"a": Harm(harm)}}, {"model": {"a": np.array([Harm(harm)], dtype=object)}}):
        (tmp_path / "evil.pkl").write_bytes(pickle.dumps(content))
        with pytest.raises(pickle.UnpicklingError, match="which is not plain data"):
            read_arrays(tmp_path / "evil.pkl")
        with pytest.raises(UserError, match=r"evil\.pkl cannot be read as tensors alone"):
            read_weights(tmp_path / "evil.pkl")
    assert not harm.exists()


def test_if_detectron2_is_missing_one_sentence_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    import sys

    for name in [name for name in sys.modules if name.split(".")[0] == "detectron2"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "detectron2", None)
    source = Detectron2Detector(config="a.yaml", weights="a.pth")
    with pytest.raises(
        UserError, match=rf"annotator=detectron2 needs the package detectron2 \(.*\); install it as {PAGE} says"
    ):
        _ = source.annotator
