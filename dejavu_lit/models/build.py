"""The model to train: built from open_clip's own format, and exported to it as a config beside safetensors."""

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import open_clip
import torch
from open_clip.model import get_model_preprocess_cfg
from open_clip.pretrained import download_pretrained_from_hf
from torch import nn

from dejavu_lit.models.model_name import ModelName, check_architecture
from dejavu_lit.models.open_clip_encoder import OpenClipEncoder, create_model
from dejavu_lit.models.preprocess import PREPROCESS
from dejavu_lit.models.settings import ModelSpec
from dejavu_lit.models.tokenizer import load_tokenizer, save_tokenizer
from dejavu_lit.models.transformers_encoder import check_loaded
from dejavu_lit.models.zoo import load_encoder
from dejavu_lit.utils.errors import UserError, explained
from dejavu_lit.utils.io import atomic, fingerprint, read_json_object, write_json
from dejavu_lit.utils.printable import silenced
from dejavu_lit.utils.run_directory import RunDirectory

log = logging.getLogger(__name__)

WEIGHTS = "open_clip_model.safetensors"
CONFIG = "open_clip_config.json"
PROBE = "A photo of 2 dogs, on grass"  # the caption that tells two tokenizers apart


def architecture(spec: ModelSpec) -> dict[str, Any]:
    """open_clip's model config for ``spec``; raises UserError with the nearest known name if there is none."""
    if spec.config is not None:
        return dict(spec.config)
    check_architecture(spec.name)
    return dict(open_clip.get_model_config(spec.name))


def export_config(spec: ModelSpec, folder: Path) -> None:
    """Write open_clip's ``local-dir`` config, from which training, evaluation and plain open_clip build the model."""
    folder.mkdir(parents=True, exist_ok=True)
    config, initial = architecture(spec), _initial_settings(spec)
    quick_gelu = initial.pop("quick_gelu", config.get("quick_gelu", False))
    if quick_gelu != config.get("quick_gelu", False):  # the weights were trained with another activation
        config["quick_gelu"] = quick_gelu
    write_json(folder / CONFIG, {"model_cfg": config, "preprocess_cfg": PREPROCESS | initial})
    if tokenizer := (config.get("text_cfg") or {}).get("hf_tokenizer_name"):  # any other needs no files
        save_tokenizer(str(tokenizer), folder)


def _initial_settings(spec: ModelSpec) -> dict[str, Any]:
    """The preprocessing and activation of the weights in ``spec.init``; {} if its name does not say where they are given."""
    name = ModelName.parse(spec.init) if spec.init else None
    if name is None:
        return {}
    folders = (name.path, RunDirectory(name.path).model) if name.path is not None else ()
    file = next((folder / CONFIG for folder in folders if (folder / CONFIG).is_file()), None)
    if name.kind == "hf-hub":
        remedy = "check the name, or download the model elsewhere and give local-dir:FOLDER"
        with explained(f"the config of model.init={name.text} could not be downloaded", remedy):
            file = Path(download_pretrained_from_hf(name.rest, filename=CONFIG))
    if file is None:
        released = open_clip.get_pretrained_cfg(name.architecture, name.weights)
        return {key: released[key] for key in (*PREPROCESS, "quick_gelu") if key in released}
    config = read_json_object(file)
    preprocess = {key: value for key, value in (config.get("preprocess_cfg") or {}).items() if key in PREPROCESS}
    quick_gelu = bool((config.get("model_cfg") or {}).get("quick_gelu", False))
    return {key: value for key, value in preprocess.items() if value is not None} | {"quick_gelu": quick_gelu}


def build_model(spec: ModelSpec, folder: Path, resumed: bool = False) -> nn.Module:
    """The model of ``folder``'s config with fresh weights, or with those of ``spec.init``.

    A text tower of transformers starts from its own weights if ``text_cfg.hf_model_pretrained`` is not false, as in open_clip.
    ``resumed``: whether a checkpoint has all weights, so that no others are needed. Raises UserError if weights are missing or do
    not fit the architecture, or the model cannot encode an image or a caption.
    """
    text = {} if resumed else architecture(spec).get("text_cfg") or {}
    pretrained = bool(text.get("hf_model_name") and text.get("hf_model_pretrained", True) and not spec.init)
    # open_clip warns about missing weights, which training is about to make.
    with explained(f"open_clip cannot build model.name={spec.name}", "check model.config"), silenced():
        model: nn.Module = create_model(f"local-dir:{folder}", load_weights=False, pretrained_text=pretrained)
        if pretrained:  # once more, because open_clip does not say which weights transformers drew at random
            from transformers import AutoModel

            tower = text["hf_model_name"]
            with torch.random.fork_rng(devices=[]):
                _, report = AutoModel.from_pretrained(tower, output_loading_info=True, trust_remote_code=False)
            check_loaded(f"the text tower {tower}", report, unused="pooler")
    if pretrained:
        log.info("the text tower starts from the weights of %s, not from scratch", text["hf_model_name"])
    if isinstance(model, open_clip.CoCa):  # open_clip leaves this matrix as the memory was, which may be NaN
        projection = model.text_decoder.text_projection
        nn.init.normal_(projection, std=len(projection) ** -0.5)
    tokenizer = load_tokenizer(f"local-dir:{folder}")
    with explained(f"the model {spec.name} cannot encode an image and a caption", "check model.config"):
        image, caption = (tuple(vector.shape) for vector in _probe(model, tokenizer([PROBE])))
        if image != caption or len(image) != 1 or not image[0]:
            raise ValueError(
                f"its embeddings have the shapes {image} and {caption}; both must be vectors of the same length, at least 1"
            )
    if spec.init and not resumed:
        _load_initial_weights(model, spec, tokenizer)
    return model.train()  # a text tower of transformers comes in eval mode, without its dropout


def _load_initial_weights(model: nn.Module, spec: ModelSpec, tokenizer: Any) -> None:
    source = load_encoder(str(spec.init))
    if not isinstance(source, OpenClipEncoder):
        raise UserError(
            f"model.init={spec.init} is not an open_clip model; give ARCH@TAG, ARCH@FILE, hf-hub:… or local-dir:FOLDER"
        )
    problem = f"the weights of model.init={spec.init} do not fit model.name={spec.name}"
    with explained(problem, "choose weights of that architecture", errors=(RuntimeError,)):
        model.load_state_dict(source.model.state_dict())
    if differing := _first_difference(model, tokenizer, source.model, source.tokenizer):
        raise UserError(
            f"model.init={spec.init} and model.name={spec.name} differ in their {differing}, so training would not start "
            f"from that model; copy its settings into model.config (they are in its {CONFIG})"
        )


def _first_difference(model: Any, tokenizer: Any, source: Any, source_tokenizer: Any) -> str:
    """What two models with the same weights do differently with one image and one caption; empty if nothing."""
    if fingerprint(get_model_preprocess_cfg(model)) != fingerprint(get_model_preprocess_cfg(source)):
        return "preprocessing"
    if not torch.equal(tokens := tokenizer([PROBE]), source_tokenizer([PROBE])):
        return "tokenizer"
    vectors = zip(_probe(model, tokens), _probe(source, tokens), strict=True)
    same_image, same_caption = (torch.allclose(own, theirs, rtol=1e-3, atol=1e-5) for own, theirs in vectors)
    return "text encoder" if not same_caption else "image encoder" if not same_image else ""


@torch.no_grad()
def _probe(model: Any, tokens: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """The unit vectors [d] of an image and of a caption, ``tokens`` [1, context]; without dropout, which comes back after."""
    size = model.visual.image_size
    height, width = (size, size) if isinstance(size, int) else size
    image = torch.linspace(-2, 2, 3 * height * width).sin().view(1, 3, height, width)
    model.eval()
    image_vectors = model.encode_image(image, normalize=True)
    text_vectors = model.encode_text(tokens, normalize=True)
    model.train()
    return image_vectors[0], text_vectors[0]


def export_weights(state: Mapping[str, torch.Tensor], folder: Path) -> None:
    """Write the weights, a state dict, beside the config as safetensors, atomically."""
    from safetensors.torch import save

    state = {name: value.detach().cpu().contiguous() for name, value in state.items()}
    with atomic(folder / WEIGHTS) as part:
        part.write_bytes(save(state, metadata={"format": "pt"}))
