"""open_clip's models with a text tower of transformers: code beside the tower's config is never run, nor offered to be."""

from typing import Any

import open_clip
from open_clip.hf_configs import arch_dict

from dejavu_lit.utils.errors import UserError, explained


def create_model(source: str, *arguments: Any, **options: Any) -> Any:
    """``open_clip.create_model``, which alone would ask on the terminal whether to run the code of an unknown text tower.

    Raises UserError for a text tower that open_clip cannot build from transformers' own code.
    """
    text = (open_clip.get_model_config(source) or {}).get("text_cfg") or {}
    if tower := text.get("hf_model_name"):
        _check_tower(f"the text tower text_cfg.hf_model_name={tower}", str(tower))
    return open_clip.create_model(source, *arguments, weights_only=True, **options)


def _check_tower(what: str, tower: str) -> None:
    remedy = "give a folder or a name of the Hugging Face Hub that needs no code of its own"
    with explained(f"{what} cannot be loaded", remedy, "objects"):
        from transformers import AutoConfig

        kind = AutoConfig.from_pretrained(tower, trust_remote_code=False).model_type
    if kind not in arch_dict:
        raise UserError(
            f"{what} is of the kind {kind!r}, which open_clip cannot use; give one of {', '.join(arch_dict)}"
        )
