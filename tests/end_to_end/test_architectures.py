"""Other architectures than CLIP's ViT, end to end on tiny configs: train, resume, export, evaluate, load with open_clip."""

import json
from pathlib import Path

import open_clip
import pytest
import torch
from safetensors.torch import load_file
from timm.models import build_model_with_cfg, register_model
from timm.models.eva import Eva

from dejavu_lit.data.readers.scenes import _sprites
from dejavu_lit.data.shards import ShardSet, read_pairs
from tests.conftest import SMALL, call
from tests.training.test_knobs import killed, same_weights

DATA = [option for option in SMALL if option.startswith(("data.", "recipe.", "trainer."))]
VISION = {"image_size": 64, "patch_size": 16, "width": 32, "layers": 1, "head_width": 16}
TEXT = {"context_length": 16, "vocab_size": 49408, "width": 32, "heads": 2, "layers": 1}
COCA = {
    "embed_dim": 32,
    "vision_cfg": {**VISION, "attentional_pool": True, "attn_pooler_heads": 2, "output_tokens": True},
    "text_cfg": {**TEXT, "embed_cls": True, "output_tokens": True},
    "multimodal_cfg": {**TEXT, "attn_pooler_heads": 2},
    "custom_text": True,
}
SIGLIP = {
    "embed_dim": 64,  # without a projection, the width of timm's test_vit
    "init_logit_bias": -10,
    "custom_text": True,
    "vision_cfg": {"image_size": 64, "timm_model_name": "test_vit", "timm_pool": "map", "timm_proj": "none"},
    "text_cfg": {**TEXT, "no_causal_mask": True, "proj_bias": True, "pool_type": "last"},
}
TIMM = {
    "embed_dim": 32,
    "vision_cfg": {"image_size": 64, "timm_model_name": "test_vit", "timm_pool": "token", "timm_proj": "linear"},
    "text_cfg": TEXT,
}
RESNET = {"embed_dim": 32, "vision_cfg": {"image_size": 64, "layers": [1, 1, 1, 1], "width": 8}, "text_cfg": TEXT}
EVA = {
    "embed_dim": 32,
    "vision_cfg": {"image_size": 64, "timm_model_name": "eva_tiny_for_tests", "timm_pool": "token", "timm_proj": None},
    "text_cfg": TEXT,
    "custom_text": True,
}
CLIP_TEXT = ("transformer.", "token_embedding.", "positional_embedding", "ln_final.", "text_projection")
# What stays bit by bit if the image or the text tower is locked: timm's own part, to which open_clip adds a projection.
LOCKED = {
    "coca": ("visual.", "text."),
    "siglip": ("visual.trunk.", "text."),
    "timm": ("visual.trunk.", CLIP_TEXT),
    "resnet": ("visual.", CLIP_TEXT),
    "eva": ("visual.trunk.", "text."),
}
CONFIGS = {"coca": COCA, "siglip": SIGLIP, "timm": TIMM, "resnet": RESNET, "eva": EVA}


@register_model
def eva_tiny_for_tests(pretrained: bool = False, **options: object) -> Eva:
    """timm's smallest EVA has 5 million weights and takes images of 224 pixels alone."""
    size = {"img_size": 64, "patch_size": 16, "embed_dim": 32, "depth": 1, "num_heads": 2}
    return build_model_with_cfg(Eva, "eva_tiny_for_tests", pretrained, **(size | options))


def model_options(config: dict) -> list[str]:
    """The config as options; null first, so that nothing of the default model stays."""
    return ["model.config=null", "model.config=" + json.dumps(config).replace('"', "")]


def check_end_to_end(scenes: Path, tmp_path: Path, options: list[str]) -> None:
    """Train both sides, one with an interruption, evaluate them, and load the target with plain open_clip."""
    options = [*DATA, *options, "recipe.epochs=1", f"data.dir={scenes}"]
    for side in ("target", "reference"):
        done = call("train", f"side={side}", *options, f"out={tmp_path / side}")
        assert done.returncode == 0, done.stderr
    again = killed(scenes, tmp_path / "again", 2, *options, "trainer.checkpoint_steps=1")
    assert same_weights(tmp_path / "target", again)
    pair = [f"target={tmp_path / 'target'}", f"reference={tmp_path / 'reference'}"]
    settings = ["k=5", "ks=[5]", "statistics.bootstrap=200", "statistics.top_ms=[]", "report.write=false"]
    done = call("evaluate", *pair, *settings, f"out={tmp_path / 'gap'}")
    assert done.returncode == 0, done.stderr
    metrics = json.loads((tmp_path / "gap/metrics.json").read_text())
    assert metrics["symmetric"] is not None
    assert metrics["utility"]["target"]["zeroshot_top1"] is not None
    folder = tmp_path / "target" / "model"
    plain, exported = open_clip.create_model(f"local-dir:{folder}"), load_file(folder / "open_clip_model.safetensors")
    assert all(torch.equal(value, exported[name]) for name, value in plain.state_dict().items())


def check_locks(scenes: Path, tmp_path: Path, options: list[str], locked: tuple[str | tuple[str, ...], ...]) -> None:
    """Fine-tune the reference with each tower locked, whose weights do not move by a bit."""
    base = load_file(tmp_path / "reference/model/open_clip_model.safetensors")
    options = [*DATA, *options, "recipe.epochs=1", f"data.dir={scenes}", f"model.init={tmp_path / 'reference'}"]
    for tower, names in zip(("image", "text"), locked, strict=True):
        out = tmp_path / f"locked-{tower}"
        done = call("train", "side=target", *options, f"mitigation.lock_{tower}=true", f"out={out}")
        assert done.returncode == 0, done.stderr
        tuned = load_file(out / "model/open_clip_model.safetensors")
        moved = {name for name, value in tuned.items() if not torch.equal(value, base[name])}
        assert moved
        assert not [name for name in moved if name.startswith(names) and "num_batches_tracked" not in name]
        assert [name for name in tuned if name.startswith(names)]


@pytest.mark.parametrize("name", CONFIGS)
def test_an_architecture_from_training_to_metrics(scenes, tmp_path, name):
    check_end_to_end(scenes, tmp_path, model_options(CONFIGS[name]))
    check_locks(scenes, tmp_path, model_options(CONFIGS[name]), LOCKED[name])


@pytest.fixture(scope="module")
def chinese(tmp_path_factory) -> Path:
    """Scenes with Chinese captions."""
    out = tmp_path_factory.mktemp("chinese") / "scenes"
    done = call("prepare", *[o for o in SMALL if o.startswith("data.")], "data.reader.language=zh", f"data.dir={out}")
    assert done.returncode == 0, done.stderr
    return out


@pytest.fixture(scope="module")
def bert(chinese, tmp_path_factory) -> Path:
    """A folder with a small BERT and a tokenizer trained on the captions."""
    transformers = pytest.importorskip("transformers")
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors, trainers

    folder = tmp_path_factory.mktemp("bert")
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    tokenizer = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer()
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    captions = [pair.caption for pair in read_pairs(ShardSet.open(chinese / "A"), image=False)]
    # A few captions do not name every object, and open_clip cleans the wide colon to a plain one.
    captions += [*_sprites("zh")[0], ":"]
    tokenizer.train_from_iterator(captions, trainers.WordPieceTrainer(vocab_size=3000, special_tokens=special))
    ids = [(name, tokenizer.token_to_id(name)) for name in ("[CLS]", "[SEP]")]
    tokenizer.post_processor = processors.TemplateProcessing(single="[CLS] $A [SEP]", special_tokens=ids)
    names = dict(zip(("pad_token", "unk_token", "cls_token", "sep_token", "mask_token"), special, strict=True))
    transformers.PreTrainedTokenizerFast(tokenizer_object=tokenizer, **names).save_pretrained(folder)
    config = transformers.BertConfig(
        vocab_size=tokenizer.get_vocab_size(),
        hidden_size=32,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=64,
        max_position_embeddings=32,
    )
    torch.manual_seed(0)
    transformers.BertModel(config).save_pretrained(folder)
    return folder


def test_a_hugging_face_text_tower_reads_chinese_captions_that_are_masked_by_character(chinese, bert, tmp_path):
    text = {"hf_model_name": str(bert), "hf_tokenizer_name": str(bert), "hf_proj_type": "mlp", "context_length": 24}
    config = {"embed_dim": 32, "vision_cfg": VISION, "text_cfg": text}
    check_end_to_end(chinese, tmp_path, [*model_options(config), "mitigation.text_mask=0.3"])
    check_locks(chinese, tmp_path, model_options(config), ("visual.", "text.transformer."))
    tokenizer = open_clip.get_tokenizer(f"local-dir:{tmp_path / 'target' / 'model'}")
    tokens = tokenizer(["Babebi、Dodudi：皇冠", "Babebi、Dodudi：奶牛"])
    assert tokens.shape == (2, 24)
    assert not torch.equal(*tokens)
    assert (tokens == tokenizer.tokenizer.unk_token_id).sum() == 0


def test_siglip_2_with_its_tokenizer_from_a_folder(chinese, bert, tmp_path):
    """As open_clip names SigLIP 2's parts: the tokenizer of transformers, canonicalized captions, the activation by tanh."""
    text = {"hf_tokenizer_name": str(bert), "tokenizer_kwargs": {"clean": "canonicalize"}, "context_length": 24}
    text |= {"vocab_size": 3000, "norm_kwargs": {"eps": 1e-6}, "act_kwargs": {"approximate": "tanh"}}
    config = {**SIGLIP, "text_cfg": {**SIGLIP["text_cfg"], **text}}
    check_end_to_end(chinese, tmp_path, model_options(config))
    model = open_clip.create_model(f"local-dir:{tmp_path / 'target' / 'model'}")
    assert model.logit_bias is not None


def test_a_missing_tokenizer_is_named(scenes, tmp_path):
    text = {"hf_model_name": str(tmp_path), "hf_tokenizer_name": str(tmp_path), "context_length": 24}
    options = model_options({"embed_dim": 32, "vision_cfg": VISION, "text_cfg": text})
    done = call("train", "side=target", *DATA, *options, f"data.dir={scenes}", f"out={tmp_path / 'run'}")
    assert done.returncode == 1
    assert f"hf_tokenizer_name={tmp_path} cannot be loaded" in done.stderr
    assert "Traceback" not in done.stderr
