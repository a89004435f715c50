"""open_clip models as encoders: released tags, weight files, open_clip folders and this project's own runs."""

import logging
import zipfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import open_clip
import torch
from open_clip.model import get_model_preprocess_cfg
from open_clip.pretrained import get_pretrained_cfg, list_pretrained_tags_by_model
from PIL import Image

from dejavu_lit.models.encoder import torch_device, weights_hash
from dejavu_lit.models.preprocess import Preprocess
from dejavu_lit.utils.errors import UserError, first_line, suggest
from dejavu_lit.utils.io import fingerprint, read_object

LARGEST_SIZE = 10_000_000  # of anything in a model's config; vocabularies reach 1,000,000
OFFLINE = "give a local file as ARCH@/path/weights.safetensors or a folder as local-dir:/path instead"


class OpenClipEncoder:
    """An open_clip model; equal to its own preprocessing followed by ``encode_image`` and ``encode_text``.

    ``model`` is the open_clip module itself.
    """

    def __init__(self, name: str, model: torch.nn.Module, config: dict[str, Any], tokenizer: Any, device: str) -> None:
        self.name = name
        self.device = torch_device(device)
        preprocess = get_model_preprocess_cfg(model)
        self.fingerprint = fingerprint(
            {"weights": weights_hash(model.state_dict()), "preprocess": preprocess, "architecture": config}
        )
        self.pixels = fingerprint(preprocess)
        self.model: Any = model.eval().requires_grad_(False).to(self.device)
        self._tokenizer = tokenizer
        self._preprocess = Preprocess(preprocess)
        mean, std = (torch.tensor(preprocess[name], device=self.device).view(-1, 1, 1) for name in ("mean", "std"))
        self._mean, self._std = mean, std

    def preprocess(self, image: Image.Image | torch.Tensor) -> np.ndarray:
        """See Encoder; of an image, exactly what open_clip does before it normalises."""
        return self._preprocess(image)

    @torch.inference_mode()
    def encode_images(self, images: torch.Tensor) -> torch.Tensor:
        """See Encoder."""
        scaled = images.to(self.device).float().div_(255).sub_(self._mean).div_(self._std)
        vectors: torch.Tensor = self.model.encode_image(scaled, normalize=True)
        return vectors.float().cpu()

    @torch.inference_mode()
    def encode_captions(self, captions: Sequence[str]) -> torch.Tensor:
        """See Encoder."""
        tokens = self._tokenizer(list(captions)).to(self.device)
        vectors: torch.Tensor = self.model.encode_text(tokens, normalize=True)
        return vectors.float().cpu()


def load_released(name: str, device: str) -> OpenClipEncoder:
    """``ARCH@TAG`` or ``ARCH@FILE``.

    Raises:
        UserError: unknown architecture or tag, no such file, a file that does not fit, or a download that failed.
    """
    given, _, weights = name.partition("@")
    arch = given.replace("/", "-")
    if arch not in open_clip.list_models():
        raise UserError(
            f"{given!r} is no architecture of open_clip{suggest(arch, open_clip.list_models())}; "
            "a model is a run folder, RUN@EPOCH, ARCH@TAG, ARCH@FILE, hf-hub:…, local-dir:…, text:MODEL or a transformers folder"
        )
    tags = list_pretrained_tags_by_model(arch)
    if not weights:
        raise UserError(
            f"{name!r} does not say which weights; give {name}@TAG ({tags[0] if tags else 'none is released'}, …) or {name}@FILE"
        )
    if get_pretrained_cfg(arch, weights):
        return _build(name, arch, weights, device, f"the released weights {weights!r} of {arch} could not be had")
    if not Path(weights).is_file():
        raise UserError(f"{name!r}: {weights!r} is neither a file nor a released tag of {arch}{suggest(weights, tags)}")
    check_archive(Path(weights))
    return _build(name, arch, weights, device, f"{weights} does not fit {arch}")


def load_hub(name: str, device: str) -> OpenClipEncoder:
    """``hf-hub:ORGANISATION/MODEL``; raises UserError where it can't be had."""
    return _build(name, name, None, device, f"{name} could not be had")


def load_folder(name: str, folder: Path, device: str) -> OpenClipEncoder:
    """A folder in open_clip's own format (``open_clip_config.json`` and weights).

    Raises:
        UserError: not such a folder, no weights in it, or weights that do not fit.
    """
    if not (folder / "open_clip_config.json").is_file():
        raise UserError(
            f"{folder} holds no open_clip_config.json, so it is no open_clip model; check the model's name {name!r}"
        )
    _check_sizes(read_object(folder / "open_clip_config.json"), folder)
    for path in (*folder.glob("*.bin"), *folder.glob("*.pth")):
        check_archive(path)
    return _build(name, f"local-dir:{folder}", None, device, f"the weights in {folder} cannot be used")


def load_epoch(name: str, model: Path, checkpoint: Path, device: str) -> OpenClipEncoder:
    """The weights of a Lightning checkpoint of a run whose architecture lies in the open_clip folder ``model``.

    Raises:
        UserError: no such folder, a checkpoint that can't be read safely, or one that does not fit.
    """
    if not (model / "open_clip_config.json").is_file():
        raise UserError(f"{name!r}: {model} holds no open_clip_config.json, which gives the run's architecture")
    _check_sizes(read_object(model / "open_clip_config.json"), model)
    source = f"local-dir:{model}"
    try:
        with _quiet():  # it would say that there are no weights, which come now
            network = open_clip.create_model(source, load_weights=False, pretrained_text=False)
        state = torch.load(checkpoint, map_location="cpu", weights_only=True)["state_dict"]
        network.load_state_dict(
            {key.removeprefix("model."): value for key, value in state.items() if key.startswith("model.")}
        )
    except Exception as error:  # a damaged pickle raises nearly anything
        raise UserError(
            f"{checkpoint} does not hold the weights of {model} ({first_line(error)}); choose another epoch"
        ) from None
    return OpenClipEncoder(name, network, open_clip.get_model_config(source), open_clip.get_tokenizer(source), device)


def _check_sizes(value: Any, folder: Path) -> None:
    """Raise UserError for a config with sizes that no model has: building it would take all memory before it fails."""
    if isinstance(value, dict | list):
        for inner in value.values() if isinstance(value, dict) else value:
            _check_sizes(inner, folder)
    elif isinstance(value, int | float) and abs(value) > LARGEST_SIZE:
        raise UserError(
            f"{folder}/open_clip_config.json holds the size {str(value)[:20]}, which no model has; get it again"
        )


def check_archive(path: Path) -> None:
    """Refuse TorchScript archives, which carry code; raises UserError that names the way out."""
    if zipfile.is_zipfile(path):
        try:
            with zipfile.ZipFile(path) as archive:
                members = archive.namelist()
        except Exception as error:  # zipfile raises nearly anything for damaged archives
            raise UserError(f"{path} is a damaged archive ({first_line(error)}); get the file again") from None
        if any(member.endswith("constants.pkl") for member in members):
            raise UserError(
                f"{path} is a TorchScript archive, which carries code and is never loaded; where you trust it, save its "
                "state_dict() by safetensors.torch.save_file and give that .safetensors file"
            )


def _build(name: str, source: str, weights: str | None, device: str, trouble: str) -> OpenClipEncoder:
    torch_device(device)
    config = get_pretrained_cfg(source, weights) if weights else {}
    # Weights released by OpenAI and some others need QuickGELU, which the architecture's name does not say.
    quick = bool(config.get("quick_gelu", False))
    try:
        with _quiet():
            model = open_clip.create_model(
                source, weights, force_quick_gelu=quick, require_pretrained=True, weights_only=True
            )
            architecture = {**open_clip.get_model_config(source), **({"quick_gelu": True} if quick else {})}
            return OpenClipEncoder(name, model, architecture, open_clip.get_tokenizer(source), device)
    except Exception as error:  # downloads, pickles and configs fail in too many ways to list
        raise UserError(f"{trouble} ({first_line(error)}); {OFFLINE}") from None


@contextmanager
def _quiet() -> Iterator[None]:
    """No log lines of open_clip and huggingface_hub: what fails is told once, in the error."""
    before = logging.root.manager.disable
    logging.disable(logging.CRITICAL)
    try:
        yield
    finally:
        logging.disable(before)
