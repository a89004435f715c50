"""The cards' data against the records they are made of, chosen pairs, captions' objects, and script files."""

import json
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

from dejavu_lit.report.cards import CHUNK, Images, choose, named_in, read_ranks, read_rows, write_cards, write_script
from dejavu_lit.report.evaluation import Evaluation, write_single
from tests.report.artifacts import HOSTILE, make_evaluation


def value(path: Path) -> Any:
    """What a data file hands to the page."""
    text = path.read_text(encoding="ascii").strip()
    assert text.startswith(f'dejavu("{path.stem}",')
    assert text.endswith(")")
    return json.loads(text[len(f'dejavu("{path.stem}",') : -1])


def written(
    evaluation: Path, folder: Path, limit: int = 1000, redact: bool = False
) -> tuple[Any, list[Any], list[dict[str, Any]]]:
    found = Evaluation.open(evaluation)
    ranks = read_ranks(found.records)
    rows = read_rows(found.records, ranks, choose([ranks], limit), found.metrics["k"])
    write_cards(folder, rows, len(ranks.keys), found.objects(), Images(), redact)
    index = value(folder / "index.js")
    chunks = [value(folder / f"cards-{i:04d}.js") for i in range(-(-index["count"] // CHUNK))]
    return index, chunks, pq.read_table(found.records).to_pylist()


def test_cards_show_what_the_records_hold(evaluation: Path, tmp_path: Path) -> None:
    index, chunks, records = written(evaluation, tmp_path)
    by_key = {record["key"]: record for record in records}
    assert index["count"] == index["total"] == sum(bool(record["objects"]) for record in records) == len(records) - 1
    labels = index["labels"]
    place = 0
    for chunk in chunks:
        for card in chunk["cards"]:
            record = by_key[card["key"]]
            assert card["caption"] == record["caption"]
            assert [labels[c] for c in card["objects"]] == record["objects"]
            assert [labels[c] for c in index["objects"][place]] == record["objects"]
            assert index["distance"][place] == round(record["target_distances"][0], 4)
            for side in ("target", "reference"):
                assert [labels[c] for c in card[side]["predicted"]] == record[f"{side}_predicted"]
                assert [chunk["pictures"][p][0] for p in card[side]["near"]] == record[f"{side}_neighbors"][:5]
                assert card[side]["hits"] == record[f"{side}_hits"] == index[side][place]
                assert card[side]["precision"] == round(record[f"{side}_precision"], 4)
                # The hits are those of the chips that the page marks as right.
                right = set(card[side]["predicted"]) & set(card["objects"])
                assert len(right) == card[side]["hits"]
            place += 1
    gap = [t - r for t, r in zip(index["target"], index["reference"], strict=True)]
    assert gap == sorted(gap, reverse=True)
    assert value(tmp_path / "text.js") == [[c["key"], c["caption"]] for chunk in chunks for c in chunk["cards"]]


def test_neighbors_objects_are_those_of_the_artifact(evaluation: Path, tmp_path: Path) -> None:
    index, chunks, _ = written(evaluation, tmp_path)
    objects = Evaluation.open(evaluation).objects()
    assert objects is not None
    for chunk in chunks:
        for key, thumb, codes, _ in chunk["pictures"]:
            assert thumb is None
            assert [index["labels"][c] for c in codes] == objects.names(objects.rows[key])


def test_boxes_are_those_of_the_artifact_at_the_threshold(evaluation: Path, tmp_path: Path) -> None:
    write_single(tmp_path, Evaluation.open(evaluation), False, 1000, None)
    index, chunk = (value(tmp_path / "data" / f"{name}.js") for name in ("index", "cards-0000"))
    assert index["boxes"] is True
    artifact = evaluation / "data" / "objects" / "made"
    kept = {}
    for name in ("A", "P"):
        for row in pq.read_table(artifact / name / "00000.parquet").to_pylist():
            found = zip(row["labels"], row["scores"], row["boxes"], strict=True)
            kept[row["key"]] = {(label, *map(round, box)) for label, score, box in found if score >= 0.5}
    shown = [(card["key"], card["boxes"]) for card in chunk["cards"]]
    shown += [(key, places) for key, _, _, places in chunk["pictures"]]
    assert len(shown) > 30
    for key, places in shown:
        if not kept[key]:
            assert places is None
            continue
        width, height, *rest = places
        assert (width, height) == (24, 16)
        assert {(index["labels"][code], *place) for code, *place in rest} == kept[key]


def test_a_limit_takes_the_top_of_every_ranking(evaluation: Path, tmp_path: Path) -> None:
    index, chunks, records = written(evaluation, tmp_path, limit=7)
    assert index["count"] == 7
    assert index["total"] == len(records) - 1
    kept = {card["key"] for chunk in chunks for card in chunk["cards"]}
    with_objects = [record for record in records if record["objects"]]
    nearest = min(with_objects, key=lambda r: r["target_distances"][0])
    widest = max(with_objects, key=lambda r: r["target_hits"] - r["reference_hits"])
    assert {nearest["key"], widest["key"]} <= kept


def test_redacted_cards_hold_keys_and_numbers_only(evaluation: Path, tmp_path: Path) -> None:
    index, chunks, _ = written(evaluation, tmp_path, redact=True)
    assert index["labels"] == []
    assert not any(index["objects"])
    assert not (tmp_path / "text.js").exists()
    for chunk in chunks:
        assert chunk["pictures"] == []
        for card in chunk["cards"]:
            assert set(card) == {"key", "exposure", "target", "reference"}
            assert index["boxes"] is False
            assert set(card["target"]) == {"hits", "precision", "recall"}
    everything = "".join(path.read_text() for path in tmp_path.iterdir())
    for caption in HOSTILE:
        assert json.dumps(caption)[1:-1] not in everything


def test_exposure_is_on_the_card(tmp_path: Path) -> None:
    evaluation = make_evaluation(tmp_path / "e", n=12, m=12, images=False, planted=True)
    _, chunks, _ = written(evaluation, tmp_path / "data")
    seen = {card["key"]: card["exposure"] for chunk in chunks for card in chunk["cards"]}
    assert seen == {f"a{i:05d}": 20 if i % 4 == 0 else 2 for i in range(11)}


def test_objects_named_in_the_caption() -> None:
    labels = ["bear", "teddy bear", "bus", "traffic_light", "fox", "glass"]
    assert named_in("Two bears wait for the buses", labels) == ["bear", "bus"]
    assert named_in("A TEDDY BEAR, smiling", labels) == ["bear", "teddy bear"]
    assert named_in("a traffic light; foxes", labels) == ["traffic_light", "fox"]
    assert named_in("bearing a busy glasshouse", labels) == []
    assert named_in("two glasses", labels) == ["glass"]


def test_script_files_are_ascii_whatever_the_text(tmp_path: Path) -> None:
    texts = [*HOSTILE, "\ud800 half", "\x00\x1f"]
    write_script(tmp_path / "text.js", "text", texts)
    assert value(tmp_path / "text.js") == texts
