"""The release gate: ``fail_if="symmetric.ppg.ci95[0] > 0.05"`` over metrics.json.

    gate = Gate.parse("symmetric.ppg.ci95[0] > 0.05 or utility.target.zeroshot_top1 < 0.3")    # before the work begins
    gate.enforce({"": metrics})                                                      # exits with EXIT_CODE if it is met

The syntax is Python's, of which only this is allowed: comparisons with < <= > >= == !=, joined by ``and``, ``or`` and ``not``;
numbers, ``true``, ``false``; and paths into metrics.json such as ``by_k["10"].symmetric.ppg.ci95[0]``.
Nothing is evaluated as code.
"""

import ast
import json
import math
import operator
import sys
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from typing import TYPE_CHECKING, Any

from dejavu_lit.utils.errors import UserError, suggest

if TYPE_CHECKING:
    from jsonschema import Draft202012Validator, ValidationError

EXIT_CODE = 3
COMPARISONS: dict[type[ast.cmpop], Callable[[float, float], bool]] = {
    ast.Lt: operator.lt,
    ast.LtE: operator.le,
    ast.Gt: operator.gt,
    ast.GtE: operator.ge,
    ast.Eq: operator.eq,
    ast.NotEq: operator.ne,
}

Path = tuple[str | int, ...]  # keys and indices into metrics.json
NumberAt = Callable[[Path], float]


@dataclass(frozen=True)
class Gate:
    """A condition on metrics.json under which a release fails; made by ``Gate.parse``."""

    text: str
    condition: ast.expr

    @classmethod
    def parse(cls, text: str) -> "Gate":
        """Read a condition, of one line or several; raises UserError that says what in it is not understood.

        That includes a path that no metrics.json can have, or at which there is no number, by its schema.
        """
        if not text.strip():
            raise UserError("fail_if= is empty; give a condition such as symmetric.ppg.ci95[0]>0.05, or leave it out")
        try:
            lines = " ".join(line.partition("#")[0] for line in text.splitlines())
            condition = ast.parse(lines.strip(), mode="eval").body
            _judge(condition, _number_by_schema)  # also refuses what is not understood
        except (SyntaxError, ValueError, OverflowError, RecursionError, MemoryError) as error:
            reason = getattr(error, "msg", None) or str(error) or "it is nested too deeply"
            raise UserError(
                f"fail_if={text[:200]!r} is not a condition ({reason}); write comparisons such as "
                "symmetric.ppg.ci95[0]>0.05, joined by and, or, not"
            ) from None
        return cls(text, condition)

    def fails(self, metrics: Mapping[str, Any]) -> bool:
        """Whether the condition is met; raises UserError if a path has no number: a gate must not pass in silence."""
        return _judge(self.condition, lambda path: value_at(metrics, path))

    def enforce(self, evaluations: Mapping[str, Mapping[str, Any]]) -> None:
        """Exit with EXIT_CODE if the condition is met for one of {label: metrics.json}; a single one has the label ""."""
        if fails := [label for label, metrics in evaluations.items() if self.fails(metrics)]:
            where = f" for {', '.join(fails)}" if any(fails) else ""
            print(f"fail_if is true{where}: {self.text}", file=sys.stderr)
            sys.exit(EXIT_CODE)


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
        case ast.UnaryOp(op=ast.USub(), operand=ast.Constant(value=int() | float())):
            return -_number(node.operand, number_at)
        case ast.Constant(value=int() | float() as number) if not isinstance(number, bool):
            if math.isinf(number):  # 1e999: such a comparison is always true or never
                raise ValueError("a number is too large")
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


def _number_by_schema(path: Path) -> float:
    """Any number; raises UserError if no metrics.json has one at ``path``."""
    # 1 fits numbers, also the schema and those above 0; True truth values.
    errors = [_leaves(_validator().iter_errors(_excerpt(path, leaf))) for leaf in (1, True)]
    if all(errors):
        # The deepest error is where the path leaves the schema, and a forbidden name says more than a wrong type.
        error = max(errors[0], key=lambda e: (len(e.absolute_path), e.validator == "additionalProperties"))
        depth, known = len(error.absolute_path), error.schema.get("properties", ())
        raise _not_a_number(path, known) if depth == len(path) else _missing(path, depth, known)
    return 0.0


@cache
def _validator() -> "Draft202012Validator":
    from jsonschema import Draft202012Validator

    schema = json.loads((files("dejavu_lit.measure") / "metrics.schema.json").read_text(encoding="utf-8"))
    return Draft202012Validator({**_without_limits(schema), "additionalProperties": False})


def _without_limits(schema: Any) -> Any:
    """A schema of the names and types alone: an excerpt lacks entries, and its number is arbitrary."""
    if isinstance(schema, list):
        return [_without_limits(inner) for inner in schema]
    if not isinstance(schema, dict):
        return schema
    return {name: _without_limits(v) for name, v in schema.items() if name not in ("required", "minItems", "minimum")}


def _excerpt(path: Path, leaf: float) -> Any:
    """A metrics.json that has ``leaf`` at ``path``, and nothing else."""
    value: Any = leaf
    for key in reversed(path):
        # Enough for an index beyond the two entries of an interval; other lists have any number.
        value = [value] * (min(key, 2) + 1) if isinstance(key, int) else {key: value}
    return value


def _leaves(errors: Iterable["ValidationError"]) -> list["ValidationError"]:
    """The errors of a validation, with those of the alternatives in place of "none of them fits"."""
    return [leaf for error in errors for leaf in (_leaves(error.context) if error.context else [error])]


def _missing(path: Path, depth: int, known: Iterable[str]) -> UserError:
    """The error for a path whose key at ``depth`` is not among the ``known`` ones there."""
    names = sorted(known)
    has = f"{_text(path[:depth]) or 'it'} has {', '.join(names[:20]) or 'no such entry'}"
    return UserError(f"fail_if: {_text(path)} is not in metrics.json{suggest(str(path[depth]), names)}; {has}")


def _not_a_number(path: Path, known: Iterable[str]) -> UserError:
    """The error for a path to an object or a list; ``known``: the names of an object."""
    has = f"; it has {', '.join(sorted(known)[:20])}" if known else ""
    return UserError(f"fail_if: {_text(path)} is not a number{has}")


def value_at(metrics: Mapping[str, Any], path: Path) -> float:
    """The number or truth value at ``path``; raises UserError with the reason that metrics.json has for lacking it."""
    value: Any = metrics
    for depth, key in enumerate(path):
        try:
            value = value[key]
        except (LookupError, TypeError):
            raise _missing(path, depth, value if isinstance(value, Mapping) else ()) from None
        if value is None:
            measured = path[: depth + 1]
            raise UserError(f"fail_if: {_text(measured)} was not measured: {_reason(metrics, measured)}")
    if not isinstance(value, int | float):
        raise _not_a_number(path, value if isinstance(value, Mapping) else ())
    return float(value)


def _text(path: Path) -> str:
    steps = (f".{key}" if isinstance(key, str) and key.isidentifier() else f"[{key!r}]" for key in path)
    return "".join(steps).removeprefix(".")


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
