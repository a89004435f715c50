from math import sqrt
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy import stats

from dejavu_lit.study.power import ASSUMED_TRAINING_SD, SEED_PAIRS, format_sample, power_of, required_sample
from dejavu_lit.utils.errors import UserError
from dejavu_lit.utils.io import write_json


def metrics(value: float, se: float = 0.01, records: int = 2000, swapped: int = 2000) -> dict[str, Any]:
    figure = {"value": value, "se": se}
    return {
        "settings": {"k": 10},
        "counts": {"records": records, "swapped": {"records": swapped}},
        "symmetric": {"ppg": figure, "prg": figure, "aucg": figure},
    }


def test_power_against_simulation() -> None:
    rng = np.random.default_rng(0)
    for gap, n, pairs, sampling, training in (
        (0.1, 500, 3, 0.6, 0.04),
        (0.05, 2000, 5, 0.7, 0.03),
        (0.0, 100, 4, 0.5, 0.1),
    ):
        values = gap + rng.normal(0, training, (20_000, pairs)) + rng.normal(0, sampling / np.sqrt(n), (20_000, pairs))
        half = stats.t.ppf(0.975, pairs - 1) * values.std(axis=1, ddof=1) / np.sqrt(pairs)
        detected = (values.mean(axis=1) - half > 0).mean()
        assert power_of(gap, n, pairs, sampling, training) == pytest.approx(detected, abs=0.012)
    single = 0.1 + rng.normal(0, 0.04, 20_000) + rng.normal(0, 0.6 / np.sqrt(500), 20_000)
    detected = (single - 1.96 * 0.6 / np.sqrt(500) > 0).mean()
    assert power_of(0.1, 500, 1, 0.6, 0.04) == pytest.approx(detected, abs=0.012)


def test_without_noise_every_gap_is_detected() -> None:
    assert power_of(0.1, 100, 1, 0.0, 0.0) == 1.0
    assert power_of(0.1, 100, 3, 0.0, 0.0) == 1.0


@pytest.mark.parametrize("noncentrality", [30, 40, 50, 60, 80])
def test_a_gap_far_above_the_noise_is_detected(noncentrality: int) -> None:
    for pairs in SEED_PAIRS[1:]:
        assert power_of(noncentrality * 0.1 / sqrt(pairs), 1, pairs, 0.1, 0) == pytest.approx(1)


def test_the_fewest_sufficient_records_are_reported(tmp_path: Path) -> None:
    write_json(tmp_path / "metrics.json", metrics(0.5, se=0.015))
    sample = required_sample(tmp_path / "metrics.json", gap=0.1, power=0.8)
    sampling = 0.015 * np.sqrt(2000)
    assert sample["variances"]["sampling_sd"] == pytest.approx(sampling)
    assert sample["variances"]["training_sd"] == ASSUMED_TRAINING_SD
    assert sample["variances"]["assumed"] is True
    for row in sample["rows"]:
        if row["records"] is None:
            assert power_of(0.1, 1e7, row["seed_pairs"], sampling, ASSUMED_TRAINING_SD) < 0.8
        else:
            assert power_of(0.1, row["records"], row["seed_pairs"], sampling, ASSUMED_TRAINING_SD) >= 0.8
            assert power_of(0.1, row["records"] - 1, row["seed_pairs"], sampling, ASSUMED_TRAINING_SD) < 0.8
    assert {row["seed_pairs"]: row["records"] is None for row in sample["rows"]}[3]
    assert "assumed" in format_sample(sample)
    assert "none suffices" in format_sample(sample)


def test_variances_of_seed_pairs_and_of_a_study(tmp_path: Path) -> None:
    values = {"none": [0.5, 0.6, 0.7], "mask": [0.2, 0.1, 0.3]}
    rows, paths = [], []
    for name, gaps in values.items():
        for seed, value in enumerate(gaps):
            paths.append(tmp_path / f"{name}-{seed}" / "metrics.json")
            write_json(paths[-1], metrics(value, se=0.02, records=1000, swapped=3000))
            rows.append({"name": name, "train_size": 2000, "seed": seed, "metrics": f"{name}-{seed}/metrics.json"})
    write_json(tmp_path / "study.json", {"settings": rows})
    study = required_sample(tmp_path / "study.json")["variances"]
    # Within each setting the variance is 0.01; sampling explains 0.0004 of it.
    assert study["training_sd"] == pytest.approx(np.sqrt(0.01 - 0.0004))
    assert study["assumed"] is False
    assert study["seed_pairs"] == 6
    assert study["records"] == 1500  # the harmonic mean of the two sides
    assert study["sampling_sd"] == pytest.approx(0.02 * np.sqrt(1500))
    assert required_sample(paths[:3])["variances"]["training_sd"] == pytest.approx(study["training_sd"])
    # If two settings are pooled as one, their difference counts as noise.
    assert required_sample(paths)["variances"]["training_sd"] > 2 * study["training_sd"]


def test_the_assumed_spread_is_in_the_figure_s_own_units(tmp_path: Path) -> None:
    one = metrics(0.2)
    one["symmetric"]["aucg"] = {"value": 0.08, "se": 0.0025}
    write_json(tmp_path / "metrics.json", one)
    assert required_sample(tmp_path / "metrics.json", figure="ppg")["variances"]["training_sd"] == ASSUMED_TRAINING_SD
    aucg = required_sample(tmp_path / "metrics.json", figure="aucg")["variances"]
    assert aucg["training_sd"] == pytest.approx(ASSUMED_TRAINING_SD / 4)
    assert aucg["assumed"] is True


def test_the_summary(tmp_path: Path) -> None:
    write_json(tmp_path / "m.json", metrics(0.5, se=0.01))
    assert required_sample(tmp_path / "m.json", gap=0.2)["words"].startswith(
        "3 seed pairs with the 2000 records per side measured before are enough"
    )
    assert required_sample(tmp_path / "m.json", gap=0.01)["words"].startswith("No number of records is enough")
    write_json(tmp_path / "m.json", metrics(0.5, se=0.3))
    assert "records per side are enough" in required_sample(tmp_path / "m.json", gap=0.2)["words"]


def test_invalid_arguments_are_refused(tmp_path: Path) -> None:
    write_json(tmp_path / "m.json", metrics(0.5))
    for wrong in ({"gap": 0}, {"gap": 1.0}, {"power": 1.0}, {"power": 0.01}, {"figure": "pgp"}):
        with pytest.raises(UserError, match=f"{next(iter(wrong))}="):
            required_sample(tmp_path / "m.json", **wrong)
    with pytest.raises(UserError, match="does not exist"):
        required_sample(tmp_path / "none.json")
    write_json(tmp_path / "m.json", metrics(0.5) | {"symmetric": None})
    with pytest.raises(UserError, match="has no symmetric gap"):
        required_sample(tmp_path / "m.json")


def test_a_file_that_lacks_a_figure_is_refused_by_name(tmp_path: Path) -> None:
    write_json(tmp_path / "metrics.json", {"settings": {}, "symmetric": {"ppg": {}}, "counts": {"records": 0}})
    with pytest.raises(UserError, match=r"metrics=.*/metrics\.json is damaged: a figure is missing or not a number"):
        required_sample(tmp_path / "metrics.json")
