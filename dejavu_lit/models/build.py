"""Which model is trained, built from open_clip's own format and written in it: a config and safetensors, beside each other."""

import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import open_clip
from torch import nn

from dejavu_lit.utils.errors import UserError, suggest
from dejavu_lit.utils.io import atomic, write_json

WEIGHTS = "open_clip_model.safetensors"
CONFIG = "open_clip_config.json"


@dataclass(frozen=True)
class ModelSpec:
    """Which architecture, and where its weights come from.

    name: an open_clip architecture, or any name beside ``config``; config: open_clip's own model config, for an
    architecture of one's own; init: weights to start from, as ARCH@TAG or ARCH@FILE (None: from scratch).
    """

    name: str
    config: dict[str, Any] | None = None
    init: str | None = None


def architecture(spec: ModelSpec) -> dict[str, Any]:
    """open_clip's model config for ``spec``; raises UserError with the nearest name where there is none."""
    if spec.config is not None:
        return dict(spec.config)
    config = open_clip.get_model_config(spec.name)
    if config is None:
        raise UserError(
            f"model.name={spec.name} is no architecture of open_clip{suggest(spec.name, open_clip.list_models())}; "
            "choose one of open_clip.list_models() or give model.config"
        )
    return dict(config)


def export_config(spec: ModelSpec, folder: Path) -> None:
    """Write open_clip's ``local-dir`` config, from which training, evaluation and plain open_clip build the model."""
    folder.mkdir(parents=True, exist_ok=True)
    preprocess: dict[str, Any] = {
        "mean": open_clip.OPENAI_DATASET_MEAN,
        "std": open_clip.OPENAI_DATASET_STD,
        "interpolation": "bicubic",
        "resize_mode": "shortest",
    }
    config = architecture(spec)
    name, at, tag = (spec.init or "").rpartition("@")
    released = open_clip.get_pretrained_cfg(name, tag) if at else {}
    if released.get("quick_gelu"):  # the weights were trained with another activation than the name says
        config["quick_gelu"] = True
    preprocess |= {key: released[key] for key in preprocess if released.get(key)}
    write_json(folder / CONFIG, {"model_cfg": config, "preprocess_cfg": preprocess})
    tokenizer: Any = open_clip.get_tokenizer(spec.name) if spec.config is None else None
    if hasattr(tokenizer, "save_pretrained"):  # a Hugging Face tokenizer must lie beside the config to be found again
        tokenizer.save_pretrained(str(folder))


def build_model(spec: ModelSpec, folder: Path) -> nn.Module:
    """The model of ``folder``'s config with fresh weights, or with those of ``spec.init``.

    Raises:
        UserError: the weights are not there or do not fit the architecture.
    """
    logging.disable(logging.WARNING)  # open_clip warns that a model to be trained has no weights yet
    try:
        model: nn.Module = open_clip.create_model(f"local-dir:{folder}", load_weights=False)
    except (TypeError, ValueError, RuntimeError, AssertionError) as error:
        raise UserError(f"open_clip cannot build model.name={spec.name}: {str(error).splitlines()[0]}") from None
    finally:
        logging.disable(logging.NOTSET)
    if spec.init:
        from dejavu_lit.models.zoo import load_encoder

        source = load_encoder(spec.init)
        weights = getattr(source, "model", None)
        if not isinstance(weights, nn.Module):
            raise UserError(f"model.init={spec.init} is no CLIP model; give ARCH@TAG, ARCH@FILE or local-dir:FOLDER")
        try:
            model.load_state_dict(weights.state_dict())
        except RuntimeError:
            raise UserError(f"the weights of model.init={spec.init} do not fit model.name={spec.name}") from None
    return model


def export_weights(model: nn.Module, folder: Path) -> None:
    """Write the weights beside the config as safetensors, atomically."""
    from safetensors.torch import save

    state = {name: value.detach().cpu().contiguous() for name, value in model.state_dict().items()}
    with atomic(folder / WEIGHTS) as part:
        part.write_bytes(save(state, metadata={"format": "pt"}))
