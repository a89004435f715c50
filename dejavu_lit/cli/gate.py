"""The release gate: ``fail_if="symmetric.ppg.ci95[0] > 0.05"`` over metrics.json, parsed and never evaluated as code.

    gate = Gate.parse("symmetric.ppg.ci95[0] > 0.05 or utility.target.zeroshot_top1 < 0.3")     # before the work begins
    if gate.fails(metrics): sys.exit(EXIT_CODE)

Grammar: ``or`` binds weaker than ``and``, ``and`` weaker than ``not``; a comparison is VALUE OP VALUE with one of
< <= > >= == !=; a value is a number, true, false, or a path of names, ``[number]`` into lists, ``["name"]`` for names with
other characters (``by_k["10"].symmetric.ppg.value``; ``by_k.10`` works too). Parentheses group.
"""

import operator
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from dejavu_lit.utils.errors import UserError, suggest

EXIT_CODE = 3
OPERATORS: dict[str, Callable[[float, float], bool]] = {
    "<=": operator.le,
    ">=": operator.ge,
    "==": operator.eq,
    "!=": operator.ne,
    "<": operator.lt,
    ">": operator.gt,
}
TOKEN = re.compile(
    r"\s*(?:(?P<number>[+-]?(?:\d+\.?\d*|\.\d+)(?:[eE][+-]?\d+)?)(?![\w.\[])"
    r"""|(?P<path>[A-Za-z_]\w*(?:\.\w+|\[\d+\]|\["[^"\]]*"\]|\['[^'\]]*'\])*)"""
    r"|(?P<operator><=|>=|==|!=|<|>)|(?P<bracket>[()]))"
)
STEP = re.compile(r"""\.?(\w+)|\[(\d+)\]|\["([^"\]]*)"\]|\['([^'\]]*)'\]""")
DEPTH = 50  # of parentheses and nots
Test = Callable[[Mapping[str, Any]], bool]
Value = Callable[[Mapping[str, Any]], float]


@dataclass(frozen=True)
class Gate:
    """A condition on metrics.json under which a release fails; made by ``Gate.parse``."""

    text: str
    test: Test

    @classmethod
    def parse(cls, text: str) -> "Gate":
        """Read an expression; raises UserError that names the place where it is wrong."""
        if not text.strip():
            raise UserError("fail_if= is empty; give a condition such as symmetric.ppg.ci95[0]>0.05, or leave it out")
        return cls(text, _Parser(text).whole())

    def fails(self, metrics: Mapping[str, Any]) -> bool:
        """Whether the condition is met, i.e. the release fails.

        Raises:
            UserError: a path that is not there or is no number: a gate that cannot be judged must not pass in silence.
        """
        return self.test(metrics)


class _Parser:
    """Recursive descent over the tokens of one expression."""

    def __init__(self, text: str) -> None:
        self.text = text
        self.tokens: list[tuple[str, str, int]] = []
        self.next = 0
        place, end = 0, len(text.rstrip())
        while place < end:
            match = TOKEN.match(text, place)
            if match is None:
                raise self._wrong(place, "is not understood here")
            kind = str(match.lastgroup)
            self.tokens.append((kind, match[kind], match.start(kind)))
            place = match.end()

    def whole(self) -> Test:
        test = self._any(0)
        if self.next < len(self.tokens):
            raise self._wrong(self.tokens[self.next][2], "is one thing too many; join comparisons by and, or")
        return test

    def _any(self, depth: int) -> Test:
        tests = [self._all(depth)]
        while self._word("or"):
            tests.append(self._all(depth))
        return tests[0] if len(tests) == 1 else lambda m: sum(test(m) for test in tests) > 0  # all are judged

    def _all(self, depth: int) -> Test:
        tests = [self._one(depth)]
        while self._word("and"):
            tests.append(self._one(depth))
        return tests[0] if len(tests) == 1 else lambda m: sum(test(m) for test in tests) == len(tests)

    def _one(self, depth: int) -> Test:
        if depth > DEPTH:
            raise UserError("fail_if is nested too deeply; write it flat")
        if self._word("not"):
            inner = self._one(depth + 1)
            return lambda m: not inner(m)
        if self._take("bracket", "("):
            test = self._any(depth + 1)
            if not self._take("bracket", ")"):
                raise self._wrong(self._place(), "should be a closing parenthesis")
            return test
        left = self._value()
        if self.next == len(self.tokens) or self.tokens[self.next][0] != "operator":
            raise self._wrong(self._place(), f"should be a comparison, one of {' '.join(OPERATORS)}")
        compare = OPERATORS[self.tokens[self.next][1]]
        self.next += 1
        right = self._value()
        return lambda m: compare(left(m), right(m))

    def _value(self) -> Value:
        kind, text, place = self.tokens[self.next] if self.next < len(self.tokens) else ("", "", len(self.text))
        if kind not in ("number", "path") or text in ("and", "or", "not"):
            raise self._wrong(place, "should be a number or a path into metrics.json")
        self.next += 1
        if kind == "number" or text in ("true", "false"):
            number = float(text) if kind == "number" else float(text == "true")
            return lambda m: number
        return lambda m: look_up(m, text)

    def _word(self, word: str) -> bool:
        return self._take("path", word)

    def _take(self, kind: str, text: str) -> bool:
        found = self.next < len(self.tokens) and self.tokens[self.next][:2] == (kind, text)
        self.next += found
        return found

    def _place(self) -> int:
        return self.tokens[self.next][2] if self.next < len(self.tokens) else len(self.text)

    def _wrong(self, place: int, why: str) -> UserError:
        rest = self.text[place:].strip()
        return UserError(f"fail_if={self.text!r}: {repr(rest[:30]) if rest else 'the end'} {why}")


def look_up(metrics: Mapping[str, Any], path: str) -> float:
    """The number or truth value at ``path`` in metrics.json.

    Raises:
        UserError: nothing there, or no number there; the sentence gives the reason that metrics.json has for it.
    """
    value: Any = metrics
    done = ""
    for match in STEP.finditer(path):
        name = next(group for group in match.groups() if group is not None)
        if isinstance(value, Mapping):
            if name not in value:
                raise UserError(f"fail_if: {path} is not in metrics.json{suggest(name, value)}; {_there(done, value)}")
            value = value[name]
        elif isinstance(value, list):
            if not name.isdecimal() or int(name) >= len(value):
                raise UserError(f"fail_if: {path} is not in metrics.json; {done} has {len(value)} entries, from [0]")
            value = value[int(name)]
        else:
            raise UserError(f"fail_if: {path} is not in metrics.json; {_null(metrics, done, value)}")
        done += match.group()
    if not isinstance(value, int | float):
        raise UserError(f"fail_if: {path} is no number; {_null(metrics, done, value)}")
    return float(value)


def _there(done: str, value: Mapping[str, Any]) -> str:
    return f"{done or 'it'} has {', '.join(list(value)[:20])}"


def _null(metrics: Mapping[str, Any], done: str, value: Any) -> str:
    if value is None:
        return f"{done} was not measured: {metrics.get('reasons', {}).get(done.split('.')[0], 'no reason is given')}"
    return f"{done} is {'an object' if isinstance(value, Mapping) else 'a list' if isinstance(value, list) else repr(value)}"
