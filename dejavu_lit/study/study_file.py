"""study.json as reports read it, checked by study.schema.json, because it may come from elsewhere."""

import json
from pathlib import Path
from typing import Any

from dejavu_lit.measure.recompute import schema_error
from dejavu_lit.utils.errors import UserError
from dejavu_lit.utils.io import read_json_object

SCHEMA = 1  # of study.json


def read_study(path: Path) -> dict[str, Any]:
    """The contents of a study.json; raises UserError if it is missing, damaged, without settings or of another schema."""
    study = read_json_object(path, SCHEMA)
    if not study.get("settings"):
        raise UserError(f"{path} has no settings; run dejavu mitigate again")
    if (damage := schema_error(json.dumps(study), "dejavu_lit.study", "study.schema.json")) is not None:
        raise UserError(f"{path} is damaged ({damage}); run dejavu mitigate again")
    return study
