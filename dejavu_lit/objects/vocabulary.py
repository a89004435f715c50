"""Lists of labels and of classes: COCO's 80, ImageNet's 1,000, ImageNet-21k's, or a file.

A file of labels is text with one label per line, followed by its synonyms after commas (``couch, sofa``), or JSON with
``categories``, each with a ``name`` and optional ``synonyms``, as in COCO's and LVIS's instances.
"""

from pathlib import Path

from dejavu_lit.data.decode import json_safe
from dejavu_lit.data.readers.coco_json import read_coco
from dejavu_lit.utils.errors import UserError, explained

KNOWN = ("coco", "imagenet", "imagenet-21k")
MAX_DIGITS = 18  # of a class number: Python refuses to parse integers of thousands of digits


def vocabulary(choice: str | Path) -> dict[str, tuple[str, ...]]:
    """{label: its synonyms}, in the list's order; a repeated label keeps its first position.

    Raises UserError if ``choice`` is neither one of KNOWN nor a file, or a file without labels.
    """
    if choice == "coco":
        from torchvision.models.detection import FasterRCNN_ResNet50_FPN_Weights as Weights

        return {name: () for name in Weights.COCO_V1.meta["categories"] if name not in ("__background__", "N/A")}
    if choice == "imagenet":
        return dict.fromkeys(read_class_names(choice), ())
    if choice == "imagenet-21k":
        from timm.data.imagenet_info import ImageNetInfo

        info = ImageNetInfo("imagenet21k")
        return _parse_rows([info.index_to_description(number) for number in range(info.num_classes())])
    path = Path(choice)
    if not path.is_file():
        raise UserError(f"vocabulary={choice} is neither one of {', '.join(KNOWN)} nor a file; check the path")
    if path.suffix == ".json":
        categories = read_coco(path, "categories")["categories"]
        with explained(f"{path} has a category without a name", "name every category"):
            labels = {
                json_safe(str(c["name"])): tuple(map(json_safe, map(str, c.get("synonyms") or ()))) for c in categories
            }
    else:
        labels = _parse_rows(_stripped_lines(path))
    if not labels:
        raise UserError(f"{path} has no labels; write one per line")
    return labels


def read_lines(path: Path | str) -> list[str]:
    """The names in a text file by the number of their line; blank lines at the end are dropped.

    Raises UserError if the file is not UTF-8 text, has no names, or a line before its last name is blank.
    """
    lines = _stripped_lines(path)
    if not lines:
        raise UserError(f"{path} has no names; write one per line")
    if "" in lines:
        raise UserError(
            f"line {lines.index('') + 1} of {path} is blank, and a name's number is that of its line; remove the line, or write "
            "a name"
        )
    return lines


def _stripped_lines(path: Path | str) -> list[str]:
    """The lines of a text file up to the last one that is not blank, without surrounding white space."""
    with explained(f"{path} cannot be read as a text file of names", "give one in UTF-8"):
        text = Path(path).read_text(encoding="utf-8-sig")
    return [line.strip() for line in text.rstrip().splitlines()]


def read_class_names(choice: str) -> list[str]:
    """The names of classes by their number: open_clip's for ``imagenet``, two of which occur twice, or a file's lines."""
    if choice != "imagenet":
        return read_lines(choice)
    from open_clip import IMAGENET_CLASSNAMES

    return list(IMAGENET_CLASSNAMES)


def is_class_number(text: str) -> bool:
    """Whether a label is a number of at most ``MAX_DIGITS`` digits."""
    return text.isdecimal() and len(text) <= MAX_DIGITS


def _parse_rows(rows: list[str]) -> dict[str, tuple[str, ...]]:
    labels: dict[str, tuple[str, ...]] = {}
    for row in rows:
        label, *synonyms = (name.strip() for name in row.split(","))
        if label:
            labels.setdefault(label, tuple(name for name in synonyms if name))
    return labels
