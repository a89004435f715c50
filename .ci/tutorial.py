"""docs/tutorial.ipynb: run it, or turn it into a page for the site, which shows no notebooks.

.ci/tutorial.py run [OUT.ipynb]      run every cell in the current folder; by default the notebook itself gets the outputs
.ci/tutorial.py page FOLDER          write FOLDER/tutorial.md and its images
"""

import base64
import sys
from pathlib import Path

import nbformat
from nbclient import NotebookClient

NOTEBOOK = Path(__file__).resolve().parent.parent / "docs" / "tutorial.ipynb"


def run(out: Path) -> None:
    """Run the notebook and write it with its outputs, without those of stderr and the times of the cells."""
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    NotebookClient(notebook, timeout=900, record_timing=False).execute()
    for cell in notebook.cells:
        if cell.cell_type == "code":
            cell.outputs = [output for output in cell.outputs if output.get("name") != "stderr"]
            for output in cell.outputs:
                output.get("data", {}).pop("image/jpeg", None)  # the same image as the PNG
    notebook.metadata["language_info"] = {"name": "python"}  # without the version of this interpreter
    nbformat.write(notebook, out)


def page(folder: Path) -> None:
    """Write the notebook with its outputs as Markdown."""
    parts = []
    for number, cell in enumerate(nbformat.read(NOTEBOOK, as_version=4).cells):
        if cell.cell_type == "markdown":
            parts.append(cell.source)
            continue
        parts.append(f"```python\n{cell.source}\n```")
        for output in cell.outputs:
            data = output.get("data", {})
            if "image/png" in data:
                (folder / f"tutorial_{number}.png").write_bytes(base64.b64decode(data["image/png"]))
                parts.append(f"![Output of the cell above](tutorial_{number}.png)")
            else:
                parts.append(f"```text\n{output.get('text', data.get('text/plain', '')).rstrip()}\n```")
    (folder / "tutorial.md").write_text("\n\n".join(parts) + "\n", encoding="utf-8")


if __name__ == "__main__":
    command, *arguments = sys.argv[1:]
    if command == "page":
        page(Path(arguments[0]))
    else:
        run(Path(arguments[0]) if arguments else NOTEBOOK)
