"""The cards' data against the records behind them, chosen pairs, objects named in captions, and script files."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq

from dejavu_lit.data.objects import read_objects
from dejavu_lit.report.cards import (
    CardImages,
    Rankings,
    cards,
    choose_keys,
    labels_in_caption,
    neighbors,
    read_ranks,
    read_rows,
    write_script,
)
from dejavu_lit.report.evaluation import Evaluation
from dejavu_lit.report.images import read_image_objects
from dejavu_lit.report.report import write_report
from tests.report.artifacts import HOSTILE, make_evaluation


def value(path: Path) -> Any:
    """The value that a data file passes to the page."""
    text = path.read_text(encoding="ascii").strip()
    assert text.startswith("dejavu(")
    assert text.endswith(")")
    return json.loads(text[len("dejavu(") : -1])


def made(evaluation: Path, limit: int = 1000, redact: bool = False) -> tuple[Any, list[dict[str, Any]]]:
    """The data of the cards, and the records that they were made from."""
    opened = Evaluation.open(evaluation)
    ranks = read_ranks(opened.records)
    rows = read_rows(opened.records, ranks, choose_keys([ranks], limit), opened.metrics["k"])
    objects = read_image_objects([evaluation / "data" / "objects" / "made" / "P"], neighbors(rows), 0.5)
    data = cards(rows, CardImages(public_objects=objects), redact)
    return data, pq.read_table(opened.records).to_pylist()


def test_cards_show_the_values_of_the_records(evaluation: Path) -> None:
    data, records = made(evaluation)
    by_key = {record["key"]: record for record in records}
    assert len(data["cards"]) == sum(bool(record["objects"]) for record in records) == len(records) - 1
    labels = data["labels"]
    for card in data["cards"]:
        record = by_key[card["key"]]
        assert card["caption"] == record["caption"]
        assert [labels[c] for c in card["objects"]] == record["objects"]
        assert card["distance"] == round(record["target_distances"][0], 4)
        for side in ("target", "reference"):
            assert [labels[c] for c in card[side]["predicted"]] == record[f"{side}_predicted"]
            assert [data["pictures"][p][0] for p in card[side]["near"]] == record[f"{side}_neighbors"][:5]
            assert card[side]["hits"] == record[f"{side}_hits"]
            assert card[side]["precision"] == round(record[f"{side}_precision"], 4)
            # The hits are the chips that the page marks as correct.
            right = set(card[side]["predicted"]) & set(card["objects"])
            assert len(right) == card[side]["hits"]
    gap = [card["target"]["hits"] - card["reference"]["hits"] for card in data["cards"]]
    assert gap == sorted(gap, reverse=True)


def test_no_more_of_a_ranking_is_looked_at_than_pairs_are_shown() -> None:
    looked_at = []

    class Keys(list[str]):
        def __getitem__(self, row: Any) -> Any:
            looked_at.append(row)
            return super().__getitem__(row)

    gaps = [np.roll(np.arange(1000), shift) for shift in (0, 1, 500)]
    evaluations = (Rankings(Keys(map(str, range(1000))), {"gap": gap}, {}) for gap in gaps)
    assert choose_keys(evaluations, 4) == {"0", "1", "2", "500"}
    assert len(looked_at) == 3 * 4


def test_the_neighbors_have_the_objects_of_the_artifact(evaluation: Path) -> None:
    data, _ = made(evaluation)
    ((objects,), _) = read_objects([evaluation / "data" / "objects" / "made" / "P"], 0.5)
    for key, thumb, codes, _ in data["pictures"]:
        assert thumb is None
        assert [data["labels"][c] for c in codes] == objects.names(objects.rows[key])


def test_the_boxes_are_those_of_the_artifact_above_the_threshold(evaluation: Path, tmp_path: Path) -> None:
    page = write_report(evaluation, out=tmp_path / "report", formats=())
    data = value(page.parent / "data" / "cards.js")
    assert data["boxes"] is True
    artifact = evaluation / "data" / "objects" / "made"
    expected = {}
    for name in ("A", "P"):
        for row in pq.read_table(artifact / name / "00000.parquet").to_pylist():
            annotated = zip(row["labels"], row["scores"], row["boxes"], strict=True)
            expected[row["key"]] = {(label, *map(round, box)) for label, score, box in annotated if score >= 0.5}
    shown = [(card["key"], card["boxes"]) for card in data["cards"]]
    shown += [(key, boxes) for key, _, _, boxes in data["pictures"]]
    assert len(shown) > 30
    for key, boxes in shown:
        if not expected[key]:
            assert boxes is None
            continue
        width, height, *rest = boxes
        assert (width, height) == (24, 16)
        assert {(data["labels"][code], *box) for code, *box in rest} == expected[key]


def test_a_limit_takes_the_top_of_every_ranking(evaluation: Path) -> None:
    data, records = made(evaluation, limit=7)
    assert len(data["cards"]) == 7
    shown = {card["key"] for card in data["cards"]}
    with_objects = [record for record in records if record["objects"]]
    nearest = min(with_objects, key=lambda r: r["target_distances"][0])
    widest = max(with_objects, key=lambda r: r["target_hits"] - r["reference_hits"])
    assert {nearest["key"], widest["key"]} <= shown


def test_redacted_cards_have_keys_and_numbers_only(evaluation: Path) -> None:
    data, _ = made(evaluation, redact=True)
    assert data["labels"] == data["pictures"] == []
    assert data["boxes"] is False
    for card in data["cards"]:
        assert set(card) == {"key", "exposure", "distance", "target", "reference"}
        assert set(card["target"]) == {"hits", "precision", "recall"}
    everything = json.dumps(data)
    for caption in HOSTILE:
        assert json.dumps(caption)[1:-1] not in everything


def test_the_card_shows_the_exposure(tmp_path: Path) -> None:
    evaluation = make_evaluation(tmp_path / "e", n=12, m=12, images=False, planted=True)
    data, _ = made(evaluation)
    seen = {card["key"]: card["exposure"] for card in data["cards"]}
    assert seen == {f"a{i:05d}": 20 if i % 4 == 0 else 2 for i in range(11)}


def test_objects_named_in_the_caption() -> None:
    labels = ["bear", "teddy bear", "bus", "traffic_light", "fox", "glass"]
    assert labels_in_caption("Two bears wait for the buses", labels) == ["bear", "bus"]
    assert labels_in_caption("A TEDDY BEAR, smiling", labels) == ["bear", "teddy bear"]
    assert labels_in_caption("a traffic light; foxes", labels) == ["traffic_light", "fox"]
    assert labels_in_caption("bearing a busy glasshouse", labels) == []
    assert labels_in_caption("two glasses", labels) == ["glass"]
    assert labels_in_caption("a knife and some mice", ["knives", "mouse"]) == ["knives", "mouse"]
    assert labels_in_caption("草地上的红色狗。", ["狗", "草地", "猫"]) == ["狗", "草地"]
    assert labels_in_caption("สุนัขสีแดงอยู่ข้างต้นไม้", ["สุนัข", "ต้นไม้", "แมว"]) == ["สุนัข", "ต้นไม้"]


def test_script_files_are_ascii_for_any_text(tmp_path: Path) -> None:
    texts = [*HOSTILE, "\ud800 half", "\x00\x1f"]
    write_script(tmp_path / "text.js", texts)
    assert value(tmp_path / "text.js") == texts
