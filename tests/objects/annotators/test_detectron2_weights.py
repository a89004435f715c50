"""Pickled numbers are read and pickled code is refused, with or without detectron2."""

import os
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy._core.multiarray import _reconstruct as reconstruct
from numpy._core.multiarray import scalar

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


class Reduced:
    """Pickled as these parts."""

    def __init__(self, *parts: Any) -> None:
        self.parts = parts

    def __reduce__(self) -> tuple:
        return self.parts


def test_bytes_that_pretend_to_be_objects_are_refused(tmp_path: Path) -> None:
    """numpy would take them for addresses: its dtype believes what a pickle says of its fields and flags."""
    pretended = (3, "|", None, ("a",), {"a": (np.dtype("O"), 0)}, 8, 8, 0)
    dtype = Reduced(np.dtype, ("V8", False, True), pretended)
    array = Reduced(reconstruct, (np.ndarray, (0,), b"b"), (1, (1,), dtype, False, b"A" * 8))
    addresses = Reduced(np.ndarray, ((1,), "O", b"A" * 8))
    as_state = Reduced(reconstruct, (np.ndarray, (0,), b"b"), addresses)
    cases = [(Reduced(scalar, (dtype, b"A" * 8)), "values of type V8"), (array, "values of type V8")]
    for content, said in [*cases, (addresses, "an array of bytes"), (as_state, "an array of bytes")]:
        (tmp_path / "evil.pkl").write_bytes(pickle.dumps({"model": {"a": content}}, 2))
        with pytest.raises(pickle.UnpicklingError, match=f"{said}, which is not plain data"):
            read_arrays(tmp_path / "evil.pkl")


@pytest.mark.parametrize("data", [b"\x3f\x80\0\0", "\x3f\x80\0\0"])  # Python 2 wrote the latter
def test_of_the_type_of_numbers_no_more_than_the_order_of_bytes_is_believed(tmp_path: Path, data: bytes | str) -> None:
    dtype = Reduced(np.dtype, ("f4", False, True), (3, ">", None, ("a",), {"a": (np.dtype("f2"), 0)}, 4, 4, 63))
    array = Reduced(reconstruct, (np.ndarray, (0,), b"b"), (1, (1,), dtype, False, data))
    (tmp_path / "big.pkl").write_bytes(pickle.dumps({"a": array, "b": Reduced(scalar, (dtype, data))}, 2))
    for value in read_arrays(tmp_path / "big.pkl").values():
        assert value.tolist() in (1.0, [1.0])
        assert value.dtype.fields is None
        assert value.dtype.flags == np.dtype("f4").flags
    assert {name: tensor.tolist() for name, tensor in read_weights(tmp_path / "big.pkl").items()} == {
        "a": [1.0],
        "b": 1.0,
    }


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
