"""detectron2's models: a small one trained on scenes and compared with the known boxes, and all kinds of config and weights."""

import io
import json
import pickle
import random
import sys
from pathlib import Path
from string import Template
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

from benchmarks.shards import write_shards
from dejavu_lit.data.objects import read_part
from dejavu_lit.data.readers.scenes import SceneReader, _sprites
from dejavu_lit.objects.annotate import annotate
from dejavu_lit.objects.annotators.detectron2 import PAGE, Detectron2Detector
from dejavu_lit.objects.annotators.detectron2_weights import class_count
from dejavu_lit.utils.errors import UserError
from tests.conftest import call
from tests.data.images import sample_image

d2 = pytest.importorskip("detectron2", reason=f"detectron2 is not installed; {PAGE}")

SMALL = """
MODEL:
  META_ARCHITECTURE: GeneralizedRCNN
  PIXEL_MEAN: [127.5, 127.5, 127.5]
  PIXEL_STD: [64.0, 64.0, 64.0]
  BACKBONE: {NAME: $backbone, FREEZE_AT: 0}
  RESNETS: {DEPTH: 50, OUT_FEATURES: [res3], NORM: BN, STEM_OUT_CHANNELS: 16, WIDTH_PER_GROUP: 16, RES2_OUT_CHANNELS: 64}
  ANCHOR_GENERATOR: {SIZES: [[16]], ASPECT_RATIOS: [[1.0]]}
  PROPOSAL_GENERATOR: {NAME: RPN}
  RPN:
    IN_FEATURES: [res3]
    BATCH_SIZE_PER_IMAGE: 32
    PRE_NMS_TOPK_TRAIN: 64
    PRE_NMS_TOPK_TEST: 64
    POST_NMS_TOPK_TRAIN: 32
    POST_NMS_TOPK_TEST: 32
  ROI_HEADS: {NAME: StandardROIHeads, IN_FEATURES: [res3], NUM_CLASSES: $classes, BATCH_SIZE_PER_IMAGE: 32}
  ROI_BOX_HEAD: {NAME: FastRCNNConvFCHead, NUM_FC: 2, FC_DIM: 256, POOLER_RESOLUTION: 4, POOLER_TYPE: ROIAlignV2}
INPUT: {MIN_SIZE_TEST: 64, MAX_SIZE_TEST: 96, FORMAT: $form}
DATASETS: {TEST: $tested}
VERSION: 2
"""

MODULE = "tests.objects.annotators.backbone"


def config(path: Path, classes: int = 5, tested: str = "[]", backbone: str = "build_resnet_backbone") -> Path:
    path.write_text(Template(SMALL).substitute(classes=classes, form="RGB", tested=tested, backbone=backbone))
    return path


def build(path: Path) -> Any:
    from detectron2.config import get_cfg
    from detectron2.modeling import build_model

    cfg = get_cfg()
    cfg.merge_from_file(str(path))
    cfg.MODEL.DEVICE = "cpu"
    return build_model(cfg)


def example(pair: Any, annotation: Any, names: dict[str, int]) -> dict[str, Any]:
    """A scene as detectron2's models expect it in training."""
    from detectron2.structures import Boxes, Instances

    pixels = np.asarray(Image.open(io.BytesIO(pair.image)).convert("RGB"))
    instances = Instances(pixels.shape[:2])
    boxes = torch.tensor(annotation.boxes)
    boxes[:, 2:] += boxes[:, :2]
    instances.gt_boxes = Boxes(boxes)
    instances.gt_classes = torch.tensor([names[label] for label in annotation.labels])
    return {"image": torch.from_numpy(pixels.transpose(2, 0, 1).copy()), "instances": instances}


def fit(model: Any, images: int, steps: int, batch: int = 16, seed: int = 100) -> None:
    """Train with a one-cycle schedule on scenes of a different seed than the data's."""
    from detectron2.utils.events import EventStorage

    reader, names = SceneReader(images, seed), {name: n for n, name in enumerate(_sprites()[0])}
    examples = [example(*reader.read(key), names) for key in reader.keys()]
    optimizer = torch.optim.AdamW(model.parameters(), 3e-3)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 3e-3, steps)
    draw = random.Random(seed)
    model.train()
    with EventStorage():
        for _ in range(steps):
            losses = model(draw.sample(examples, batch))
            optimizer.zero_grad()
            sum(losses.values()).backward()
            optimizer.step()
            schedule.step()
    model.eval()


@pytest.fixture(scope="module")
def fitted(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """The options of a detector of the 100 objects, after 400 steps on scenes of a different seed."""
    folder = tmp_path_factory.mktemp("fitted")
    torch.manual_seed(0)
    import tests.objects.annotators.backbone  # noqa: F401 - the import registers it

    path = config(folder / "small.yaml", 100, backbone="ThreeConvolutions")
    model = build(path)
    fit(model, images=2000, steps=400)
    torch.save({"model": model.state_dict()}, folder / "model.pth")
    (folder / "names.txt").write_text("\n".join(_sprites()[0]))
    return {"config": str(path), "weights": str(folder / "model.pth"), "classes": str(folder / "names.txt")}


def test_a_trained_detector_finds_the_objects_of_held_out_scenes(fitted: dict[str, str], tmp_path: Path) -> None:
    from torchmetrics.detection import MeanAveragePrecision

    reader = SceneReader(120, seed=0)
    rows = [reader.read(key) for key in reader.keys()]
    shards = write_shards(tmp_path / "A", [pair for pair, _ in rows], 50)
    annotate(Detectron2Detector(**fitted, modules=[MODULE], batch=16), {"A": shards}, tmp_path / "objects")
    detected = {
        row["key"]: row
        for part in sorted((tmp_path / "objects/A").glob("*.parquet"))
        for row in read_part(part, ("key", "labels", "scores", "boxes"))[1].to_pylist()
    }
    number = {name: n for n, name in enumerate(_sprites()[0])}

    def boxes(rows: Any) -> torch.Tensor:
        return torch.tensor(rows, dtype=torch.float32).reshape(-1, 4)

    def codes(labels: Any) -> torch.Tensor:
        return torch.tensor([number[label] for label in labels], dtype=torch.long)

    metric = MeanAveragePrecision(box_format="xywh", iou_thresholds=[0.5], backend="faster_coco_eval")
    for pair, truth in rows:
        assert truth is not None
        row = detected[pair.key]
        prediction = {
            "boxes": boxes(row["boxes"]),
            "scores": torch.tensor(row["scores"]),
            "labels": codes(row["labels"]),
        }
        metric.update([prediction], [{"boxes": boxes(truth.boxes), "labels": codes(truth.labels)}])
    precision = metric.compute()["map"].item()
    print(f"mean average precision at IoU 0.5: {precision:.3f}")
    assert precision > 0.5


def test_the_gap_from_its_objects_is_the_gap_from_the_true_ones(
    fitted: dict[str, str], scenes: Path, runs: dict[str, Path], tmp_path: Path
) -> None:
    options = [f"annotator.{name}={value}" for name, value in fitted.items()] + [f"annotator.modules=[{MODULE}]"]
    done = call("annotate", "annotator=detectron2", *options, f"data.dir={scenes}", "name=d2", "sets=[A,B,H,P]")
    assert done.returncode == 0, done.stderr
    gaps = {}
    for name in ("scenes", "d2"):
        sides = [f"{side}={folder}" for side, folder in runs.items()]
        done = call("evaluate", *sides, f"out={tmp_path / name}", f"objects={name}", "report.write=false")
        assert done.returncode == 0, done.stderr
        gaps[name] = json.loads((tmp_path / name / "metrics.json").read_text())
    print({name: gap["population"]["ppg"]["value"] for name, gap in gaps.items()})
    for block in ("population", "symmetric", "null"):
        values = [gaps[name][block]["ppg"]["value"] for name in ("scenes", "d2")]
        assert values[0] == pytest.approx(values[1], abs=0.1)


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """An untrained model of five classes."""
    folder = tmp_path_factory.mktemp("small")
    torch.manual_seed(1)
    path = config(folder / "small.yaml")
    torch.save({"model": build(path).state_dict(), "iteration": 3}, folder / "model.pth")
    (folder / "names.txt").write_text("a\nb\nc\nd\ne")
    return {"config": str(path), "weights": str(folder / "model.pth"), "classes": str(folder / "names.txt")}


IMAGES = [sample_image(1, 64, 64), sample_image(2, 90, 50), sample_image(3, 64, 64)]


def detections(**options: Any) -> list[Any]:
    return Detectron2Detector(**{"threshold": 0.0} | options).detect(IMAGES)


def test_every_kind_of_weights_file_gives_the_same_objects(small: dict[str, str], tmp_path: Path) -> None:
    expected = detections(**small)
    assert sum(len(row.labels) for row in expected) > 10
    state = torch.load(small["weights"], weights_only=True)["model"]
    torch.save(state, tmp_path / "bare.pt")
    save_file(state, tmp_path / "tensors.safetensors")
    arrays = {name: value.numpy() for name, value in state.items()}
    (tmp_path / "zoo.pkl").write_bytes(pickle.dumps({"model": arrays, "__author__": "Detectron2"}))
    for name in ("bare.pt", "tensors.safetensors", "zoo.pkl"):
        assert detections(**small | {"weights": str(tmp_path / name)}) == expected


def test_boxes_scores_and_classes_are_the_models_own(small: dict[str, str]) -> None:
    """Compared with detectron2's own predictor on each image, in BGR as it expects."""
    from detectron2.config import get_cfg
    from detectron2.engine import DefaultPredictor

    cfg = get_cfg()
    cfg.merge_from_file(small["config"])
    cfg.MODEL.DEVICE, cfg.MODEL.WEIGHTS, cfg.MODEL.ROI_HEADS.SCORE_THRESH_TEST = "cpu", small["weights"], 0.1
    predictor = DefaultPredictor(cfg)
    for form in ("RGB", "BGR"):
        predictor.input_format = form
        options = small if form == "RGB" else small | {"options": {"INPUT.FORMAT": "BGR"}}
        for own, image in zip(detections(**options, threshold=0.1), IMAGES, strict=True):
            instances = predictor(np.asarray(image)[:, :, ::-1])["instances"]
            assert len(instances) == len(own.labels) > 0
            assert ["abcde"[n] for n in instances.pred_classes.tolist()] == own.labels
            np.testing.assert_allclose(instances.scores, own.scores, atol=1e-4)
            corners = np.array(own.boxes) @ np.array([[1, 0, 1, 0], [0, 1, 0, 1], [0, 0, 1, 0], [0, 0, 0, 1]])
            np.testing.assert_allclose(instances.pred_boxes.tensor, corners, atol=0.05)


def test_names_come_from_the_configs_dataset(small: dict[str, str], tmp_path: Path) -> None:
    coco = config(tmp_path / "coco.yaml", 80, tested='["coco_2017_val"]')
    source = Detectron2Detector(config=str(coco), weights=small["weights"])
    assert (len(source.labels), source.labels[0], source.labels[79]) == (80, "person", "toothbrush")
    with pytest.raises(UserError, match=r"has no dataset with known class names.*annotator\.classes="):
        _ = Detectron2Detector(config=small["config"], weights=small["weights"]).labels
    few = tmp_path / "few.txt"
    few.write_text("only")
    for names in ("only", "one\ntwo\nthree\nfour\nfive\nsix"):
        few.write_text(names)
        with pytest.raises(UserError, match=r"few\.txt has \d names, the model has 5 classes"):
            detections(**small | {"classes": str(few)})


@pytest.mark.parametrize("kind", ["mask_rcnn_fpn", "cascade_rcnn", "retinanet"])
def test_lazy_configs_of_the_zoo(kind: str, tmp_path: Path) -> None:
    """detectron2's own configs of Mask, Cascade and one-stage models, with fewer channels."""
    from detectron2.config import LazyConfig, instantiate

    common = Path(d2.__file__).parent / "model_zoo/configs/common"
    path = tmp_path / "lazy.py"
    lines = [
        "from detectron2.config import LazyConfig",
        f"model = LazyConfig.load('{common}/models/{kind}.py').model",
        f"dataloader = LazyConfig.load('{common}/data/coco.py').dataloader",
        "model.backbone.bottom_up.stages.depth = 18",
        "model.backbone.bottom_up.stages.norm = model.backbone.bottom_up.stem.norm = 'BN'",
        "dataloader.test.mapper.augmentations[0].short_edge_length = 64",
    ]
    path.write_text("\n".join(lines).replace("stages.depth = 18", "stages.depth = 50"))
    torch.manual_seed(0)
    model = instantiate(LazyConfig.load(str(path)).model)
    torch.save(model.state_dict(), tmp_path / "model.pth")
    source = Detectron2Detector(config=str(path), weights=str(tmp_path / "model.pth"), threshold=0.0)
    assert len(source.labels) == 80
    detected = source.detect(IMAGES)
    assert all(len(box) == 4 for row in detected for box in row.boxes)
    assert {label for row in detected for label in row.labels} <= set(source.labels)
    assert source.annotator.config["file"] == "lazy.py"
    assert class_count(model) == 80
    options = {"config": str(path), "weights": str(tmp_path / "model.pth"), "threshold": 0.0}
    assert Detectron2Detector(**options).annotator == source.annotator
    base = tmp_path / "base.py"  # the same config, imported from another file
    path.rename(base)
    path.write_text("from .base import dataloader, model\n")
    moved = Detectron2Detector(**options).annotator
    assert moved == source.annotator
    base.write_text(base.read_text() + "\ndataloader.test.mapper.augmentations[0].short_edge_length = 65")
    assert Detectron2Detector(**options).annotator != moved


PLUG_IN = """
import torch
from detectron2.modeling.roi_heads import ROI_HEADS_REGISTRY, StandardROIHeads

def add_config(cfg):
    cfg.MODEL.ROI_BOX_HEAD.EMBEDDING = 8

class Compared(torch.nn.Module):
    def __init__(self, inside, width, classes):
        super().__init__()
        self.norm_weight, self.num_classes = True, classes
        self.linear = torch.nn.Linear(inside, width)
        self.register_buffer("zs_weight", torch.nn.functional.normalize(torch.randn(width, classes + 1), dim=0))

    def forward(self, x):
        return 20 * torch.nn.functional.normalize(self.linear(x.flatten(1)), dim=1) @ self.zs_weight

@ROI_HEADS_REGISTRY.register()
class EmbeddingHeads(StandardROIHeads):
    @classmethod
    def from_config(cls, cfg, input_shape):
        arguments = super().from_config(cfg, input_shape)
        head = arguments["box_predictor"]
        head.cls_score = Compared(head.cls_score.in_features, cfg.MODEL.ROI_BOX_HEAD.EMBEDDING, arguments["num_classes"])
        head.bbox_pred = torch.nn.Linear(head.bbox_pred.in_features, 4)
        return arguments
"""


def test_a_plug_in_with_another_vocabulary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Heads that compare with one embedding per class, as in Detic: registered by a module, loaded from a classifier file."""
    (tmp_path / "plugged.py").write_text(PLUG_IN)
    monkeypatch.syspath_prepend(tmp_path)
    text = config(tmp_path / "small.yaml").read_text()
    heads = "NAME: EmbeddingHeads", "ROI_BOX_HEAD: {EMBEDDING: 8, CLS_AGNOSTIC_BBOX_REG: true,"
    text = text.replace("NAME: StandardROIHeads", heads[0]).replace("ROI_BOX_HEAD: {", heads[1])
    (tmp_path / "small.yaml").write_text(text)
    options: dict[str, Any] = {"config": str(tmp_path / "small.yaml"), "weights": str(tmp_path / "model.pth")}
    (tmp_path / "model.pth").write_bytes(b"")
    with pytest.raises(UserError, match="EMBEDDING"):  # this setting is unknown without the plug-in
        _ = Detectron2Detector(**options, classes=str(tmp_path / "names.txt")).annotator
    import plugged
    from detectron2.config import get_cfg
    from detectron2.modeling import build_model

    cfg = get_cfg()
    plugged.add_config(cfg)
    cfg.merge_from_file(options["config"])
    cfg.MODEL.DEVICE = "cpu"
    torch.manual_seed(0)
    torch.save({"model": build_model(cfg).state_dict()}, tmp_path / "model.pth")
    rows = np.random.default_rng(0).normal(size=(7, 8)).astype(np.float32)
    np.save(tmp_path / "seven.npy", rows)
    (tmp_path / "names.txt").write_text("\n".join(f"word {n}" for n in range(7)))
    options |= {"modules": ["plugged:add_config"], "classes": str(tmp_path / "names.txt"), "threshold": 0.0}
    source = Detectron2Detector(**options, classifier=str(tmp_path / "seven.npy"))
    detected = source.detect(IMAGES)
    names = {label for row in detected for label in row.labels}
    assert len(names) > 1
    assert names <= {f"word {n}" for n in range(7)}
    weight = source._model.roi_heads.box_predictor.cls_score.zs_weight
    np.testing.assert_allclose(weight[:, :7].T, rows / np.linalg.norm(rows, axis=1, keepdims=True), atol=1e-6)
    assert weight[:, 7].abs().max() == 0
    assert source.annotator.config["classifier"]
    np.save(tmp_path / "six.npy", rows[:6])
    with pytest.raises(UserError, match=r"six\.npy has the shape \[6, 8\], not \[7 class names, 8\]"):
        Detectron2Detector(**options, classifier=str(tmp_path / "six.npy")).detect(IMAGES)
    sys.modules.pop("plugged")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"config": "none.yaml"}, r"annotator\.config=none\.yaml does not exist"),
        ({"weights": "none.pth"}, r"annotator\.weights=none\.pth does not exist"),
        ({"modules": ["missing_detic"]}, r"annotator\.modules: missing_detic cannot be imported"),
        ({"options": {"MODEL.NONSENSE": 1}}, r"cannot be used .*NONSENSE"),
        ({"options": {"MODEL.ROI_HEADS.NUM_CLASSES": 6}}, r"does not fit the config .*size mismatch"),
        ({"options": {"MODEL.RESNETS.OUT_FEATURES": ["res4"], "MODEL.RPN.IN_FEATURES": ["res4"],
                      "MODEL.ROI_HEADS.IN_FEATURES": ["res4"]}}, r"does not fit the config"),
        ({"classifier": __file__}, r"is not a \.npy of numbers"),
    ],
)  # fmt: skip
def test_wrong_options_give_one_sentence(small: dict[str, str], options: dict[str, Any], message: str) -> None:
    source = Detectron2Detector(**small | options)
    with pytest.raises(UserError, match=message):
        _ = source.annotator, source.detect(IMAGES)


def test_a_yaml_file_cannot_run_code(small: dict[str, str], tmp_path: Path) -> None:
    harm = tmp_path / "harm"
    (tmp_path / "evil.yaml").write_text(f"MODEL: !!python/object/apply:os.mkdir ['{harm}']")
    with pytest.raises(UserError, match="cannot be used"):
        _ = Detectron2Detector(**small | {"config": str(tmp_path / "evil.yaml")}).annotator
    assert not harm.exists()
