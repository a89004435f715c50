"""torchvision's detection models as annotators: Faster and Mask R-CNN, RetinaNet, FCOS, SSD, and one's own of their kind.

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
from dejavu_lit.objects.base import Detections, Detector, needs
from dejavu_lit.objects.vocabulary import lines
from dejavu_lit.utils.errors import UserError, suggest
from dejavu_lit.utils.io import file_sha256, fingerprint

if TYPE_CHECKING:
    from torch import nn

PAGE = "https://pytorch.org/get-started/locally"
BACKGROUND = "__background__"
UNNAMED = (BACKGROUND, "N/A")  # classes that are never reported


@dataclass(frozen=True, kw_only=True)
class TorchvisionDetector(Detector):
    """A model of torchvision.models.detection with its weights."""

    model: str
    """A name of torchvision, e.g. fasterrcnn_resnet50_fpn_v2, or package.module.function, which is called with num_classes
    and returns a model with torchvision's interface."""
    weights: str
    """A file (.pt, .pth, .safetensors) or one of torchvision's own, e.g. COCO_V1 (taken from torch's cache, or downloaded)."""
    classes: str | None = None
    """A file of class names, one a line in the order of their numbers; null: those in the file of weights, or torchvision's."""
    options: Mapping[str, Any] | None = None
    """Further arguments of the model, e.g. {min_size: 800}."""

    @property
    def annotator(self) -> Annotator:
        """torchvision's version, the weights' hash, the model and its options."""
        with needs("torchvision", PAGE):
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
        """The class names, without the background."""
        return [name for name in self._loaded[1] if name not in UNNAMED]

    @cached_property
    def _own(self) -> Any:
        """torchvision's entry for ``weights``; None for a file."""
        with needs("torchvision", PAGE):
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
        """The file of weights; one of torchvision's own is downloaded where torch's cache lacks it."""
        if self._own is None:
            return Path(self.weights)
        import torch

        path = Path(torch.hub.get_dir(), "checkpoints", Path(self._own.url).name)
        if not path.is_file():
            try:
                path.parent.mkdir(parents=True, exist_ok=True)
                torch.hub.download_url_to_file(self._own.url, str(path), progress=False)
            except OSError as error:
                raise UserError(
                    f"{self._own.url} cannot be downloaded ({error}); put the file at {path}, or name one by annotator.weights="
                ) from None
        return path

    @cached_property
    def _content(self) -> Mapping[str, Any]:
        """The tensors of the file of weights, and its ``classes`` where it brings them."""
        import torch
        from safetensors.torch import load_file

        try:
            if self._file.suffix == ".safetensors":
                return {"model": load_file(self._file)}
            content = torch.load(self._file, map_location="cpu", weights_only=True)
        except Exception as error:  # torch's readers raise nearly anything for a file that is none of theirs
            raise UserError(
                f"annotator.weights={self._file} cannot be read as tensors alone ({str(error).splitlines()[0]}); "
                "save the model's state_dict() as .safetensors or .pt"
            ) from None
        return content if isinstance(content.get("model"), Mapping) else {"model": content}

    def _given_names(self) -> list[str]:
        if self.classes is not None:
            return lines(self.classes)
        if "classes" in self._content:
            return [str(name) for name in self._content["classes"]]
        if "." in self.model:
            raise UserError(
                f"the names of the classes of model={self.model} are not known; give a file by annotator.classes="
            )
        from torchvision.models import get_model_weights

        return list(get_model_weights(self.model).DEFAULT.meta["categories"])

    @cached_property
    def _loaded(self) -> tuple["nn.Module", list[str]]:
        """The model with its weights, and the name of each class number."""
        if self._own is not None:
            _ = self._file
            model, names = self._build(weights=self._own), list(self._own.meta["categories"])
        else:
            model, names = self._filled()
        ranked = getattr(model, "roi_heads", model)
        if hasattr(ranked, "score_thresh"):
            ranked.score_thresh = self.threshold  # the model's own would cut off what is asked for
        return model.eval().to(self.place), names

    def _filled(self) -> tuple[Any, list[str]]:
        """A new model filled from the file. Some count a background as class 0, some do not: the weights' shapes tell."""
        given, found, differing = self._given_names(), self._content["model"], ""
        tries = [given] if given[:1] == [BACKGROUND] else [[BACKGROUND, *given], given]
        for names in tries:
            model = self._build(num_classes=len(names), weights=None, weights_backbone=None)
            if names[0] != BACKGROUND and _has_background(model):
                break
            shapes = [
                {
                    name: tuple(tensor.shape)
                    for name, tensor in state.items()
                    if not name.endswith("num_batches_tracked")
                }
                for state in (model.state_dict(), found)
            ]
            if shapes[0] == shapes[1]:
                model.load_state_dict(found, strict=False)
                return model, names
            differing = next(name for name in (*shapes[0], *shapes[1]) if shapes[0].get(name) != shapes[1].get(name))
        raise UserError(
            f"annotator.weights={self.weights} do not fit model={self.model} with {len(given)} classes ({differing} differs); "
            "check annotator.model, annotator.options and annotator.classes (one name a line, the background left out)"
        )

    def _build(self, **how: Any) -> Any:
        from torchvision.models import detection, get_model, list_models

        module, _, function = self.model.rpartition(".")
        known = [] if module else list_models(module=detection)
        if not module and self.model not in known:
            raise UserError(
                f"annotator.model={self.model} is unknown{suggest(self.model, known)}; torchvision has {', '.join(known)}"
            )
        try:
            if module:
                return getattr(import_module(module), function)(num_classes=how["num_classes"], **(self.options or {}))
            return get_model(self.model, **how, **(self.options or {}))
        except (ImportError, AttributeError) as error:
            raise UserError(f"annotator.model={self.model} cannot be imported ({error}); check the name") from None
        except TypeError as error:
            raise UserError(f"annotator.options do not fit model={self.model} ({error}); check their names") from None

    def detect(self, images: Sequence[Image.Image]) -> list[Detections]:
        """The model's own post-processing, non-maximum suppression included."""
        import torch
        from torchvision.transforms.functional import pil_to_tensor

        model, names = self._loaded
        with torch.inference_mode():
            found = model([pil_to_tensor(image).to(self.place).float() / 255 for image in images])
        return [_detections(one, names, self.threshold) for one in found]


def _has_background(model: Any) -> bool:
    """Whether class 0 is the background: so it is for all models with regions of interest, and for SSD."""
    from torchvision.models.detection.ssd import SSD

    return hasattr(model, "roi_heads") or isinstance(model, SSD)


def _detections(found: Mapping[str, Any], names: Sequence[str], threshold: float) -> Detections:
    labels, scores, boxes = (found[name].tolist() for name in ("labels", "scores", "boxes"))
    rows = [
        (names[label], score, [left, top, right - left, bottom - top])
        for label, score, (left, top, right, bottom) in zip(labels, scores, boxes, strict=True)
        if score >= threshold and names[label] not in UNNAMED
    ]
    return Detections([row[0] for row in rows], [row[1] for row in rows], [row[2] for row in rows])
