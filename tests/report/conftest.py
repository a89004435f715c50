"""One small evaluation and one small study for all tests of the report."""

from pathlib import Path

import pytest

from tests.report.artifacts import FEW_FIGURES, HOSTILE, make_evaluation, make_study


@pytest.fixture(scope="session")
def evaluation(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """40 pairs, some with hostile captions."""
    return make_evaluation(
        tmp_path_factory.mktemp("made") / "evaluation", captions=dict(enumerate(HOSTILE)), planted=True
    )


@pytest.fixture(scope="session")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same with few figures, for tests that write many reports."""
    return make_evaluation(
        tmp_path_factory.mktemp("made") / "plain", captions=dict(enumerate(HOSTILE)), settings=FEW_FIGURES
    )


@pytest.fixture(scope="session")
def study(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three settings, two sizes, two seeds."""
    folder = tmp_path_factory.mktemp("made") / "study"
    return make_study(folder, {"none": 0.9, "mask": 0.3, "mask more": 0.0}, sizes=(30, 90), seeds=2)


@pytest.fixture(scope="session")
def small_study(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two settings of one size and seed, for the tests of pages."""
    return make_study(
        tmp_path_factory.mktemp("made") / "small", {"none": 0.9, "mask": 0.0}, (60,), settings=FEW_FIGURES
    )
