import subprocess
import sys
from pathlib import Path

import pytest

import dejavu_lit.measure as api


def test_every_name_exists_and_hides_no_module() -> None:
    modules = {path.stem for path in Path(api.__file__).parent.glob("*.py")}
    for name in api.__all__:
        assert callable(getattr(api, name)), name
        # A function named like its module would be replaced by the module once that is imported.
        assert name not in modules or name == "measure"
    with pytest.raises(AttributeError, match="no attribute 'mesure'"):
        _ = api.mesure


def test_importing_the_package_imports_nothing_heavy() -> None:
    code = "import sys, dejavu_lit.measure; sys.exit(bool({'numba', 'scipy', 'pyarrow', 'torch'} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0
