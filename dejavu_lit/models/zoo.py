"""The zoo: any model by name → an Encoder.

| name | what it is |
|---|---|
| ``RUN`` | a run of dejavu train, its exported ``model/`` |
| ``RUN@EPOCH`` | the same run's checkpoint of that epoch |
| ``ARCH@TAG`` | weights released with open_clip, e.g. ``ViT-B-32@openai`` (needs a network, or open_clip's cache) |
| ``ARCH@FILE`` | weights of an open_clip architecture in a local file |
| ``hf-hub:…``, ``local-dir:…`` | as open_clip has them |
| a folder | in open_clip's own format, or a transformers CLIP or SigLIP |
| ``text:MODEL`` | a sentence-transformers folder or an installed package that carries one; captions only |
"""

from pathlib import Path

from dejavu_lit.models.encoder import Encoder
from dejavu_lit.utils.errors import UserError, suggest

__all__ = ["Encoder", "load_encoder"]


def load_encoder(name: str, device: str = "cpu") -> Encoder:
    """The model called ``name`` (the table above), frozen, in float32 on ``device`` (cpu, cuda or cuda:N).

    Weights are read without running any code that a file may carry (``weights_only``; TorchScript is refused).

    Raises:
        UserError: an unknown name, files missing or not fitting, a download that fails, or no such device.
    """
    if name.startswith("text:"):
        from dejavu_lit.models.sentence_encoder import TextEncoder

        return TextEncoder(name, device)
    from dejavu_lit.models import open_clip_encoder as openclip

    if name.startswith("hf-hub:"):
        return openclip.load_hub(name, device)
    if name.startswith("local-dir:"):
        return openclip.load_folder(name, Path(name.removeprefix("local-dir:")).expanduser(), device)
    folder = Path(name).expanduser()
    if folder.is_dir():
        return _load_folder(name, folder, device)
    run, at, epoch = name.rpartition("@")
    if at and Path(run).expanduser().is_dir():
        run_folder = Path(run).expanduser()
        return openclip.load_epoch(name, run_folder / "model", _checkpoint(run_folder, epoch), device)
    if "/" in name and "@" not in name:
        raise UserError(f"there is no folder {name}{_near(folder)}; give a run, a model folder, or ARCH@TAG")
    return openclip.load_released(name, device)


def _load_folder(name: str, folder: Path, device: str) -> Encoder:
    from dejavu_lit.models import open_clip_encoder as openclip
    from dejavu_lit.models.transformers_encoder import TransformersEncoder, is_transformers_folder

    if (folder / "open_clip_config.json").is_file():
        return openclip.load_folder(name, folder, device)
    if (folder / "model").is_dir():
        return openclip.load_folder(name, folder / "model", device)
    if (folder / "config.yaml").is_file():
        raise UserError(
            f"the run {folder} has no model/ yet, so its training is not finished; finish it or name an epoch as {name}@EPOCH"
        )
    if is_transformers_folder(folder):
        return TransformersEncoder(name, folder, device)
    raise UserError(f"{folder} is neither a run, nor an open_clip folder, nor a transformers CLIP or SigLIP folder")


def _checkpoint(run: Path, epoch: str) -> Path:
    """The checkpoint of a run's epoch; raises UserError that lists the epochs that are there."""
    found: dict[int, Path] = {}
    for path in (run / "checkpoints").glob("epoch=*.ckpt"):
        number = path.stem.removeprefix("epoch=")
        if number.isdigit():
            found[int(number)] = path
    if not epoch.isdigit() or int(epoch) not in found:
        there = ", ".join(str(number) for number in sorted(found)) or "none"
        raise UserError(f"{run}@{epoch}: the run holds no checkpoint of epoch {epoch!r}; it holds {there}")
    return found[int(epoch)]


def _near(folder: Path) -> str:
    """The folder beside it whose name is nearest, as a question."""
    return (
        suggest(folder.name, [path.name for path in folder.parent.iterdir() if path.is_dir()])
        if folder.parent.is_dir()
        else ""
    )
