"""torchvision's models: a small one trained on scenes and compared with the known boxes, and all kinds of weights."""

import json
import shutil
from importlib.resources import files
from pathlib import Path
from types import SimpleNamespace

import jsonschema
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file
from torchmetrics.detection import MeanAveragePrecision
from torchvision.models.detection import fcos_resnet50_fpn, ssdlite320_mobilenet_v3_large

from benchmarks.shards import write_shards
from dejavu_lit.data.objects import read_part
from dejavu_lit.data.readers.scenes import SceneReader, _sprites
from dejavu_lit.objects.annotate import annotate
from dejavu_lit.objects.annotators.torchvision import TorchvisionDetector
from dejavu_lit.utils.errors import UserError
from tests.conftest import call
from tests.data.images import sample_image
from tests.objects.tiny import detector, fit

MODEL = "tests.objects.tiny.detector"
LABELS = list("abcde")
SCHEMA = json.loads((files("dejavu_lit.measure") / "metrics.schema.json").read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def fitted(tmp_path_factory) -> Path:
    """A detector of the 100 objects, after 400 steps on scenes of a different seed: about a minute on one core."""
    torch.manual_seed(0)
    model = detector(101)
    fit(model, images=2000, steps=400)
    path = tmp_path_factory.mktemp("fitted") / "scenes.pt"
    torch.save({"model": model.state_dict(), "classes": list(_sprites()[0])}, path)
    return path


@pytest.mark.slow
def test_a_trained_detector_finds_the_objects_of_held_out_scenes(fitted: Path, tmp_path: Path) -> None:
    reader = SceneReader(120, seed=0)
    rows = [reader.read(key) for key in reader.keys()]
    shards = write_shards(tmp_path / "A", [pair for pair, _ in rows], 50)
    source = TorchvisionDetector(model=MODEL, weights=str(fitted), batch=16)
    annotate(source, {"A": shards}, tmp_path / "objects")
    detected = {
        row["key"]: row
        for part in sorted((tmp_path / "objects/A").glob("*.parquet"))
        for row in read_part(part, ("key", "labels", "scores", "boxes"))[1].to_pylist()
    }
    number = {name: n for n, name in enumerate(_sprites()[0])}
    metric = MeanAveragePrecision(box_format="xywh", iou_thresholds=[0.5], backend="faster_coco_eval")
    for pair, truth in rows:
        row = detected[pair.key]
        metric.update(
            [
                {
                    "boxes": boxes(row["boxes"]),
                    "scores": torch.tensor(row["scores"]),
                    "labels": codes(row["labels"], number),
                }
            ],
            [{"boxes": boxes(truth.boxes), "labels": codes(truth.labels, number)}],
        )
    precision = metric.compute()["map"].item()
    print(f"mean average precision at IoU 0.5: {precision:.3f}")
    assert precision > 0.5


def boxes(rows) -> torch.Tensor:
    return torch.tensor(rows, dtype=torch.float32).reshape(-1, 4)


def codes(labels, number) -> torch.Tensor:
    return torch.tensor([number[label] for label in labels], dtype=torch.long)


@pytest.mark.slow
def test_the_gap_from_its_objects_is_the_gap_from_the_true_ones(
    fitted: Path, scenes: Path, runs, tmp_path: Path
) -> None:
    done = call(
        "annotate", "annotator=torchvision", f"annotator.model={MODEL}", f"annotator.weights={fitted}", f"data.dir={scenes}",
        "annotator.batch=16", "name=fitted", "sets=[A,B,H,P]",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    gaps = {}
    for name, others in (("scenes", "[fitted]"), ("fitted", "[]")):
        out = tmp_path / name
        done = call(
            "evaluate", f"target={runs['target']}", f"reference={runs['reference']}", f"out={out}", f"objects={name}",
            f"by_objects={others}", "report.write=false",
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        gaps[name] = json.loads((out / "metrics.json").read_text())
        assert ("objects=fitted: PPG" in done.stdout) == (name == "scenes")
    jsonschema.validate(gaps["scenes"], SCHEMA)
    for block in ("population", "symmetric", "null"):
        values = [gaps[name][block]["ppg"]["value"] for name in ("scenes", "fitted")]
        assert values[0] == pytest.approx(values[1], abs=0.1)
        assert gaps["scenes"]["by_objects"]["fitted"][block] == gaps["fitted"][block]
    assert gaps["fitted"]["counts"]["records"] == gaps["scenes"]["counts"]["records"]
    shutil.rmtree(scenes / "objects" / "fitted")  # the folder is shared with other tests


@pytest.fixture(scope="module")
def state() -> dict[str, torch.Tensor]:
    torch.manual_seed(1)
    return detector(6, 8, 16).state_dict()


def detect(weights: Path | str, model: str = MODEL, **options):
    options = {"options": {"width": 8, "hidden": 16} if model == MODEL else None, "threshold": 0.0} | options
    source = TorchvisionDetector(model=model, weights=str(weights), **options)
    return source, source.detect([sample_image(1, 64, 64), sample_image(2, 90, 50)])


def test_every_kind_of_weights_file_gives_the_same_objects(state, tmp_path: Path) -> None:
    torch.save(state, tmp_path / "bare.pth")
    torch.save({"model": state, "classes": LABELS}, tmp_path / "named.pt")
    save_file(state, tmp_path / "tensors.safetensors")
    (tmp_path / "plain.txt").write_text("\n".join(LABELS))
    (tmp_path / "background.txt").write_text("\n".join(["__background__", *LABELS]))
    source, expected = detect(tmp_path / "named.pt")
    assert list(source.labels) == LABELS
    assert sum(len(row.labels) for row in expected) > 10
    assert {label for row in expected for label in row.labels} <= set(LABELS)
    for name, classes in [("bare.pth", "plain"), ("bare.pth", "background"), ("tensors.safetensors", "plain")]:
        same_source, actual = detect(tmp_path / name, classes=str(tmp_path / f"{classes}.txt"))
        assert actual == expected
        assert same_source.annotator.vocabulary == source.annotator.vocabulary


def test_labels_scores_and_boxes_are_the_models_own(state, tmp_path: Path) -> None:
    torch.save({"model": state, "classes": LABELS}, tmp_path / "named.pt")
    _, detections = detect(tmp_path / "named.pt")
    model = detector(6, 8, 16)
    model.load_state_dict(state)
    model.roi_heads.score_thresh = 0.0
    pixels = torch.frombuffer(bytearray(sample_image(1, 64, 64).tobytes()), dtype=torch.uint8)
    with torch.inference_mode():
        (own,) = model.eval()([pixels.reshape(64, 64, 3).permute(2, 0, 1) / 255])
    assert [LABELS[label - 1] for label in own["labels"].tolist()] == detections[0].labels
    assert own["scores"].tolist() == pytest.approx(detections[0].scores, abs=1e-5)
    x, y, width, height = torch.tensor(detections[0].boxes).unbind(1)
    torch.testing.assert_close(torch.stack([x, y, x + width, y + height], 1), own["boxes"], atol=1e-3, rtol=1e-4)
    selected = detect(tmp_path / "named.pt", threshold=0.19)[1][0]
    assert 0 < len(selected.scores) < len(detections[0].scores)
    assert selected.scores == [score for score in detections[0].scores if score >= 0.19]


def test_torchvisions_own_weights_come_from_torchs_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Random weights under the file name of COCO's: 91 classes, of which 80 have a name."""
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    torch.manual_seed(0)
    model = ssdlite320_mobilenet_v3_large(weights=None, weights_backbone=None, num_classes=91)
    path = tmp_path / "hub/checkpoints/ssdlite320_mobilenet_v3_large_coco-a79551df.pth"
    path.parent.mkdir(parents=True)
    torch.save(model.state_dict(), path)
    source, detections = detect("COCO_V1", "ssdlite320_mobilenet_v3_large", threshold=0.01)
    assert len(source.labels) == 80
    assert source.labels[:2] == ["person", "bicycle"]
    assert sum(len(row.labels) for row in detections) > 0
    assert not {"N/A", "__background__"} & {label for row in detections for label in row.labels}
    assert source.annotator.config == {"model": "ssdlite320_mobilenet_v3_large"}
    same, as_file = detect(path, "ssdlite320_mobilenet_v3_large", threshold=0.01)
    assert same.annotator == source.annotator
    assert [len(row.labels) for row in as_file] == [len(row.labels) for row in detections]


def test_a_download_cut_short_is_not_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """torchvision's file names end with the first digits of the SHA-256 of their content."""
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "home"))
    (tmp_path / "fasterrcnn-258fb6c6.pth").write_bytes(b"half of the weights")
    source = TorchvisionDetector(model="fasterrcnn_resnet50_fpn", weights="COCO_V1")
    entry = SimpleNamespace(url=(tmp_path / "fasterrcnn-258fb6c6.pth").as_uri())
    monkeypatch.setattr(TorchvisionDetector, "_entry", entry)
    with pytest.raises(UserError, match=r"could not be downloaded \(invalid hash value"):
        _ = source._file
    assert not [path for path in (tmp_path / "home").rglob("*") if path.is_file()]


def test_models_with_and_without_a_background_class(tmp_path: Path) -> None:
    """FCOS can be trained with or without a background: 5 names and 5 classes, or 6 classes of which the first is none."""
    for count, name in ((5, "from0.pth"), (6, "from1.pth")):
        torch.manual_seed(0)
        model = fcos_resnet50_fpn(weights=None, weights_backbone=None, num_classes=count)
        torch.save({"model": model.state_dict(), "classes": LABELS}, tmp_path / name)
        source = TorchvisionDetector(model="fcos_resnet50_fpn", weights=str(tmp_path / name))
        names = source._model_and_names[1]
        assert names == (LABELS if count == 5 else ["__background__", *LABELS])
        assert list(source.labels) == LABELS


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"weights": "COCO_V9"}, r"weights=COCO_V9 is neither a file nor known to model=fasterrcnn_resnet50_fpn \(COCO_V1\)"),
        ({"model": "fasterrcnn"}, r"weights=nowhere.pt is neither a file"),
        ({"weights": "{named}", "model": "fasterrcnn_resnet50"}, "did you mean 'fasterrcnn_resnet50_fpn'"),
        ({"weights": "{named}", "model": "tests.objects.tiny.nothing"}, "cannot be built .*; check its name and"),
        ({"weights": "{named}", "model": MODEL}, r"does not fit model=.* with 5 classes \(backbone.0.weight differs\)"),
        ({"weights": "{named}", "model": MODEL, "options": {"depth": 3}}, "cannot be built .* annotator.options"),
        ({"weights": "{damaged}", "model": MODEL}, "cannot be read as tensors alone"),
        ({"weights": "{whole}", "model": MODEL}, r"whole.pt cannot be read as tensors alone \(.*save the model's state_dict"),
        ({"weights": "{listed}", "model": MODEL}, "listed.pt cannot be read as tensors alone"),
        ({"weights": "{bare}", "model": MODEL}, "the class names of model=.* are unknown"),
        ({"threshold": 1.5}, "annotator.threshold=1.5 must be at least 0 and at most 1"),
        ({"batch": 0}, "annotator.batch=0 must be at least 1"),
        ({"weights": "{named}", "model": MODEL, "options": {"width": 8, "hidden": 16}, "device": "gpu"}, "device=gpu is not a"),
    ],
)  # fmt: skip
def test_wrong_options_give_one_sentence(state, tmp_path: Path, options, message: str) -> None:
    torch.save({"model": state, "classes": LABELS}, tmp_path / "named.pt")
    torch.save(state, tmp_path / "bare.pt")
    torch.save({"state_dict": state, "epoch": 3}, tmp_path / "whole.pt")
    torch.save(list(state.values()), tmp_path / "listed.pt")
    (tmp_path / "damaged.pt").write_bytes((tmp_path / "named.pt").read_bytes()[:999])
    files = {name: str(tmp_path / f"{name}.pt") for name in ("named", "bare", "whole", "listed", "damaged")}
    arguments = {"model": "fasterrcnn_resnet50_fpn", "weights": "nowhere.pt"} | options
    with pytest.raises(UserError, match=message):
        TorchvisionDetector(**{**arguments, "weights": arguments["weights"].format(**files)}).detect(
            [Image.new("RGB", (64, 64))]
        )
