"""CLIP and SigLIP models in folders of the transformers library, as encoders."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from dejavu_lit.models.encoder import torch_device
from dejavu_lit.models.tokenizer import check_words, tokenizer_fingerprint
from dejavu_lit.models.weights import weights_hash
from dejavu_lit.utils.errors import UserError, explained
from dejavu_lit.utils.io import fingerprint, read_json_object

MODEL_TYPES = ("clip", "siglip")


class TransformersEncoder:
    """A transformers CLIP or SigLIP, equal to its processor followed by ``get_image_features``, ``get_text_features``."""

    def __init__(self, name: str, folder: Path, device: str) -> None:
        self.name = name
        self.device = torch_device(device)
        what = f"the transformers model in {folder}"
        with explained(f"{what} cannot be loaded", "save it again", "objects"):
            parts: dict[str, dict[str, Any]] = {"AutoModel": {}, "AutoImageProcessor": _pillow(), "AutoTokenizer": {}}
        model, self._processor, self._tokenizer = load_pretrained(what, folder, parts)
        # Always padded to the full context, so that the result does not depend on the other captions to the last bit.
        self._context = model.config.text_config.max_position_embeddings
        processor = {key: value for key, value in self._processor.to_dict().items() if not key.startswith("_")}
        self._scale = self._processor.rescale_factor if self._processor.do_rescale else 1.0
        processor["rescale_factor"] = self._scale
        self.fingerprint = fingerprint(
            {
                "weights": weights_hash(model.state_dict()),
                "preprocess": processor,
                "tokenizer": tokenizer_fingerprint(self._tokenizer),
                "architecture": {**model.config.to_dict(), "_name_or_path": None, "transformers_version": None},
            }
        )
        self.pixels = fingerprint(processor)
        self._model = model.eval().requires_grad_(False).to(self.device)
        self.logit_scale: float | None = float(model.logit_scale.exp())
        moments = [0.0] * 3, [1.0] * 3
        if self._processor.do_normalize:
            moments = self._processor.image_mean, self._processor.image_std
        self._mean, self._std = (torch.tensor(values, device=self.device).view(-1, 1, 1) for values in moments)
        with explained(f"{what} does not fit its processor", "save it again with its own"):
            self.encode_images(torch.from_numpy(self.preprocess(Image.new("RGB", (80, 64))))[None])

    def preprocess(self, image: Image.Image | torch.Tensor) -> np.ndarray:
        """See Encoder; always with the model's own processor."""
        if isinstance(image, torch.Tensor):
            image = Image.fromarray(image.permute(1, 2, 0).numpy())
        settings = {"do_rescale": False, "do_normalize": False, "return_tensors": "np"}
        pixels = self._processor(images=image.convert("RGB"), **settings)["pixel_values"][0]
        return np.ascontiguousarray(pixels, dtype=np.uint8)

    @torch.inference_mode()
    def encode_images(self, images: torch.Tensor) -> torch.Tensor:
        scaled = images.to(self.device).float().mul_(self._scale).sub_(self._mean).div_(self._std)
        return _unit(self._model.get_image_features(pixel_values=scaled))

    @torch.inference_mode()
    def encode_captions(self, captions: Sequence[str]) -> torch.Tensor:
        tokens = self._tokenizer(
            list(captions), padding="max_length", truncation=True, max_length=self._context, return_tensors="pt"
        ).to(self.device)
        inputs = {name: tokens[name] for name in ("input_ids", "attention_mask") if name in tokens}
        return _unit(self._model.get_text_features(**inputs))


def is_transformers_folder(folder: Path) -> bool:
    """Whether ``folder`` is a CLIP or SigLIP model of the transformers library."""
    config = folder / "config.json"
    return config.is_file() and read_json_object(config).get("model_type") in MODEL_TYPES


def load_pretrained(what: str, folder: Path, parts: Mapping[str, Mapping[str, Any]]) -> list[Any]:
    """The parts of a model in a folder of the transformers library, the model itself first, in float32; no code of it is run.

    ``what`` names the model in messages; parts: {auto class: options of its ``from_pretrained``}. Raises UserError if
    transformers is not installed, the folder lacks files, or the weights do not fit.
    """
    with explained(f"{what} cannot be loaded", "save it again with its processor", "objects"):
        import transformers

        transformers.utils.logging.disable_progress_bar()  # reading a local file needs none
        local = {"local_files_only": True, "trust_remote_code": False}
        (model_class, options), *others = parts.items()
        model, report = getattr(transformers, model_class).from_pretrained(
            folder, output_loading_info=True, **options, **local
        )
        loaded = [getattr(transformers, name).from_pretrained(folder, **options, **local) for name, options in others]
        for part in loaded:
            check_words(part)
    check_loaded(what, report)
    return [model.float(), *loaded]


def check_loaded(what: str, report: Mapping[str, Any], unused: str | None = None) -> None:
    """Raise UserError if transformers drew weights at random, as ``report`` says, but for a module that is ``unused``."""
    wrong = sorted(map(str, (*report["missing_keys"], *report["mismatched_keys"])))
    if wrong := [entry for entry in wrong if unused is None or unused not in entry.split(".")]:
        raise UserError(
            f"the weights of {what} lack or do not fit {wrong[0]!r} and {len(wrong) - 1} more; save it again"
        )


def _pillow() -> dict[str, Any]:
    """The option that chooses Pillow's processors, which are the reference; version 5 renamed it."""
    from importlib.metadata import version

    return {"backend": "pil"} if int(version("transformers").split(".")[0]) >= 5 else {"use_fast": False}


def _unit(features: Any) -> torch.Tensor:
    """The features as unit vectors on the CPU; transformers wraps them since version 5."""
    return torch.nn.functional.normalize(getattr(features, "pooler_output", features).float(), dim=-1).cpu()
