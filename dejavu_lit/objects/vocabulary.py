"""Lists of labels: COCO's 80, ImageNet's 1,000, ImageNet-21k's, or one's own file.

A file of labels is text with one label a line, its other names behind commas (``couch, sofa``), or a JSON file with
``categories``, each with a ``name`` and perhaps ``synonyms``, as COCO's and LVIS's instances have.
"""

from pathlib import Path

from dejavu_lit.data.decode import plain
from dejavu_lit.data.readers.coco import read_coco
from dejavu_lit.utils.errors import UserError

KNOWN = ("coco", "imagenet", "imagenet-21k")


def vocabulary(choice: str | Path) -> dict[str, tuple[str, ...]]:
    """{label: its other names}, in the list's order; a label that stands there twice keeps its first place.

    Raises:
        UserError: neither one of KNOWN nor a file, or a file without labels.
    """
    if choice == "coco":
        return dict.fromkeys(coco_names(), ())
    if choice == "imagenet":
        from open_clip import IMAGENET_CLASSNAMES

        return dict.fromkeys(IMAGENET_CLASSNAMES, ())
    if choice == "imagenet-21k":
        from timm.data.imagenet_info import ImageNetInfo

        info = ImageNetInfo("imagenet21k")
        return _entries([info.index_to_description(number) for number in range(info.num_classes())])
    path = Path(choice)
    if not path.is_file():
        raise UserError(f"vocabulary={choice} is neither one of {', '.join(KNOWN)} nor a file; check the path")
    if path.suffix == ".json":
        categories = read_coco(path, "categories")["categories"]
        try:
            found = {plain(str(c["name"])): tuple(map(plain, map(str, c.get("synonyms", ())))) for c in categories}
        except (KeyError, TypeError, AttributeError) as error:
            raise UserError(
                f"{path} has categories without a name ({type(error).__name__}: {error}); give each its name"
            ) from None
    else:
        found = _entries(lines(path))
    if not found:
        raise UserError(f"{path} holds no labels; give one a line")
    return found


def lines(path: Path | str) -> list[str]:
    """The lines of a text file that are not blank; raises UserError where it cannot be read as UTF-8 text."""
    try:
        text = Path(path).read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path} cannot be read as a text file of names ({error}); check the path") from None
    return [line.strip() for line in text.splitlines() if line.strip()]


def coco_names() -> list[str]:
    """COCO's 80 object names, as torchvision's weights list them."""
    from torchvision.models.detection import FasterRCNN_ResNet50_FPN_Weights as Weights

    return [name for name in Weights.COCO_V1.meta["categories"] if name not in ("__background__", "N/A")]


def _entries(rows: list[str]) -> dict[str, tuple[str, ...]]:
    found: dict[str, tuple[str, ...]] = {}
    for row in rows:
        label, *others = (name.strip() for name in row.split(","))
        if label:
            found.setdefault(label, tuple(name for name in others if name))
    return found
