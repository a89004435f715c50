"""Make the README's links absolute and add the repository's addresses to pyproject.toml: for the page on PyPI.

    .ci/addresses.py https://HOST/OWNER/NAME TAG

The release does this in its own checkout, so that the address is written down nowhere else.
"""

import re
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent


def absolute(text: str, url: str, tag: str) -> str:
    """Markdown with its relative links and images as addresses of the files at ``tag``."""

    def link(match: re.Match[str]) -> str:
        return f"{match[1]}({url}/{'raw' if match[1].startswith('!') else 'blob'}/{tag}/{match[2]})"

    return re.sub(r"(!?\[[^\]]*\])\((?!\w+:|#)([^)]+)\)", link, text)


def with_addresses(project: str, url: str, tag: str) -> str:
    """pyproject.toml with the repository, its issues and its documents beside the other ``[project.urls]``."""
    places = {
        "Repository": "",
        "Issues": "/issues",
        "Documentation": f"/blob/{tag}/docs/README.md",
        "Changelog": f"/blob/{tag}/CHANGELOG.md",
    }
    lines = "".join(f'{name} = "{url}{path}"\n' for name, path in places.items())
    return project.replace("[project.urls]\n", f"[project.urls]\n{lines}")


if __name__ == "__main__":
    for name, change in (("README.md", absolute), ("pyproject.toml", with_addresses)):
        path = ROOT / name
        path.write_text(change(path.read_text(encoding="utf-8"), *sys.argv[1:]), encoding="utf-8")
