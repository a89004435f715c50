"""How much two object artifacts agree: ``dejavu annotate compare=[A,B]``."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from dejavu_lit.data.objects import Objects
from dejavu_lit.utils.errors import UserError


def difference(first: Objects, second: Objects) -> dict[str, Any]:
    """How two annotations of the same images, joined by key, differ; each image counts as a set of labels.

    Returns:
        {pictures: images annotated by both, empty: those without objects in both, jaccard: mean of |F ∩ S| / |F ∪ S| over
        the others or None, objects: {first, second: mean number of labels per image}, labels: [{label, first, second,
        both: images that have it, jaccard: both / either}], the largest disagreements (images with it in only one) first}.

    Raises UserError without an image in common.
    """
    keys = [key for key in first.keys if key in second.rows]
    if not keys:
        raise UserError("the two artifacts have no image in common; compare artifacts of the same data")
    names = {label: number for number, label in enumerate(sorted({*first.labels, *second.labels}))}
    first_codes, second_codes = (_image_label_codes(objects.take(keys), names) for objects in (first, second))
    code_sets = (first_codes, second_codes, np.intersect1d(first_codes, second_codes, assume_unique=True))
    images, width = len(keys), max(1, len(names))
    sizes = [np.bincount(codes // width, minlength=images) for codes in code_sets]
    either = sizes[0] + sizes[1] - sizes[2]
    by_label = (np.bincount(codes % width, minlength=len(names)).tolist() for codes in code_sets)
    rows = [
        {"label": name, "first": f, "second": s, "both": b, "jaccard": b / (f + s - b)}
        for name, f, s, b in zip(names, *by_label, strict=True)
        if f + s
    ]
    return {
        "pictures": images,
        "empty": int((either == 0).sum()),
        "jaccard": float((sizes[2] / np.maximum(either, 1))[either > 0].mean()) if either.any() else None,
        "objects": {"first": float(sizes[0].mean()), "second": float(sizes[1].mean())},
        "labels": sorted(rows, key=lambda row: (2 * row["both"] - row["first"] - row["second"], row["label"])),
    }


def _image_label_codes(objects: Objects, names: Mapping[str, int]) -> np.ndarray:
    """int64: image · number of names + label, for every object; all distinct."""
    label_numbers = np.array([names[label] for label in objects.labels], dtype=np.int64)
    image_numbers = np.repeat(np.arange(len(objects)), objects.counts())
    return np.asarray(image_numbers * max(1, len(names)) + label_numbers[objects.codes])


def format_differences(differences: Mapping[str, Mapping[str, Any]], names: Sequence[str], limit: int = 10) -> str:
    """The differences of each set ({set: result of ``difference``}) as text for the terminal, ``limit`` labels per set."""
    first, second = names
    lines = [f"{'set':<10}{'images':>9}{'Jaccard':>9}  labels per image: {first}, {second}"]
    for name, result in differences.items():
        jaccard = "–" if result["jaccard"] is None else f"{result['jaccard']:.3f}"
        objects = f"{result['objects']['first']:.2f}, {result['objects']['second']:.2f}"
        lines.append(
            f"{name:<10}{result['pictures']:>9}{jaccard:>9}  {objects}; {result['empty']} images empty in both"
        )
    lines += ["", f"{'set':<10}{'label':<24}{first[:14]:>15}{second[:14]:>15}{'both':>9}{'Jaccard':>9}"]
    for name, result in differences.items():
        for row in result["labels"][:limit]:
            counts = f"{row['first']:>15}{row['second']:>15}{row['both']:>9}{row['jaccard']:>9.3f}"
            lines.append(f"{name:<10}{row['label'][:23]:<24}{counts}")
    return "\n".join(lines)
