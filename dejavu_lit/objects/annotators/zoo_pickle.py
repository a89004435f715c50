"""Files of numbers that detectron2's model zoo keeps as pickles, read without running any code that they may carry."""

import pickle
from pathlib import Path
from typing import Any

# What arrays, scalars and dictionaries of numpy need; everything else is refused.
ALLOWED = {
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


class _Numbers(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        """Refuse whatever is not plain data."""
        if (module, name) not in ALLOWED:
            raise pickle.UnpicklingError(f"it holds {module}.{name}, which is no plain data")
        return super().find_class(module.replace("numpy.core", "numpy._core"), name)


def read_numbers(path: Path) -> dict[str, Any]:
    """The dictionary of arrays in the file; raises UnpicklingError for anything that is not plain data."""
    with open(path, "rb") as file:
        content = _Numbers(file, encoding="latin1").load()
    if not isinstance(content, dict):
        raise pickle.UnpicklingError("it is no dictionary of arrays")
    return content
