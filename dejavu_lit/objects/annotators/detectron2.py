"""detectron2's models as annotators: Faster, Mask and Cascade R-CNN, RetinaNet, and plug-ins like Detic.

https://detectron2.readthedocs.io/en/latest/tutorials/models.html says what the models take and give. A model is a config file
and a file of weights by local path; detectron2's own catalogue of models is not used, nor are weights ever run as code.
"""

import pickle
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from dejavu_lit.data.objects import Annotator
from dejavu_lit.objects.base import Detections, Detector, needs
from dejavu_lit.objects.vocabulary import lines
from dejavu_lit.utils.errors import UserError, first_line
from dejavu_lit.utils.io import file_sha256, fingerprint

PAGE = "https://detectron2.readthedocs.io/en/latest/tutorials/install.html"
# In weights of some versions and not of others; the model fills them from its config.
FROM_CONFIG = ("pixel_mean", "pixel_std", "cell_anchors")


@dataclass(frozen=True, kw_only=True)
class Detectron2Detector(Detector):
    """Any model of detectron2 whose output has boxes, scores and classes."""

    config: str
    """A config file: .yaml, or a LazyConfig .py (which is run, as any program)."""
    weights: str
    """A .pkl of detectron2's model zoo, or .pth, .pt, .safetensors; only numbers are read from it."""
    classes: str | None = None
    """A file of class names, one a line in the order of their numbers; null: those of the config's test dataset."""
    options: Mapping[str, Any] = field(default_factory=dict)
    """Further settings of the config by their dotted names, e.g. {INPUT.MIN_SIZE_TEST: 640}."""
    modules: Sequence[str] = ()
    """Plug-ins to import before the config is read; package.module:function is then called with the config."""
    classifier: str | None = None
    """For models whose box classifiers compare with one embedding a class, as Detic's: a .npy [classes, width]."""

    @property
    def annotator(self) -> Annotator:
        """detectron2's version, the weights' hash, and the config as it turned out."""
        with needs("detectron2", PAGE):
            import detectron2
        _ = self._weights
        config: dict[str, Any] = {"file": Path(self.config).name, "content": self._setup.content}
        for name in ("options", "modules"):
            if value := getattr(self, name):
                config[name] = dict(value) if isinstance(value, Mapping) else list(value)
        if self.classifier is not None:
            config["classifier"] = file_sha256(self._file("classifier"))
        return Annotator(
            "detectron2",
            version=detectron2.__version__,
            weights=file_sha256(self._weights),
            threshold=self.threshold,
            config=config,
            vocabulary=fingerprint(list(self.labels)),
        )

    @cached_property
    def labels(self) -> Sequence[str]:
        """The class names, by number."""
        if self.classes is not None:
            return lines(self.classes)
        from detectron2.data import MetadataCatalog

        for name in self._setup.datasets:
            if found := MetadataCatalog.get(name).get("thing_classes"):
                return [str(label) for label in found]
        raise UserError(
            f"the config {self.config} names no dataset whose classes are known; give a file of names by annotator.classes="
        )

    def _file(self, option: str) -> Path:
        path = Path(str(getattr(self, option))).expanduser()
        if not path.is_file():
            raise UserError(f"annotator.{option}={path} does not exist; give a local file")
        return path

    @property
    def _weights(self) -> Path:
        return self._file("weights")

    @cached_property
    def _setup(self) -> "_Setup":
        with needs("detectron2", PAGE):
            import detectron2.data.datasets  # noqa: F401 - names the classes of COCO, LVIS and others
        path = self._file("config")
        hooks = []
        for module in self.modules:
            name, _, function = module.partition(":")
            try:
                loaded = import_module(name)
                hooks += [getattr(loaded, function)] if function else []
            except (ImportError, AttributeError) as error:
                raise UserError(
                    f"annotator.modules: {module} cannot be imported ({error}); install the plug-in"
                ) from None
        try:
            return _lazy(path, self.options) if path.suffix == ".py" else _yaml(path, self.options, hooks, self.place)
        except Exception as error:  # config files fail in as many ways as programs do
            raise UserError(
                f"annotator.config={path} cannot be used ({type(error).__name__}: {first_line(error)}); "
                "check it, annotator.options and annotator.modules"
            ) from None

    @cached_property
    def _model(self) -> Any:
        """The model with its weights."""
        try:
            model = self._setup.build()
        except Exception as error:
            raise UserError(f"annotator.config={self.config} builds no model ({first_line(error)}); check it") from None
        weights = read_weights(self._weights)
        if self.classifier is not None:
            weights = {name: value for name, value in weights.items() if not name.endswith("zs_weight")}
        fill(
            model,
            weights,
            f"annotator.weights={self.weights}",
            (*FROM_CONFIG, *(["zs_weight"] if self.classifier else [])),
        )
        if self.classifier is not None:
            set_classifier(model, self._file("classifier"), len(self.labels))
        if self.classes is not None and (known := class_count(model)) not in (None, len(self.labels)):
            raise UserError(
                f"annotator.classes={self.classes} holds {len(self.labels)} names, the model has {known} classes; "
                "give one name a class, in the order of their numbers"
            )
        for module in model.modules():
            if hasattr(module, "test_score_thresh"):
                module.test_score_thresh = self.threshold  # the config's own would cut off what is asked for
        return model.eval().to(self.place)

    def detect(self, images: Sequence[Image.Image]) -> list[Detections]:
        """The model's own resizing and post-processing, non-maximum suppression included.

        Only images of one size go through the model together: others would be padded, and what is found near a border would
        depend on the rest of the batch.
        """
        import torch

        model, labels = self._model, self.labels
        given = [self._setup.model_input(image) for image in images]
        by_size: dict[tuple[int, ...], list[int]] = {}
        for place, one in enumerate(given):
            by_size.setdefault(tuple(one["image"].shape), []).append(place)
        found: dict[int, Detections] = {}
        for places in by_size.values():
            with torch.inference_mode():
                outputs = model([given[place] for place in places])
            for place, output in zip(places, outputs, strict=True):
                found[place] = _detections(output["instances"].to("cpu"), labels, self.threshold)
        return [found[place] for place in range(len(images))]


@dataclass(frozen=True)
class _Setup:
    """A config as it turned out: how to build its model, and how the model wants its images."""

    build: Any
    transforms: Any  # detectron2's AugmentationList
    bgr: bool
    datasets: Sequence[str]
    content: str  # fingerprint

    def model_input(self, image: Image.Image) -> dict[str, Any]:
        """An image as detectron2's models take it; boxes come back in pixels of ``height`` and ``width``."""
        import torch
        from detectron2.data.transforms import AugInput

        pixels = np.asarray(image.convert("RGB"))
        given = AugInput(np.ascontiguousarray(pixels[:, :, ::-1] if self.bgr else pixels))
        self.transforms(given)
        tensor = torch.from_numpy(np.ascontiguousarray(given.image.transpose(2, 0, 1)))
        return {"image": tensor, "height": image.height, "width": image.width}


def _yaml(path: Path, options: Mapping[str, Any], hooks: Sequence[Any], device: str) -> _Setup:
    import detectron2.data.transforms as T
    from detectron2.config import get_cfg
    from detectron2.modeling import build_model

    cfg = get_cfg()
    for hook in hooks:
        hook(cfg)
    cfg.merge_from_file(str(path), allow_unsafe=False)
    cfg.merge_from_list([part for item in options.items() for part in item])
    content = fingerprint(cfg.dump())
    cfg.MODEL.DEVICE = device
    size = cfg.INPUT.MIN_SIZE_TEST
    resize = [T.ResizeShortestEdge([size, size], cfg.INPUT.MAX_SIZE_TEST)] if size else []
    datasets = [*cfg.DATASETS.TEST, *cfg.DATASETS.TRAIN]
    return _Setup(lambda: build_model(cfg), T.AugmentationList(resize), cfg.INPUT.FORMAT == "BGR", datasets, content)


def _lazy(path: Path, options: Mapping[str, Any]) -> _Setup:
    import detectron2.data.transforms as T
    from detectron2.config import LazyConfig, instantiate
    from omegaconf import OmegaConf

    cfg = LazyConfig.load(str(path))
    for name, value in options.items():
        OmegaConf.update(cfg, name, value)
    mapper = OmegaConf.select(cfg, "dataloader.test.mapper")
    resize = instantiate(mapper.augmentations) if mapper is not None else []
    bgr = (
        OmegaConf.select(cfg, "model.input_format", default=mapper.image_format if mapper is not None else "BGR")
        == "BGR"
    )
    names = OmegaConf.select(cfg, "dataloader.test.dataset.names")
    datasets = [names] if isinstance(names, str) else list(names or [])
    # As it turned out, since a .py may import others; what says how to train has no part in it.
    given = {"model": cfg.model, "mapper": mapper, "bgr": bgr, "datasets": datasets}
    content = fingerprint(
        {
            name: _plain(OmegaConf.to_container(v, resolve=True) if OmegaConf.is_config(v) else v)
            for name, v in given.items()
        }
    )
    return _Setup(lambda: instantiate(cfg.model), T.AugmentationList(list(resize)), bgr, datasets, content)


def _plain(value: Any) -> Any:
    """A config's value without what differs from one process to the next: addresses of functions and objects."""
    if isinstance(value, Mapping):
        return {str(name): _plain(inner) for name, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(inner) for inner in value]
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if hasattr(value, "__qualname__"):
        return f"{value.__module__}.{value.__qualname__}"
    return re.sub(r" at 0x[0-9a-fA-F]+", "", repr(value))


def read_weights(path: Path) -> dict[str, Any]:
    """{name: tensor} of a file of weights, read without running any code it may carry; raises UserError."""
    import torch
    from safetensors.torch import load_file

    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        content = (
            read_numbers(path) if path.suffix == ".pkl" else torch.load(path, map_location="cpu", weights_only=True)
        )
        state = content.get("model", content)
        return {name: torch.as_tensor(value) for name, value in state.items()}
    except Exception as error:  # readers raise nearly anything for a file that is none of theirs
        raise UserError(f"annotator.weights={path} cannot be read as tensors alone ({first_line(error)})") from None


def fill(model: Any, weights: Mapping[str, Any], where: str, optional: Sequence[str]) -> None:
    """Load the weights; raises UserError where a name or a shape does not fit, but for names that contain an ``optional``."""

    def telling(names: Sequence[str]) -> list[str]:
        return [name for name in names if not any(part in name for part in optional)]

    try:
        found = model.load_state_dict(dict(weights), strict=False)
    except RuntimeError as error:
        raise UserError(
            f"{where} do not fit the config ({first_line(error)}); take the weights of this config"
        ) from None
    for what, names in (("lacks", telling(found.missing_keys)), ("has no place for", telling(found.unexpected_keys))):
        if names:
            subject = "the file" if what == "lacks" else "the model"
            raise UserError(
                f"{where} do not fit the config ({subject} {what} {names[0]}, {len(names)} in all); "
                "take the weights of this config"
            )


def class_count(model: Any) -> int | None:
    """How many classes its box classifier tells apart; None where it does not say."""
    for module in model.modules():
        count = getattr(module, "num_classes", None)
        if isinstance(count, int) and any(
            hasattr(module, part) for part in ("box_predictor", "cls_score", "anchor_generator")
        ):
            return count
    return None


def set_classifier(model: Any, path: Path, classes: int) -> None:
    """Put one embedding a class into every box classifier that compares with such (``zs_weight``, [width, classes + 1]).

    The last column is the background's, zero; columns are normalised where the classifier says ``norm_weight``.

    Raises:
        UserError: a file that does not fit, or a model without such a classifier.
    """
    import torch

    try:
        rows = torch.from_numpy(np.asarray(np.load(path, allow_pickle=False), dtype=np.float32))
    except ValueError as error:
        raise UserError(f"annotator.classifier={path} is no .npy of numbers ({first_line(error)})") from None
    heads = [module for module in model.modules() if isinstance(getattr(module, "zs_weight", None), torch.Tensor)]
    if not heads:
        raise UserError(
            "annotator.classifier is for models that compare with one embedding a class, as Detic's do; drop it"
        )
    if rows.ndim != 2 or len(rows) != classes or rows.shape[1] != heads[0].zs_weight.shape[0]:
        raise UserError(
            f"annotator.classifier={path} holds {list(rows.shape)} numbers, not [{classes} class names, "
            f"{heads[0].zs_weight.shape[0]}]; give the names of its rows by annotator.classes="
        )
    columns = torch.cat([rows.T, rows.new_zeros(rows.shape[1], 1)], dim=1)
    for head in heads:
        unit = torch.nn.functional.normalize(columns, dim=0) if getattr(head, "norm_weight", False) else columns
        head.zs_weight = unit.to(head.zs_weight.device)
    for module in model.modules():
        if hasattr(module, "num_classes") and (hasattr(module, "box_predictor") or hasattr(module, "cls_score")):
            module.num_classes = classes


def _detections(found: Any, labels: Sequence[str], threshold: float) -> Detections:
    kept = found[found.scores >= threshold]
    names = kept.pred_classes.tolist()
    if names and max(names) >= len(labels):
        raise UserError(
            f"the model has a class number {max(names)}, and {len(labels)} names are known; give a file by annotator.classes="
        )
    boxes = [[x, y, right - x, bottom - y] for x, y, right, bottom in kept.pred_boxes.tensor.tolist()]
    return Detections([labels[number] for number in names], kept.scores.tolist(), boxes)


# What arrays, scalars and dictionaries of numpy need; everything else is refused.
ALLOWED = {
    ("numpy", "ndarray"),
    ("numpy", "dtype"),
    ("numpy.core.multiarray", "_reconstruct"),
    ("numpy._core.multiarray", "_reconstruct"),
    ("numpy.core.multiarray", "scalar"),
    ("numpy._core.multiarray", "scalar"),
    ("numpy.core.numeric", "_frombuffer"),
    ("numpy._core.numeric", "_frombuffer"),
    ("collections", "OrderedDict"),
    ("_codecs", "encode"),
}


class _Numbers(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        """Refuse whatever is not plain data."""
        if (module, name) not in ALLOWED:
            raise pickle.UnpicklingError(f"it holds {module}.{name}, which is no plain data")
        return super().find_class(module.replace("numpy.core", "numpy._core"), name)


def read_numbers(path: Path) -> dict[str, Any]:
    """The dictionary of arrays in the file; raises UnpicklingError for anything that is not plain data."""
    with open(path, "rb") as file:
        content = _Numbers(file, encoding="latin1").load()
    if not isinstance(content, dict):
        raise pickle.UnpicklingError("it is no dictionary of arrays")
    return content
