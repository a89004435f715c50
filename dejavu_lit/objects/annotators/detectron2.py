"""Objects from detectron2's models: Faster, Mask and Cascade R-CNN, RetinaNet, and plug-ins like Detic.

https://detectron2.readthedocs.io/en/latest/tutorials/models.html describes the models' inputs and outputs. A model is a local
config file and a local file of weights; detectron2's own model catalog is not used.
"""

import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from dejavu_lit.data.objects import Annotator
from dejavu_lit.objects.annotators.detectron2_weights import class_count, load_weights, read_weights, set_classifier
from dejavu_lit.objects.base import Detections, Detector
from dejavu_lit.objects.vocabulary import read_lines
from dejavu_lit.utils.errors import UserError, explained
from dejavu_lit.utils.io import file_sha256, fingerprint

PAGE = "https://detectron2.readthedocs.io/en/latest/tutorials/install.html"
# Some versions save these with the weights and some do not; the model sets them from its config.
FROM_CONFIG = ("pixel_mean", "pixel_std", "cell_anchors")
CLASSIFIER = "zs_weight"  # the weights of Detic's classifier, one embedding per class


@dataclass(frozen=True, kw_only=True)
class Detectron2Detector(Detector):
    """Any model of detectron2 whose output has boxes, scores and classes."""

    config: str
    """A config file: .yaml, or a LazyConfig .py (which is run like any program)."""
    weights: str
    """A local file: a .pkl of detectron2's model zoo, or .pth, .pt, .safetensors; only numbers are read from it."""
    classes: str | None = None
    """A file of class names, one per line in the order of their numbers; null: those of the config's test dataset."""
    options: dict[str, Any] = field(default_factory=dict)
    """More settings of the config by their dotted names, e.g. {INPUT.MIN_SIZE_TEST: 640}."""
    modules: tuple[str, ...] = ()
    """Plug-ins to import before the config is read; for package.module:function, the function is called with the config,
    e.g. detic.config:add_detic_config."""
    classifier: str | None = None
    """For Detic and similar models, a vocabulary other than the config's: a .npy of one embedding per class [classes, width]."""

    @property
    def annotator(self) -> Annotator:
        setup = self._setup
        import detectron2

        classifier = None if self.classifier is None else file_sha256(self._file("classifier"))
        given = {"options": self.options, "modules": self.modules, "classifier": classifier}
        return Annotator(
            "detectron2",
            version=detectron2.__version__,
            weights=file_sha256(self._file("weights")),
            threshold=self.threshold,
            config={
                "file": Path(self.config).name,
                "content": setup.fingerprint,
                **{name: value for name, value in given.items() if value},
            },
            vocabulary=fingerprint(list(self.labels)),
        )

    @cached_property
    def labels(self) -> Sequence[str]:
        if self.classes is not None:
            return read_lines(self.classes)
        from detectron2.data import MetadataCatalog

        for dataset in self._setup.datasets:
            if names := MetadataCatalog.get(dataset).get("thing_classes"):
                return [str(name) for name in names]
        raise UserError(
            f"the config {self.config} has no dataset with known class names; give a file of names by annotator.classes="
        )

    def detect(self, images: Sequence[Image.Image]) -> list[Detections]:
        """The model's own resizing and post-processing, including non-maximum suppression.

        Only images of one size go through the model together: others would be padded, and detections near a border would
        depend on the rest of the batch.
        """
        import torch

        model, labels = self._model, self.labels
        inputs = [self._setup.model_input(image) for image in images]
        by_size: dict[tuple[int, ...], list[int]] = {}
        for position, model_input in enumerate(inputs):
            by_size.setdefault(tuple(model_input["image"].shape), []).append(position)
        detections: dict[int, Detections] = {}
        for positions in by_size.values():
            with torch.inference_mode():
                outputs = model([inputs[position] for position in positions])
            for position, output in zip(positions, outputs, strict=True):
                detections[position] = _detections(output["instances"].to("cpu"), labels, self.threshold)
        return [detections[position] for position in range(len(images))]

    @cached_property
    def _model(self) -> Any:
        with explained(f"no model can be built from annotator.config={self.config}", "check it"):
            model = self._setup.build()
        weights = read_weights(self._file("weights"))
        optional: tuple[str, ...] = FROM_CONFIG
        if self.classifier is not None:
            weights = {name: value for name, value in weights.items() if not name.endswith(CLASSIFIER)}
            optional = (*optional, CLASSIFIER)
        load_weights(model, weights, f"annotator.weights={self.weights}", optional)
        if self.classifier is not None:
            set_classifier(model, self._file("classifier"), len(self.labels))
        if self.classes is not None and (count := class_count(model)) not in (None, len(self.labels)):
            raise UserError(
                f"annotator.classes={self.classes} has {len(self.labels)} names, the model has {count} classes; "
                "give one name per class, in the order of their numbers"
            )
        for module in model.modules():
            if hasattr(module, "test_score_thresh"):
                module.test_score_thresh = self.threshold  # the config's own may be higher
        return model.eval().to(self.local_device)

    @cached_property
    def _setup(self) -> "_Setup":
        problem = "annotator=detectron2 needs the package detectron2"
        with explained(problem, f"install it as {PAGE} says", errors=(ImportError,)):
            import detectron2.data.datasets  # noqa: F401 - registers the class names of COCO, LVIS and others
        path, device = self._file("config"), self.local_device
        hooks = _import_plugins(self.modules)
        with explained(f"annotator.config={path} cannot be used", "check it, annotator.options and annotator.modules"):
            if path.suffix == ".py":
                return _read_lazy_config(path, self.options)
            return _read_yaml(path, self.options, hooks, device)

    def _file(self, option: str) -> Path:
        path = Path(str(getattr(self, option))).expanduser()
        if not path.is_file():
            raise UserError(f"annotator.{option}={path} does not exist; give a local file")
        return path


@dataclass(frozen=True)
class _Setup:
    """A resolved config: how to build its model, and how the model expects its images."""

    build: Callable[[], Any]
    transforms: Any  # detectron2's AugmentationList
    bgr: bool
    datasets: Sequence[str]
    fingerprint: str

    def model_input(self, image: Image.Image) -> dict[str, Any]:
        """An image as detectron2's models expect it; boxes come back in pixels of ``height`` and ``width``."""
        import torch
        from detectron2.data.transforms import AugInput

        pixels = np.asarray(image.convert("RGB"))
        augmented = AugInput(np.ascontiguousarray(pixels[:, :, ::-1] if self.bgr else pixels))
        self.transforms(augmented)
        tensor = torch.from_numpy(np.ascontiguousarray(augmented.image.transpose(2, 0, 1)))
        return {"image": tensor, "height": image.height, "width": image.width}


def _import_plugins(modules: Sequence[str]) -> list[Callable[[Any], Any]]:
    """Import each package.module or package.module:function; returns the functions."""
    hooks = []
    for module in modules:
        name, _, function = module.partition(":")
        problem = f"annotator.modules: {module} cannot be imported"
        with explained(problem, "install the plug-in", errors=(ImportError, AttributeError)):
            plugin = import_module(name)
            hooks += [getattr(plugin, function)] if function else []
    return hooks


def _read_yaml(path: Path, options: Mapping[str, Any], hooks: Sequence[Callable[[Any], Any]], device: str) -> _Setup:
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


def _read_lazy_config(path: Path, options: Mapping[str, Any]) -> _Setup:
    import detectron2.data.transforms as T
    from detectron2.config import LazyConfig, instantiate
    from omegaconf import OmegaConf

    cfg = LazyConfig.load(str(path))
    for name, value in options.items():
        OmegaConf.update(cfg, name, value)
    mapper = OmegaConf.select(cfg, "dataloader.test.mapper")
    resize = instantiate(mapper.augmentations) if mapper is not None else []
    mapper_format = mapper.image_format if mapper is not None else "BGR"
    bgr = OmegaConf.select(cfg, "model.input_format", default=mapper_format) == "BGR"
    names = OmegaConf.select(cfg, "dataloader.test.dataset.names")
    datasets = [names] if isinstance(names, str) else list(names or [])
    # Of the resolved config, since a .py may import others; training settings do not count.
    content = {"model": cfg.model, "mapper": mapper, "bgr": bgr, "datasets": datasets}
    resolved = {
        name: OmegaConf.to_container(value, resolve=True) if OmegaConf.is_config(value) else value
        for name, value in content.items()
    }
    resolved = json.loads(json.dumps(resolved, default=_without_address))
    transforms = T.AugmentationList(list(resize))
    return _Setup(lambda: instantiate(cfg.model), transforms, bgr, datasets, fingerprint(resolved))


def _without_address(value: Any) -> str:
    """A function or an object without its memory address, which differs between processes."""
    if hasattr(value, "__qualname__"):
        return f"{value.__module__}.{value.__qualname__}"
    return re.sub(r" at 0x[0-9a-fA-F]+", "", repr(value))


def _detections(instances: Any, labels: Sequence[str], threshold: float) -> Detections:
    instances = instances[instances.scores >= threshold]
    classes = instances.pred_classes.tolist()
    if classes and max(classes) >= len(labels):
        raise UserError(
            f"the model has a class number {max(classes)}, but only {len(labels)} class names are known; "
            "give a file of names by annotator.classes="
        )
    boxes = [[x, y, right - x, bottom - y] for x, y, right, bottom in instances.pred_boxes.tensor.tolist()]
    return Detections([labels[number] for number in classes], instances.scores.tolist(), boxes)
