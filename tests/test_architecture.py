"""The plan of the house: which rooms there are, and that imports between them run one way, without a circle."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.conftest import ROOT

PACKAGE = ROOT / "dejavu_lit"
# From the ground up: a room imports from lower floors and from itself, not from its neighbors on the same floor.
FLOORS = (
    ("utils",),
    ("models", "mitigation"),
    ("data",),
    ("objects", "measure"),
    ("evaluation",),
    ("training", "duplicates"),
    ("study",),
    ("report",),
    ("cli",),
    ("__main__",),
)
FLOOR = {room: number for number, rooms in enumerate(FLOORS) for room in rooms}
HEAVY_IN_MEASURE = {"torch", "torchmetrics", "pytorch_lightning", "open_clip", "hydra", "omegaconf"}


def module_name(path: Path) -> str:
    """The dotted name of a file of the package."""
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {module_name(path): path for path in PACKAGE.rglob("*.py")}


def imports(source: str) -> Iterator[tuple[int, str]]:
    """(line, module) of every import, those within functions and under TYPE_CHECKING included."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"line {node.lineno}: imports are absolute in this package"
            for alias in node.names:
                name = f"{node.module}.{alias.name}"
                yield node.lineno, name if name in MODULES else str(node.module)


def own_imports(path: Path) -> list[tuple[int, str]]:
    """(line, module) of the imports from this package, but for the version in its root."""
    found = imports(path.read_text(encoding="utf-8"))
    return [(line, name) for line, name in found if name.startswith("dejavu_lit.")]


def room(module: str) -> str:
    """The folder, or the file at the root, that a module belongs to."""
    return module.split(".")[1]


def upward(module: str, imported: str) -> bool:
    """Whether ``module`` may not import ``imported``: it lies above, or beside it in another room."""
    own, other = room(module), room(imported)
    return own != other and FLOOR[other] >= FLOOR[own]


def circle(edges: dict[str, list[str]]) -> list[str]:
    """A circle of the graph {node: successors} as the nodes on it, the first one repeated at the end; [] without one."""
    done: set[str] = set()

    def walk(node: str, path: list[str]) -> list[str]:
        if node in path:
            return [*path[path.index(node) :], node]
        if node in done:
            return []
        for successor in edges.get(node, []):
            if found := walk(successor, [*path, node]):
                return found
        done.add(node)
        return []

    return next((found for node in edges if (found := walk(node, []))), [])


def test_the_root_holds_three_files():
    assert {path.name for path in PACKAGE.glob("*.py")} == {"__init__.py", "__main__.py", "mitigation.py"}


def test_every_room_has_its_floor():
    rooms = {path.name for path in PACKAGE.iterdir() if path.is_dir() and any(path.glob("*.py"))}
    assert rooms | {"mitigation", "__main__"} == set(FLOOR)


@pytest.mark.parametrize("path", MODULES.values(), ids=MODULES.keys())
def test_imports_run_downward(path: Path):
    module = module_name(path)
    if module == "dejavu_lit":
        assert own_imports(path) == []
        return
    wrong = [f"{path}:{line}: {module} imports {name}" for line, name in own_imports(path) if upward(module, name)]
    assert wrong == []


def test_imports_make_no_circle():
    assert circle({module: [name for _, name in own_imports(path)] for module, path in MODULES.items()}) == []


@pytest.mark.parametrize("path", sorted((PACKAGE / "measure").glob("*.py")), ids=lambda path: path.stem)
def test_measure_knows_no_model_and_no_configuration(path: Path):
    wrong = [
        f"{path}:{line}: imports {name}"
        for line, name in imports(path.read_text(encoding="utf-8"))
        if name.split(".")[0] in HEAVY_IN_MEASURE or name.startswith("dejavu_lit.models")
    ]
    assert wrong == []


def test_what_these_tests_look_for_is_found():
    assert upward("dejavu_lit.data.splits", "dejavu_lit.training.train")
    assert upward("dejavu_lit.objects.base", "dejavu_lit.measure.records")
    assert not upward("dejavu_lit.cli.train", "dejavu_lit.training.train")
    assert circle({"a": ["b"], "b": ["c"], "c": ["a"]}) == ["a", "b", "c", "a"]
    assert circle({"a": ["b", "c"], "b": ["c"], "c": []}) == []
    source = "def f():\n    from dejavu_lit.cli import app\nif TYPE_CHECKING:\n    import dejavu_lit.study.plan\n"
    assert sorted(imports(source)) == [(2, "dejavu_lit.cli.app"), (4, "dejavu_lit.study.plan")]
