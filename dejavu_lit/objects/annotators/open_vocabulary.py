"""Objects from detectors that take their classes as text: OWL-ViT, OWLv2 and Grounding DINO, with the transformers library.

Minderer et al. 2022 (arXiv 2205.06230) and 2023 (2306.09683), Liu et al. 2023 (2303.05499). A vocabulary of any length is
processed in chunks. For OWL the chunks do not change the result: each patch of the image gets the class with the highest score
of all. Grounding DINO reads a chunk's classes as one text and finds boxes for it; a class's score is the mean over the tokens
of its name.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple

from PIL import Image

from dejavu_lit.data.objects import Annotator
from dejavu_lit.objects.base import Detections, Detector
from dejavu_lit.objects.vocabulary import vocabulary
from dejavu_lit.utils.errors import UserError, check_at_least, check_choice, explained
from dejavu_lit.utils.io import file_sha256, fingerprint, read_json_object

OWL = ("owlvit", "owlv2")
DINO = ("grounding-dino", "mm-grounding-dino")
CONFIG_FILES = ("*.json", "*.txt", "*.model")  # of the model, its processor and its tokenizer
WEIGHT_FILES = "*.safetensors"  # no pickles


class TextChunk(NamedTuple):
    """Classes that Grounding DINO reads as one text, its tokens, and the positions of each label's tokens."""

    labels: list[str]
    tokens: Mapping[str, Any]
    spans: list[list[int]]


@dataclass(frozen=True, kw_only=True)
class OpenVocabularyDetector(Detector):
    """A text-conditioned model and the classes it looks for."""

    model: str
    """A local folder, or a repository of the Hugging Face hub, e.g. google/owlv2-base-patch16-ensemble."""
    vocabulary: str = "coco"
    """coco, imagenet, imagenet-21k, or a file: one label per line, or LVIS's JSON."""
    template: str | None = None
    """The text of a class, with {} for its name; null: "a photo of a {}" for OWL, the name alone for Grounding DINO."""
    chunk: int = 256
    """Classes per forward pass; for Grounding DINO at most as many as its text length allows."""
    batch: int = 4
    """Images per call of ``detect``."""
    threshold: float = 0.1
    """Lowest score that is kept; these models give low scores, so evaluate with a threshold of 0.1 to 0.3."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.template is not None and "{}" not in self.template:
            raise UserError(f"annotator.template={self.template!r} must contain {{}} in place of the class name")
        check_at_least(self, "annotator.", chunk=1)

    @cached_property
    def annotator(self) -> Annotator:
        with explained("annotator=open_vocabulary cannot run", "install it again", "objects"):
            import transformers
        config = {"model_type": self._model_type, "template": self._template}
        paths = sorted({path for pattern in CONFIG_FILES for path in self._folder.glob(pattern)})
        files = {path.name: file_sha256(path) for path in paths if not path.name.endswith(".index.json")}
        config["files"] = fingerprint(files)
        if self._model_type in DINO:  # a score depends on the whole text
            config["chunks"] = fingerprint([chunk.labels for chunk in self._chunks])
        return Annotator(
            "open_vocabulary",
            version=transformers.__version__,
            weights=self._weights_hash,
            threshold=self.threshold,
            config=config,
            vocabulary=fingerprint(list(self.labels)),
        )

    @cached_property
    def labels(self) -> Sequence[str]:
        return list(vocabulary(self.vocabulary))

    def detect(self, images: Sequence[Image.Image]) -> list[Detections]:
        """All boxes with a class of score ≥ ``threshold``; one object may have several boxes."""
        import torch

        with torch.inference_mode():
            return self._detect_owl(images) if self._model_type in OWL else self._detect_dino(images)

    def _detect_owl(self, images: Sequence[Image.Image]) -> list[Detections]:
        import torch

        model, processor = self._model_and_processor
        inputs = processor.image_processor(images=list(images), return_tensors="pt")
        grid, _ = model.image_embedder(inputs["pixel_values"].to(self.local_device))
        patches = grid.flatten(1, 2)
        best = torch.full(patches.shape[:2], -torch.inf, device=patches.device)
        label = torch.zeros(patches.shape[:2], dtype=torch.long, device=patches.device)
        for start in range(0, len(self.labels), self.chunk):
            queries = self._owl_queries[start : start + self.chunk].expand(len(images), -1, -1)
            logits, number = model.class_predictor(patches, queries)[0].max(-1)
            better = logits > best
            best, label = torch.where(better, logits, best), torch.where(better, number + start, label)
        # The processor knows how images were padded; with a threshold below every score it keeps all patches in order.
        outputs = SimpleNamespace(logits=best[..., None], pred_boxes=model.box_predictor(patches, grid))
        sizes = [(image.height, image.width) for image in images]
        results = processor.image_processor.post_process_object_detection(outputs, threshold=-1.0, target_sizes=sizes)
        scores, boxes = best.sigmoid(), [result["boxes"] for result in results]
        return [self._detections(*row) for row in zip(scores, label, boxes, sizes, strict=True)]

    @cached_property
    def _owl_queries(self) -> Any:
        """OWL's embeddings of the classes, float32 [classes, d]."""
        import torch

        model, processor = self._model_and_processor
        base, queries = getattr(model, self._model_type), []
        for start in range(0, len(self.labels), self.chunk):
            prompts = [self._prompt(label) for label in self.labels[start : start + self.chunk]]
            tokens = processor.tokenizer(prompts, padding="max_length", truncation=True, return_tensors="pt")
            tokens = tokens.to(self.local_device)
            text = base.text_model(input_ids=tokens["input_ids"], attention_mask=tokens["attention_mask"])
            queries.append(base.text_projection(text.pooler_output))
        return torch.cat(queries)

    def _detect_dino(self, images: Sequence[Image.Image]) -> list[Detections]:
        import torch
        from torchvision.ops import box_convert

        model, processor = self._model_and_processor
        inputs = processor.image_processor(images=list(images), return_tensors="pt").to(self.local_device)
        sizes = [(image.height, image.width) for image in images]
        scores, labels, boxes, first = [], [], [], 0
        for chunk in self._chunks:
            tokens = {name: v.expand(len(images), -1).to(self.local_device) for name, v in chunk.tokens.items()}
            outputs = model(**inputs, **tokens)
            by_token = outputs.logits.sigmoid()
            by_label = torch.stack([by_token[..., span].sum(-1) / max(1, len(span)) for span in chunk.spans], -1)
            best, number = by_label.max(-1)
            scores.append(best)
            labels.append(number + first)
            boxes.append(outputs.pred_boxes)
            first += len(chunk.labels)
        scale = torch.tensor([[width, height, width, height] for height, width in sizes], device=self.local_device)
        corners = box_convert(torch.cat(boxes, 1), "cxcywh", "xyxy") * scale[:, None]
        rows = zip(torch.cat(scores, 1), torch.cat(labels, 1), corners, sizes, strict=True)
        return [self._detections(*row) for row in rows]

    @cached_property
    def _chunks(self) -> list[TextChunk]:
        """The vocabulary as texts for Grounding DINO."""
        model, processor = self._model_and_processor
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
        return [self._tokenize(labels) for labels in groups]

    def _tokenize(self, labels: list[str]) -> TextChunk:
        """The tokens of "cat. dog." and the positions of each label's tokens."""
        tokenizer = self._model_and_processor[1].tokenizer
        phrases = [self._phrase(label) for label in labels]
        text = " ".join(f"{phrase}." for phrase in phrases)
        tokens = dict(tokenizer(text, return_offsets_mapping=True, return_tensors="pt"))
        offsets = tokens.pop("offset_mapping")[0].tolist()
        spans, start = [], 0
        for phrase in phrases:
            end = start + len(phrase)
            spans.append([n for n, (first, last) in enumerate(offsets) if start <= first < last <= end])
            start = end + 2
        return TextChunk(labels, tokens, spans)

    def _phrase(self, label: str) -> str:
        return self._prompt(label).replace(".", " ").strip().lower()

    def _prompt(self, label: str) -> str:
        return self._template.replace("{}", label.replace("_", " "))

    @property
    def _template(self) -> str:
        return self.template or ("a photo of a {}" if self._model_type in OWL else "{}")

    def _detections(self, scores: Any, labels: Any, corners: Any, size: tuple[int, int]) -> Detections:
        """The candidates [m] (corners [m, 4] in pixels) that reach the threshold, boxes clipped to the image."""
        from torchvision.ops import box_convert, clip_boxes_to_image

        boxes = box_convert(clip_boxes_to_image(corners, size), "xyxy", "xywh")
        kept = (scores >= self.threshold) & (boxes[:, 2:] > 0).all(dim=1)
        labels = [self.labels[number] for number in labels[kept].tolist()]
        return Detections(labels, scores[kept].tolist(), boxes[kept].tolist())

    @cached_property
    def _model_and_processor(self) -> tuple[Any, Any]:
        from dejavu_lit.models.transformers_encoder import load_pretrained

        parts = {"AutoModelForZeroShotObjectDetection": {"use_safetensors": True}, "AutoProcessor": {}}
        model, processor = load_pretrained(f"annotator.model={self.model}", self._folder, parts)
        return model.eval().requires_grad_(False).to(self.local_device), processor

    @cached_property
    def _folder(self) -> Path:
        if Path(self.model).is_dir():
            return Path(self.model)
        from huggingface_hub import snapshot_download

        problem = f"annotator.model={self.model} is not a folder and could not be downloaded from the hub"
        with explained(problem, "check its name"):
            return Path(snapshot_download(self.model, allow_patterns=[*CONFIG_FILES, WEIGHT_FILES]))

    @cached_property
    def _model_type(self) -> str:
        model_type = str(read_json_object(self._folder / "config.json").get("model_type"))
        check_choice(f"annotator.model={self.model}: model_type", model_type, (*OWL, *DINO))
        return model_type

    @property
    def _weights_hash(self) -> str:
        files = sorted(self._folder.glob(WEIGHT_FILES))
        if not files:
            raise UserError(f"{self._folder} has no {WEIGHT_FILES}; save the model with save_pretrained")
        hashes = [file_sha256(file) for file in files]
        return hashes[0] if len(hashes) == 1 else fingerprint(hashes)
