"""What a side is good for on prepared data: zero-shot accuracy, retrieval on H, a linear probe, each or why not."""

from collections.abc import Callable
from typing import Any

import numpy as np

from dejavu_lit.data.prepared import DataSpec
from dejavu_lit.evaluation import utility_scores as utility
from dejavu_lit.evaluation.audited_model import Side
from dejavu_lit.evaluation.embeddings import Embeddings
from dejavu_lit.utils.errors import UserError

CLASSES = "classes"  # in embeddings:DIR, the folder of one vector a class, its name being the key


def quality(side: Side, data: DataSpec) -> dict[str, Any]:
    """{zeroshot_top1, zeroshot_top5, i2t_r1, …, t2i_r10, linear_probe, reasons: {figure: why it is null}}, in 0..1."""
    reasons: dict[str, str] = {}
    values: dict[str, Any] = {}

    def attempt(names: tuple[str, ...], work: Callable[[], utility.Values], missing: str | None) -> None:
        try:
            found = work() if missing is None else dict.fromkeys(names)
            values.update({name: found[name] for name in names})
            missing = missing or next((str(found[f"{n}_reason"]) for n in names if f"{n}_reason" in found), None)
        except UserError as error:
            values.update(dict.fromkeys(names))
            missing = str(error)
        if missing is not None:
            reasons.update(dict.fromkeys(names, missing))

    captions_only = "a text model embeds no pictures" if side.captions_only else None
    unlabelled = captions_only or (None if data.labelled else "data.labelled names no set with class labels")
    attempt(("zeroshot_top1", "zeroshot_top5"), lambda: _zero_shot(side, data), unlabelled)
    attempt(
        tuple(f"{d}_r{k}" for d in ("i2t", "t2i") for k in utility.RECALLS),
        lambda: _retrieval(side, data),
        captions_only,
    )
    attempt(("linear_probe",), lambda: _probe(side, data), unlabelled)
    return values | {"reasons": reasons}


def _labelled(side: Side, data: DataSpec) -> tuple[Embeddings, dict[str, str]]:
    name = str(data.labelled)
    shards = data.shards(name)
    return side.embeddings(shards, name, "image"), utility.read_labels(shards)


def _zero_shot(side: Side, data: DataSpec) -> utility.Values:
    images, labels = _labelled(side, data)
    keys = [key for key in images.keys if key in labels and key not in data.excluded]
    names, number = utility.class_list(data.classes, (labels[key] for key in keys))
    if side.given:
        classes = Embeddings.open(side.given / CLASSES / "text").load(names)
    else:
        classes = utility.class_vectors(side.encoder, names, utility.prompts(data.templates))
    return utility.zero_shot(images.load(keys), np.array([number[labels[key]] for key in keys]), classes)


def _retrieval(side: Side, data: DataSpec) -> utility.Values:
    shards = data.shards("H")
    images, captions = side.embeddings(shards, "H", "image"), side.embeddings(shards, "H", "text")
    keys = [key for key in images.keys if key in captions.rows and key not in data.excluded]
    return utility.retrieval(images.load(keys), captions.load(keys))


def _probe(side: Side, data: DataSpec) -> utility.Values:
    images, labels = _labelled(side, data)
    keys = [key for key in images.keys if key in labels and key not in data.excluded]
    return utility.linear_probe(images.load(keys), [labels[key] for key in keys])
