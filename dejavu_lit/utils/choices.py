"""Classes that a config chooses by name: a table of ours, which other packages extend by entry points."""

from collections.abc import Mapping
from dataclasses import dataclass, is_dataclass
from functools import cached_property
from importlib import import_module
from importlib.metadata import entry_points
from typing import Any

from omegaconf import OmegaConf

from dejavu_lit.utils.config import read
from dejavu_lit.utils.errors import UserError, check_choice, explained


@dataclass(frozen=True)
class Choices:
    """Dataclasses by a name, which a config gives as ``type`` beside their options: ours, and those of other packages."""

    option: str  # where the choice stands, for messages
    group: str  # the entry points by which other packages add theirs
    own: Mapping[str, str]  # {name: module:class}

    @cached_property
    def places(self) -> dict[str, str]:
        """{name: module:class} of all choices."""
        return {point.name: point.value for point in entry_points(group=self.group)} | dict(self.own)

    def load(self, name: Any, where: str | None = None) -> type:
        """The class with this name; raises UserError for an unknown one, which names the option ``where`` if it is another."""
        option = where or self.option
        check_choice(f"{option}.type", name, self.places)
        place = self.places[name]
        module, _, attribute = place.partition(":")
        problem = f"{option}.type={name}: {place} cannot be imported"
        with explained(problem, "check its package", errors=(ImportError, AttributeError)):
            cls = getattr(import_module(module), attribute)
        if not is_dataclass(cls):
            raise UserError(f"{option}.type={name}: {place} must be a dataclass, whose fields are its options")
        return cls  # type: ignore[return-value]

    def node(self, name: str) -> dict[str, Any]:
        """The config of a choice: its name and its options as they are by default."""
        return {"type": name, **OmegaConf.to_container(OmegaConf.structured(self.load(name)))}  # type: ignore[dict-item]

    def build(self, node: Any, where: str | None = None) -> Any:
        """The object that a config describes; raises UserError for an unknown name or wrong options."""
        if not isinstance(node, Mapping):
            raise UserError(
                f"{where or self.option}={node} must be a mapping with type: one of {', '.join(self.places)}"
            )
        values = {name: value for name, value in node.items() if name != "type"}
        return read(self.load(node.get("type"), where), values, where or self.option)
