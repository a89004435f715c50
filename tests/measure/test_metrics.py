import json
from dataclasses import replace
from importlib.resources import files
from typing import Any

import jsonschema
import numpy as np
import pytest

from dejavu_lit.measure.metrics import measure
from dejavu_lit.measure.records import Records
from dejavu_lit.measure.settings import Settings
from dejavu_lit.utils.errors import UserError
from tests.measure.oracle import Case, objects

SCHEMA = json.loads((files("dejavu_lit.measure") / "metrics.schema.json").read_text(encoding="utf-8"))
QUICK = Settings(k=3, ks=(1, 3, 6), bootstrap=200, smallest_group=5)


def three_sets(n: int = 120) -> tuple[list[Records], list[Case]]:
    cases = [Case(seed, n=n, prefix=prefix) for seed, prefix in enumerate("ahb")]
    for case in cases:
        case.public, case.public_objects = cases[0].public, cases[0].public_objects
    return [case.records() for case in cases], cases


def validate(body: dict[str, Any]) -> None:
    jsonschema.Draft202012Validator.check_schema(SCHEMA)
    jsonschema.Draft202012Validator(SCHEMA).validate(json.loads(json.dumps(body, allow_nan=False)))


@pytest.mark.parametrize("top_m", [None, 2])
def test_every_block_against_plain_sets(top_m: int | None) -> None:
    sets, cases = three_sets()
    body = measure(*sets, replace(QUICK, top_m=top_m, top_ms=(1, 4)))
    validate(body)

    def gaps(case: Case, k: int, m: int | None) -> list[float]:
        pairs = list(zip(case.figures("target", k, m), case.figures("reference", k, m), strict=True))
        signs = [sum((t[i] > r[i]) - (t[i] < r[i]) for t, r in pairs) / len(pairs) for i in (0, 1)]
        return [*signs, float(sum(t[1] - r[1] for t, r in pairs) / len(pairs))]

    def check(blocks: dict[str, Any], k: int, m: int | None) -> None:
        a, h, b = (np.array(gaps(case, k, m)) for case in cases)
        want = {"population": a, "null": h, "swapped": b, "symmetric": (a + b) / 2, "corrected": a - h}
        for name, values in want.items():
            got = [blocks[name][figure]["value"] for figure in ("ppg", "prg", "aucg")]
            if name in ("population", "null", "swapped"):
                assert got == values.tolist()
            assert got == pytest.approx(values.tolist(), abs=1e-15)

    check(body, 3, top_m)
    for k in (1, 3, 6):
        check(body["by_k"][str(k)], k, top_m)
    for row, m in zip(body["sensitivity"]["top_m"], (1, 4), strict=True):
        check(row, 3, m)
    with_objects = [sum(bool(g) for g in case.truth) for case in cases]
    assert body["counts"]["records"] == with_objects[0]
    assert body["counts"]["without_objects"] == 120 - with_objects[0]
    assert body["counts"]["null"]["records"] == with_objects[1]
    assert body["by_k"]["3"]["sample"] == body["sample"]
    assert [(line["k"], line["top_m"]) for line in body["curves"]["sample"]] == [
        (1, top_m), (3, top_m), (6, top_m), (3, 1), (3, 4)
    ]  # fmt: skip
    assert body["reasons"] == {"planted": "it is not known how often training saw each pair"}


def test_missing_sets_are_null_with_reasons() -> None:
    (a, h, _), cases = three_sets()
    alone = measure(a, settings=QUICK)
    validate(alone)
    assert [alone[name] for name in ("null", "swapped", "symmetric", "corrected")] == [None] * 4
    assert set(alone["reasons"]) == {"null", "swapped", "symmetric", "corrected", "planted"}
    assert alone["reasons"]["null"] == "the set H was not measured"
    assert alone["reasons"]["swapped"] == (
        "the set B was not measured; swapped=true measures it, if the reference was trained on it"
    )
    assert alone["found"]["found"] is None
    assert alone["subgroups"]["object"]["basis"] == "population"
    empty = replace(h, truth=objects([set()] * 120, cases[0].labels, "h"))
    bare = measure(a, empty, None, QUICK)
    validate(bare)
    assert bare["null"] is None
    assert bare["reasons"]["null"] == "no record of the set H has an object"
    assert bare["counts"]["null"] == {"records": 0, "without_objects": 120}


def test_thresholds_apply_to_true_and_predicted_objects() -> None:
    sets, cases = three_sets()

    def at(threshold: float) -> dict[str, Any]:
        if threshold == 0.9:
            return {
                s: objects([set() for _ in c.truth], c.labels, p) for s, c, p in zip("AHB", cases, "ahb", strict=True)
            } | {"P": cases[0].public_objects}
        labels = set(cases[0].labels[:6])
        by_set = {
            s: objects([g & labels for g in c.truth], c.labels, p) for s, c, p in zip("AHB", cases, "ahb", strict=True)
        }
        return by_set | {"P": objects([g & labels for g in cases[0].public], cases[0].labels, "p")}

    body = measure(*sets, replace(QUICK, thresholds=[0.6, 0.9]), at)
    validate(body)
    first, second = body["sensitivity"]["threshold"]
    joined = at(0.6)
    direct = measure(
        *(r.with_objects(joined[s], joined["P"]) for r, s in zip(sets, "AHB", strict=True)), settings=QUICK
    )
    assert first["symmetric"] == direct["symmetric"]
    assert first["counts"] == direct["counts"]
    assert second["population"] is None
    assert second["reason"] == "no record of A has an object at threshold 0.9"
    with pytest.raises(UserError, match="thresholds= needs the object artifact"):
        measure(*sets, replace(QUICK, thresholds=[0.6]))


def test_planted_and_columns() -> None:
    sets, _ = three_sets()
    times = np.array([20, 200] * 60)
    a, h, b = (replace(r, columns={"exposure": times, "place": ["x", "y", None] * 40}) for r in sets)
    body = measure(a, h, b, replace(QUICK, subgroups=("place", "exposure")))
    validate(body)
    assert [level["exposure"] for level in body["planted"]["levels"]] == [20, 200]
    assert {g["group"] for g in body["subgroups"]["place"]["groups"]} == {"x", "y", "(none)"}
    even = measure(replace(a, columns={"exposure": [7] * 120}), settings=QUICK)
    validate(even)
    assert even["planted"] is None
    assert even["reasons"]["planted"] == "every pair was seen about equally often"


def test_an_exposure_of_the_photograph_is_not_training_exposure() -> None:
    sets, _ = three_sets()
    a, h, b = (replace(r, columns={"meta.exposure": [1, 5] * 60}) for r in sets)
    body = measure(a, h, b, replace(QUICK, subgroups=("exposure",)))
    validate(body)
    assert body["planted"] is None
    assert body["reasons"]["planted"] == "it is not known how often training saw each pair"
    assert [g["group"] for g in body["subgroups"]["meta.exposure"]["groups"]] == ["1", "5"]
    with pytest.raises(UserError, match="the column exposure of the records"):  # of a version without meta.
        measure(replace(a, columns={"exposure": ["1/60"] * 120}), settings=QUICK)


def test_the_same_call_gives_the_same_json() -> None:
    sets, _ = three_sets()
    assert json.dumps(measure(*sets, settings=QUICK)) == json.dumps(measure(*three_sets()[0], settings=QUICK))


def test_the_schema_rejects_wrong_bodies() -> None:
    body = measure(*three_sets()[0], settings=QUICK)
    full = {
        "utility": {"target": {"zeroshot_top1": 0.5}, "reference": None},
        "exposure": {"target": {"mean": 20, "min": 19, "max": 20}, "reference": None},
        "provenance": {"version": "0.1.0"},
    }
    validate(body | full)
    for wrong in ({"schema": 3}, {"population": {"ppg": {}}}, {"by_k": {"ten": body["by_k"]["3"]}}, {"k": 0}):
        with pytest.raises(jsonschema.ValidationError):
            validate(body | wrong)
    with pytest.raises(jsonschema.ValidationError):
        validate({name: value for name, value in body.items() if name != "null"})


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        ({"ks": ()}, "ks="),
        ({"ks": (1, 10, 5)}, "increasing"),
        ({"ks": (1, 1, 10)}, "increasing"),
        ({"ks": (0, 10)}, "at least 1"),
        ({"ks": (1, 5)}, r"k=10 is not among ks=\[1, 5\]"),
        ({"threshold": 1.5}, "threshold=1.5"),
        ({"thresholds": (0.5, -0.1)}, "thresholds="),
        ({"top_m": 0}, "top_m=0"),
        ({"top_ms": (0,)}, "top_ms="),
        ({"tops": (0,)}, "tops="),
        ({"tops": (1.5,)}, "tops="),
        ({"smallest_group": 1}, "smallest_group=1"),
        ({"draws": 1}, "draws=1"),
        ({"share": 0}, "share=0"),
        ({"bootstrap": 10}, "bootstrap=10"),
    ],
)
def test_contradictory_settings_are_rejected(wrong: dict[str, Any], words: str) -> None:
    with pytest.raises(UserError, match=words):
        Settings(**wrong)


def test_mistakes_are_named() -> None:
    (a, _, _), cases = three_sets()
    with pytest.raises(UserError, match="exceeds the 6 neighbors"):
        measure(a, settings=Settings())
    with pytest.raises(UserError, match="no record has an object"):
        measure(replace(a, truth=objects([set()] * 120, cases[0].labels, "a")), settings=QUICK)
    with pytest.raises(UserError, match="no public image has an object"):
        measure(replace(a, public=objects([set()] * len(a.public), cases[0].labels, "p")), settings=QUICK)
    with pytest.raises(UserError, match="subgroups=colour is unknown"):
        measure(a, settings=replace(QUICK, subgroups=("colour",)))
