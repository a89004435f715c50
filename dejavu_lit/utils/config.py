"""Settings are dataclasses: the schema of a config, what a config becomes, and the description of its options.

Names and types are checked by OmegaConf, the rest by ``__post_init__``; the sentence under a field is its help.
"""

import ast
import inspect
import os
import re
import sys
import types
from collections.abc import Iterable, Iterator, Mapping
from copy import deepcopy
from dataclasses import MISSING, dataclass, fields, is_dataclass
from functools import cache
from itertools import pairwise
from pathlib import Path
from typing import Any, TypeVar, Union, get_args, get_origin, get_type_hints

import yaml
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import (
    ConfigAttributeError,
    ConfigKeyError,
    MissingMandatoryValue,
    OmegaConfBaseException,
    ValidationError,
)

from dejavu_lit.utils.errors import UserError, first_line, suggest

T = TypeVar("T")
REQUIRED = "???"  # a value that must be given
KINDS: dict[Any, str] = {
    int: "a whole number",
    float: "a number",
    str: "text",
    Path: "text",
    bool: "true or false",
    types.NoneType: "null",
    list: "a list",
    tuple: "a list",
    dict: "a mapping",
}
FORMS = {"a list": "=[…]", "a mapping": "={…}"}  # a shell takes either apart without quotes


@cache
def schema(settings: Any) -> DictConfig:
    """A config with the fields of a dataclass, their types and defaults; mappings in it accept new keys."""
    node: DictConfig = OmegaConf.structured(settings)
    _open(node)
    return node


def _open(node: DictConfig) -> None:
    OmegaConf.set_readonly(node, None)  # it is set for frozen dataclasses
    kind = OmegaConf.get_type(node)
    hints = get_type_hints(kind) if is_dataclass(kind) else {}
    if not hints:
        OmegaConf.set_struct(node, False)
    for key in node:
        if OmegaConf.is_missing(node, key) and is_dataclass(hints.get(str(key))):
            node[key] = deepcopy(schema(hints[str(key)]))
        if not OmegaConf.is_missing(node, key) and isinstance(node[key], DictConfig):
            _open(node[key])


def read(settings: type[T], values: Mapping[str, Any], where: str = "") -> T:
    """``values``, at ``where`` in a config, as a dataclass: they are data, no ``${…}`` is resolved, and nothing is called.

    Raises UserError for an unknown name, a wrong type, a missing value, or what ``__post_init__`` refuses.
    """
    kind: Any = settings
    given = dict(flatten(values))
    for option in options(kind):  # OmegaConf takes a text with ${ for any list or mapping
        is_container = option.group or option.kind.startswith(("a list", "a mapping"))
        if is_container and isinstance(text := given.get(option.name), str) and "${" in text:
            raise UserError(f"{where}.{option.name}={text} must be a list or a mapping".removeprefix("."))
    try:
        return to_settings(OmegaConf.merge(schema(kind), _literal(values)))  # type: ignore[no-any-return]
    except OmegaConfBaseException as error:
        raise UserError(explain_value(error, {option.name: option for option in options(kind)}, where)) from None


def to_settings(node: Any) -> Any:
    """The dataclasses of a config that was merged into a ``schema``; raises OmegaConf's errors, and UserError for "+name"."""
    if added := next(_added(node), None):
        names = [name for name, _ in flatten(OmegaConf.to_container(node)) if name != added]  # type: ignore[arg-type]
        raise UserError(f"+{added} is not an option{suggest_option(added, names)}")
    return OmegaConf.to_object(node)


def expand_home(value: Any) -> Any:
    """The settings, with the user's home for ``~/`` at the start of texts: a shell does not see those in lists and in YAML."""
    if is_dataclass(value):
        for field in fields(value):
            object.__setattr__(value, field.name, expand_home(getattr(value, field.name)))
    elif isinstance(value, Mapping):
        return {name: expand_home(inner) for name, inner in value.items()}
    elif isinstance(value, list | tuple):
        return type(value)(map(expand_home, value))
    return os.path.expanduser(value) if isinstance(value, str) and value.startswith("~/") else value


def _added(node: DictConfig, path: str = "") -> Iterator[str]:
    kind = OmegaConf.get_type(node)
    known = {field.name for field in fields(kind)} if is_dataclass(kind) else None
    for key in node:
        name = f"{path}.{key}".lstrip(".")  # type: ignore[str-bytes-safe]
        if known is not None and key not in known:
            yield name
        elif not OmegaConf.is_missing(node, key) and isinstance(node[key], DictConfig):
            yield from _added(node[key], name)


def _literal(value: Any) -> Any:
    """A value in which OmegaConf takes ``${`` as text."""
    if isinstance(value, Mapping):
        return {key: _literal(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_literal(inner) for inner in value]
    return re.sub(r"(\\*)\$\{", r"\1\1\\${", value) if isinstance(value, str) else value


def to_plain(value: Any) -> Any:
    """Settings as mappings, lists and simple values, which YAML and JSON can hold."""
    if is_dataclass(value):
        return {field.name: to_plain(getattr(value, field.name)) for field in _shown(type(value))}
    if isinstance(value, Mapping):
        return {key: to_plain(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [to_plain(inner) for inner in value]
    return str(value) if isinstance(value, Path) else value


def take(settings: type[T], given: Any, **changes: Any) -> T:
    """A dataclass with ``changes``, and the values of its other fields from another one."""
    names = {field.name for field in fields(settings) if field.init} - changes.keys()  # type: ignore[arg-type]
    return settings(**{name: getattr(given, name) for name in names}, **changes)


def flatten(config: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Yield (dotted name, value) of every value of nested mappings, in their order."""
    for key, value in config.items():
        name = f"{prefix}.{key}" if prefix else str(key)
        if isinstance(value, Mapping):
            yield from flatten(value, name)
        else:
            yield name, value


@dataclass(frozen=True)
class Option:
    """An option as its field describes it: dotted name, default as it is typed, type in words, and its sentence."""

    name: str
    default: str
    kind: str
    meaning: str
    group: bool = False  # whether it stands for further options


@cache
def options(settings: Any, prefix: str = "") -> tuple[Option, ...]:
    """Every option of a dataclass, those of nested ones after the option that they belong to."""
    hints, sentences, result = get_type_hints(settings), _sentences(settings), []
    for field in _shown(settings):
        name, hint = f"{prefix}{field.name}", hints[field.name]
        inner = next((kind for kind in (hint, *get_args(hint)) if is_dataclass(kind)), None)
        default = field.default_factory() if field.default_factory is not MISSING else field.default
        text = REQUIRED if default is MISSING else "" if is_dataclass(default) else as_typed(default)
        result.append(Option(name, text, _kind(hint), sentences.get(field.name, ""), inner is not None))
        if isinstance(inner, type):
            result += options(inner, f"{name}.")
    return tuple(result)


def _shown(settings: type) -> list[Any]:
    """The fields that are options; the others are filled by a command."""
    return [field for field in fields(settings) if not field.metadata.get("omegaconf_ignore")]


def as_typed(value: Any) -> str:
    """A value as an option has it on the command line: null, true, [a, b]."""
    text: str = yaml.safe_dump(to_plain(value), default_flow_style=True, allow_unicode=True, width=float("inf"))
    return text.removesuffix("\n").removesuffix("\n...")


def _sentences(settings: type) -> dict[str, str]:
    """{field: the docstring under it}, from the source of a dataclass and of its bases."""
    sentences: dict[str, str] = {}
    for cls in reversed(settings.__mro__):
        if not is_dataclass(cls):
            continue
        for node, after in pairwise(_classes(cls.__module__)[cls.__name__].body):
            match node, after:
                case ast.AnnAssign(target), ast.Expr(ast.Constant(text)):
                    sentences[ast.unparse(target)] = " ".join(str(text).split())
    return sentences


@cache
def _classes(module: str) -> dict[str, ast.ClassDef]:
    """The classes of a module by name; parsed once, since ``inspect`` would parse the whole module for each of them."""
    tree = ast.parse(inspect.getsource(sys.modules[module]))
    return {node.name: node for node in ast.walk(tree) if isinstance(node, ast.ClassDef)}


def _kind(hint: Any) -> str:
    """A type in words: ``int | None`` is "a whole number or null"."""
    kinds = get_args(hint) if get_origin(hint) in (Union, types.UnionType) else (hint,)
    return " or ".join(dict.fromkeys(filter(None, (KINDS.get(get_origin(kind) or kind) for kind in kinds))))


def explain_value(
    error: OmegaConfBaseException, known: Mapping[str, Option], where: str = "", given: str | None = None
) -> str:
    """One sentence for an error of OmegaConf: the option, what is wrong with it, and the nearest name or the type it needs.

    ``where`` is the place of the config, and ``given`` the option as typed.
    """
    key = str(error.full_key or "")
    name = f"{where}.{key}".strip(".")
    option, parent = known.get(key), known.get(re.sub(r"\[\d+\]$|\.[^.[]*$", "", key))
    if isinstance(error, MissingMandatoryValue):
        meaning = option.meaning.rstrip(".") if option else ""
        if not meaning[1:2].isupper():  # not a name such as ARCH
            meaning = meaning[:1].lower() + meaning[1:]
        return f"{name} is missing; give {name}=…{f': {meaning}' if meaning else ''}"
    if isinstance(error, ConfigKeyError | ConfigAttributeError):
        return f"{name} is not an option{suggest_option(name, [f'{where}.{n}'.strip('.') for n in known])}"
    if isinstance(error, ValidationError) and option and option.kind and not option.group:
        value = re.search(r"Value '?(.*?)'? (?:of type|is not|\()|: '(.*)'$", first_line(error))
        missing = "=null" if re.search("ptional|None", str(error)) else ""
        shown = f"={next(filter(None, value.groups()), '')}" if value else missing
        form = next((form for kind, form in FORMS.items() if option.kind.startswith(kind)), "")
        return f"{given or name + shown} must be {option.kind}{form and f', as {name + form!r}'}"
    if isinstance(error, ValidationError) and parent:  # an entry of a list or a mapping
        return f"{given or name} has a value of the wrong type; expected: {parent.meaning}"
    return f"{given or name}: {first_line(error)}".removeprefix(": ")


def suggest_option(name: str, known: Iterable[str]) -> str:
    """`` (did you mean 'recipe.lr'?)`` for the option nearest to ``name``: that of the same last part, if there is one."""
    names, last = [option for option in known if option != name], name.rpartition(".")[2]
    same = [option for option in names if option.rpartition(".")[2] == last]
    return f" (did you mean {same[0]!r}?)" if same else suggest(name, names)
