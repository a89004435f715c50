"""Utility of a model on prepared data: zero-shot accuracy, retrieval on H and a linear probe.

Beside every figure that is null stands the reason.
"""

import logging
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from dejavu_lit.data.prepared import DataSpec
from dejavu_lit.data.shards import Pair, ShardSet, read_pairs
from dejavu_lit.evaluation.audited_model import AuditedModel
from dejavu_lit.evaluation.embeddings import Embeddings
from dejavu_lit.objects.vocabulary import read_lines
from dejavu_lit.utils.errors import UserError

if TYPE_CHECKING:
    from dejavu_lit.models.encoder import Encoder

CLASSES = "classes"  # the folder in embeddings:DIR with one vector per class, whose key is the class name
IMAGENET = "imagenet"  # as classes= and templates=: open_clip's own lists
ORDER = "order"  # as classes_by=: the sorted labels are the classes
MAX_DIGITS = 18  # of a class number: Python refuses to parse integers of thousands of digits
LISTED_LABELS = 10  # of those that match no class, in the message
RECALLS = (1, 5, 10)  # k of R@k
SCORES_AT_ONCE = 2**24  # cosines in memory, 128 MB of float64

log = logging.getLogger(__name__)
Values = dict[str, float | str | None]


def utility(model: AuditedModel, data: DataSpec) -> dict[str, Any]:
    """The utility of a model: shares from 0 to 1, or null with the reason.

    Returns:
        {zeroshot_top1, zeroshot_top5, i2t_r1, …, t2i_r10, linear_probe, reasons: {figure: why it is null}}.
    """
    no_images = "a text model embeds no images" if model.captions_only else None
    no_labels = no_images or (None if data.labelled else "data.labelled names no set with class labels")
    zeroshot = ("zeroshot_top1", "zeroshot_top5")
    recalls = tuple(f"{direction}_r{k}" for direction in ("i2t", "t2i") for k in RECALLS)
    values: dict[str, Any] = {}
    reasons: dict[str, str] = {}
    for names, compute, reason in (
        (zeroshot, _zero_shot, no_labels),
        (recalls, _retrieval, no_images),
        (("linear_probe",), _probe, no_labels),
    ):
        computed, reason = _attempt(compute, model, data) if reason is None else ({}, reason)
        values |= {name: computed.get(name) for name in names}
        if reason is not None:
            reasons |= dict.fromkeys(names, reason)
    return values | {"reasons": reasons}


def _attempt(
    compute: Callable[[AuditedModel, DataSpec], Values], model: AuditedModel, data: DataSpec
) -> tuple[Values, str | None]:
    """(figures, why they are null); a UserError is a reason, too, because utility must not stop an evaluation."""
    try:
        values = compute(model, data)
    except UserError as error:
        log.warning("the utility of %s is incomplete: %s", model.name, error)
        return {}, str(error)
    return values, next((str(reason) for name, reason in values.items() if name.endswith("_reason")), None)


def check_prompts(data: DataSpec) -> None:
    """Raise UserError for a file of classes or templates that cannot be used, before anything is computed."""
    if data.labelled:
        _class_names(data.classes, [])
        prompts(data.templates)


def _zero_shot(model: AuditedModel, data: DataSpec) -> Values:
    images, labels, keys = _labelled_images(model, data)
    names, numbers = class_list(data.classes, (labels[key] for key in keys), data.classes_by)
    if model.embeddings_folder:
        classes = Embeddings.open(model.embeddings_folder / CLASSES / "text").load(names)
    else:
        classes = class_vectors(model.encoder, names, prompts(data.templates))
    return zero_shot(images.load(keys), np.array([numbers[labels[key]] for key in keys]), classes)


def _retrieval(model: AuditedModel, data: DataSpec) -> Values:
    shards = data.shard_set("H")
    images, captions = model.embeddings(shards, "H", "image"), model.embeddings(shards, "H", "text")
    keys = [key for key in images.keys if key in captions.rows and key not in data.excluded]
    return retrieval(images.load(keys), captions.load(keys))


def _probe(model: AuditedModel, data: DataSpec) -> Values:
    images, labels, keys = _labelled_images(model, data)
    return linear_probe(images.load(keys), [labels[key] for key in keys])


def _labelled_images(model: AuditedModel, data: DataSpec) -> tuple[Embeddings, dict[str, str], list[str]]:
    """(image embeddings of the labelled set, {key: class}, keys with a label that are not excluded)."""
    name = str(data.labelled)
    shards = data.shard_set(name)
    images = model.embeddings(shards, data.set_name(name), "image")
    labels = read_labels(shards)
    return images, labels, [key for key in images.keys if key in labels and key not in data.excluded]


def read_labels(shards: ShardSet) -> dict[str, str]:
    """{key: class} of a labelled set: the ``label`` of each pair's JSON, or its ``cls`` member; pairs without are counted.

    Raises:
        UserError: no pair has a label.
    """
    labels: dict[str, str] = {}
    for pair in read_pairs(shards, image=False):
        if isinstance(pair, Pair) and (label := pair.meta.get("label")) is not None and str(label):
            labels[pair.key] = str(label)
    if not labels:
        raise UserError(
            f"no pair of {shards.folder} has a class (label in its JSON, or a cls member); check data.labelled"
        )
    if len(labels) < len(shards):
        log.warning(
            "%s: %d of %d pairs have no class or cannot be read", shards.folder, len(shards) - len(labels), len(shards)
        )
    return labels


def class_list(
    classes: str | Sequence[str] | None, labels: Iterable[str], by: str | None = None
) -> tuple[list[str], dict[str, int]]:
    """(class names for the prompts, {label: class number}) of the labels of a set.

    Args:
        classes: None (the labels themselves, sorted), ``imagenet`` (open_clip's 1,000 names), a file with one name per
            line, or the names.
        labels: class names, or class numbers from 0 (from 1 if the largest is the number of classes).
        by: ``order``: as many labels as classes, and the sorted labels are the classes in their order, as for ImageNet's
            folders; numbers sort as numbers. None: by name or number.

    Raises:
        UserError: labels that match no class, another number of labels than classes with ``order``, or a missing file.
    """
    distinct = _sorted_labels(labels)
    names = _class_names(classes, distinct)
    if by not in (None, ORDER):
        raise UserError(f"classes_by={by} is unknown; choose {ORDER}, or null to match labels by name or number")
    if by == ORDER:
        if len(distinct) != len(names):
            raise UserError(
                f"classes_by={ORDER} needs as many labels as classes, but there are {len(distinct)} labels and "
                f"{len(names)} names in classes=; give the list that belongs to the labels"
            )
        return names, {label: number for number, label in enumerate(distinct)}
    numbers = {name: number for number, name in reversed(list(enumerate(names)))}
    unmatched = [label for label in distinct if label not in numbers]
    if not unmatched:
        return names, {label: numbers[label] for label in distinct}
    if all(map(_is_number, distinct)):
        first = int(int(distinct[0]) > 0 and int(distinct[-1]) == len(names))
        if int(distinct[-1]) - first < len(names):
            if int(distinct[0]) > first == 0:
                log.warning(
                    "no label is 0, and labels are taken as numbers from 0: %s is %r; if they are counted from 1, give classes= "
                    "the names of the %d labels that occur, in their order, with classes_by=order",
                    *(distinct[0], names[int(distinct[0])], len(distinct)),
                )
            return names, {label: int(label) - first for label in distinct}
    raise UserError(
        f"{len(unmatched)} of {len(distinct)} labels are not in classes= ({len(names)} names): "
        f"{', '.join(map(repr, unmatched[:LISTED_LABELS]))}{', …' if len(unmatched) > LISTED_LABELS else ''}; give the list that "
        f"belongs to the labels, or classes_by={ORDER} if the sorted labels are the classes in their order"
    )


def _sorted_labels(labels: Iterable[str]) -> list[str]:
    """The distinct labels, numbers by their value before other texts."""
    return sorted(set(labels), key=lambda label: (0, int(label), label) if _is_number(label) else (1, 0, label))


def _is_number(label: str) -> bool:
    return label.isdecimal() and len(label) <= MAX_DIGITS


def _class_names(classes: str | Sequence[str] | None, labels: list[str]) -> list[str]:
    if classes is None:
        return labels
    if classes == IMAGENET:
        from open_clip import IMAGENET_CLASSNAMES

        return list(IMAGENET_CLASSNAMES)
    if not isinstance(classes, str):
        return list(map(str, classes))  # YAML reads 0 as a number
    if not Path(classes).is_file():
        raise UserError(
            f"classes={classes} is neither {IMAGENET} nor a file with one class name per line; check the path"
        )
    return read_lines(classes)


def prompts(templates: str | Sequence[str]) -> list[Callable[[str], str]]:
    """Prompt templates as functions of the class name: ``imagenet`` (open_clip's 80) or texts with one ``{}`` each.

    Raises:
        UserError: no template, or one without ``{}``.
    """
    if templates == IMAGENET:
        from open_clip import OPENAI_IMAGENET_TEMPLATES

        return list(OPENAI_IMAGENET_TEMPLATES)
    texts = [templates] if isinstance(templates, str) else list(templates)
    if not texts or any(text.count("{}") != 1 for text in texts):
        raise UserError(f"templates={texts} must be {IMAGENET} or texts with one {{}} each, where the class name goes")
    return [partial(text.replace, "{}") for text in texts]


def class_vectors(encoder: "Encoder", names: Sequence[str], templates: Sequence[Callable[[str], str]]) -> np.ndarray:
    """One unit vector per class, float32 [c, d]: its prompts' embeddings averaged and normalized again, as CLIP does."""
    from dejavu_lit.evaluation.chunks import encode_captions

    vectors = encode_captions(encoder, [template(name) for name in names for template in templates])
    means = vectors.reshape(len(names), len(templates), -1).mean(axis=1, dtype=np.float64)
    units: np.ndarray = means / np.linalg.norm(means, axis=1, keepdims=True)
    return units.astype(np.float32)


def zero_shot(images: np.ndarray, labels: np.ndarray, classes: np.ndarray) -> Values:
    """Top-1 and top-5 accuracy, 0 to 1, of the classes nearest by cosine (ties: the smaller class number first).

    images: float [n, d]; labels: int [n], class numbers; classes: float [c, d].
    """
    ranks = _ranks(images, classes, labels)
    return {f"zeroshot_top{top}": float((ranks < top).mean()) if len(ranks) else None for top in (1, 5)}


def retrieval(images: np.ndarray, captions: np.ndarray) -> Values:
    """R@1, R@5, R@10 in both directions: the share of pairs whose partner is among the nearest k by cosine.

    images, captions: float [n, d], row i of both is pair i. Ties: the smaller row first. ``i2t``: image to text.
    """
    values: Values = {}
    for name, queries, public in (("i2t", images, captions), ("t2i", captions, images)):
        ranks = _ranks(queries, public, np.arange(len(queries)))
        values |= {f"{name}_r{k}": float((ranks < k).mean()) if len(ranks) else None for k in RECALLS}
    return values


def _ranks(queries: np.ndarray, public: np.ndarray, right: np.ndarray) -> np.ndarray:
    """How many rows of ``public`` come before row ``right[i]`` in the order of their cosine with query i, int64 [n].

    Rows of equal cosine come in their order, for which torchmetrics' top-k gives no rule. Stored values are multiplied first
    and divided by the norms afterwards: for fp16 vectors the sums are exact, so equal vectors have equal cosines (see search).
    """
    transposed = np.asarray(public, np.float64).T
    norms, rows = np.linalg.norm(transposed, axis=0), np.arange(len(public))
    ranks = np.empty(len(queries), np.int64)
    at_once = max(1, SCORES_AT_ONCE // max(1, len(public)))
    for start in range(0, len(queries), at_once):
        block = np.asarray(queries[start : start + at_once], np.float64)
        scores = block @ transposed / (np.linalg.norm(block, axis=1)[:, None] * norms)
        own = right[start : start + at_once, None]
        own_scores = np.take_along_axis(scores, own, axis=1)
        ranks[start : start + at_once] = ((scores > own_scores) | ((scores == own_scores) & (rows < own))).sum(axis=1)
    return ranks


def linear_probe(images: np.ndarray, labels: Sequence[str], seed: int = 0, limit: int = 20_000) -> Values:
    """Accuracy of a logistic regression on frozen embeddings: fitted on four fifths of each class, tested on one fifth.

    Features are standardized by the fitted part; scikit-learn's default penalty, at most 1,000 iterations. From more than
    ``limit`` images a seeded sample is drawn. images: float [n, d]; labels: n classes.
    """
    rng = np.random.default_rng(seed)
    chosen = np.sort(rng.permutation(len(labels))[:limit])
    features, classes = np.asarray(images[chosen], np.float64), np.asarray(labels)[chosen]
    tested = np.zeros(len(chosen), bool)
    for name in np.unique(classes):
        members = rng.permutation(np.flatnonzero(classes == name))
        tested[members[: -(-len(members) // 5) if len(members) > 1 else 0]] = True
    if len(np.unique(classes[~tested])) < 2 or not tested.any():
        count = len(np.unique(classes))
        reason = f"{len(chosen)} images of {count} class(es) cannot be split into two parts"
        return {"linear_probe": None, "linear_probe_reason": reason}
    try:
        from sklearn.linear_model import LogisticRegression
    except ImportError:
        reason = "scikit-learn is not installed (pip install 'dejavu-lit[probe]')"
        return {"linear_probe": None, "linear_probe_reason": reason}
    mean, deviation = features[~tested].mean(axis=0), features[~tested].std(axis=0)
    features = (features - mean) / np.where(deviation > 0, deviation, 1)
    probe = LogisticRegression(max_iter=1000).fit(features[~tested], classes[~tested])
    return {"linear_probe": float((probe.predict(features[tested]) == classes[tested]).mean())}
