"""The tokenizer of an open_clip model: what its config says of it is data, and code beside it is never imported."""

import json
import os
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import open_clip

from dejavu_lit.utils.errors import UserError, explained
from dejavu_lit.utils.io import fingerprint

# What text_cfg.tokenizer_kwargs may set: how text is cleaned and which tokens are special. None of it names a file, an
# address or a class.
OPTIONS = (
    *("clean", "strip_sep_token", "language", "add_prefix_space", "do_lower_case", "padding_side", "truncation_side"),
    *("bos_token", "eos_token", "pad_token", "unk_token", "cls_token", "sep_token", "mask_token", "model_max_length"),
)


def load_tokenizer(name: str) -> Any:
    """The tokenizer of an architecture, ``hf-hub:MODEL`` or ``local-dir:FOLDER``, as open_clip gives it.

    Raises UserError if its config sets an option outside of OPTIONS, or it cannot be loaded without its own code.
    """
    remedy = "save the model again, or give a folder with its tokenizer as hf_tokenizer_name in text_cfg of its config"
    with explained(f"the tokenizer of {name} cannot be loaded", remedy, "objects"):
        config = open_clip.get_model_config(name) or {}
        text = config.get("text_cfg") or {}
        for option, value in dict(text.get("tokenizer_kwargs") or {}).items():
            if option not in OPTIONS or not isinstance(value, str | int | None):
                raise UserError(
                    f"the open_clip config of {name} sets tokenizer_kwargs.{option}, which may not be set; remove it "
                    f"(allowed are {', '.join(OPTIONS)})"
                )
        from_hub = text.get("hf_tokenizer_name") or (name.startswith("hf-hub:") and not config)
        tokenizer = open_clip.get_tokenizer(name, **({"trust_remote_code": False} if from_hub else {}))
        check_words(tokenizer)
        return tokenizer


def check_words(holder: Any) -> None:
    """Raise ValueError if a tokenizer of transformers, or that of a model or processor, has only special tokens.

    transformers makes such a tokenizer for a folder without the files of one; all captions would be alike.
    """
    tokenizer = getattr(holder, "tokenizer", holder)
    special = getattr(tokenizer, "all_special_tokens", None)
    if special is not None and not set(tokenizer.get_vocab()).difference(special):
        raise ValueError("its tokenizer has no words: tokenizer.json or the like is missing")


def tokenizer_fingerprint(holder: Any) -> str | None:
    """A fingerprint of a tokenizer of transformers, or that of a model or processor; None for others, which have no files."""
    tokenizer = getattr(holder, "tokenizer", holder)
    if backend := getattr(tokenizer, "backend_tokenizer", None):
        settings = json.loads(backend.to_str())
        return fingerprint(
            {name: settings[name] for name in settings if name not in ("padding", "truncation")}
        )  # of a call
    return fingerprint(tokenizer.get_vocab()) if hasattr(tokenizer, "get_vocab") else None


def save_tokenizer(source: str, folder: Path) -> None:
    """Write the Hugging Face tokenizer ``source`` beside a model's config, where open_clip looks for it.

    Raises UserError if it cannot be loaded.
    """
    problem = f"the tokenizer text_cfg.hf_tokenizer_name={source} cannot be loaded"
    with explained(problem, "give a folder or a name of the Hugging Face Hub", "objects"):
        tokenizer = open_clip.tokenizer.HFTokenizer(source, trust_remote_code=False)
        check_words(tokenizer)
    with TemporaryDirectory(prefix=".", dir=folder) as temporary:  # every rank writes, while another may read
        tokenizer.save_pretrained(temporary)
        for file in Path(temporary).iterdir():
            os.replace(file, folder / file.name)
