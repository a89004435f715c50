"""The release gate: ``fail_if="symmetric.ppg.ci95[0] > 0.05"`` over metrics.json.

    gate = Gate.parse("symmetric.ppg.ci95[0] > 0.05 or utility.target.zeroshot_top1 < 0.3")
    gate.check()                                                                     # before the work begins
    if gate.fails(metrics): sys.exit(EXIT_CODE)

The syntax is Python's, of which only this is allowed: comparisons with < <= > >= == !=, joined by ``and``, ``or`` and ``not``;
numbers, ``true``, ``false``; and paths into metrics.json such as ``by_k["10"].symmetric.ppg.ci95[0]`` (or ``by_k.10…``).
Nothing is evaluated as code.
"""

import ast
import json
import operator
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from importlib.resources import files
from typing import Any

from dejavu_lit.utils.errors import UserError, suggest

EXIT_CODE = 3
COMPARISONS: dict[type[ast.cmpop], Callable[[float, float], bool]] = {
    ast.Lt: operator.lt,
    ast.LtE: operator.le,
    ast.Gt: operator.gt,
    ast.GtE: operator.ge,
    ast.Eq: operator.eq,
    ast.NotEq: operator.ne,
}
NUMBERED = re.compile(
    r"(\b[A-Za-z_]\w*|\])\.(\d+)\b"
)  # by_k.10 for by_k["10"]: no Python, but easier to type in a shell


Path = tuple[str | int, ...]  # keys and indices into metrics.json
NumberAt = Callable[[Path], float]


@dataclass(frozen=True)
class Gate:
    """A condition on metrics.json under which a release fails; made by ``Gate.parse``."""

    text: str
    condition: ast.expr
    paths: tuple[Path, ...]

    @classmethod
    def parse(cls, text: str) -> "Gate":
        """Read a condition; raises UserError that says what in it is not understood."""
        if not text.strip():
            raise UserError("fail_if= is empty; give a condition such as symmetric.ppg.ci95[0]>0.05, or leave it out")
        paths: list[Path] = []

        def collect(path: Path) -> float:
            paths.append(path)
            return 0.0

        try:
            condition = ast.parse(NUMBERED.sub(r'\1["\2"]', text.strip()), mode="eval").body
            _judge(condition, collect)  # also refuses what is not understood
        except (SyntaxError, ValueError, OverflowError, RecursionError, MemoryError) as error:
            reason = getattr(error, "msg", None) or str(error) or "it is nested too deeply"
            raise UserError(
                f"fail_if={text[:200]!r} is not a condition ({reason}); write comparisons such as "
                "symmetric.ppg.ci95[0]>0.05, joined by and, or, not"
            ) from None
        return cls(text, condition, tuple(paths))

    def check(self) -> None:
        """Raise UserError for a path that no metrics.json can have, or at which there is no number, by its schema."""
        schema = json.loads((files("dejavu_lit.measure") / "metrics.schema.json").read_text(encoding="utf-8"))
        for path in self.paths:
            _check_path(path, schema)

    def fails(self, metrics: Mapping[str, Any]) -> bool:
        """Whether the condition is met, i.e. the release fails.

        Raises:
            UserError: a path that is missing or not a number: a gate that cannot be judged must not pass in silence.
        """
        return _judge(self.condition, lambda path: value_at(metrics, path))


def _judge(node: ast.expr, number_at: NumberAt) -> bool:
    """Whether a condition is met; raises ValueError for anything but comparisons joined by and, or, not.

    Every part is judged, even where another one decides already: a figure that is missing is an error.
    """
    match node:
        case ast.BoolOp(op=op, values=values):
            parts = [_judge(value, number_at) for value in values]
            return all(parts) if isinstance(op, ast.And) else any(parts)
        case ast.UnaryOp(op=ast.Not(), operand=operand):
            return not _judge(operand, number_at)
        case ast.Compare(left=left, ops=[op], comparators=[right]) if type(op) in COMPARISONS:
            return COMPARISONS[type(op)](_number(left, number_at), _number(right, number_at))
    raise ValueError(f"{ast.unparse(node)} is not a comparison of two values")


def _number(node: ast.expr, number_at: NumberAt) -> float:
    """The value of a number, ``true``, ``false`` or a path into metrics.json; raises ValueError for anything else."""
    match node:
        case ast.UnaryOp(op=ast.USub(), operand=ast.Constant(value=int() | float() as number)):
            return -float(number)
        case ast.Constant(value=int() | float() as number) if not isinstance(number, bool):
            return float(number)
        case ast.Name(id="true" | "false" as name):
            return float(name == "true")
    return number_at(_path(node))


def _path(node: ast.expr) -> Path:
    match node:
        case ast.Name(id=name):
            return (name,)
        case ast.Attribute(value=parent, attr=name):
            return (*_path(parent), name)
        case ast.Subscript(value=parent, slice=ast.Constant(value=str() | int() as key)) if not isinstance(key, bool):
            return (*_path(parent), key)
    raise ValueError(f"{ast.unparse(node)} is neither a number nor a path into metrics.json")


def _check_path(path: Path, schema: Mapping[str, Any]) -> None:
    """Follow a path through a schema, which lists all blocks of metrics.json."""
    nodes: list[Mapping[str, Any]] = [{**schema, "additionalProperties": False}]
    for depth, key in enumerate(path):
        inner = [child for node in nodes for child in _children(node, key)]
        if not inner:
            known = sorted({name for node in nodes for name in node.get("properties", {})})
            parent = _text(path[:depth])
            has = f"; {parent or 'it'} has {', '.join(known[:20])}" if known else f"; {parent} has no such entry"
            raise UserError(f"fail_if: {_text(path)} is not in metrics.json{suggest(str(key), known)}{has}")
        nodes = [node for child in inner for node in _alternatives(child, schema)]
    if not any(_is_number(node) for node in nodes):
        known = sorted({name for node in nodes for name in node.get("properties", {})})
        has = f"; it has {', '.join(known[:20])}" if known else ""
        raise UserError(f"fail_if: {_text(path)} is not a number{has}")


def _alternatives(node: Any, schema: Mapping[str, Any]) -> Iterator[Mapping[str, Any]]:
    """The schemas that a schema stands for, without references to others."""
    if "$ref" in node:
        yield from _alternatives(schema["$defs"][node["$ref"].rpartition("/")[2]], schema)
    elif "anyOf" in node:
        for choice in node["anyOf"]:
            yield from _alternatives(choice, schema)
    else:
        yield node


def _children(node: Mapping[str, Any], key: str | int) -> list[Any]:
    """The schemas of an entry of an object or a list; none if it cannot be there."""
    kinds = node.get("type", ["object", "array"])
    if isinstance(key, int):
        listed = node.get("prefixItems", [])
        inner = listed[key] if key < len(listed) else node.get("items", {}) if "array" in kinds else False
    elif key in node.get("properties", {}):
        inner = node["properties"][key]
    elif not re.search(node.get("propertyNames", {}).get("pattern", ""), key):
        inner = False
    else:
        inner = node.get("additionalProperties", "object" in kinds)
    return [] if inner is False else [{} if inner is True else inner]


def _is_number(node: Mapping[str, Any]) -> bool:
    kinds = node.get("type", "number")
    return not {"number", "integer", "boolean"}.isdisjoint([kinds] if isinstance(kinds, str) else kinds)


def value_at(metrics: Mapping[str, Any], path: Path) -> float:
    """The number or truth value at ``path`` in metrics.json.

    Raises:
        UserError: nothing there, or not a number; the sentence gives the reason that metrics.json has for it.
    """
    value: Any = metrics
    full = _text(path)
    for depth, key in enumerate(path):
        parent = _text(path[:depth])
        if isinstance(value, Mapping):
            if key not in value:
                known = ", ".join(list(value)[:20])
                raise UserError(
                    f"fail_if: {full} is not in metrics.json{suggest(str(key), value)}; {parent or 'it'} has {known}"
                )
            value = value[key]
        elif isinstance(value, list):
            if not isinstance(key, int) or key >= len(value):
                raise UserError(f"fail_if: {full} is not in metrics.json; {parent} has {len(value)} entries, from [0]")
            value = value[key]
        else:
            raise UserError(f"fail_if: {full} is not in metrics.json; {_description(metrics, path[:depth], value)}")
    if not isinstance(value, int | float):
        raise UserError(f"fail_if: {full} is not a number; {_description(metrics, path, value)}")
    return float(value)


def _text(path: Path) -> str:
    steps = (f".{key}" if isinstance(key, str) and key.isidentifier() else f"[{key!r}]" for key in path)
    return "".join(steps).removeprefix(".")


def _description(metrics: Mapping[str, Any], path: Path, value: Any) -> str:
    if value is None:
        return f"{_text(path)} was not measured: {_reason(metrics, path)}"
    kind = "an object" if isinstance(value, Mapping) else "a list" if isinstance(value, list) else repr(value)
    return f"{_text(path)} is {kind}"


def _reason(metrics: Mapping[str, Any], path: Path) -> str:
    """Why there is no figure at ``path``: the ``reasons`` of each object on the way name a figure by its path from there."""
    value: Any = metrics
    for depth, key in enumerate(path):
        reasons = value.get("reasons", {}) if isinstance(value, Mapping) else {}
        for end in range(len(path), depth, -1):
            if (reason := reasons.get(".".join(map(str, path[depth:end])))) is not None:
                return str(reason)
        value = value[key]
    return str(metrics["found"]["words"]) if path[0] == "found" else "no reason is given"
