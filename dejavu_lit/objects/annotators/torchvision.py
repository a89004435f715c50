"""Objects from torchvision's detection models: Faster and Mask R-CNN, RetinaNet, FCOS, SSD, and custom ones like them.

https://pytorch.org/vision/stable/models.html#object-detection
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

from PIL import Image

from dejavu_lit.data.objects import Annotator
from dejavu_lit.objects.base import Detections, Detector
from dejavu_lit.objects.vocabulary import read_lines
from dejavu_lit.utils.errors import UserError, check_choice, explained
from dejavu_lit.utils.io import file_sha256, fingerprint

if TYPE_CHECKING:
    from torch import nn

BACKGROUND = "__background__"
UNNAMED = (BACKGROUND, "N/A")  # class names that are not objects, so never reported


@dataclass(frozen=True, kw_only=True)
class TorchvisionDetector(Detector):
    """A model of torchvision.models.detection, or a custom one with its interface, and its weights."""

    model: str = "fasterrcnn_resnet50_fpn_v2"
    """A name of torchvision, e.g. fasterrcnn_resnet50_fpn_v2, or package.module.function, which is called with num_classes
    and returns a model with torchvision's interface."""
    weights: str
    """A file (.pt, .pth, .safetensors) or a name of torchvision's, e.g. COCO_V1 (from torch's cache, or downloaded)."""
    classes: str | None = None
    """A file of class names, one per line in the order of their numbers; null: those in the weights file, or torchvision's."""
    options: dict[str, Any] | None = None
    """More arguments of the model, e.g. {min_size: 800}."""

    @property
    def annotator(self) -> Annotator:
        import torchvision

        return Annotator(
            "torchvision",
            version=torchvision.__version__,
            weights=file_sha256(self._file),
            threshold=self.threshold,
            config={"model": self.model, **({"options": dict(self.options)} if self.options else {})},
            vocabulary=fingerprint(list(self.labels)),
        )

    @property
    def labels(self) -> Sequence[str]:
        return [name for name in self._model_and_names[1] if name not in UNNAMED]

    def detect(self, images: Sequence[Image.Image]) -> list[Detections]:
        """The model's own post-processing, including non-maximum suppression."""
        import torch
        from torchvision.transforms.functional import pil_to_tensor

        model, names = self._model_and_names
        with torch.inference_mode():
            outputs = model([pil_to_tensor(image).to(self.local_device).float() / 255 for image in images])
        return [_detections(output, names, self.threshold) for output in outputs]

    @cached_property
    def _model_and_names(self) -> tuple["nn.Module", list[str]]:
        """The model with its weights, and the name of each class number."""
        if self._entry is not None:
            _ = self._file  # download it here, where errors are reported
            model, names = self._build(weights=self._entry), list(self._entry.meta["categories"])
        else:
            model, names = self._load_file()
        head = getattr(model, "roi_heads", model)
        if hasattr(head, "score_thresh"):
            head.score_thresh = self.threshold  # the model's own may be higher
        return model.eval().to(self.local_device), names

    @cached_property
    def _entry(self) -> Any:
        """torchvision's entry for ``weights``; None if it is a file."""
        from torchvision.models import detection, get_model_weights, list_models

        if Path(self.weights).is_file():
            return None
        known = [] if "." in self.model else list_models(module=detection)
        entries = {entry.name: entry for entry in get_model_weights(self.model)} if self.model in known else {}
        if self.weights not in entries:
            names = ", ".join(entries) or "none of torchvision's own"
            raise UserError(
                f"annotator.weights={self.weights} is neither a file nor known to model={self.model} ({names}); check the path"
            )
        return entries[self.weights]

    @cached_property
    def _file(self) -> Path:
        """The weights file; torchvision's own are downloaded if torch's cache does not have them."""
        if self._entry is None:
            return Path(self.weights)
        import torch

        path = Path(torch.hub.get_dir(), "checkpoints", Path(self._entry.url).name)
        if not path.is_file():
            remedy = f"put the file at {path}, or give another by annotator.weights="
            with explained(f"{self._entry.url} could not be downloaded", remedy):
                path.parent.mkdir(parents=True, exist_ok=True)
                digest = path.stem.rpartition("-")[2]  # torchvision's file names end with it; a cut file is not kept
                torch.hub.download_url_to_file(self._entry.url, str(path), digest, progress=False)
        return path

    @cached_property
    def _content(self) -> Mapping[str, Any]:
        """The weights file: its tensors as ``model``, and ``classes`` if it has them."""
        from dejavu_lit.models.weights import load_tensors

        problem = f"annotator.weights={self._file} cannot be read as tensors alone"
        with explained(
            problem, "save the model's state_dict() as .safetensors or .pt", errors=(Exception, MemoryError)
        ):
            content = load_tensors(self._file)
            content = content if isinstance(content.get("model"), Mapping) else {"model": content}
            _shapes(content["model"])
            return content

    def _class_names(self) -> list[str]:
        if self.classes is not None:
            return read_lines(self.classes)
        if "classes" in self._content:
            return [str(name) for name in self._content["classes"]]
        if "." in self.model:
            raise UserError(
                f"the class names of model={self.model} are unknown; give a file of names by annotator.classes="
            )
        from torchvision.models import get_model_weights

        return list(get_model_weights(self.model).DEFAULT.meta["categories"])

    def _load_file(self) -> tuple[Any, list[str]]:
        """A new model with the weights of the file, and its class names.

        In some models class 0 is the background, in others it is not: the shapes of the weights decide.
        """
        from torchvision.models.detection.ssd import SSD

        given, state, mismatch = self._class_names(), self._content["model"], ""
        candidates = [given] if given[:1] == [BACKGROUND] else [[BACKGROUND, *given], given]
        for names in candidates:
            model = self._build(num_classes=len(names), weights=None, weights_backbone=None)
            if names[0] != BACKGROUND and (hasattr(model, "roi_heads") or isinstance(model, SSD)):  # these have one
                break
            expected, actual = _shapes(model.state_dict()), _shapes(state)
            if expected == actual:
                model.load_state_dict(state, strict=False)
                return model, names
            mismatch = next(name for name in (*expected, *actual) if expected.get(name) != actual.get(name))
        raise UserError(
            f"annotator.weights={self.weights} does not fit model={self.model} with {len(given)} classes ({mismatch} differs); "
            "check annotator.model, annotator.options and annotator.classes (one name per line, without the background)"
        )

    def _build(self, **arguments: Any) -> Any:
        from torchvision.models import detection, get_model, list_models

        module, _, function = self.model.rpartition(".")
        if not module:
            check_choice("annotator.model", self.model, list_models(module=detection))
        options = self.options or {}
        problem, remedy = f"annotator.model={self.model} cannot be built", "check its name and annotator.options"
        with explained(problem, remedy, errors=(ImportError, AttributeError, TypeError)):
            if module:
                return getattr(import_module(module), function)(num_classes=arguments["num_classes"], **options)
            return get_model(self.model, **arguments, **options)


def _shapes(state: Mapping[str, Any]) -> dict[str, tuple[int, ...]]:
    """{name: shape} of a state dict; the batch counters are ignored, since older files lack them."""
    return {name: tuple(tensor.shape) for name, tensor in state.items() if not name.endswith("num_batches_tracked")}


def _detections(output: Mapping[str, Any], names: Sequence[str], threshold: float) -> Detections:
    labels, scores, boxes = (output[name].tolist() for name in ("labels", "scores", "boxes"))
    rows = [
        (names[label], score, [left, top, right - left, bottom - top])
        for label, score, (left, top, right, bottom) in zip(labels, scores, boxes, strict=True)
        if score >= threshold and names[label] not in UNNAMED
    ]
    return Detections([row[0] for row in rows], [row[1] for row in rows], [row[2] for row in rows])
