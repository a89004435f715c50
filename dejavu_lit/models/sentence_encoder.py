"""Sentence-embedding models as caption-only encoders: the reference of the one-model test.

Kokhlikyan et al., Measuring Déjà vu Memorization Efficiently, NeurIPS 2024, arXiv 2504.05651.
"""

from collections.abc import Sequence

import numpy as np
import torch
from PIL import Image

from dejavu_lit.models.encoder import torch_device
from dejavu_lit.models.model_name import ModelName, text_model_folder
from dejavu_lit.models.tokenizer import check_words
from dejavu_lit.models.transformers_encoder import check_loaded
from dejavu_lit.models.weights import weights_hash
from dejavu_lit.utils.errors import UserError, explained
from dejavu_lit.utils.io import fingerprint


class TextEncoder:
    """A sentence-transformers model from a local folder or from an installed package that contains one."""

    def __init__(self, name: ModelName, device: str) -> None:
        self.name = name.text
        self.pixels = ""  # it takes no images
        self.device = torch_device(device)
        self.logit_scale: float | None = None  # it was trained to compare captions, not images with captions
        folder = text_model_folder(name.rest)
        what = f"the sentence-transformers model in {folder}"
        with explained(f"{what} cannot be loaded", "save it again", "text"):
            from sentence_transformers import SentenceTransformer
            from transformers.utils.logging import disable_progress_bar

            disable_progress_bar()  # reading a local file needs none
            self._model = SentenceTransformer(
                str(folder), device=str(self.device), local_files_only=True, trust_remote_code=False
            )
            check_words(self._model)
            if (network := getattr(self._model[0], "auto_model", None)) is not None:
                # Loaded once more, because sentence-transformers does not say which weights it did not find.
                local = {"local_files_only": True, "trust_remote_code": False}
                _, report = type(network).from_pretrained(network.name_or_path, output_loading_info=True, **local)
                check_loaded(what, report, unused="pooler")
        settings = {
            path.relative_to(folder).as_posix(): path.read_text("utf-8", "replace")
            for path in sorted(folder.rglob("*.json"))
        }
        self.fingerprint = fingerprint({"weights": weights_hash(self._model.state_dict()), "settings": settings})

    def preprocess(self, image: Image.Image | torch.Tensor) -> np.ndarray:
        """Always raises UserError: the model has no image encoder."""
        raise UserError(
            f"{self.name} embeds captions only; choose a model with an image encoder, or compare text with text"
        )

    def encode_images(self, images: torch.Tensor) -> torch.Tensor:
        raise NotImplementedError  # preprocess refuses the images

    @torch.inference_mode()
    def encode_captions(self, captions: Sequence[str]) -> torch.Tensor:
        vectors: torch.Tensor = self._model.encode(
            list(captions),
            batch_size=len(captions),
            convert_to_tensor=True,
            normalize_embeddings=True,
            show_progress_bar=False,
        )
        return vectors.float().cpu()
