"""The tokenizer of an open_clip model: what its config says of it is data, and code beside it is never imported."""

import os
from collections.abc import Mapping
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import open_clip

from dejavu_lit.utils.errors import UserError, first_line

# What text_cfg.tokenizer_kwargs may set: how text is cleaned and which tokens are special. None of it names a file, an
# address or a class.
OPTIONS = (
    *("clean", "strip_sep_token", "language", "add_prefix_space", "do_lower_case", "padding_side", "truncation_side"),
    *("bos_token", "eos_token", "pad_token", "unk_token", "cls_token", "sep_token", "mask_token", "model_max_length"),
)


def load_tokenizer(name: str) -> Any:
    """The tokenizer of an architecture, ``hf-hub:MODEL`` or ``local-dir:FOLDER``, as open_clip gives it.

    Raises:
        UserError: its config sets an option outside of OPTIONS, or the tokenizer cannot be loaded without its own code.
    """
    try:
        config = open_clip.get_model_config(name) or {}
        text = config.get("text_cfg") or {}
        _check_options(text.get("tokenizer_kwargs") or {}, name)
        from_hub = text.get("hf_tokenizer_name") or (name.startswith("hf-hub:") and not config)
        return open_clip.get_tokenizer(name, **({"trust_remote_code": False} if from_hub else {}))
    except UserError:
        raise
    except ModuleNotFoundError as missing:
        raise UserError(needed_package(f"the tokenizer of {name}", missing)) from None
    except Exception as error:  # damaged configs and tokenizers raise too many types to list
        raise UserError(
            f"the tokenizer of {name} cannot be loaded ({first_line(error)}); save the model again"
        ) from None


def save_tokenizer(name: str, config: Mapping[str, Any] | None, folder: Path) -> None:
    """Write a Hugging Face tokenizer beside a model's config, where open_clip looks for it; any other needs no files.

    Args:
        name: the architecture; config: its model config, if it is a custom one.

    Raises:
        UserError: the tokenizer cannot be loaded.
    """
    source = ((config or {}).get("text_cfg") or {}).get("hf_tokenizer_name")
    if config is not None and not source:
        return
    tokenizer = load_tokenizer(name) if config is None else _hugging_face(str(source))
    if hasattr(tokenizer, "save_pretrained"):
        with TemporaryDirectory(prefix=".", dir=folder) as temporary:  # every rank writes, while another may read
            tokenizer.save_pretrained(temporary)
            for file in Path(temporary).iterdir():
                os.replace(file, folder / file.name)


def _hugging_face(source: str) -> Any:
    try:
        return open_clip.tokenizer.HFTokenizer(source, trust_remote_code=False)
    except ModuleNotFoundError as missing:
        raise UserError(needed_package(f"the tokenizer text_cfg.hf_tokenizer_name={source}", missing)) from None
    except Exception as error:  # as in load_tokenizer
        raise UserError(
            f"the tokenizer text_cfg.hf_tokenizer_name={source} cannot be loaded ({first_line(error)}); give a folder or a "
            "name of the Hugging Face Hub"
        ) from None


def needed_package(what: str, missing: ModuleNotFoundError) -> str:
    """The sentence for a part of a model that needs a package which is not installed."""
    return f"{what} needs {missing.name} (pip install 'dejavu-lit[objects]')"


def _check_options(options: Any, name: str) -> None:
    for option, value in dict(options).items():
        if option not in OPTIONS or not isinstance(value, str | int | None):
            raise UserError(
                f"the open_clip config of {name} sets tokenizer_kwargs.{option}, which may not be set; remove it "
                f"(allowed are {', '.join(OPTIONS)})"
            )
