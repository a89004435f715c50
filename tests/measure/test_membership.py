"""Membership scores against plain loops, and the scoreboard of records with known scores."""

import json
from typing import Any

import numpy as np
import pytest

from dejavu_lit.measure.membership import COLUMNS, ScoredSet, holdout_tails, scoreboard
from dejavu_lit.measure.model_scores import MODEL_SCORES, OtherPairs, drawn_others, model_scores
from dejavu_lit.measure.records import Records
from dejavu_lit.measure.settings import MembershipSettings, Settings
from dejavu_lit.utils.errors import UserError
from tests.measure.oracle import Case

SETTINGS = Settings(k=3, ks=(3,))


def vectors(seed: int, n: int, d: int = 16) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=(n, d)).astype(np.float16)


def plain_scores(x: np.ndarray, t: np.ndarray, images: np.ndarray, captions: np.ndarray, scale: float) -> list[float]:
    """One pair against the other pairs, by the letter of the definitions."""

    def cosine(a: np.ndarray, b: np.ndarray) -> float:
        a, b = a.astype(np.float64), b.astype(np.float64)
        return float(a @ b / np.sqrt((a @ a) * (b @ b)))

    own = cosine(x, t)
    to_captions, to_images = [cosine(x, c) for c in captions], [cosine(i, t) for i in images]
    alignment = own - (np.mean(to_captions) + np.mean(to_images)) / 2
    loss = 0.0
    for wrong in (to_captions, to_images):
        loss += scale * own - np.log(sum(np.exp(scale * c) for c in [own, *wrong]))
    return [own, alignment, loss / 2]


@pytest.mark.parametrize("holdout", [2, 40, 600])
def test_scores_against_plain_loops(holdout: int) -> None:
    h_keys = [f"h{i}" for i in range(holdout)]
    h_images, h_captions = vectors(0, holdout), vectors(1, holdout)
    chosen = drawn_others(h_keys)
    assert len(chosen) == min(513, holdout)
    rows = [h_keys.index(key) for key in chosen]
    others = OtherPairs(chosen, h_images[rows], h_captions[rows])
    images, captions = vectors(2, 5), vectors(3, 5)
    made = model_scores([f"a{i}" for i in range(5)], images, captions, others, 14.3)
    for i in range(5):  # a pair outside of H is compared with the first 512
        want = plain_scores(images[i], captions[i], h_images[rows[:-1]], h_captions[rows[:-1]], 14.3)
        assert [made[name][i] for name in ("cosine", "alignment", "loss")] == pytest.approx(want, abs=2e-5)
    made = model_scores(h_keys, h_images, h_captions, others, None)
    assert set(made) == {"cosine", "alignment"}
    for i in range(0, holdout, 7):  # a pair of H is compared with the others
        kept = [row for row in rows if row != i] if i in rows else rows[:-1]
        want = plain_scores(h_images[i], h_captions[i], h_images[kept], h_captions[kept], 1.0)
        assert [made["cosine"][i], made["alignment"][i]] == pytest.approx(want[:2], abs=2e-5)


def test_the_loss_of_a_confident_model_does_not_vanish() -> None:
    """In float32 the others' terms would be lost beside the pair's own, and most losses would be exactly 0."""
    h_images, h_captions = vectors(0, 100, 512), vectors(1, 100, 512)
    others = OtherPairs([f"h{i}" for i in range(100)], h_images, h_captions)
    images = vectors(2, 9, 512)
    captions = (0.4 * images + vectors(3, 9, 512)).astype(np.float16)
    loss = model_scores([f"a{i}" for i in range(9)], images, captions, others, 100.0)["loss"]
    want = [plain_scores(images[i], captions[i], h_images[:-1], h_captions[:-1], 100.0)[2] for i in range(9)]
    assert max(want) > -6e-8
    assert loss == pytest.approx(want, rel=1e-3)


def test_large_logit_scales_do_not_overflow() -> None:
    others = OtherPairs([f"h{i}" for i in range(9)], vectors(0, 9), vectors(1, 9))
    loss = model_scores(["a"], vectors(2, 1), vectors(3, 1), others, 1e4)["loss"]
    assert np.isfinite(loss).all()


def test_the_other_pairs_do_not_depend_on_their_order() -> None:
    keys = [f"h{i}" for i in range(2000)]
    assert drawn_others(keys) == drawn_others(keys[::-1])
    assert drawn_others(keys)[:3] == ["h303", "h1482", "h908"]  # fixed: scores of any two evaluations can be compared
    with pytest.raises(UserError, match=r"membership\.pairs=0"):
        MembershipSettings(0)


def scored(seed: int, prefix: str, strength: float = 0.0, n: int = 400, undrawn: int = 0) -> Records:
    """Records whose scores under their target are raised by ``strength``; the last ``undrawn`` have none."""
    case, random = Case(seed, n=n, prefix=prefix), np.random.default_rng(seed)
    columns: dict[str, list[Any]] = {}
    for name in COLUMNS:
        values = random.normal(strength if name.startswith("target") else 0.0, 1, n)
        columns[name] = [*values[: n - undrawn].tolist(), *[None] * undrawn]
    records = case.records()
    return Records(records.captions, records.truth, records.public, records.target, records.reference, columns)


def sets(strength: float, **options: int) -> dict[str, Records]:
    # On B the roles are exchanged, so the model that was trained on it is its target, too.
    made = {"population": scored(1, "a", strength, **options), "null": scored(2, "h", **options)}
    return made | {"swapped": scored(3, "b", strength, **options)}


def test_the_scoreboard_of_models_that_remember() -> None:
    board = scoreboard(sets(2.0), SETTINGS)
    assert board is not None
    json.dumps(board, allow_nan=False)
    assert board["pairs"] == {"A": 400, "H": 400, "B": 400}
    assert board["others"] == 399
    for name in ("cosine", "alignment", "loss", "cosine_calibrated", "clipmem"):
        entry = board[name]
        assert 0.75 < entry["auc"]["value"] < 0.97
        assert 0.75 < entry["swapped"]["auc"]["value"] < 0.97
        mean = (entry["auc"]["value"] + entry["swapped"]["auc"]["value"]) / 2
        assert entry["symmetric"]["value"] == pytest.approx(mean)
        low, high = entry["control"]["ci95"]
        assert low - 0.02 <= 0.5 <= high + 0.02
        assert entry["tpr_at_fpr"]["0.01"]["value"] > 0.1
        assert "fewer than 1 / 0.001" in entry["reasons"]["tpr_at_fpr.0.001"]
    assert board["cosine"]["unseen"]["ci95"][0] - 0.02 <= 0.5 <= board["cosine"]["unseen"]["ci95"][1] + 0.02
    assert board["clipmem"]["unseen"] is None
    assert 1 < board["epsilon"]["epsilon"] < 5
    assert board["epsilon"]["guesses"] == 160


def test_the_null_study_stays_within_its_intervals() -> None:
    """Two models of nothing: every AUC is 0.5 within its interval in about 95 % of the cases."""
    inside, total = 0, 0
    for seed in range(30):
        made = {
            name: scored(10 * seed + i, "ahb"[i], n=150) for i, name in enumerate(("population", "null", "swapped"))
        }
        board = scoreboard(made, SETTINGS)
        assert board is not None
        for name in ("cosine", "clipmem"):
            for figure in (board[name]["auc"], board[name]["symmetric"], board[name]["control"]):
                total += 1
                inside += figure["ci95"][0] <= 0.5 <= figure["ci95"][1]
    assert 0.9 <= inside / total <= 0.99


def test_pairs_that_were_not_drawn_do_not_count() -> None:
    board = scoreboard(sets(2.0, undrawn=150), SETTINGS)
    assert board is not None
    assert board["pairs"]["A"] == 250
    records = scored(1, "a", undrawn=150)
    a = ScoredSet(records, 3)
    assert a.keys == list(records.keys[:250])
    assert board["dejavu"]["spearman"] is None
    counted = int((records.truth.counts()[:250] > 0).sum())
    assert board["clipmem"]["spearman"]["pairs"] == counted


def test_dejavu_is_the_difference_of_hits() -> None:
    records = scored(1, "a")
    target, reference = records.scores([3])
    kept = target.has_objects
    want = (target.hits[:, 0].astype(int) - reference.hits[:, 0])[kept]
    assert ScoredSet(records, 3).values("dejavu").tolist() == want.tolist()
    assert ScoredSet(records, 3).values("dejavu", exchanged=True).tolist() == (-want).tolist()


def test_what_a_model_lacks_is_null_with_its_reason() -> None:
    whole = sets(1.0)

    def without(records: Records, names: tuple[str, ...]) -> Records:
        columns = {name: column for name, column in records.columns.items() if name not in names}
        return Records(records.captions, records.truth, records.public, records.target, records.reference, columns)

    text = ("reference_cosine", "reference_alignment", "reference_loss")
    made = {name: without(whole[name], text) for name in ("population", "null")}
    board = scoreboard(made, SETTINGS, unavailable=dict.fromkeys(text, "a text model embeds no images"))
    assert board is not None
    assert board["cosine"]["auc"] is not None
    assert board["cosine"]["reasons"]["swapped"] == "the set B was not measured"
    assert board["clipmem"] is None
    assert board["reasons"]["clipmem"] == "a text model embeds no images"
    assert board["epsilon"] is None
    assert scoreboard({name: without(r, COLUMNS) for name, r in whole.items()}, SETTINGS) is None
    nan = whole["population"]
    nan.columns["target_loss"][5] = float("nan")  # type: ignore[index]
    board = scoreboard(whole, SETTINGS)
    assert board is not None
    assert "1 of 400 members" in board["loss"]["reasons"]["auc"]
    json.dumps(board, allow_nan=False)
    key = nan.keys[5]
    tails = holdout_tails(nan, whole["null"], [key, nan.keys[6]], 3)
    assert tails[key]["loss"] == {"score": None, "p": None, "q": None}
    assert tails[nan.keys[6]]["loss"]["p"] == tails[nan.keys[6]]["loss"]["q"]  # the only one that was tested


def test_without_vectors_of_b_only_its_figures_are_missing() -> None:
    made = sets(1.0)
    b = made["swapped"]
    columns = {name: column for name, column in b.columns.items() if not name.startswith("target_")}
    made["swapped"] = Records(b.captions, b.truth, b.public, b.target, b.reference, columns)
    board = scoreboard(made, SETTINGS, {f"swapped.reference_{score}": "B/image is missing" for score in MODEL_SCORES})
    assert board is not None
    for name in ("cosine", "clipmem"):
        assert board[name]["auc"] is not None
        assert board[name]["swapped"] is None
        assert board[name]["reasons"]["symmetric"] == "B/image is missing"


def test_the_gap_in_hits_needs_no_images() -> None:
    bare = {}
    for name, r in sets(1.0).items():
        columns = {n: column for n, column in r.columns.items() if n not in COLUMNS}
        bare[name] = Records(r.captions, r.truth, r.public, r.target, r.reference, columns)
    board = scoreboard(bare, SETTINGS, dict.fromkeys(COLUMNS, "a text model embeds no images"))
    assert board is not None
    assert board["cosine"] is None
    assert board["dejavu"]["auc"] == scoreboard(sets(1.0), SETTINGS)["dejavu"]["auc"]  # type: ignore[index]


def test_listed_members_give_no_bound_on_epsilon() -> None:
    board = scoreboard(sets(2.0), SETTINGS, listed=True)
    assert board is not None
    assert board["epsilon"] is None
    assert "fair coin" in board["reasons"]["epsilon"]


def test_one_persons_scores_are_ranked_against_the_holdout() -> None:
    made = sets(1.0, undrawn=100)
    keys = [*made["population"].keys[:3], made["population"].keys[-1]]
    tails = holdout_tails(made["population"], made["null"], keys, 3)
    assert list(tails) == keys
    assert tails[keys[3]]["cosine"] == {"score": None, "p": None, "q": None}
    holdout = [value for value in made["null"].columns["target_cosine"] if value is not None]
    for key in keys[:3]:
        value = made["population"].columns["target_cosine"][made["population"].keys.index(key)]
        assert tails[key]["cosine"]["score"] == value
        assert tails[key]["cosine"]["p"] == (1 + sum(h >= value for h in holdout)) / (1 + len(holdout))
        assert tails[key]["cosine"]["p"] <= tails[key]["cosine"]["q"] <= 1
