"""Utility of a model on prepared data: zero-shot accuracy, retrieval on H and a linear probe.

Beside every figure that is null stands the reason.
"""

import logging
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from dejavu_lit.data.prepared import DataSpec
from dejavu_lit.data.shards import Pair, ShardSet, read_pairs
from dejavu_lit.evaluation.audited_model import AuditedModel
from dejavu_lit.evaluation.class_names import class_list, prompts
from dejavu_lit.evaluation.embeddings import Embeddings
from dejavu_lit.utils.errors import UserError
from dejavu_lit.utils.progress import progress

if TYPE_CHECKING:
    from dejavu_lit.models.encoder import Encoder

CLASSES = "classes"  # the folder in embeddings:DIR with one vector per class, whose key is the class name
RECALLS = (1, 5, 10)  # k of R@k
SCORES_AT_ONCE = 2**24  # cosines in memory, 128 MB of float64

log = logging.getLogger(__name__)
Values = dict[str, float]


def utility(model: AuditedModel, data: DataSpec) -> dict[str, Any]:
    """The utility of a model, shares from 0 to 1: {zeroshot_top1, zeroshot_top5, i2t_r1, …, t2i_r10, linear_probe, reasons}.

    A figure that cannot be computed is None, and ``reasons`` says why under its name.
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
        values |= dict.fromkeys(names)
        if reason is None:
            try:
                values |= compute(model, data)
            except UserError as error:  # utility must not stop an evaluation
                log.warning("the utility of %s is incomplete: %s", model.name, error)
                reason = str(error)
        if reason is not None:
            reasons |= dict.fromkeys(names, reason)
    return values | {"reasons": reasons}


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
    measured = set(shards.keys()) - data.excluded  # finished embeddings may have more
    keys = [key for key in images.keys if key in captions.rows and key in measured]
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

    Raises UserError if no pair has a label.
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


def class_vectors(encoder: "Encoder", names: Sequence[str], templates: Sequence[Callable[[str], str]]) -> np.ndarray:
    """One unit vector per class, float32 [c, d]: its prompts' embeddings averaged and normalized again, as CLIP does."""
    from dejavu_lit.evaluation.chunks import encode_captions

    vectors = encode_captions(encoder, [template(name) for name in names for template in templates])
    means = vectors.reshape(len(names), len(templates), -1).mean(axis=1, dtype=np.float64)
    return np.asarray(means / np.linalg.norm(means, axis=1, keepdims=True), np.float32)


def zero_shot(images: np.ndarray, labels: np.ndarray, classes: np.ndarray) -> Values:
    """Top-1 and top-5 accuracy, 0 to 1, of the classes nearest by cosine (ties: the smaller class number first).

    images: float [n, d]; labels: int [n], class numbers; classes: float [c, d].
    """
    ranks = _ranks(images, classes, labels)
    return {f"zeroshot_top{top}": float((ranks < top).mean()) for top in (1, 5)}


def retrieval(images: np.ndarray, captions: np.ndarray) -> Values:
    """R@1, R@5, R@10 in both directions: the share of pairs whose partner is among the nearest k by cosine.

    images, captions: float [n, d], row i of both is pair i. Ties: the smaller row first. ``i2t``: image to text.
    """
    values: Values = {}
    for name, queries, public in (("i2t", images, captions), ("t2i", captions, images)):
        ranks = _ranks(queries, public, np.arange(len(queries)))
        values |= {f"{name}_r{k}": float((ranks < k).mean()) for k in RECALLS}
    return values


def _ranks(queries: np.ndarray, public: np.ndarray, right: np.ndarray) -> np.ndarray:
    """How many rows of ``public`` come before row ``right[i]`` in the order of their cosine with query i, int64 [n].

    Rows of equal cosine come in their order, for which torchmetrics' top-k gives no rule. Stored values are multiplied first
    and divided by the norms afterwards: for fp16 vectors the sums are exact, so equal vectors have equal cosines (see search).
    """
    if not len(queries):
        raise UserError("no pair has all the embeddings that this needs")
    if queries.shape[1] != public.shape[1]:
        raise UserError(f"its vectors have {queries.shape[1]} and {public.shape[1]} values, so they cannot be compared")
    transposed = np.asarray(public, np.float64).T
    norms, rows = np.linalg.norm(transposed, axis=0), np.arange(len(public))
    ranks = np.empty(len(queries), np.int64)
    at_once = max(1, SCORES_AT_ONCE // max(1, len(public)))
    for start in progress(range(0, len(queries), at_once), f"ranking for {len(queries)} queries", unit="block"):
        block = np.asarray(queries[start : start + at_once], np.float64)
        scores = block @ transposed / (np.linalg.norm(block, axis=1)[:, None] * norms)
        own = right[start : start + at_once, None]
        own_scores = np.take_along_axis(scores, own, axis=1)
        ranks[start : start + at_once] = ((scores > own_scores) | ((scores == own_scores) & (rows < own))).sum(axis=1)
    return ranks


def linear_probe(images: np.ndarray, labels: Sequence[str], limit: int = 20_000) -> Values:
    """Accuracy of a logistic regression on frozen embeddings: fitted on four fifths of each class, tested on one fifth.

    Features are standardized by the fitted part; scikit-learn's default penalty, at most 1,000 iterations. From more than
    ``limit`` images a seeded sample is drawn. images: float [n, d]; labels: n classes. Raises UserError if they cannot be
    split, or without scikit-learn.
    """
    rng = np.random.default_rng(0)
    chosen = np.sort(rng.permutation(len(labels))[:limit])
    features, classes = np.asarray(images[chosen], np.float64), np.asarray(labels)[chosen]
    tested = np.zeros(len(chosen), bool)
    for name in np.unique(classes):
        members = rng.permutation(np.flatnonzero(classes == name))
        tested[members[: -(-len(members) // 5) if len(members) > 1 else 0]] = True
    if len(np.unique(classes[~tested])) < 2 or not tested.any():
        count = len(np.unique(classes))
        raise UserError(f"it needs two classes, and two images of one (images: {len(chosen)}, classes: {count})")
    try:
        from sklearn.linear_model import LogisticRegression
    except ImportError:
        raise UserError("scikit-learn is not installed (pip install 'dejavu-lit[probe]')") from None
    mean, deviation = features[~tested].mean(axis=0), features[~tested].std(axis=0)
    features = (features - mean) / np.where(deviation > 0, deviation, 1)
    probe = LogisticRegression(max_iter=1000).fit(features[~tested], classes[~tested])
    return {"linear_probe": float((probe.predict(features[tested]) == classes[tested]).mean())}
