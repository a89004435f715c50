"""The classes of a labelled set: which class a label names, and the prompts of each class for zero-shot classification."""

import logging
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from pathlib import Path

from dejavu_lit.data.prepared import DataSpec
from dejavu_lit.objects.vocabulary import is_class_number, read_class_names
from dejavu_lit.utils.errors import UserError, check_choice

IMAGENET = "imagenet"  # as classes= and templates=: open_clip's own lists
ORDER = "order"  # as classes_by=: the sorted labels are the classes
LISTED_LABELS = 10  # of those that match no class, in the message

log = logging.getLogger(__name__)


def check_labelled(data: DataSpec) -> None:
    """Raise UserError for a labelled set, classes, templates or ``classes_by`` that cannot be used, before computing anything."""
    if data.labelled:
        if not data.set_folder(data.labelled).is_dir():
            raise UserError(
                f"data.labelled={data.labelled} is not a set of {data.folder} nor a folder of shards; "
                "name one, or leave it empty for none (data.labelled=)"
            )
        _class_names(data.classes, [])
        prompts(data.templates)
        check_choice("data.classes_by", data.classes_by or "null", (ORDER, "null"))


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

    Raises UserError for labels that match no class, another number of labels than classes with ``order``, and a missing
    file.
    """
    # Numbers by their value, before other texts.
    distinct = sorted(
        set(labels), key=lambda label: (0, int(label), label) if is_class_number(label) else (1, 0, label)
    )
    names = _class_names(classes, distinct)
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
    if all(map(is_class_number, distinct)):
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


def _class_names(classes: str | Sequence[str] | None, labels: list[str]) -> list[str]:
    if classes is None:
        return labels
    if isinstance(classes, list | tuple):
        return list(map(str, classes))  # YAML reads 0 as a number
    if classes != IMAGENET and not Path(str(classes)).is_file():
        raise UserError(
            f"classes={classes} is neither {IMAGENET} nor a file with one class name per line; check the path"
        )
    return read_class_names(str(classes))


def prompts(templates: str | Sequence[str]) -> list[Callable[[str], str]]:
    """Prompt templates as functions of the class name: ``imagenet`` (open_clip's 80) or texts with one ``{}`` each.

    Raises UserError for no template, or one without ``{}``.
    """
    if templates == IMAGENET:
        from open_clip import OPENAI_IMAGENET_TEMPLATES

        return list(OPENAI_IMAGENET_TEMPLATES)
    texts = list(map(str, templates)) if isinstance(templates, list | tuple) else [str(templates)]
    if not texts or any(text.count("{}") != 1 for text in texts):
        raise UserError(f"templates={texts} must be {IMAGENET} or texts with one {{}} each, where the class name goes")
    return [partial(text.replace, "{}") for text in texts]
