"""Settings that hold a secret are refused, because every run saves its settings for others to read."""

import os
import re
from collections.abc import Mapping
from typing import Any

from dejavu_lit.utils.config import flatten
from dejavu_lit.utils.errors import UserError

VARIABLE = re.compile(r"_(KEY|TOKEN|PASSWORD|SECRET)$")  # names of environment variables that hold secrets
SHORTEST = 8  # characters of a secret; a shorter value would be found in names and words
WITHIN = 16  # characters from which on it is looked for within a setting too: "x-" + a key, not a word in a path
# user:password@host, token@host, or a signature or token in a query; one that a shell reads from a variable is not in the text.
IN_ADDRESS = re.compile(
    r"\w://[^/\s:@]*:[^/\s@]+@|https?://[^/\s@$?#]+@"
    r"|[?&#][\w-]*(sig|signature|token|auth|password|secret|api_?key|access_?key)=['\"]?[^&\s$'\"]",
    re.IGNORECASE,
)


def check_secrets(config: Mapping[str, Any]) -> None:
    """Raise UserError if a setting holds the value of a variable such as WANDB_API_KEY, or a secret in an address."""
    named = {name: value for name, value in os.environ.items() if VARIABLE.search(name.upper())}
    secrets = {name: value for name, value in named.items() if len(value) >= SHORTEST and not os.path.exists(value)}
    for option, setting in flatten(config):
        for text in (option, *(str(item) for item in (setting if isinstance(setting, list | tuple) else [setting]))):
            matches = (
                n for n, s in secrets.items() if s in (text, *text.split(".")) or (len(s) >= WITHIN and s in text)
            )
            variable = next(matches, None)
            if variable is not None or ("://" in text and IN_ADDRESS.search(text)):
                held = f"the value of ${variable}" if variable else "a password, signature or token in an address"
                place = "a name in the settings" if text == option else option
                raise UserError(
                    f"{place} contains {held}, which would be saved with the run; set it only as an environment variable"
                )
