"""What a study's random halves show together: memorization.parquet, its reliability, and the attacks with shadow models."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from dejavu_lit.measure.memorization import counterfactual, reliability
from dejavu_lit.measure.recompute import RECORD_FILES
from dejavu_lit.measure.records import read_columns
from dejavu_lit.measure.roc import noted
from dejavu_lit.measure.shadow import shadow_attacks
from dejavu_lit.study.ranking import by_setting, unit_of
from dejavu_lit.utils.io import atomic

MEMORIZATION = "memorization.parquet"
SCORES = ("hits", "alignment")  # whose counterfactual memorization is tabulated
VALUES = ("hits", "alignment", "loss")  # read from the records


class HalvesOfSetting:
    """The scores of one setting's halves: per score float64 [R, n] under the models that trained on each pair and the others."""

    def __init__(self, folders: Sequence[Path | str]) -> None:
        """``folders``: the evaluations, one per half."""
        tables = [
            {block: read_columns(Path(folder) / file, VALUES) for block, file in RECORD_FILES.items()}
            for folder in folders
        ]
        keys = sorted({key for table in tables for block in ("population", "swapped") for key in table[block][0]})
        self.keys, rows = keys, {key: row for row, key in enumerate(keys)}
        shape = (len(folders), len(keys))
        self.inside, self.outside = ({score: np.full(shape, np.nan) for score in VALUES} for _ in range(2))
        self.is_in_a = np.zeros(shape, bool)
        for half, table in enumerate(tables):
            for block in ("population", "swapped"):  # in both the target is the model that trained on the pairs
                block_keys, columns = table[block]
                at = [rows[key] for key in block_keys]
                self.is_in_a[half, at] = block == "population"
                for score in VALUES:
                    self.inside[score][half, at] = columns[f"target_{score}"]
                    self.outside[score][half, at] = columns[f"reference_{score}"]
        self.holdout = _holdout_losses([table["null"] for table in tables])

    def table(self, name: str, size: int) -> pa.Table:
        """One row per pair of the pool: the columns of memorization.parquet."""
        columns: dict[str, Any] = {
            "setting": [name] * len(self.keys), "train_size": [size] * len(self.keys), "key": self.keys
        }  # fmt: skip
        for score in SCORES:
            made = counterfactual(self.inside[score], self.outside[score])
            columns |= {f"{score}_in": made.inside, f"{score}_out": made.outside, score: made.difference}
            columns |= {f"{score}_se": made.se, f"{score}_halves": made.halves}
        return pa.table({name: pa.array(values, from_pandas=True) for name, values in columns.items()})

    def figures(self) -> dict[str, Any]:
        """{halves, pairs, reliability{hits, alignment}, lira, rmia, reasons}."""
        reasons: dict[str, str] = {}
        repeats = {
            score: noted(reasons, f"reliability.{score}", reliability(self.inside[score], self.outside[score]))
            for score in SCORES
        }
        attacks, reason = shadow_attacks(self.inside["loss"], self.outside["loss"], self.is_in_a, self.holdout)
        if reason is not None:
            reasons["lira"] = reasons["rmia"] = reason
        counts = {"halves": len(self.is_in_a), "pairs": len(self.keys)}
        board = attacks or {"lira": None, "rmia": None}
        return {**counts, "reliability": repeats, **board, "reasons": reasons}


def _holdout_losses(tables: Sequence[tuple[list[str], Mapping[str, np.ndarray]]]) -> np.ndarray:
    """The losses of the pairs of H that all halves scored, under the models of A and of B: float64 [R, 2, m]."""
    scored = []
    for keys, columns in tables:
        both = np.stack([columns["target_loss"], columns["reference_loss"]], axis=1)
        scored.append({key: row for key, row in zip(keys, both, strict=True) if np.isfinite(row).all()})
    common = sorted(set.intersection(*(set(losses) for losses in scored)))
    return (
        np.array([[losses[key] for key in common] for losses in scored]).reshape(len(tables), -1, 2).transpose(0, 2, 1)
    )


def write_memorization(out: Path, rows: Sequence[Mapping[str, Any]]) -> dict[tuple[str, int], dict[str, Any]]:
    """Write memorization.parquet of the settings with several halves: {(setting, size): its figures over the halves}."""
    settings = {}
    for key, group in by_setting(rows).items():
        folders = [(out / row["metrics"]).parent for row in group]
        # Without B no model has missed a pair.
        whole = [folder for folder in folders if all((folder / file).is_file() for file in RECORD_FILES.values())]
        if unit_of(group) == "half" and len(whole) > 1:
            settings[key] = HalvesOfSetting(whole)
    if settings:
        with atomic(out / MEMORIZATION) as part:
            pq.write_table(pa.concat_tables([s.table(*key) for key, s in settings.items()]), part, compression="zstd")
    else:
        (out / MEMORIZATION).unlink(missing_ok=True)
    return {key: setting.figures() for key, setting in settings.items()}
