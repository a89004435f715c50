"""The zoo: any model by name → an Encoder; ``model_name`` lists the names."""

from pathlib import Path

from dejavu_lit.models import open_clip_encoder as openclip
from dejavu_lit.models.encoder import Encoder
from dejavu_lit.models.model_name import ModelName
from dejavu_lit.models.sentence_encoder import TextEncoder
from dejavu_lit.models.transformers_encoder import TransformersEncoder, is_transformers_folder
from dejavu_lit.utils.errors import UserError
from dejavu_lit.utils.run_directory import RunDirectory


def load_encoder(name: str, device: str = "cpu") -> Encoder:
    """The model called ``name`` (see ``model_name``), frozen, in float32 on ``device`` (cpu, cuda or cuda:N).

    Weights are read without running any code that a file may contain (``weights_only``; TorchScript is refused). Raises UserError
    for an unknown name or device, missing or incompatible files, or a failed download.
    """
    model = ModelName.parse(name)
    if model.kind == "text":
        return TextEncoder(model, device)
    if model.kind == "embeddings":
        raise UserError(f"{name} are finished embeddings, which cannot encode; give a run, a model folder, or ARCH@TAG")
    if model.kind == "hf-hub":
        return openclip.load_hub(name, device)
    if model.kind == "local-dir" and model.path is not None:
        return openclip.load_folder(name, model.path, device)
    if model.path is not None and model.kind in ("run", "folder"):
        if model.epoch is None:
            return _load_folder(name, model.path, device)
        run = RunDirectory(model.path)
        saved = run.saved_epochs()
        if model.epoch_number not in saved:
            epochs = ", ".join(map(str, saved)) or "none"
            raise UserError(f"{name}: the run has no checkpoint of epoch {model.epoch!r}; it has {epochs}")
        return openclip.load_epoch(name, run.model, run.checkpoint(model.epoch_number), device)
    if Path(name).is_file():
        raise UserError(f"{name} is a file, which does not say its architecture; give ARCH@{name}, or a model folder")
    if "/" in name and "@" not in name:
        raise UserError(f"the folder {name} does not exist; give a run, a model folder, or ARCH@TAG")
    return openclip.load_released(model, device)


def _load_folder(name: str, folder: Path, device: str) -> Encoder:
    if (folder / "open_clip_config.json").is_file():
        return openclip.load_folder(name, folder, device)
    run = RunDirectory(folder)
    if run.exists and not run.finished and not any(run.model.glob("*.safetensors")):
        raise UserError(
            f"the run {folder} has no weights in model/ yet because its training is not finished; finish it or name an epoch "
            f"as {name}@EPOCH"
        )
    if run.model.is_dir():
        return openclip.load_folder(name, run.model, device)
    if is_transformers_folder(folder):
        return TransformersEncoder(name, folder, device)
    raise UserError(
        f"{folder} is neither a run, nor an open_clip folder, nor a transformers CLIP or SigLIP folder; check the path"
    )
