"""open_clip's models with a text tower of transformers: code beside the tower's config is never run, nor offered to be."""

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import open_clip
from open_clip.hf_configs import arch_dict

from dejavu_lit.models.tokenizer import needed_package
from dejavu_lit.utils.errors import UserError, first_line


def create_model(source: str, *arguments: Any, **options: Any) -> Any:
    """``open_clip.create_model``, which alone would ask on the terminal whether to run the code of an unknown text tower.

    Raises:
        UserError: the text tower is of a kind that open_clip cannot build from transformers' own code.
    """
    text = (open_clip.get_model_config(source) or {}).get("text_cfg") or {}
    if tower := text.get("hf_model_name"):
        _check_tower(str(tower))
    return open_clip.create_model(source, *arguments, weights_only=True, **options)


@contextmanager
def quiet() -> Iterator[None]:
    """Silence open_clip and huggingface_hub: a failure is reported once, in the error."""
    before = logging.root.manager.disable
    logging.disable(logging.CRITICAL)
    try:
        yield
    finally:
        logging.disable(before)


def _check_tower(tower: str) -> None:
    try:
        from transformers import AutoConfig

        kind = AutoConfig.from_pretrained(tower, trust_remote_code=False).model_type
    except ModuleNotFoundError as missing:
        raise UserError(needed_package(f"the text tower text_cfg.hf_model_name={tower}", missing)) from None
    except Exception as error:  # damaged configs and downloads raise too many types to list
        raise UserError(
            f"the text tower text_cfg.hf_model_name={tower} cannot be loaded ({first_line(error)}); give a folder or a name "
            "of the Hugging Face Hub that needs no code of its own"
        ) from None
    if kind not in arch_dict:
        raise UserError(
            f"the text tower text_cfg.hf_model_name={tower} is of the kind {kind!r}, which open_clip cannot use; give one of "
            f"{', '.join(arch_dict)}"
        )
