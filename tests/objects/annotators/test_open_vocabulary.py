"""OWLv2, OWL-ViT and Grounding DINO of one or two small layers, saved and loaded like any checkpoint."""

import shutil
from itertools import combinations
from pathlib import Path

import pytest
import torch
import transformers
from PIL import Image

from dejavu_lit.objects.annotators.open_vocabulary import OpenVocabularyDetector
from dejavu_lit.utils.errors import UserError
from tests.models.tiny import sample_image

LABELS = ["cat", "hot dog", "traffic light", "dog", "zebra", "a tree", "cup"]
IMAGES = [sample_image(1, 96, 80), sample_image(2, 50, 120), sample_image(3, 64, 64)]


def write_owl(folder: Path, kind: str) -> Path:
    """A random OWL whose tokenizer knows single letters."""
    torch.manual_seed(0)
    letters = [chr(c) for c in range(ord("a"), ord("z") + 1)]
    words = [*letters, *(f"{letter}</w>" for letter in letters), "<|startoftext|>", "<|endoftext|>"]
    tokenizer = transformers.CLIPTokenizer(
        vocab={word: n for n, word in enumerate(words)}, merges=[], model_max_length=40
    )
    name = {"owlv2": "Owlv2", "owlvit": "OwlViT"}[kind]
    layers = {"intermediate_size": 64, "num_hidden_layers": 1, "num_attention_heads": 2}
    end = len(words) - 1
    text = {"vocab_size": len(words), "hidden_size": 32, "max_position_embeddings": 40, **layers}
    special = {"bos_token_id": end - 1, "eos_token_id": end, "pad_token_id": 0}
    config = getattr(transformers, f"{name}Config")(
        text_config=text | special,
        vision_config={"hidden_size": 48, "image_size": 64, "patch_size": 16, **layers},
        projection_dim=32,
    )
    size = {"height": 64, "width": 64}
    images = getattr(transformers, f"{name}ImageProcessor")(size=size)
    getattr(transformers, f"{name}Processor")(images, tokenizer).save_pretrained(folder)
    getattr(transformers, f"{name}ForObjectDetection")(config).save_pretrained(folder)
    return folder


def write_dino(folder: Path) -> Path:
    """A random Grounding DINO whose tokenizer knows the words of LABELS."""
    torch.manual_seed(0)
    words = [f"[unused{n}]" for n in range(1100)]
    # These numbers are fixed in the model: it separates the classes' texts at the dots.
    for number, word in {
        0: "[PAD]",
        100: "[UNK]",
        101: "[CLS]",
        102: "[SEP]",
        103: "[MASK]",
        1012: ".",
        1029: "?",
    }.items():
        words[number] = word
    for number, word in enumerate(sorted({word for label in LABELS for word in label.split()}), 1040):
        words[number] = word
    (folder / "words").mkdir(parents=True)
    (folder / "words" / "vocab.txt").write_text("\n".join(words) + "\n")
    tokenizer = transformers.BertTokenizerFast(vocab={word: n for n, word in enumerate(words)}, model_max_length=64)
    layers = {"intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    config = transformers.GroundingDinoConfig(
        backbone_config=transformers.SwinConfig(
            image_size=64, embed_dim=8, depths=[1, 1, 1, 1], num_heads=[1, 1, 2, 2], window_size=2,
            out_features=["stage2", "stage3", "stage4"],
        ),
        text_config={"model_type": "bert", "vocab_size": len(words), "hidden_size": 32, **layers},
        d_model=32, encoder_layers=1, decoder_layers=2, encoder_attention_heads=2, decoder_attention_heads=2,
        encoder_ffn_dim=32, decoder_ffn_dim=32, num_queries=12, max_text_len=24,
    )  # fmt: skip
    images = transformers.GroundingDinoImageProcessor(size={"shortest_edge": 64, "longest_edge": 96})
    transformers.GroundingDinoProcessor(images, tokenizer).save_pretrained(folder)
    transformers.GroundingDinoForObjectDetection(config).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def models(tmp_path_factory) -> dict[str, Path]:
    base = tmp_path_factory.mktemp("models")
    return {
        "owlv2": write_owl(base / "owlv2", "owlv2"),
        "owlvit": write_owl(base / "owlvit", "owlvit"),
        "dino": write_dino(base / "dino"),
    }


@pytest.fixture
def names(tmp_path: Path) -> str:
    (tmp_path / "labels.txt").write_text("\n".join(LABELS) + "\n")
    return str(tmp_path / "labels.txt")


def detections(folder: Path, names: str, images=IMAGES, **options):
    detector = OpenVocabularyDetector(model=str(folder), vocabulary=names, **{"threshold": 0.0, **options})
    return detector.detect(images)


@pytest.mark.parametrize("kind", ["owlv2", "owlvit"])
def test_owl_gives_the_same_as_transformers_own_processing(models, names: str, kind: str) -> None:
    processor = transformers.AutoProcessor.from_pretrained(models[kind])
    model = transformers.AutoModelForZeroShotObjectDetection.from_pretrained(models[kind]).eval()
    prompts = [f"a photo of a {label}" for label in LABELS]
    with torch.inference_mode():
        outputs = model(**processor(text=[prompts] * 3, images=IMAGES, return_tensors="pt"))
    results = processor.post_process_grounded_object_detection(
        outputs, threshold=-1.0, target_sizes=[(p.height, p.width) for p in IMAGES], text_labels=[LABELS] * 3
    )
    for image, expected, actual in zip(IMAGES, results, detections(models[kind], names), strict=True):
        corners = expected["boxes"].clamp(min=0).minimum(torch.tensor([image.width, image.height] * 2))
        inside = ((corners[:, 2:] - corners[:, :2]) > 0).all(1)
        assert inside.any()
        assert actual.labels == [
            label for label, is_inside in zip(expected["text_labels"], inside, strict=True) if is_inside
        ]
        torch.testing.assert_close(torch.tensor(actual.scores), expected["scores"][inside], atol=1e-5, rtol=1e-5)
        boxes = torch.tensor(actual.boxes)
        boxes[:, 2:] += boxes[:, :2]
        torch.testing.assert_close(boxes, corners[inside], atol=1e-3, rtol=1e-4)


@pytest.mark.parametrize("chunk", [1, 3, 6])
def test_chunks_of_the_vocabulary_do_not_change_owl(models, names: str, chunk: int) -> None:
    for single, chunked in zip(
        detections(models["owlv2"], names), detections(models["owlv2"], names, chunk=chunk), strict=True
    ):
        assert single.labels == chunked.labels
        assert single.scores == pytest.approx(chunked.scores, abs=1e-6)
        assert len(set(single.labels)) > 1


def test_dino_scores_a_class_by_the_tokens_of_its_name(models, names: str) -> None:
    """Compared with one text of all classes, with the positions of the words counted by hand."""
    positions = {"cat": [1], "hot dog": [3, 4], "traffic light": [6, 7], "dog": [9], "zebra": [11], "a tree": [13, 14]}
    processor = transformers.AutoProcessor.from_pretrained(models["dino"])
    model = transformers.AutoModelForZeroShotObjectDetection.from_pretrained(models["dino"]).eval()
    labels = LABELS[:6]  # they fill one text; the seventh needs a second one
    with torch.inference_mode():
        outputs = model(**processor(text=[labels], images=IMAGES[:1], return_tensors="pt"))
    assert outputs.input_ids.shape[1] == 2 + 15
    scores = outputs.logits.sigmoid()[0]
    by_label = torch.stack([scores[:, positions[label]].mean(1) for label in labels], 1)
    best, number = by_label.max(1)
    detector = OpenVocabularyDetector(model=str(models["dino"]), vocabulary=names, threshold=0.0, chunk=6)
    (result,) = detector.detect(IMAGES[:1])
    first = [(label, score) for label, score in zip(result.labels, result.scores, strict=True) if label != "cup"]
    assert [label for label, _ in first] == [labels[n] for n in number.tolist()]
    assert [score for _, score in first] == pytest.approx(best.tolist(), abs=1e-5)
    assert sum(label == "cup" for label in result.labels) == 12  # every query of the second text
    widest = max(box[0] + box[2] for box in result.boxes)
    assert 1 < widest <= IMAGES[0].width  # in pixels, not relative to the image


def test_dino_packs_as_many_classes_into_a_text_as_fit(models, names: str) -> None:
    detector = OpenVocabularyDetector(model=str(models["dino"]), vocabulary=names)
    assert [chunk.labels for chunk in detector._chunks] == [LABELS]  # 22 tokens of at most 24
    narrow = OpenVocabularyDetector(model=str(models["dino"]), vocabulary=names, chunk=2)
    assert [chunk.labels for chunk in narrow._chunks] == [LABELS[:2], LABELS[2:4], LABELS[4:6], LABELS[6:]]
    assert detector.annotator != narrow.annotator  # chunks change the detections of this model


@pytest.mark.parametrize("kind", ["owlv2", "dino"])
def test_the_threshold_keeps_the_scores_that_reach_it(models, names: str, kind: str) -> None:
    everything = detections(models[kind], names)
    scores = sorted(score for row in everything for score in row.scores)
    middle = scores[len(scores) // 2]
    selected = detections(models[kind], names, threshold=middle)
    assert sorted(score for row in selected for score in row.scores) == [score for score in scores if score >= middle]
    for image, row in zip(IMAGES, selected, strict=True):
        for x, y, width, height in row.boxes:
            assert 0 <= x < x + width <= image.width + 1e-3
            assert 0 <= y < y + height <= image.height + 1e-3


def test_metadata_differs_between_processors_and_tokenizers(models, names: str, tmp_path: Path) -> None:
    folder = tmp_path / "model"
    shutil.copytree(models["owlv2"], folder)
    before = OpenVocabularyDetector(model=str(folder), vocabulary=names).annotator
    assert before == OpenVocabularyDetector(model=str(models["owlv2"]), vocabulary=names).annotator
    files = [path for path in folder.iterdir() if path.suffix != ".safetensors"]
    assert len(files) > 2
    for path in files:
        content = path.read_bytes()
        path.write_bytes(content + b"\n")
        assert OpenVocabularyDetector(model=str(folder), vocabulary=names).annotator != before, path
        path.write_bytes(content)


def test_metadata_differs_between_models_and_vocabularies(models, names: str, tmp_path: Path) -> None:
    (tmp_path / "other.txt").write_text("cat\ndog\n")
    annotators = [
        OpenVocabularyDetector(model=str(models[kind]), vocabulary=labels, template=template).annotator
        for kind, labels, template in [
            ("owlv2", names, None), ("owlvit", names, None), ("owlv2", str(tmp_path / "other.txt"), None), ("owlv2", names, "{}")
        ]
    ]  # fmt: skip
    assert all(a != b for a, b in combinations(annotators, 2))
    assert annotators[0].version == transformers.__version__
    assert annotators[0].config["model_type"] == "owlv2"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"template": "a photo"}, r"template='a photo' must contain \{\}"),
        ({"chunk": 0}, "chunk=0 must be at least 1"),
        ({"vocabulary": "nowhere.txt"}, "vocabulary=nowhere.txt is neither one of coco"),
    ],
)
def test_wrong_options_give_one_sentence(models, options, message: str) -> None:
    with pytest.raises(UserError, match=message):
        _ = OpenVocabularyDetector(**{"model": str(models["owlv2"]), "vocabulary": "coco"} | options).labels


def test_other_models_and_damaged_weights_give_one_sentence(models, names: str, tmp_path: Path) -> None:
    transformers.BertConfig().save_pretrained(tmp_path / "bert")
    with pytest.raises(UserError, match=r"model_type=bert is unknown.*; choose one of owlvit, owlv2"):
        _ = OpenVocabularyDetector(model=str(tmp_path / "bert"), vocabulary=names).annotator
    broken = tmp_path / "broken"
    broken.mkdir()
    for file in models["owlv2"].iterdir():
        (broken / file.name).write_bytes(file.read_bytes()[: 500 if file.suffix == ".safetensors" else None])
    with pytest.raises(UserError, match="cannot be loaded"):
        detections(broken, names, [Image.new("RGB", (64, 64))])
