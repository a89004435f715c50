"""The tokenizer of an open_clip model: what its config says of it is data, and code beside it is never imported."""

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
    except Exception as error:  # damaged configs and tokenizers raise too many types to list
        raise UserError(
            f"the tokenizer of {name} cannot be loaded ({first_line(error)}); save the model again"
        ) from None


def _check_options(options: Any, name: str) -> None:
    for option, value in dict(options).items():
        if option not in OPTIONS or not isinstance(value, str | int | None):
            raise UserError(
                f"the open_clip config of {name} sets tokenizer_kwargs.{option}, which may not be set; remove it "
                f"(allowed are {', '.join(OPTIONS)})"
            )
