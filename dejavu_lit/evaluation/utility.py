"""What a side is good for on prepared data: zero-shot accuracy, retrieval on H, a linear probe, each or why not."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from dejavu_lit.data.prepared import DataSpec
from dejavu_lit.data.shards import BadPair, ShardSet
from dejavu_lit.evaluation.audited_model import Side
from dejavu_lit.evaluation.embeddings import Embeddings
from dejavu_lit.utils.errors import UserError

if TYPE_CHECKING:
    from dejavu_lit.models.encoder import Encoder

CLASSES = "classes"  # in embeddings:DIR, the folder of one vector a class, its name being the key
Values = dict[str, float | str | None]


def quality(side: Side, data: DataSpec) -> dict[str, Any]:
    """{zeroshot_top1, zeroshot_top5, i2t_r1, …, t2i_r10, linear_probe, reasons: {figure: why it is null}}, in 0..1."""
    reasons: dict[str, str] = {}
    values: dict[str, Any] = {}

    def attempt(names: tuple[str, ...], work: Callable[[], Values], missing: str | None) -> None:
        try:
            found = work() if missing is None else dict.fromkeys(names)
            values.update({name: found[name] for name in names})
            missing = missing or next((str(found[f"{n}_reason"]) for n in names if f"{n}_reason" in found), None)
        except UserError as error:
            values.update(dict.fromkeys(names))
            missing = str(error)
        if missing is not None:
            reasons.update(dict.fromkeys(names, missing))

    captions_only = "a text model embeds no images" if side.captions_only else None
    unlabelled = captions_only or (None if data.labelled else "data.labelled names no set with class labels")
    attempt(("zeroshot_top1", "zeroshot_top5"), lambda: _zero_shot(side, data), unlabelled)
    attempt(
        tuple(f"{d}_r{k}" for d in ("i2t", "t2i") for k in RECALLS),
        lambda: _retrieval(side, data),
        captions_only,
    )
    attempt(("linear_probe",), lambda: _probe(side, data), unlabelled)
    return values | {"reasons": reasons}


def _labelled(side: Side, data: DataSpec) -> tuple[Embeddings, dict[str, str]]:
    name = str(data.labelled)
    shards = data.shards(name)
    return side.embeddings(shards, name, "image"), read_labels(shards)


def _zero_shot(side: Side, data: DataSpec) -> Values:
    images, labels = _labelled(side, data)
    keys = [key for key in images.keys if key in labels and key not in data.excluded]
    names, number = class_list(data.classes, (labels[key] for key in keys))
    if side.given:
        classes = Embeddings.open(side.given / CLASSES / "text").load(names)
    else:
        classes = class_vectors(side.encoder, names, prompts(data.templates))
    return zero_shot(images.load(keys), np.array([number[labels[key]] for key in keys]), classes)


def _retrieval(side: Side, data: DataSpec) -> Values:
    shards = data.shards("H")
    images, captions = side.embeddings(shards, "H", "image"), side.embeddings(shards, "H", "text")
    keys = [key for key in images.keys if key in captions.rows and key not in data.excluded]
    return retrieval(images.load(keys), captions.load(keys))


def _probe(side: Side, data: DataSpec) -> Values:
    images, labels = _labelled(side, data)
    keys = [key for key in images.keys if key in labels and key not in data.excluded]
    return linear_probe(images.load(keys), [labels[key] for key in keys])


RECALLS = (1, 5, 10)


CELLS = 2**24  # scores held at once


IMAGENET = "imagenet"


def read_labels(shards: ShardSet) -> dict[str, str]:
    """{key: class} of a labelled set: the ``label`` of each pair's JSON, or its ``cls`` member.

    Raises:
        UserError: no pair has a label.
    """
    labels: dict[str, str] = {}
    for shard in range(len(shards.names)):
        index = shards.index(shard)
        for position, key in enumerate(index.keys):
            try:
                label = index.read(position, image=False).meta.get("label")
            except BadPair:
                continue
            if label is not None and str(label):
                labels[key] = str(label)
    if not labels:
        raise UserError(
            f"no pair of {shards.folder} has a class (label in its JSON, or a cls member); check data.labelled"
        )
    return labels


def class_list(classes: str | Sequence[str] | None, labels: Iterable[str]) -> tuple[list[str], dict[str, int]]:
    """(class names as prompts name them, {label: class number}) for the labels of a set.

    Args:
        classes: None (the labels themselves, sorted), ``imagenet`` (open_clip's 1,000 names), a file with one name a
            line, or the names.
        labels: labels are names, numbers of classes from 0, or, where there are as many different ones as classes,
            anything whose sorted order is that of the classes (such as ImageNet's folders).

    Raises:
        UserError: a label that is none of these, or a file that is missing or names a class twice.
    """
    found = sorted(set(labels))
    if classes is None:
        names = found
    elif classes == IMAGENET:
        from open_clip import IMAGENET_CLASSNAMES

        names = list(IMAGENET_CLASSNAMES)
    elif isinstance(classes, str):
        if not Path(classes).is_file():
            raise UserError(f"classes={classes} is neither {IMAGENET} nor a file with one class name a line")
        names = [line.strip() for line in Path(classes).read_text(encoding="utf-8").splitlines() if line.strip()]
    else:
        names = list(classes)
    number = {name: place for place, name in reversed(list(enumerate(names)))}
    if set(found) <= set(number):
        return names, {label: number[label] for label in found}
    if all(label.isdecimal() and int(label) < len(names) for label in found):
        return names, {label: int(label) for label in found}
    if len(found) == len(names):
        return names, {label: place for place, label in enumerate(found)}
    stranger = next(label for label in found if label not in number)
    raise UserError(
        f"the label {stranger!r} is no class of classes= ({len(names)} names for {len(found)} labels); "
        "give the list that belongs to them"
    )


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
    """One unit vector a class, float32 [c, d]: its prompts' embeddings averaged and normalised again, as CLIP does."""
    from dejavu_lit.evaluation.embed import encode_captions

    vectors = encode_captions(encoder, [template(name) for name in names for template in templates])
    means = vectors.reshape(len(names), len(templates), -1).mean(axis=1, dtype=np.float64)
    units: np.ndarray = means / np.linalg.norm(means, axis=1, keepdims=True)
    return units.astype(np.float32)


def zero_shot(images: np.ndarray, labels: np.ndarray, classes: np.ndarray) -> Values:
    """Top-1 and top-5 accuracy, in 0..1, of the class nearest by cosine (ties: the smaller class number first).

    images: float [n, d]; labels: int [n], numbers of classes; classes: float [c, d].
    """
    hits = {1: 0, 5: 0}
    for start, scores in _blocks(images, classes):
        own = np.take_along_axis(scores, labels[start : start + len(scores), None], axis=1)
        before = np.arange(len(classes)) < labels[start : start + len(scores), None]
        ranks = ((scores > own) | ((scores == own) & before)).sum(axis=1)
        for top in hits:
            hits[top] += int((ranks < top).sum())
    return {f"zeroshot_top{top}": count / len(images) if len(images) else None for top, count in hits.items()}


def retrieval(images: np.ndarray, captions: np.ndarray) -> Values:
    """R@1, R@5, R@10 in both directions: the share of pairs whose partner is among the nearest k by cosine.

    images, captions: float [n, d], row i of both is pair i. Ties: the smaller row first. ``i2t``: the image asks.
    """
    values: Values = {}
    for name, queries, public in (("i2t", images, captions), ("t2i", captions, images)):
        ranks = np.empty(len(queries), np.int64)
        for start, scores in _blocks(queries, public):
            rows = np.arange(start, start + len(scores))[:, None]
            own = np.take_along_axis(scores, rows, axis=1)
            ranks[rows[:, 0]] = ((scores > own) | ((scores == own) & (np.arange(len(public)) < rows))).sum(axis=1)
        values |= {f"{name}_r{k}": float((ranks < k).mean()) if len(ranks) else None for k in RECALLS}
    return values


def linear_probe(images: np.ndarray, labels: Sequence[str], seed: int = 0, most: int = 20_000) -> Values:
    """Accuracy of a logistic regression on frozen embeddings: four fifths of each class to fit, one fifth to test.

    Features are standardised by the fitted part; scikit-learn's default penalty, 1,000 iterations at most. Of more than
    ``most`` images a seeded sample is taken. images: float [n, d]; labels: n classes.
    """
    rng = np.random.default_rng(seed)
    chosen = np.sort(rng.permutation(len(labels))[:most])
    features, classes = np.asarray(images[chosen], np.float64), np.asarray(labels)[chosen]
    tested = np.zeros(len(chosen), bool)
    for name in np.unique(classes):
        members = rng.permutation(np.flatnonzero(classes == name))
        tested[members[: -(-len(members) // 5) if len(members) > 1 else 0]] = True
    if len(np.unique(classes[~tested])) < 2 or not tested.any():
        kinds = len(np.unique(classes))
        return {
            "linear_probe": None,
            "linear_probe_reason": f"{len(chosen)} images of {kinds} class(es) cannot be split into two parts",
        }
    try:
        from sklearn.linear_model import LogisticRegression
    except ImportError:
        reason = "scikit-learn is not installed (pip install 'dejavu-lit[probe]')"
        return {"linear_probe": None, "linear_probe_reason": reason}
    mean, deviation = features[~tested].mean(axis=0), features[~tested].std(axis=0)
    features = (features - mean) / np.where(deviation > 0, deviation, 1)
    probe = LogisticRegression(max_iter=1000).fit(features[~tested], classes[~tested])
    return {"linear_probe": float((probe.predict(features[tested]) == classes[tested]).mean())}


def _blocks(queries: np.ndarray, public: np.ndarray) -> Iterator[tuple[int, np.ndarray]]:
    """(first row, cosines of some queries with all of ``public``, float64), never more than CELLS at once.

    Values are multiplied as they are stored and divided by the norms afterwards: of fp16 vectors this is exact, so equal
    vectors have equal cosines (see search.py).
    """
    transposed = np.asarray(public, np.float64).T
    norms = np.linalg.norm(transposed, axis=0)
    rows = max(1, CELLS // max(1, len(public)))
    for start in range(0, len(queries), rows):
        block = np.asarray(queries[start : start + rows], np.float64)
        yield start, block @ transposed / (np.linalg.norm(block, axis=1)[:, None] * norms)
