"""How much two object artifacts agree: ``dejavu annotate compare=[A,B]``."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from dejavu_lit.data.objects import Objects
from dejavu_lit.utils.errors import UserError


def difference(first: Objects, second: Objects) -> dict[str, Any]:
    """How two annotations of the same images differ, as sets of labels an image.

    Args:
        first, second: the objects of each annotator at its threshold; joined by key.

    Returns:
        {images: annotated by both, empty: those without objects in both, jaccard: mean of |F ∩ S| / |F ∪ S| over the
        others or None, objects: {first, second} labels an image, labels: [{label, first, second, both: images that have
        it, jaccard: both / either}], the largest disagreements (images with it in one alone) first}.

    Raises:
        UserError: no image in common.
    """
    keys = [key for key in first.keys if key in second.rows]
    if not keys:
        raise UserError("the two artifacts have no image in common; compare artifacts of the same data")
    names = {label: number for number, label in enumerate(sorted({*first.labels, *second.labels}))}
    own, other = (_codes(one.take(keys), names) for one in (first, second))
    three = (own, other, np.intersect1d(own, other, assume_unique=True))
    of, width = len(keys), max(1, len(names))
    sizes = [np.bincount(codes // width, minlength=of) for codes in three]
    either = sizes[0] + sizes[1] - sizes[2]
    by_label = (np.bincount(codes % width, minlength=len(names)).tolist() for codes in three)
    rows = [
        {"label": name, "first": f, "second": s, "both": b, "jaccard": b / (f + s - b)}
        for name, f, s, b in zip(names, *by_label, strict=True)
        if f + s
    ]
    return {
        "pictures": len(keys),
        "empty": int((either == 0).sum()),
        "jaccard": float((sizes[2] / np.maximum(either, 1))[either > 0].mean()) if either.any() else None,
        "objects": {"first": float(sizes[0].mean()), "second": float(sizes[1].mean())},
        "labels": sorted(rows, key=lambda row: (2 * row["both"] - row["first"] - row["second"], row["label"])),
    }


def _codes(objects: Objects, names: Mapping[str, int]) -> np.ndarray:
    """int64: image · number of names + label, for every object; each occurs once."""
    place = np.array([names[label] for label in objects.labels], dtype=np.int64)
    codes: np.ndarray = np.repeat(np.arange(len(objects)), objects.counts()) * max(1, len(names)) + place[objects.codes]
    return codes


def show(found: Mapping[str, Mapping[str, Any]], names: Sequence[str], most: int = 10) -> str:
    """The differences of each set ({set: what ``difference`` gives}) as text for the screen, ``most`` labels each."""
    first, second = names
    text = [f"{'set':<10}{'images':>9}{'Jaccard':>9}  labels an image: {first}, {second}"]
    for name, one in found.items():
        jaccard = "–" if one["jaccard"] is None else f"{one['jaccard']:.3f}"
        objects = f"{one['objects']['first']:.2f}, {one['objects']['second']:.2f}"
        text.append(f"{name:<10}{one['pictures']:>9}{jaccard:>9}  {objects}; {one['empty']} images empty in both")
    text += ["", f"{'set':<10}{'label':<24}{first[:14]:>15}{second[:14]:>15}{'both':>9}{'Jaccard':>9}"]
    for name, one in found.items():
        for row in one["labels"][:most]:
            counts = f"{row['first']:>15}{row['second']:>15}{row['both']:>9}{row['jaccard']:>9.3f}"
            text.append(f"{name:<10}{row['label'][:23]:<24}{counts}")
    return "\n".join(text)
