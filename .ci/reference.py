"""docs/options.md: every option of every command with its default, its type and what it means; ``make docs`` writes it.

Defaults and comments are those of conf/; types, and what conf/ leaves out, are those of the dataclasses that ``_target_`` names.
Both are read as text: nothing is imported, so it takes no time. A test fails when the page is stale.
"""

import ast
import io
import re
import tokenize
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

import yaml

from dejavu_lit.cli.help import GROUPS

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = ROOT / "dejavu_lit"
WORDS = (
    (r"\bNone\b", "null"),
    (r"\bbool\b", "true or false"),
    (r"\bint\b", "whole number"),
    (r"\bfloat\b", "number"),
    (r"\b(str|Path)\b", "text"),
    (r"\bPaths\b", "text or list"),
    (r"\b(tuple|list|Sequence|frozenset)\b", "list"),
    (r"\b(dict|Mapping)\b", "mapping"),
    (r"\bAny\b", "any"),
)
VARIABLES = {
    "DEJAVU_TARGETS": "packages, separated by commas, that `_target_` and logging in a configuration may name beside this one's",
    "DEJAVU_PIPE": "1: `data.dir=pipe:COMMAND {}` may run its command",
    "DEJAVU_CACHE": "the folder, on the node, in which each user's copies of `s3://`, `http://` and `pipe:` are kept",
    "DEJAVU_CACHE_GB": "how large that cache may become",
    "DEJAVU_STALLED_S": "seconds without a byte after which reading from elsewhere is given up",
    "DEJAVU_REQUIRE": "of the tests: `browser,slurm,mount` turn into failures what is otherwise skipped",
    "DEJAVU_FUZZ": "of the tests: so many times as many examples of hostile input, each time other ones",
}
INTERNAL = ("DEJAVU_RANKS_OF",)  # set by us, for processes of ours
HEAD = """# Every option

Made by `make docs` from `conf/` and the dataclasses behind it; not to be edited by hand.

An option is `NAME=VALUE` on the command line, those of a group `GROUP.NAME=VALUE`; `GROUP=CHOICE` takes a file of the group. What
conf/ does not list is added with a plus, as `+recipe.beta2=0.95`. `???` has to be given. `--cfg job` shows what a command
would use, `-m` with values separated by commas runs all combinations. A list is `[a,b]`, a mapping `'{a: 1, b: 2}'`.
"""


@dataclass(frozen=True)
class Option:
    """An option as a file of conf/ or a dataclass has it."""

    name: str
    default: str
    meaning: str
    kind: str = ""


def reference(conf: Path) -> str:
    """The page on all options.

    Args:
        conf: the folder of the configuration.
    """
    commands = [_command(conf, path.stem) for path in sorted(conf.glob("*.yaml"))]
    groups = [_group(conf / name, what) for name, what in GROUPS.items() if name not in ("evaluate", "experiment")]
    parts = [
        HEAD,
        "## Commands\n",
        *commands,
        _report(),
        "### dejavu resume\n\n`dejavu resume RUN`: go on with a run from the settings saved in it.\n",
        "## What is measured\n\nOptions of `dejavu evaluate`, and of `dejavu mitigate` as `evaluate.NAME`.\n",
        _table(options(conf / "evaluate" / "default.yaml")),
        "## Groups\n",
        *groups,
        _experiments(conf / "experiment"),
        "## SLURM\n\n`hydra/launcher=slurm` or `slurm_nodes` of a multirun; each is an option `hydra.launcher.NAME`.\n",
        *(_file(path, "hydra/launcher") for path in sorted((conf / "hydra" / "launcher").glob("*.yaml"))),
        "## Environment\n\n| variable | meaning |\n|---|---|\n"
        + "\n".join(f"| `{n}` | {w} |" for n, w in VARIABLES.items())
        + "\n",
    ]
    return "\n".join(parts)


def _command(conf: Path, name: str) -> str:
    path = conf / f"{name}.yaml"
    config = yaml.safe_load(path.read_text(encoding="utf-8"))
    title = f"dejavu {name}"
    purpose = config["hydra"]["help"]["header"].splitlines()[0].partition(" Options are")[0]
    chosen = [(str(g).partition("@")[0], c) for e in config["defaults"] if isinstance(e, dict) for g, c in e.items()]
    groups = [f"[{group}](#{group})" + (f"={choice}" if choice else "") for group, choice in chosen if group in GROUPS]
    moved = {"(#evaluate)=default": "(#what-is-measured)", "(#experiment)": "(#experiments)"}
    for old, new in moved.items():
        groups = [one.replace(old, new) for one in groups]
    return "\n\n".join(
        [f"### {title}", purpose, *([f"Groups: {', '.join(groups)}."] if groups else []), _table(options(path))]
    )


def _report() -> str:
    """The one command that is none of Hydra's: its options stand in its own help."""
    tree = ast.parse((PACKAGE / "cli" / "report.py").read_text(encoding="utf-8"))
    (text,) = (
        node.value.value
        for node in tree.body
        if isinstance(node, ast.Assign)
        and isinstance(node.value, ast.Constant)
        and ast.unparse(node.targets[0]) == "HELP"
    )
    lines = str(text).splitlines()
    rows = [re.split(r"\s{2,}", line.strip(), maxsplit=1) for line in lines if re.match(r"  \w+=\S+\s{2,}", line)]
    table = _table([Option(row[0], "", row[1]) for row in rows])
    return f"### dejavu report\n\n{lines[2]}\n\n{table}"


def _group(folder: Path, what: str) -> str:
    paths = sorted(
        folder.glob("*.yaml"), key=lambda path: (bool(_base(path)), path.stem)
    )  # what others are made from first
    short = [path for path in paths if _base(path) and "_target_:" not in path.read_text(encoding="utf-8")]
    files = [_file(path, folder.name) for path in paths if path not in short]
    rows = [f"| `{folder.name}={p.stem}` | {_sets(p)} | {_opening(p, folder.name)} |" for p in short]
    table = "| choice | sets | what |\n|---|---|---|\n" + "\n".join(rows) + "\n" if rows else ""
    return "\n".join([f"### {folder.name}\n\n{what[0].upper()}{what[1:]}.\n", *files, table])


def _sets(path: Path) -> str:
    """What a choice changes of the one that it is made from."""
    return ", ".join([f"like `{_base(path)[0]}`", *(f"`{o.name}={o.default}`" for o in options(path, False))])


def _file(path: Path, group: str) -> str:
    """A choice of a group: its opening comment, and its options or what it changes of another one's."""
    base = _base(path)
    like = f" Like `{group}={base[0]}`, but:" if base else ""
    alike = _alike(path.parent)
    rows = [replace(o, meaning=o.meaning or alike.get(o.name, "")) for o in options(path, not base)]
    return f"#### {group}={path.stem}\n\n{_opening(path, group)}{like}\n\n{_table(rows)}"


@cache
def _alike(folder: Path) -> dict[str, str]:
    """What an option means in the first file of a group that says so."""
    every = [option for path in sorted(folder.glob("*.yaml")) for option in options(path)]
    return {option.name: option.meaning for option in reversed(every) if option.meaning}


def _opening(path: Path, group: str) -> str:
    """The first comment of a file, commands in it as code."""
    words = []
    for line in path.read_text(encoding="utf-8").splitlines():
        if not line.startswith("# "):
            break
        text = line.removeprefix("# ")
        if text.startswith(("python ", f"{group}=")):
            command, *rest = re.split(r"\s{3,}|(?<=\w): ", text, maxsplit=1)
            words += [f"`{command}`" + ("." if not rest else ":"), *(one[:1].upper() + one[1:] for one in rest)]
        elif not text.startswith("@package"):
            words.append(text)
    text = _escaped(" ".join(words))
    return text if text.endswith(".") else f"{text}."


def _base(path: Path) -> list[str]:
    config = yaml.safe_load(path.read_text(encoding="utf-8")) or {}
    return [
        name
        for name in config.get("defaults", [])
        if isinstance(name, str) and name not in ("_self_", "submitit_slurm")
    ]


def _experiments(folder: Path) -> str:
    rows = []
    for path in sorted(folder.glob("*.yaml")):
        lines = [line[2:] for line in path.read_text(encoding="utf-8").splitlines() if line.startswith("# ")]
        rows.append(f"| `{path.stem}` | {re.split(r'(?<=[a-z0-9])[.] ', ' '.join(lines[2:]))[0].rstrip('.')} |")
    table = "| experiment | what |\n|---|---|\n" + "\n".join(rows)
    head = "## Experiments\n\nStudies that are ready to run, `dejavu mitigate experiment=NAME`; each file says what it takes."
    return f"{head}\n\n{table}\n"


def options(path: Path, further: bool = True) -> list[Option]:
    """The options of a file of conf/, and with ``further`` those of its dataclasses that it leaves out."""
    source = path.read_text(encoding="utf-8")
    root = yaml.compose(source, yaml.SafeLoader)
    found: list[Option] = []

    def walk(node: yaml.MappingNode, prefix: str) -> None:
        target = next((value.value for key, value in node.value if key.value == "_target_"), None)
        known = fields(target) if target else {}
        names = []
        for key, value in node.value:
            name = key.value
            names.append(name)
            if name in ("_target_", "hydra", "defaults"):
                continue
            own = known.get(name, Option(name, "", ""))
            nested = isinstance(value, yaml.MappingNode) and not value.flow_style
            after = (key if nested else value).end_mark
            comment = re.match(r":?\s*#\s*(.*)", source[after.index :].split("\n")[0])
            meaning = comment.group(1) if comment else own.meaning
            if nested:
                if meaning:
                    found.append(Option(prefix + name, "", meaning))
                walk(value, f"{prefix}{name}.")
            else:
                default = source[value.start_mark.index : value.end_mark.index]
                found.append(Option(prefix + name, default, meaning, own.kind))
        if further:
            rest = [option for name, option in known.items() if name not in names and name not in HIDDEN]
            found.extend(Option(f"+{prefix}{o.name}", o.default, o.meaning, o.kind) for o in rest)

    if isinstance(root, yaml.MappingNode):
        walk(root, "")
    return found


HIDDEN = ("exclude_fingerprint", "automatic", "annotator", "name")  # fields that a command fills by itself


@cache
def fields(target: str) -> dict[str, Option]:
    """The fields of a dataclass of this package, from its source: name, default, comment or docstring, type."""
    module, _, name = target.rpartition(".")
    source = PACKAGE.joinpath(*module.split(".")[1:]).with_suffix(".py").read_text(encoding="utf-8")
    comments = dict(_comments(source))
    tree = ast.parse(source)
    found: dict[str, Option] = {}
    (cls,) = (node for node in tree.body if isinstance(node, ast.ClassDef) and node.name == name)
    for base in cls.bases:
        if where := _place(ast.unparse(base), module, tree):
            found |= fields(where)
    for node, following in zip(cls.body, [*cls.body[1:], None], strict=True):
        if (
            not isinstance(node, ast.AnnAssign)
            or not isinstance(node.target, ast.Name)
            or node.target.id.startswith("_")
        ):
            continue
        end = node.end_lineno or node.lineno
        meaning = " ".join(comments[line] for line in range(node.lineno, end + 1) if line in comments)
        if isinstance(following, ast.Expr) and isinstance(following.value, ast.Constant):
            meaning = " ".join(str(following.value.value).split())
        found[node.target.id] = Option(
            node.target.id, _default(node.value), meaning, _kind(ast.unparse(node.annotation))
        )
    return found


def _place(name: str, module: str, tree: ast.Module) -> str | None:
    """Where a class of this package that a module names is defined; None for others."""
    for node in tree.body:
        if isinstance(node, ast.ClassDef) and node.name == name:
            return f"{module}.{name}"
        if isinstance(node, ast.ImportFrom) and name in [alias.name for alias in node.names]:
            return f"{node.module}.{name}" if str(node.module).startswith("dejavu_lit.") else None
    return None


def _comments(source: str) -> Iterator[tuple[int, str]]:
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type == tokenize.COMMENT:
            yield token.start[0], token.string.lstrip("# ")


def _default(value: ast.expr | None) -> str:
    if value is None:
        return "???"
    if isinstance(value, ast.Call):  # field(default_factory=…)
        factory = {keyword.arg: ast.unparse(keyword.value) for keyword in value.keywords}.get("default_factory", "")
        return {"list": "[]", "dict": "{}"}.get(factory, "")
    try:
        literal: Any = ast.literal_eval(value)
    except ValueError:
        return ast.unparse(value)
    plain = list(literal) if isinstance(literal, tuple) else literal
    written: str = yaml.safe_dump(plain, default_flow_style=True)
    return written.removesuffix("...\n").strip()


def _kind(annotation: str) -> str:
    """A type in the words of the messages: ``int | None`` is ``whole number or null``."""
    words = re.sub(r"Literal\[(.*?)\]", lambda m: m.group(1).replace("'", "").replace(", ", " or "), annotation)
    words = re.sub(r"\b(tuple|list|Sequence|frozenset|dict|Mapping)\[[^\]]*(\[[^\]]*\])?[^\]]*\]", r"\1", words)
    for pattern, plain in WORDS:
        words = re.sub(pattern, plain, words)
    return " or ".join(dict.fromkeys(re.split(r" \| | or ", words)))


def _table(rows: list[Option]) -> str:
    if not rows:
        return ""
    head = "| option | default | type | meaning |\n|---|---|---|---|\n"
    lines = (
        f"| `{row.name}` | {f'`{row.default}`' if row.default else ''} | {_escaped(row.kind)} | {_escaped(row.meaning)} |"
        for row in rows
    )
    return head + "\n".join(line.replace("|  |", "| |").replace("|  |", "| |") for line in lines) + "\n"


def _escaped(text: str) -> str:
    return text.replace("|", "\\|").replace("<", "&lt;")


if __name__ == "__main__":
    from dejavu_lit.utils.io import write_text

    write_text(ROOT / "docs" / "options.md", reference(ROOT / "conf"))
