"""Config nodes as typed values: what ``_target_`` names is built, after every simple field was checked against its type."""

import os
import types
from collections.abc import Mapping, Sequence
from dataclasses import fields, is_dataclass
from typing import Any, Union, get_args, get_origin, get_type_hints

import hydra
from hydra.errors import InstantiationException

from dejavu_lit.errors import UserError

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
    """The value that a config node with ``_target_`` describes.

    Args:
        name: the node's place in the config, for messages.

    Raises:
        UserError: a ``_target_`` outside the packages that may be called, a field of the wrong type, or what the value
            itself refuses.
    """
    check_targets(node, name)
    check_types(node, name)
    try:
        return hydra.utils.instantiate(node, _convert_="all")
    except InstantiationException as error:
        cause: BaseException | None = error
        while cause is not None:
            if isinstance(cause, UserError):
                raise cause from None
            cause = cause.__cause__
        raise UserError(f"{name} cannot be built: {str(error).splitlines()[0]}") from error


def check_targets(node: Any, name: str) -> None:
    """Raise UserError for a ``_target_`` outside this package: a config from elsewhere must not call what it likes.

    The environment variable DEJAVU_TARGETS names further packages, separated by commas.
    """
    if isinstance(node, Mapping):
        target = node.get("_target_")
        allowed = ("dejavu_lit", *filter(None, os.environ.get("DEJAVU_TARGETS", "").split(",")))
        if target is not None and str(target).partition(".")[0] not in allowed:
            raise UserError(
                f"{name}._target_={target} is not part of {' or '.join(allowed)}; where you trust it, name its package in "
                "the environment variable DEJAVU_TARGETS"
            )
        for key, value in node.items():
            check_targets(value, f"{name}.{key}")
    elif isinstance(node, list | tuple):
        for number, value in enumerate(node):
            check_targets(value, f"{name}[{number}]")


def check_types(node: Any, name: str) -> None:
    """Raise UserError for the first field whose value does not have the simple type that its dataclass declares."""
    if not isinstance(node, dict) or "_target_" not in node:
        return
    target = hydra.utils.get_object(node["_target_"])
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
