"""Detectors that take their classes as text: OWL-ViT, OWLv2 and Grounding DINO, through the transformers library.

Minderer et al. 2022 (arXiv 2205.06230) and 2023 (2306.09683), Liu et al. 2023 (2303.05499). A vocabulary of any length goes
in chunks. For OWL the chunks change nothing: a place of the image gets the class that fits it best of all. Grounding DINO
reads a chunk's classes as one text and finds boxes for it; a class's score is the mean over the tokens of its name.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from PIL import Image

from dejavu_lit.data.objects import Annotator
from dejavu_lit.objects.base import Detections, Detector, needs
from dejavu_lit.objects.vocabulary import vocabulary
from dejavu_lit.utils.errors import UserError
from dejavu_lit.utils.io import file_sha256, fingerprint, read_json

PAGE = "https://huggingface.co/docs/transformers/installation"
OWL = ("owlvit", "owlv2")
DINO = ("grounding-dino", "mm-grounding-dino")
PARTS = ["*.json", "*.txt", "*.model", "*.safetensors"]  # of a hub repository: no pickles


@dataclass(frozen=True, kw_only=True)
class OpenVocabularyDetector(Detector):
    """A model, and the classes it is asked for."""

    model: str
    """A local folder, or a repository of the Hugging Face hub, e.g. google/owlv2-base-patch16-ensemble."""
    vocabulary: str = "coco"
    """coco, imagenet, imagenet-21k, or a file: a label a line, or LVIS's JSON."""
    template: str | None = None
    """What a class is asked for by, with {} for its name; null: "a photo of a {}" for OWL, the name for Grounding DINO."""
    chunk: int = 256
    """Classes asked for at once; for Grounding DINO as many of them as its text takes."""
    threshold: float = 0.1

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.template is not None and "{}" not in self.template:
            raise UserError(f"annotator.template={self.template!r} must hold {{}} where the class name goes")
        if self.chunk < 1:
            raise UserError(f"annotator.chunk={self.chunk} must be at least 1")

    @cached_property
    def annotator(self) -> Annotator:
        """transformers' version, the weights' hash, template, vocabulary, and whatever configures model and processor."""
        with needs("open_vocabulary", PAGE):
            import transformers
        config = {
            "model_type": self._kind,
            "template": self._template,
            "files": fingerprint(self._hashes()),
        }
        if self._kind in DINO:
            config["chunks"] = fingerprint([labels for labels, _ in self._chunks])  # they decide what a text holds
        return Annotator(
            "open_vocabulary",
            version=transformers.__version__,
            weights=self._weights,
            threshold=self.threshold,
            config=config,
            vocabulary=fingerprint(list(self.labels)),
        )

    @cached_property
    def labels(self) -> Sequence[str]:
        """The vocabulary."""
        return list(vocabulary(self.vocabulary))

    @cached_property
    def _folder(self) -> Path:
        if Path(self.model).is_dir():
            return Path(self.model)
        with needs("open_vocabulary", PAGE):
            from huggingface_hub import snapshot_download
        try:
            return Path(snapshot_download(self.model, allow_patterns=PARTS))
        except Exception as error:  # no network, no such name, no permission: each an exception of its own
            reason = (str(error).strip() or type(error).__name__).splitlines()[0]
            raise UserError(
                f"annotator.model={self.model} is neither a folder nor to be had from the hub ({reason}); check its name"
            ) from None

    @cached_property
    def _kind(self) -> str:
        kind = read_json(self._folder / "config.json").get("model_type")
        if kind not in (*OWL, *DINO):
            raise UserError(f"{self.model} is a model of type {kind!r}; this annotator runs {', '.join((*OWL, *DINO))}")
        return str(kind)

    @cached_property
    def _weights(self) -> str:
        files = sorted(self._folder.glob("*.safetensors"))
        if not files:
            raise UserError(f"{self._folder} holds no *.safetensors; save the model with save_pretrained")
        hashes = [file_sha256(file) for file in files]
        return hashes[0] if len(hashes) == 1 else fingerprint(hashes)

    def _hashes(self) -> dict[str, str]:
        """{file: hash} of the configuration of the model and of its processor, and of its tokenizer's words."""
        found = {path.name: path for kind in PARTS[:-1] for path in self._folder.glob(kind)}
        return {name: file_sha256(path) for name, path in sorted(found.items()) if not name.endswith(".index.json")}

    @property
    def _template(self) -> str:
        return self.template or ("a photo of a {}" if self._kind in OWL else "{}")

    def _prompt(self, label: str) -> str:
        return self._template.replace("{}", label.replace("_", " "))

    @cached_property
    def _loaded(self) -> tuple[Any, Any]:
        """The model and its processor."""
        with needs("open_vocabulary", PAGE):
            import transformers
        transformers.utils.logging.disable_progress_bar()
        local = {"local_files_only": True, "trust_remote_code": False}
        try:
            model, report = transformers.AutoModelForZeroShotObjectDetection.from_pretrained(
                self._folder, use_safetensors=True, output_loading_info=True, **local
            )
            processor = transformers.AutoProcessor.from_pretrained(self._folder, **local)
        except Exception as error:  # missing files, damaged weights and unknown classes all raise differently
            reason = (str(error).strip() or type(error).__name__).splitlines()[0][:240]
            raise UserError(
                f"annotator.model={self.model} cannot be loaded ({reason}); save it again with its processor"
            ) from None
        if lacking := sorted(map(str, (*report["missing_keys"], *report["mismatched_keys"]))):
            raise UserError(f"the weights in {self.model} lack or misfit {lacking[0]!r}; save the model again")
        return model.float().eval().requires_grad_(False).to(self.place), processor

    def detect(self, images: Sequence[Image.Image]) -> list[Detections]:
        """All boxes with a class of score ≥ ``threshold``; the same object may have several."""
        import torch

        with torch.inference_mode():
            return self._owl(images) if self._kind in OWL else self._dino(images)

    @cached_property
    def _queries(self) -> Any:
        """OWL's embeddings of the classes, float32 [classes, d]."""
        import torch

        model, processor = self._loaded
        base, found = getattr(model, self._kind), []
        for start in range(0, len(self.labels), self.chunk):
            prompts = [self._prompt(label) for label in self.labels[start : start + self.chunk]]
            tokens = processor.tokenizer(prompts, padding="max_length", truncation=True, return_tensors="pt").to(
                self.place
            )
            text = base.text_model(input_ids=tokens["input_ids"], attention_mask=tokens["attention_mask"])
            found.append(base.text_projection(text.pooler_output))
        return torch.cat(found)

    def _owl(self, images: Sequence[Image.Image]) -> list[Detections]:
        import torch

        model, processor = self._loaded
        pixels = processor.image_processor(images=list(images), return_tensors="pt")["pixel_values"].to(self.place)
        grid, _ = model.image_embedder(pixels)
        places = grid.flatten(1, 2)
        best = torch.full(places.shape[:2], -torch.inf, device=places.device)
        label = torch.zeros(places.shape[:2], dtype=torch.long, device=places.device)
        for start in range(0, len(self.labels), self.chunk):
            queries = self._queries[start : start + self.chunk].expand(len(images), -1, -1)
            logits, number = model.class_predictor(places, queries)[0].max(-1)
            better = logits > best
            best, label = torch.where(better, logits, best), torch.where(better, number + start, label)
        # The processor knows how images were padded; with a threshold below every score it keeps all places in order.
        outputs = SimpleNamespace(logits=best[..., None], pred_boxes=model.box_predictor(places, grid))
        sizes = [(image.height, image.width) for image in images]
        found = processor.image_processor.post_process_object_detection(outputs, threshold=-1.0, target_sizes=sizes)
        scores, boxes = best.sigmoid(), [one["boxes"] for one in found]
        return [self._kept(*row) for row in zip(scores, label, boxes, sizes, strict=True)]

    @cached_property
    def _chunks(self) -> list[tuple[list[str], Mapping[str, Any]]]:
        """For Grounding DINO (labels, tokens with ``spans``: {token numbers of each label}) for each text."""
        model, processor = self._loaded
        longest = min(model.config.max_text_len, processor.tokenizer.model_max_length)
        groups: list[list[str]] = []
        used = longest
        for label in self.labels:
            length = len(processor.tokenizer(self._phrase(label), add_special_tokens=False)["input_ids"]) + 1
            if used + length > longest or len(groups[-1]) == self.chunk:
                groups.append([])
                used = 2  # the text's first and last token
            groups[-1].append(label)
            used += length
        return [(labels, self._text(labels)) for labels in groups]

    def _phrase(self, label: str) -> str:
        return self._prompt(label).replace(".", " ").strip().lower()

    def _text(self, labels: Sequence[str]) -> Mapping[str, Any]:
        """The tokens of "cat. dog." and which of them each label's are."""
        tokenizer = self._loaded[1].tokenizer
        phrases = [self._phrase(label) for label in labels]
        tokens = dict(
            tokenizer(" ".join(f"{phrase}." for phrase in phrases), return_offsets_mapping=True, return_tensors="pt")
        )
        offsets = tokens.pop("offset_mapping")[0].tolist()
        spans, at = [], 0
        for phrase in phrases:
            end = at + len(phrase)
            spans.append([n for n, (first, last) in enumerate(offsets) if at <= first and last <= end and last > first])
            at = end + 2
        return {"tokens": tokens, "spans": spans}

    def _dino(self, images: Sequence[Image.Image]) -> list[Detections]:
        import torch

        model, processor = self._loaded
        inputs = processor.image_processor(images=list(images), return_tensors="pt").to(self.place)
        sizes = [(image.height, image.width) for image in images]
        found: list[list[Detections]] = [[] for _ in images]
        first = 0
        for labels, text in self._chunks:
            tokens = {name: v.expand(len(images), -1).to(self.place) for name, v in text["tokens"].items()}
            outputs = model(**inputs, **tokens)
            scores = outputs.logits.sigmoid()
            by_label = torch.stack([scores[..., span].sum(-1) / max(1, len(span)) for span in text["spans"]], -1)
            best, number = by_label.max(-1)
            for row, (height, width) in enumerate(sizes):
                x, y, w, h = outputs.pred_boxes[row].unbind(-1)
                corners = torch.stack([x - w / 2, y - h / 2, x + w / 2, y + h / 2], -1)
                boxes = corners * torch.tensor([width, height, width, height], device=corners.device)
                found[row].append(self._kept(best[row], number[row] + first, boxes, sizes[row]))
            first += len(labels)
        return [_joined(parts) for parts in found]

    def _kept(self, scores: Any, labels: Any, corners: Any, size: tuple[int, int]) -> Detections:
        """Of places or queries [m] (corners [m, 4] in pixels) those that reach the threshold, boxes cut at the image."""
        kept = scores >= self.threshold
        height, width = size
        boxes = [
            [
                max(0.0, left),
                max(0.0, top),
                min(float(width), right) - max(0.0, left),
                min(float(height), bottom) - max(0.0, top),
            ]
            for left, top, right, bottom in corners[kept].tolist()
        ]
        labels_here, scores_here = labels[kept].tolist(), scores[kept].tolist()
        inside = [row for row, (*_, box_width, box_height) in enumerate(boxes) if box_width > 0 and box_height > 0]
        return Detections(
            [self.labels[labels_here[row]] for row in inside],
            [scores_here[row] for row in inside],
            [boxes[row] for row in inside],
        )


def _joined(parts: Sequence[Detections]) -> Detections:
    return Detections(
        [label for part in parts for label in part.labels],
        [score for part in parts for score in part.scores],
        [box for part in parts for box in part.boxes],
    )
