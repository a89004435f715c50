"""open_clip models as encoders: released tags, weight files, open_clip folders and this project's runs."""

import logging
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import open_clip
import torch
from huggingface_hub import model_info
from huggingface_hub.constants import HF_HUB_CACHE
from huggingface_hub.errors import HfHubHTTPError
from huggingface_hub.file_download import repo_folder_name
from open_clip.factory import _find_checkpoint_in_dir
from open_clip.hf_configs import arch_dict
from open_clip.model import get_model_preprocess_cfg
from open_clip.pretrained import get_pretrained_cfg, list_pretrained_tags_by_model
from torch.nn.functional import normalize

from dejavu_lit.models.encoder import torch_device
from dejavu_lit.models.model_name import ModelName
from dejavu_lit.models.preprocess import PREPROCESS, Preprocess
from dejavu_lit.models.tokenizer import load_tokenizer, tokenizer_fingerprint
from dejavu_lit.models.towers import image_tower, text_tower, unit_features
from dejavu_lit.models.weights import (
    OPENAI_SIZES,
    SUFFIXES,
    checkpoint_state,
    plain_state,
    stored_state,
    warn_of_interpolation,
    weights_hash,
)
from dejavu_lit.utils.errors import UserError, explained, suggest
from dejavu_lit.utils.io import fingerprint, read_json_object
from dejavu_lit.utils.printable import silenced

# Of any number in a model's config: vocabularies reach 1,000,000.
LARGEST_SIZE = 10_000_000
HUB_TIMEOUT_S = 10  # for the first answer of the Hugging Face Hub
# What to do if weights cannot be downloaded or loaded.
OFFLINE = "give a local file as ARCH@/path/weights.safetensors or a folder as local-dir:/path instead"
KINDS = "a model is a run folder, RUN@EPOCH, ARCH@TAG, ARCH@FILE, hf-hub:…, local-dir:…, text:MODEL or a transformers folder"
# What to do if weights do not fit the architecture that their name gives.
OWN_ARCHITECTURE = (
    "for weights of another architecture make a folder with them as open_clip_pytorch_model.bin or "
    "open_clip_model.safetensors, and their model_cfg and preprocess_cfg in open_clip_config.json, and give local-dir:FOLDER"
)

log = logging.getLogger(__name__)


class OpenClipEncoder:
    """An open_clip model: its own preprocessing, then ``encode_image`` and ``encode_text``, up to rounding (see ``towers``).

    ``model`` is the open_clip module itself, ``tokenizer`` its tokenizer.
    """

    def __init__(self, name: str, model: torch.nn.Module, config: dict[str, Any], tokenizer: Any, device: str) -> None:
        self.name = name
        self.device = torch_device(device)
        preprocess = get_model_preprocess_cfg(model)
        identity = {"weights": weights_hash(model.state_dict()), "preprocess": preprocess, "architecture": config}
        if words := tokenizer_fingerprint(tokenizer):
            identity["tokenizer"] = words
        self.fingerprint = fingerprint(identity)
        self.pixels = fingerprint(preprocess)
        self.model: Any = model.eval().requires_grad_(False).to(self.device)
        # Their gain is measured on a CPU; a GPU would wait for the launches of many small batches of captions.
        on_cpu = self.device.type == "cpu"
        self._image_tower, self._text_tower = (image_tower(model), text_tower(model)) if on_cpu else (None, None)
        self.logit_scale: float | None = float(model.get_parameter("logit_scale").exp())
        self.tokenizer = tokenizer
        self.preprocess = Preprocess(preprocess)
        mean, std = (torch.tensor(preprocess[name], device=self.device).view(-1, 1, 1) for name in ("mean", "std"))
        self._mean, self._std = mean, std

    @torch.inference_mode()
    def encode_images(self, images: torch.Tensor) -> torch.Tensor:
        scaled = images.to(self.device).float().div_(255).sub_(self._mean).div_(self._std)
        return unit_features(self._image_tower, self.model.encode_image, scaled).float().cpu()

    @torch.inference_mode()
    def encode_captions(self, captions: Sequence[str]) -> torch.Tensor:
        tokens = self.tokenizer(list(captions))
        if self._text_tower is None:
            vectors: torch.Tensor = self.model.encode_text(tokens.to(self.device), normalize=True)
        else:
            vectors = normalize(self._text_tower.separately(tokens), dim=-1)
        return vectors.float().cpu()


def load_released(name: ModelName, device: str) -> OpenClipEncoder:
    """``ARCH@TAG`` or ``ARCH@FILE``; raises UserError if it is unknown, does not fit or cannot be downloaded."""
    weights, arch = name.weights, name.architecture
    if arch not in open_clip.list_models():
        raise UserError(
            f"{arch!r} is not an open_clip architecture{suggest(arch, open_clip.list_models())}; "
            + (OWN_ARCHITECTURE if Path(weights).is_file() else KINDS)
        )
    tags = list_pretrained_tags_by_model(arch)
    if released := get_pretrained_cfg(arch, weights):
        problem = f"the released weights {weights!r} of {arch} could not be downloaded"
        if repository := released.get("hf_hub"):
            _check_hub(repository.rpartition("/")[0], problem)
        return _build(name.text, arch, device, problem, weights=weights)
    if not Path(weights).is_file():
        problem = f"{weights!r} is neither a file nor a released tag of {arch}{suggest(weights, tags)}"
        raise UserError(
            f"{name.text!r}: {problem if weights else 'it does not say which weights'}; "
            f"give {arch}@TAG ({', '.join(tags[:3]) or 'none is released'}, …) or {arch}@FILE"
        )
    problem = f"{weights} does not fit {arch}"
    encoder = _build(name.text, arch, device, problem, OWN_ARCHITECTURE, weights, Path(weights))
    _warn_of_other_settings(name)
    return encoder


def load_hub(name: str, device: str) -> OpenClipEncoder:
    """``hf-hub:ORGANISATION/MODEL``; raises UserError if it cannot be downloaded."""
    problem = f"{name} could not be downloaded"
    _check_hub(name.removeprefix("hf-hub:").partition("@")[0], problem)
    return _build(name, name, device, problem)


def _check_hub(repository: str, problem: str) -> None:
    """Raise UserError if a model is neither in the cache nor on a Hub that answers; a download would try for a minute."""
    if (Path(HF_HUB_CACHE) / repo_folder_name(repo_id=repository, repo_type="model") / "snapshots").is_dir():
        return
    with explained(problem, OFFLINE), suppress(HfHubHTTPError):  # if it answers, the download says what is wrong
        model_info(repository, timeout=HUB_TIMEOUT_S)


def load_folder(name: str, folder: Path, device: str) -> OpenClipEncoder:
    """A folder in open_clip's own format; raises UserError without a config or weights, or if they do not fit."""
    config = _read_config(folder, f"check the model's name {name!r}")
    if not config.get("preprocess_cfg"):
        log.warning(
            "%s has no preprocess_cfg, so images get open_clip's default mean, std, interpolation and resizing; add those of the "
            "model's training",
            folder / "open_clip_config.json",
        )
    problem = f"the weights in {folder} cannot be used"
    if not (weights := [path for path in folder.iterdir() if path.suffix in SUFFIXES]):
        raise UserError(f"{problem}: it has none that end in {', '.join(SUFFIXES)}; put them there, or rename them")
    if len(weights) > 1:
        _find_checkpoint_in_dir(folder)  # warns if the one that is loaded has none of open_clip's names
    remedy = "its open_clip_config.json must have the model_cfg of these weights"
    return _build(name, f"local-dir:{folder}", device, problem, remedy, file=folder)


def load_epoch(name: str, model: Path, checkpoint: Path, device: str) -> OpenClipEncoder:
    """The weights of a run's Lightning checkpoint; the architecture is that of the open_clip folder ``model``.

    Raises UserError if there is no such folder, or the checkpoint cannot be read safely or does not fit.
    """
    _read_config(model, f"restore it, or train the run of {name!r} again")
    problem = f"{checkpoint} does not contain the weights of {model}"
    return _build(name, f"local-dir:{model}", device, problem, "choose another epoch", checkpoint=checkpoint)


def _read_config(folder: Path, remedy: str) -> dict[str, Any]:
    """A folder's ``open_clip_config.json``; raises UserError, with ``remedy`` if there is none."""
    if not (file := folder / "open_clip_config.json").is_file():
        raise UserError(f"{folder} has no open_clip_config.json, so it is not an open_clip model; {remedy}")
    config = read_json_object(file)
    _check_sizes(config, folder)
    return config


def _check_sizes(value: Any, folder: Path) -> None:
    """Raise UserError for a config with a size that no model has: building it would use up the memory before it fails."""
    if isinstance(value, dict | list):
        for inner in value.values() if isinstance(value, dict) else value:
            _check_sizes(inner, folder)
    elif isinstance(value, int | float) and abs(value) > LARGEST_SIZE:
        raise UserError(
            f"{folder}/open_clip_config.json has the size {str(value)[:20]}, which no model has; get the file again"
        )


def _warn_of_other_settings(name: ModelName) -> None:
    """Warn if released weights of the architecture need other settings than open_clip gives to a file of weights."""
    arch = name.architecture
    defaults = PREPROCESS | {"quick_gelu": bool((open_clip.get_model_config(arch) or {}).get("quick_gelu"))}
    tags_by_settings: dict[str, list[str]] = {}
    for tag in list_pretrained_tags_by_model(arch):
        released = get_pretrained_cfg(arch, tag)
        differing = {key: released[key] for key, value in defaults.items() if released.get(key, value) != value}
        if differing:
            text = ", ".join(f"{key}={value}" for key, value in differing.items())
            tags_by_settings.setdefault(text, []).append(tag)
    if tags_by_settings:
        log.warning(
            "%s gets open_clip's default preprocessing and activation, but released weights of %s need others: %s; if the "
            "file is one of these or was trained from one, give it as local-dir:FOLDER with these settings in "
            "open_clip_config.json",
            *(name.text, arch, "; ".join(f"{text} ({', '.join(tags)})" for text, tags in tags_by_settings.items())),
        )


def _build(
    name: str,
    source: str,
    device: str,
    problem: str,
    remedy: str = OFFLINE,
    weights: str | None = None,
    file: Path | None = None,
    checkpoint: Path | None = None,
) -> OpenClipEncoder:
    """The encoder of open_clip's model ``source`` with ``weights``, its own, or those in a ``checkpoint`` of a run.

    ``file``: the local file of the weights, or the folder that has it.
    """
    torch_device(device)
    config = get_pretrained_cfg(source, weights) if weights else {}
    # Weights released by OpenAI and some others need QuickGELU, which the architecture's name does not imply.
    quick = bool(config.get("quick_gelu", False))
    with explained(problem, remedy), silenced():
        stored = stored_state(file) if file else {}
        # open_clip itself removes only the prefix module.
        if checkpoint or any("_orig_mod." in entry or entry in OPENAI_SIZES for entry in stored):
            model = create_model(source, load_weights=False, pretrained_text=False)
            model.load_state_dict(checkpoint_state(checkpoint) if checkpoint else plain_state(stored))
        else:
            model = create_model(source, weights, force_quick_gelu=quick, require_pretrained=True)
        architecture = {**open_clip.get_model_config(source), **({"quick_gelu": True} if quick else {})}
        encoder = OpenClipEncoder(name, model, architecture, load_tokenizer(source), device)
    warn_of_interpolation(name, model, stored)
    return encoder


def create_model(source: str, *arguments: Any, **options: Any) -> Any:
    """``open_clip.create_model``, which alone would ask on the terminal whether to run the code of an unknown text tower.

    Raises UserError for a text tower that open_clip cannot build from transformers' own code.
    """
    text = (open_clip.get_model_config(source) or {}).get("text_cfg") or {}
    if tower := text.get("hf_model_name"):
        what = f"the text tower text_cfg.hf_model_name={tower}"
        remedy = "give a folder or a name of the Hugging Face Hub that needs no code of its own"
        with explained(f"{what} cannot be loaded", remedy, "objects"):
            from transformers import AutoConfig
            from transformers.utils.logging import disable_progress_bar

            if Path(str(tower)).is_dir():
                disable_progress_bar()  # of reading files
            kind = AutoConfig.from_pretrained(str(tower), trust_remote_code=False).model_type
        if kind not in arch_dict:
            raise UserError(
                f"{what} is of the kind {kind!r}, which open_clip cannot use; give one of {', '.join(arch_dict)}"
            )
    return open_clip.create_model(source, *arguments, weights_only=True, **options)
