"""What is wrong with a command line, in one sentence that names the option, and the nearest known one."""

import os
import re
import shlex
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import replace

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Quote, QuotedString
from hydra.errors import HydraException
from omegaconf.errors import OmegaConfBaseException, ValidationError

from dejavu_lit.cli.options import COMMANDS
from dejavu_lit.data.prepared import DataSpec
from dejavu_lit.data.readers import READERS
from dejavu_lit.objects.annotators import ANNOTATORS
from dejavu_lit.utils.config import Option, explain_value, options, suggest_option
from dejavu_lit.utils.errors import UserError, suggest

# Texts that are no fields of a dataclass: entries of mappings, and Hydra's folders.
TEXTS = re.compile(r"keys\.\w+|data\.public_sets\.\w+|hydra\.\w+\.(sub)?dir")
FLAGS = ("-m", "--multirun", "-c", "--cfg", "-p", "--package", "-i", "--info", "-r", "--resolve", "-sc", "--shell-completion",
         "--hydra-help", "-cd", "--config-dir", "-cp", "--config-path", "-cn", "--config-name")  # fmt: skip


def quoted(argument: str, command: str) -> str:
    """``fail_if=a>0``, ``out=20261128`` and ``out=~/lr=0.1`` with the quotes by which Hydra takes the text as it is typed.

    An option that is a text may be any one without a comma, which separates the values of a multirun. Other arguments are
    unchanged, and so is what Hydra reads as null, a list or a quoted text.
    """
    name, equals, text = argument.partition("=")
    if not equals:
        return argument
    if name != "fail_if" and "," not in text and _is_text(name.lstrip("+"), command):
        text = os.path.expanduser(text) if "/" in text else text
        try:
            value = OverridesParser.create().parse_override(f"{name}={text}").value()
        except HydraException:
            value = 0
        if not isinstance(value, int | float):
            return f"{name}={text}"
    elif name != "fail_if" or text == "null":
        return argument
    if text[:1] in ("'", '"') or (text[:1] == "[" and text[-1:] == "]"):
        return argument
    return f"{name}={QuotedString(text, Quote.single).with_quotes()}"


def _is_text(name: str, command: str) -> bool:
    """Whether an option is a text, or of any type, which is a text or a list of some unless its default is a number."""
    name = re.sub(r"^data\.extra\.\w+\.", "data.reader.", name)
    matching = [option for option in known_options(command, name) if option.name == name and not option.group]
    is_text = (o.kind in ("text", "text or null") or (not o.kind and not o.default.isdecimal()) for o in matching)
    return bool(TEXTS.fullmatch(name)) or any(is_text)


def check_arguments(given: Sequence[str]) -> None:
    """Raise UserError for an argument that is neither OPTION=VALUE nor a flag of Hydra."""
    for number, argument in enumerate(given):
        if argument.startswith("-") and argument.partition("=")[0] not in FLAGS:
            name = argument.lstrip("-")
            after = given[number + 1] if number + 1 < len(given) and "=" not in argument else ""
            raise UserError(
                f"{argument} is not an option; options have no dashes: {name}{f'={after}' if after else ''}"
            )


def explain(error: Exception, command: str, given: Sequence[str]) -> str:
    """One sentence for a configuration error, naming the ``given`` option at fault and the nearest known one."""
    if hint := _quotes_hint(given):
        return hint
    lines = [line.strip() for line in str(error).split("Config search path:")[0].splitlines() if line.strip()]
    text = " ".join(line for line in lines if not line.startswith(("full_key:", "object_type=", "See https")))
    if re.search(r"Could not (find|load) '[\w/]*submitit_slurm'", text):
        return "hydra/launcher=slurm needs Hydra's plugin for submitit; pip install 'dejavu-lit[slurm]'"
    if group := re.search(r"Could not find '([\w/]+)/([^'/]*)' Available options in '[\w/]+': (.*)", text):
        name, wanted, choices = group[1], group[2], group[3].split()
        other = ", or another architecture of open_clip by model=vit_b_32 model.name=ARCH" if name == "model" else ""
        return f"{name}={wanted} is unknown{suggest(wanted, choices)}; choose one of {', '.join(choices)}{other}"
    if ambiguous := re.match(r"Ambiguous value for argument '(.+?)=(.*?)' 1\. ", text):
        name, values = ambiguous.groups()
        quote = shlex.quote(f"{name}={QuotedString(values, Quote.double).with_quotes()}")
        return f"{name}={values}: a comma separates the values of a multirun (-m); a list is {name}=[{values}], a text {quote}"
    cause = error if isinstance(error, OmegaConfBaseException) else error.__cause__
    unknown = re.search(r"Could not override '([\w./@]+)'", text)
    key = str(getattr(cause, "full_key", None) or (unknown[1] if unknown else ""))
    if unknown and key.startswith("model.config."):  # a mapping that may get further entries
        return (
            f"{key} is not in the config of this model; put a + before it to add it (+{key}=…), or choose another model.name if "
            "the model has no config of its own"
        )
    known = {option.name: option for option in known_options(command, key)}
    if unknown and key in known:  # of another reader or annotator
        chosen = key.partition(".")[0]
        return f"{key} is not an option of the chosen {chosen}; choose one that has it with {chosen}=NAME"
    if isinstance(cause, OmegaConfBaseException) and cause.full_key:
        merging = re.match(r"Error merging override (.*)", text)
        of_key = (a for a in given if key == (own := a.lstrip("+~").partition("=")[0]) or key.startswith(f"{own}["))
        argument = merging[1].lstrip("+") if merging else next(of_key, None)
        if isinstance(cause, ValidationError) and argument and not any(f"{key}.".startswith(f"{o}.") for o in known):
            typed = argument.partition("=")[0]  # OmegaConf gives the key of some entries without that of their mapping
            option = max((o for o in known if f"{typed}.".startswith(f"{o}.")), key=len, default="")
            cause.full_key = f"{option}.{key}".lstrip(".")
        return explain_value(cause, known, given=argument)
    return f"{key} is not an option{suggest_option(key, known)}" if unknown else text


def known_options(command: str, near: str = "") -> Iterator[Option]:
    """Every option of a command; those of readers and annotators only if ``near``, the name at fault, is among them."""
    yield from options(COMMANDS[command])
    names = [option.name for option in options(COMMANDS[command])]
    for place in ("data", "evaluate.data"):
        if place in names and f"{place}.dir" not in names:
            yield from options(DataSpec, f"{place}.")
    for place, table in (("data.reader", READERS), ("annotator", ANNOTATORS)):
        for name in table.places if near.startswith(f"{place}.") else ():
            with suppress(UserError):
                yield from (replace(option, meaning="") for option in options(table.load(name), f"{place}."))


def _quotes_hint(given: Sequence[str]) -> str | None:
    """The sentence for an argument that Hydra's grammar cannot read; None if there is none."""
    parser = OverridesParser.create()
    for before, argument in zip(["", *given], given, strict=False):
        if argument.startswith("-") or (
            before.startswith("-") and "=" not in argument
        ):  # a flag of Hydra, or its value
            continue
        name, equals, value = argument.partition("=")
        try:
            parser.parse_override(argument)
        except HydraException:
            if not equals and "/" in argument:
                return f"{argument} has no name; write OPTION={argument}"
            if not equals:
                return f"{argument} has no value; write {argument}=…"
            if re.fullmatch(r"\[[^'\"\[\]]*\]", value):  # overrides in a list, without the quotes that they need
                value = ", ".join(f"'{item.strip()}'" for item in value[1:-1].split(","))
                return f'{argument}: quote each text in the list, as "{name}=[{value}]"'
            quote = f"{name}={QuotedString(value, Quote.double).with_quotes()}"
            with suppress(HydraException):
                parser.parse_override(quote)
                if not value.startswith(("[", "{", "'", '"')):  # else a list, a mapping or a quotation is not complete
                    return f"{argument}: Hydra would parse characters in this value; quote it: {shlex.quote(quote)}"
            with suppress(HydraException):
                parser.parse_override(f"{name}=1")
                return f"{argument}: Hydra cannot read this value; quote the whole option, or complete its brackets and quotes"
            return f"{argument}: Hydra cannot read the name {name!r}; use only letters, digits, _ and -"
    return None
