"""Checks of the dependencies: pins agree with each other, nothing is declared that is not imported, known vulnerabilities.

    .ci/audit.py [ADVISORIES.zip]

The first two need no network. For the third give OSV's export of PyPI's advisories
(https://osv-vulnerabilities.storage.googleapis.com/PyPI/all.zip); without it pip-audit is used, if installed. Exit code 1 if
something was found, and a sentence if vulnerabilities could not be looked up.
"""

import json
import re
import subprocess
import sys
import tomllib
import zipfile
from importlib.metadata import PackageNotFoundError, packages_distributions, version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import InvalidVersion, Version

ROOT = Path(__file__).resolve().parent.parent
# Used without an import: fsspec reads http with aiohttp, open_clip builds image towers with timm.
INDIRECT = {"aiohttp", "timm"}


def pins(text: str) -> dict[str, str]:
    """{name: version} of constraints.txt; raises ValueError for a line that is not a pin, or a repeated name."""
    found: dict[str, str] = {}
    for line in text.splitlines():
        if not line.strip() or line.startswith("#"):
            continue
        match = re.fullmatch(r"([\w.-]+)==([\w.+!]+)", line.strip())
        if not match or canonicalize_name(match[1]) in found:
            raise ValueError(f"{line} is not a pin NAME==VERSION, or is repeated")
        found[canonicalize_name(match[1])] = match[2]
    return found


def disagreements(pinned: dict[str, str], project: dict[str, Any]) -> list[str]:
    """Where the pins and the ranges of pyproject.toml, or what is installed, differ."""
    groups = {"": project["dependencies"], **project["optional-dependencies"]}
    wanted = [Requirement(line) for lines in groups.values() for line in lines]
    found = [
        f"{one.name}=={pinned[canonicalize_name(one.name)]} is outside of {one}"
        for one in wanted
        if canonicalize_name(one.name) in pinned and not one.specifier.contains(pinned[canonicalize_name(one.name)])
    ]
    for name, number in pinned.items():
        try:
            if Version(version(name)) != Version(number) and not version(name).startswith(f"{number}+"):
                found.append(f"{name} is pinned to {number}, installed is {version(name)}")
        except PackageNotFoundError:
            continue
    return found


def unused(project: dict[str, Any]) -> list[str]:
    """The declared dependencies of the package that none of its modules imports."""
    sources = "\n".join(path.read_text(encoding="utf-8") for path in (ROOT / "dejavu_lit").rglob("*.py"))
    imported = set(re.findall(r"^\s*(?:import|from) (\w+)", sources, re.MULTILINE))
    modules: dict[str, set[str]] = {}
    for module, owners in packages_distributions().items():
        for owner in owners:
            modules.setdefault(canonicalize_name(owner), set()).add(module)
    return [
        f"{name} is declared and imported nowhere"
        for name in (canonicalize_name(Requirement(line).name) for line in project["dependencies"])
        if name not in INDIRECT and name in modules and not modules[name] & imported
    ]


def weaknesses(pinned: dict[str, str], advisories: Path) -> list[str]:
    """The advisories of OSV's export that name a pinned version."""
    found = []
    with zipfile.ZipFile(advisories) as content:
        for name in content.namelist():
            entry = json.loads(content.read(name))
            if entry.get("withdrawn"):
                continue
            for affected in entry.get("affected", []):
                package = canonicalize_name(affected.get("package", {}).get("name", ""))
                try:
                    covered = package in pinned and _covers(affected, pinned[package])
                except InvalidVersion:  # no version of Python's: for a person to read
                    covered = True
                if covered:
                    found.append(f"{package}=={pinned[package]}: {entry['id']} {entry.get('summary', '')}".rstrip())
    return sorted(set(found))


def _covers(affected: dict[str, Any], number: str) -> bool:
    if number in affected.get("versions", []):
        return True
    mine = Version(number)
    for ranges in affected.get("ranges", []):  # the versions above are all that were known when it was written
        inside = False
        for event in ranges["events"] if ranges["type"] == "ECOSYSTEM" else []:
            if "introduced" in event:
                inside |= event["introduced"] == "0" or mine >= Version(event["introduced"])
            elif "fixed" in event:
                inside &= mine < Version(event["fixed"])
            elif "last_affected" in event:
                inside &= mine <= Version(event["last_affected"])
        if inside:
            return True
    return False


def main(arguments: list[str]) -> int:
    """Print what was found; 1 where something was."""
    pinned = pins((ROOT / "constraints.txt").read_text(encoding="utf-8"))
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    found = disagreements(pinned, project) + unused(project)
    check = subprocess.run([sys.executable, "-m", "pip", "check"], capture_output=True, text=True)
    found += check.stdout.splitlines() if check.returncode else []
    if arguments:
        found += weaknesses(pinned, Path(arguments[0]))
        print(f"{len(pinned)} pins held against the advisories of {arguments[0]}")
    elif find_spec("pip_audit"):
        command = [sys.executable, "-m", "pip_audit", "--no-deps", "--disable-pip", "-r", str(ROOT / "constraints.txt")]
        asked = subprocess.run(command, capture_output=True, text=True)
        if "Found" in asked.stderr or asked.returncode == 0:
            found += asked.stdout.splitlines() if asked.returncode else []
        else:
            print(f"vulnerabilities were not checked: {(asked.stderr.strip() or '?').splitlines()[-1]}")
    else:
        print("vulnerabilities were not checked: give OSV's export (ADVISORIES=all.zip), or pip install pip-audit")
    print("\n".join(found) or f"{len(pinned)} pins agree with each other and with pyproject.toml")
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
