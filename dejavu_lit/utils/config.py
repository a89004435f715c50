"""Config nodes as typed values: what ``_target_`` names is built, after every simple field was checked against its type."""

import os
import types
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import fields, is_dataclass
from importlib import import_module
from typing import Any, Union, get_args, get_origin, get_type_hints

from dejavu_lit.utils.errors import UserError, first_line

SIMPLE = {
    int: "a whole number",
    float: "a number",
    str: "a text",
    bool: "true or false",
    type(None): "null",
    dict: "{name: value, …}",
    list: "[value, …]",
}
CONTAINERS: dict[Any, type] = {
    dict: dict,
    Mapping: dict,
    list: list,
    tuple: list,
    Sequence: list,
}  # what a hint stands for


def build(node: Any, name: str) -> Any:
    """The value that a config node with ``_target_`` describes, built from the inside out.

    Hydra's own ``instantiate`` is not used: it resolves ``${…}`` in the settings of a given run, which may be anything.

    Args:
        name: the node's place in the config, for messages. With ``_recursive_: false`` what lies below stays a description.

    Raises:
        UserError: a ``_target_`` that may not be called, a field of the wrong type, or what the value itself refuses.
    """
    check_targets(node, name)
    _check_classes(node, name)
    check_types(node, name)
    return _built(node, name)


def check_targets(node: Any, name: str) -> None:
    """Raise UserError for a ``_target_`` outside this package: a config from elsewhere must not call what it likes.

    The environment variable DEJAVU_TARGETS names further packages, separated by commas.
    """
    allowed = ("dejavu_lit", *trusted())
    for place, target in _targets(node, name):
        if str(target).partition(".")[0] not in allowed:
            raise UserError(
                f"{place}._target_={target} is not part of {' or '.join(allowed)}; where you trust it, name its package in "
                "the environment variable DEJAVU_TARGETS"
            )


def trusted() -> tuple[str, ...]:
    """The packages that DEJAVU_TARGETS names."""
    return tuple(filter(None, map(str.strip, os.environ.get("DEJAVU_TARGETS", "").split(","))))


def _targets(node: Any, name: str) -> Iterator[tuple[str, Any]]:
    """(place, ``_target_``) of a node and of everything below it."""
    if isinstance(node, Mapping):
        if "_target_" in node:
            yield name, node["_target_"]
        for key, value in node.items():
            yield from _targets(value, f"{name}.{key}")
    elif isinstance(node, list | tuple):
        for number, value in enumerate(node):
            yield from _targets(value, f"{name}[{number}]")


def _check_classes(node: Any, name: str) -> None:
    """Raise UserError where a ``_target_`` is no class of this package, before anything is built."""
    for place, target in _targets(node, name):
        found = _named(target, place)
        package = str(target).partition(".")[0]
        own = isinstance(found, type) and found.__module__.partition(".")[0] == package
        if not own and package not in trusted():  # a function could write files, and a module's imports are not its own
            raise UserError(f"{place}._target_={target} is no class of dejavu_lit; name one, as the files in conf/ do")


def _named(target: Any, name: str) -> Any:
    """What ``package.module.Name`` is; an attribute of an attribute is not looked for."""
    module, _, attribute = str(target).rpartition(".")
    try:
        return getattr(import_module(module), attribute)
    except (ImportError, AttributeError, ValueError) as error:
        raise UserError(f"{name}._target_={target} cannot be found ({error}); check the name") from None


def _built(node: Any, name: str) -> Any:
    if isinstance(node, list | tuple):
        return [_built(value, f"{name}[{number}]") for number, value in enumerate(node)]
    if not isinstance(node, Mapping):
        return node
    recursive = node.get("_recursive_", True)
    values = {
        key: _built(value, f"{name}.{key}") if recursive else value
        for key, value in node.items()
        if key not in ("_target_", "_recursive_")
    }
    if "_target_" not in node:
        return values
    try:
        return _named(node["_target_"], name)(**values)
    except UserError:
        raise
    except Exception as error:  # whatever a constructor says of its values
        raise UserError(f"{name} cannot be built: {first_line(error)}") from error


def check_types(node: Any, name: str) -> None:
    """Raise UserError for the first field whose value does not have the simple type that its dataclass declares."""
    if not isinstance(node, dict) or "_target_" not in node:
        return
    target = _named(node["_target_"], name)
    if not is_dataclass(target):
        return
    check_fields(target, node, name)
    for field in fields(target):
        check_types(node.get(field.name), f"{name}.{field.name}")


def check_fields(target: Any, values: Mapping[str, Any], name: str) -> None:
    """Raise UserError for the first of ``values`` that lacks the simple type of its field or parameter in ``target``.

    Args:
        target: a dataclass or a function; name: where the values stand in the config, "" at the top.
    """
    for field, hint in get_type_hints(target).items():
        if field not in values:
            continue
        value, allowed = values[field], _simple(hint)
        if allowed and not any(_is(value, kind) for kind in allowed):
            words = " or ".join(SIMPLE[kind] for kind in allowed)
            raise UserError(f"{name}.{field}={value} must be {words}".removeprefix("."))


def _simple(hint: Any) -> tuple[type, ...]:
    """The simple types that a hint allows; () where it allows anything else too."""
    kinds = get_args(hint) if get_origin(hint) in (Union, types.UnionType) else (hint,)
    found = tuple(CONTAINERS.get(get_origin(kind), kind) for kind in kinds)
    return found if all(kind in SIMPLE for kind in found) else ()


def _is(value: Any, kind: type) -> bool:
    if kind is list:
        return isinstance(value, list | tuple)
    if kind is float:
        return isinstance(value, int | float) and not isinstance(value, bool)
    return isinstance(value, kind) and (kind is not int or not isinstance(value, bool))


def flatten(config: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Yield (dotted name, value) of every value of nested mappings, in their order."""
    for key, value in config.items():
        name = f"{prefix}.{key}" if prefix else str(key)
        if isinstance(value, Mapping):
            yield from flatten(value, name)
        else:
            yield name, value
