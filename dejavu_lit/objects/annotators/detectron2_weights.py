"""Weights and classifiers of detectron2's models: read from files as plain numbers, and loaded into a model.

A file of weights is never run as code: pickles are restricted to numpy's arrays, see ``PLAIN_DATA``.
"""

import pickle
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from dejavu_lit.utils.errors import UserError, explained

# The names that pickled arrays, scalars and dictionaries of numpy refer to; everything else is refused.
PLAIN_DATA = {
    ("numpy", "ndarray"),
    ("numpy", "dtype"),
    ("numpy.core.multiarray", "_reconstruct"),
    ("numpy._core.multiarray", "_reconstruct"),
    ("numpy.core.multiarray", "scalar"),
    ("numpy._core.multiarray", "scalar"),
    ("numpy.core.numeric", "_frombuffer"),
    ("numpy._core.numeric", "_frombuffer"),
    ("collections", "OrderedDict"),
    ("_codecs", "encode"),
}


def read_weights(path: Path) -> dict[str, Any]:
    """{name: tensor} of a file of weights, read without running any code in it; raises UserError."""
    import torch

    from dejavu_lit.models.weights import load_tensors

    problem = f"annotator.weights={path} cannot be read as tensors alone"
    with explained(problem, "save the model's state_dict()", errors=(Exception, MemoryError)):
        content = read_arrays(path) if path.suffix == ".pkl" else load_tensors(path)
        return {name: torch.as_tensor(value) for name, value in content.get("model", content).items()}


def read_arrays(path: Path) -> dict[str, Any]:
    """The pickled dictionary of arrays in a file; raises UnpicklingError for anything that is not plain data."""
    with open(path, "rb") as file:
        content = _ArrayUnpickler(file, encoding="latin1").load()
    if not isinstance(content, dict):
        raise pickle.UnpicklingError("it is not a dictionary of arrays")
    return content


class _ArrayUnpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        """Refuse everything that is not plain data."""
        if (module, name) not in PLAIN_DATA:
            raise pickle.UnpicklingError(f"it contains {module}.{name}, which is not plain data")
        own = {"dtype": _Numbers, "ndarray": _Array, "scalar": _scalar, "_frombuffer": _frombuffer}
        return own.get(name) or super().find_class(module.replace("numpy.core", "numpy._core"), name)


class _Numbers:
    """In place of numpy's dtype, whose state may say of any bytes of the file that they are pointers to objects."""

    def __init__(self, name: str, *_: Any) -> None:
        self.dtype = np.dtype(name)
        if self.dtype.kind not in "biufc":
            raise pickle.UnpicklingError(f"it contains values of type {name}, which is not plain data")

    def __setstate__(self, state: Sequence[Any]) -> None:
        self.dtype = self.dtype.newbyteorder(state[1])


class _Array(np.ndarray):
    def __new__(cls, *_: Any) -> Any:  # by _reconstruct, which does not call this, an array begins without values
        raise pickle.UnpicklingError("it makes an array of bytes, which is not plain data")

    def __setstate__(self, state: Sequence[Any]) -> None:
        version, shape, numbers, *data = state
        super().__setstate__((version, shape, numbers.dtype, *data))


def _scalar(numbers: _Numbers, data: bytes | str) -> Any:
    return np.frombuffer(data.encode("latin1") if isinstance(data, str) else data, numbers.dtype)[0]


def _frombuffer(data: bytes, numbers: _Numbers, shape: Sequence[int], order: Any) -> np.ndarray:
    return np.frombuffer(data, numbers.dtype).reshape(shape, order=order)


def load_weights(model: Any, weights: Mapping[str, Any], option: str, optional: Sequence[str]) -> None:
    """Load the weights of an ``option`` into a model; ``optional``: parts of names that either may lack.

    Raises UserError if any other name is missing, or a shape does not fit.
    """
    with explained(f"{option} does not fit the config", "use the weights of this config"):
        keys = model.load_state_dict(dict(weights), strict=False)
        for names, problem in ((keys.missing_keys, "the file lacks"), (keys.unexpected_keys, "the model has no")):
            if required := [name for name in names if not any(part in name for part in optional)]:
                raise ValueError(f"{problem} {required[0]}, {len(required)} in all")


def class_count(model: Any) -> int | None:
    """The number of classes of a model's box classifier; None if it does not have ``num_classes``."""
    for module in model.modules():
        count = getattr(module, "num_classes", None)
        if isinstance(count, int) and any(
            hasattr(module, part) for part in ("box_predictor", "cls_score", "anchor_generator")
        ):
            return count
    return None


def set_classifier(model: Any, path: Path, classes: int) -> None:
    """Put one embedding per class into every box classifier that compares with them (``zs_weight``, [width, classes + 1]).

    The last column is the background's, zero; columns are normalized if the classifier has ``norm_weight``.
    Raises UserError for a file that does not fit, or a model without such a classifier.
    """
    import torch

    with explained(f"annotator.classifier={path} is not a .npy of numbers", "save one row per class"):
        rows = torch.from_numpy(np.asarray(np.load(path, allow_pickle=False), dtype=np.float32))
    heads = [module for module in model.modules() if isinstance(getattr(module, "zs_weight", None), torch.Tensor)]
    if not heads:
        raise UserError(
            "annotator.classifier is for models that compare with one embedding per class, such as Detic's; remove it"
        )
    width = heads[0].zs_weight.shape[0]
    if rows.ndim != 2 or len(rows) != classes or rows.shape[1] != width:
        raise UserError(
            f"annotator.classifier={path} has the shape {list(rows.shape)}, not [{classes} class names, {width}]; "
            "name its rows by annotator.classes="
        )
    columns = torch.cat([rows.T, rows.new_zeros(rows.shape[1], 1)], dim=1)
    for head in heads:
        unit = torch.nn.functional.normalize(columns, dim=0) if getattr(head, "norm_weight", False) else columns
        head.zs_weight = unit.to(head.zs_weight.device)
    for module in model.modules():
        if hasattr(module, "num_classes") and (hasattr(module, "box_predictor") or hasattr(module, "cls_score")):
            module.num_classes = classes
