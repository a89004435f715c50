"""OWLv2, OWL-ViT and Grounding DINO of one or two small layers, saved and loaded as anybody's checkpoints are."""

import shutil
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
    """A random OWL with a tokenizer of single letters."""
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
    """A random Grounding DINO with the words of LABELS as its tokenizer's."""
    torch.manual_seed(0)
    words = [f"[unused{n}]" for n in range(1100)]
    # The model knows these by number: it keeps the classes' texts apart at the dots.
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
def test_owl_gives_what_the_library_s_own_path_gives(models, names: str, kind: str) -> None:
    processor = transformers.AutoProcessor.from_pretrained(models[kind])
    model = transformers.AutoModelForZeroShotObjectDetection.from_pretrained(models[kind]).eval()
    prompts = [f"a photo of a {label}" for label in LABELS]
    with torch.inference_mode():
        outputs = model(**processor(text=[prompts] * 3, images=IMAGES, return_tensors="pt"))
    wanted = processor.post_process_grounded_object_detection(
        outputs, threshold=-1.0, target_sizes=[(p.height, p.width) for p in IMAGES], text_labels=[LABELS] * 3
    )
    for size, expected, found in zip(IMAGES, wanted, detections(models[kind], names), strict=True):
        corners = expected["boxes"].clamp(min=0).minimum(torch.tensor([size.width, size.height] * 2))
        inside = ((corners[:, 2:] - corners[:, :2]) > 0).all(1)
        assert inside.any()
        assert found.labels == [label for label, kept in zip(expected["text_labels"], inside, strict=True) if kept]
        torch.testing.assert_close(torch.tensor(found.scores), expected["scores"][inside], atol=1e-5, rtol=1e-5)
        boxes = torch.tensor(found.boxes)
        boxes[:, 2:] += boxes[:, :2]
        torch.testing.assert_close(boxes, corners[inside], atol=1e-3, rtol=1e-4)


@pytest.mark.parametrize("chunk", [1, 3, 6])
def test_chunks_of_the_vocabulary_change_nothing_for_owl(models, names: str, chunk: int) -> None:
    for whole, parts in zip(
        detections(models["owlv2"], names), detections(models["owlv2"], names, chunk=chunk), strict=True
    ):
        assert whole.labels == parts.labels
        assert whole.scores == pytest.approx(parts.scores, abs=1e-6)
        assert len(set(whole.labels)) > 1


def test_dino_scores_a_class_by_the_tokens_of_its_name(models, names: str) -> None:
    """Against one text that holds all classes, with the places of the words counted by hand."""
    places = {"cat": [1], "hot dog": [3, 4], "traffic light": [6, 7], "dog": [9], "zebra": [11], "a tree": [13, 14]}
    processor = transformers.AutoProcessor.from_pretrained(models["dino"])
    model = transformers.AutoModelForZeroShotObjectDetection.from_pretrained(models["dino"]).eval()
    labels = LABELS[:6]  # they fill one text; the seventh needs another
    with torch.inference_mode():
        outputs = model(**processor(text=[labels], images=IMAGES[:1], return_tensors="pt"))
    assert outputs.input_ids.shape[1] == 2 + 15
    scores = outputs.logits.sigmoid()[0]
    by_label = torch.stack([scores[:, places[label]].mean(1) for label in labels], 1)
    best, number = by_label.max(1)
    detector = OpenVocabularyDetector(model=str(models["dino"]), vocabulary=names, threshold=0.0, chunk=6)
    (found,) = detector.detect(IMAGES[:1])
    first = [(label, score) for label, score in zip(found.labels, found.scores, strict=True) if label != "cup"]
    assert [label for label, _ in first] == [labels[n] for n in number.tolist()]
    assert [score for _, score in first] == pytest.approx(best.tolist(), abs=1e-5)
    assert sum(label == "cup" for label in found.labels) == 12  # every query of the second text
    widest = max(box[0] + box[2] for box in found.boxes)
    assert 1 < widest <= IMAGES[0].width  # in pixels, not in shares of the image


def test_dino_packs_as_many_classes_in_a_text_as_it_takes(models, names: str) -> None:
    detector = OpenVocabularyDetector(model=str(models["dino"]), vocabulary=names)
    assert [labels for labels, _ in detector._chunks] == [LABELS]  # 22 tokens, and there is room for 24
    narrow = OpenVocabularyDetector(model=str(models["dino"]), vocabulary=names, chunk=2)
    assert [labels for labels, _ in narrow._chunks] == [LABELS[:2], LABELS[2:4], LABELS[4:6], LABELS[6:]]
    assert detector.annotator != narrow.annotator  # for this model chunks do change what is found


@pytest.mark.parametrize("kind", ["owlv2", "dino"])
def test_a_threshold_keeps_the_scores_that_reach_it(models, names: str, kind: str) -> None:
    everything = detections(models[kind], names)
    scores = sorted(score for one in everything for score in one.scores)
    middle = scores[len(scores) // 2]
    kept = detections(models[kind], names, threshold=middle)
    assert sorted(score for one in kept for score in one.scores) == [score for score in scores if score >= middle]
    for size, one in zip(IMAGES, kept, strict=True):
        for x, y, width, height in one.boxes:
            assert 0 <= x < x + width <= size.width + 1e-3
            assert 0 <= y < y + height <= size.height + 1e-3


def test_metadata_tells_processors_and_tokenizers_apart(models, names: str, tmp_path: Path) -> None:
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


def test_metadata_tells_models_and_vocabularies_apart(models, names: str, tmp_path: Path) -> None:
    (tmp_path / "other.txt").write_text("cat\ndog\n")
    found = [
        OpenVocabularyDetector(model=str(models[kind]), vocabulary=labels, template=template).annotator
        for kind, labels, template in [
            ("owlv2", names, None), ("owlvit", names, None), ("owlv2", str(tmp_path / "other.txt"), None), ("owlv2", names, "{}")
        ]
    ]  # fmt: skip
    assert all(one != other for at, one in enumerate(found) for other in found[:at])
    assert found[0].version == transformers.__version__
    assert found[0].config["model_type"] == "owlv2"


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"template": "a photo"}, r"template='a photo' must hold \{\}"),
        ({"chunk": 0}, "chunk=0 must be at least 1"),
        ({"vocabulary": "nowhere.txt"}, "vocabulary=nowhere.txt is neither one of coco"),
    ],
)
def test_wrong_options_end_in_a_sentence(models, options, words: str) -> None:
    with pytest.raises(UserError, match=words):
        _ = OpenVocabularyDetector(**{"model": str(models["owlv2"]), "vocabulary": "coco"} | options).labels


def test_other_models_and_damaged_weights_end_in_a_sentence(models, names: str, tmp_path: Path) -> None:
    transformers.BertConfig().save_pretrained(tmp_path / "bert")
    with pytest.raises(UserError, match="is a model of type 'bert'; this annotator runs owlvit, owlv2"):
        _ = OpenVocabularyDetector(model=str(tmp_path / "bert"), vocabulary=names).annotator
    broken = tmp_path / "broken"
    broken.mkdir()
    for file in models["owlv2"].iterdir():
        (broken / file.name).write_bytes(file.read_bytes()[: 500 if file.suffix == ".safetensors" else None])
    with pytest.raises(UserError, match="cannot be loaded"):
        detections(broken, names, [Image.new("RGB", (64, 64))])
