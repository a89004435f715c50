"""The effect of each training knob: schedule, clamp, decay exemptions, exported weights."""

import json
import math
import os
import subprocess
import sys
from itertools import pairwise
from types import SimpleNamespace

import numpy as np
import open_clip
import pytest
import torch

from dejavu_lit.mitigation import Mitigation
from dejavu_lit.models.build import architecture, build_model, export_config, export_weights
from dejavu_lit.models.settings import ModelSpec
from dejavu_lit.models.zoo import load_encoder
from dejavu_lit.training.clip_module import ClipModule, learning_rate_factor, split_by_decay
from dejavu_lit.training.settings import Recipe
from dejavu_lit.utils.errors import UserError
from tests.conftest import ROOT
from tests.models.tiny import sample_image, write_clip

CONFIG = {
    "embed_dim": 16,
    "vision_cfg": {"image_size": 32, "patch_size": 16, "width": 32, "layers": 1, "head_width": 16},
    "text_cfg": {"context_length": 16, "vocab_size": 49408, "width": 32, "heads": 2, "layers": 1},
}
TINY = ModelSpec("tiny", CONFIG)


def test_warm_up_is_linear_and_the_cosine_ends_at_the_horizon():
    recipe = Recipe(epochs=1, batch=1, lr=1.0, warmup_steps=4)
    rates = [learning_rate_factor(step, recipe, horizon=104) for step in range(105)]
    assert rates[:4] == [0.25, 0.5, 0.75, 1.0]
    assert rates[4] == 1.0
    assert rates[54] == pytest.approx(0.5)
    assert rates[29] == pytest.approx(0.5 * (1 + math.cos(math.pi / 4)))
    assert rates[104] == 0.0
    assert all(a >= b for a, b in pairwise(rates[4:]))


def test_gains_biases_and_the_logit_scale_are_exempt_from_decay(tmp_path):
    export_config(TINY, tmp_path)
    model = build_model(TINY, tmp_path)
    matrices, exempt = split_by_decay(model)
    names = {id(p): name for name, p in model.named_parameters()}
    assert {names[id(p)] for p in exempt} >= {"logit_scale", "visual.ln_pre.weight", "ln_final.bias"}
    assert all(p.ndim >= 2 for p in matrices)
    assert len(matrices) + len(exempt) == len(names)
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    groups = [{"params": matrices, "weight_decay": 0.5}, {"params": exempt, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=0.1)
    for p in model.parameters():
        p.grad = torch.zeros_like(p)
    optimizer.step()  # without gradients, only the decay has an effect
    for name, p in model.named_parameters():
        shrunk = before[name] * (1 - 0.1 * 0.5) if p.ndim >= 2 else before[name]
        assert torch.allclose(p, shrunk), name


@pytest.mark.parametrize(
    ("mitigation", "start", "learned", "clamp"),
    [
        (Mitigation(), 1 / 0.07, True, 100),
        (Mitigation(logit_scale_init=5), 5, True, 100),
        (Mitigation(logit_scale_max=20), 1 / 0.07, True, 20),
        (Mitigation(logit_scale_fixed=33), 33, False, None),
    ],
)
def test_the_three_logit_scale_settings(tmp_path, mitigation, start, learned, clamp):
    export_config(TINY, tmp_path)
    module = ClipModule(build_model(TINY, tmp_path), Recipe(epochs=1, batch=1, lr=1.0), mitigation)
    assert module.logit_scale.exp().item() == pytest.approx(start, rel=1e-5)
    assert module.logit_scale.requires_grad is learned
    assert module.clamp is None if clamp is None else module.clamp == pytest.approx(math.log(clamp))


def test_an_initial_logit_scale_above_the_clamp_is_refused(tmp_path):
    export_config(TINY, tmp_path)
    with pytest.raises(UserError, match=r"logit_scale_init=200 is above recipe\.logit_scale_max=100"):
        ClipModule(build_model(TINY, tmp_path), Recipe(epochs=1, batch=1, lr=1.0), Mitigation(logit_scale_init=200))


COCA = {
    "embed_dim": 32,
    "vision_cfg": {
        "image_size": 32,
        "patch_size": 16,
        "width": 32,
        "layers": 1,
        "head_width": 16,
        "output_tokens": True,
    }
    | {"attentional_pool": True, "attn_pooler_heads": 4},
    "text_cfg": {**CONFIG["text_cfg"], "embed_cls": True, "output_tokens": True},
    "multimodal_cfg": {**CONFIG["text_cfg"], "attn_pooler_heads": 4},
    "custom_text": True,
}


@pytest.mark.parametrize("config", [CONFIG, COCA, {**CONFIG, "nonscalar_logit_scale": True}])
def test_on_several_ranks_only_parameters_that_get_no_gradient_are_frozen(tmp_path, monkeypatch, config):
    spec = ModelSpec("model", config)
    export_config(spec, tmp_path)
    module = ClipModule(build_model(spec, tmp_path), Recipe(epochs=1, batch=2, lr=1.0), Mitigation()).train()
    image = np.zeros((3, 32, 32), np.uint8)
    tokenizer = open_clip.get_tokenizer(f"local-dir:{tmp_path}")
    monkeypatch.setattr(ClipModule, "pairs", SimpleNamespace(preprocess=lambda _: image, tokenizer=tokenizer))
    state = torch.get_rng_state()
    module._freeze_unused()
    assert module.training
    assert torch.equal(torch.get_rng_state(), state)
    captions = module._features.captions(tokenizer(["a b", "c"]))
    output = module._features(torch.zeros(2, 3, 32, 32, dtype=torch.uint8), captions)
    (output["logit_scale"] * output["image_features"] @ output["text_features"].T).sum().backward()
    frozen = {name for name, p in module.model.named_parameters() if not p.requires_grad}
    assert all((p.grad is None) == (name in frozen) for name, p in module.model.named_parameters())
    assert any(name.startswith("text_decoder.") for name in frozen) == (config is COCA)
    assert "logit_scale" not in frozen


def test_the_limit_of_unreadable_pairs_acts_within_the_epoch(tmp_path, monkeypatch):
    export_config(TINY, tmp_path)
    module = ClipModule(build_model(TINY, tmp_path), Recipe(epochs=1, batch=4, lr=1.0), Mitigation())
    plan, loader = SimpleNamespace(steps=100, world=1, batch=4), SimpleNamespace(bad_share=0.01)
    monkeypatch.setattr(ClipModule, "pairs", SimpleNamespace(plan=plan, loader=loader))
    monkeypatch.setattr(ClipModule, "trainer", SimpleNamespace(world_size=1, global_step=0))
    monkeypatch.setattr(ClipModule, "is_logged", lambda *_: False)
    module._loss = lambda **features: features["image_features"].sum()
    batch = {"images": torch.zeros(4, 3, 32, 32, dtype=torch.uint8), "index": torch.arange(4), "unreadable": {0: "cut"}}
    batch["captions"] = module._features.captions(torch.ones(4, 16, dtype=torch.long))
    for replaced in (0, 3, 1):  # 4 of 400
        module.training_step({**batch, "replaced": replaced}, 0)
    with pytest.raises(UserError, match="5 of 400 pairs of this epoch could not be read"):
        module.training_step({**batch, "replaced": 1}, 3)


class Steps:
    """The part of a trainer and its data that the optimizers use: 10 steps per epoch on one rank."""

    world_size, steps = 1, 10

    def __init__(self):
        self.datamodule = self.plan = self


@pytest.mark.parametrize(("chosen", "decay"), [(0, 0), (1, 1), (None, 0.3)])
def test_weight_decay_is_that_of_the_optimizers_matrices(tmp_path, chosen, decay):
    export_config(TINY, tmp_path)
    recipe = Recipe(epochs=1, batch=1, lr=1.0, weight_decay=0.3)
    module = ClipModule(build_model(TINY, tmp_path), recipe, Mitigation(weight_decay=chosen))
    module._trainer = Steps()
    matrices, exempt = module.configure_optimizers()["optimizer"].param_groups
    assert (matrices["weight_decay"], exempt["weight_decay"]) == (decay, 0)
    assert all(p.ndim >= 2 for p in matrices["params"])
    assert all(p.ndim < 2 for p in exempt["params"])
    assert len(matrices["params"]) + len(exempt["params"]) == len(list(module.model.parameters()))


def test_a_fixed_logit_scale_does_not_change_in_training(tmp_path):
    export_config(TINY, tmp_path)
    recipe = Recipe(epochs=1, batch=2, lr=0.1)
    for fixed, same in ((33.0, True), (None, False)):
        module = ClipModule(build_model(TINY, tmp_path), recipe, Mitigation(logit_scale_fixed=fixed))
        module._trainer = Steps()
        before = module.logit_scale.detach().clone()
        optimizer = module.configure_optimizers()["optimizer"]
        weights = module.model.token_embedding.weight.detach().clone()
        images, texts, scale = module.model(
            torch.rand(2, 3, 32, 32), torch.tensor([[5, 49407], [7, 49407]]).repeat(1, 8)
        )
        torch.nn.functional.cross_entropy(scale * images @ texts.T, torch.arange(2)).backward()
        optimizer.step()
        assert not torch.equal(module.model.token_embedding.weight, weights)
        assert torch.equal(module.logit_scale, before) is same
        if fixed is not None:
            assert module.logit_scale.exp().item() == pytest.approx(fixed)


def test_plain_open_clip_loads_what_is_exported(tmp_path):
    export_config(TINY, tmp_path)
    model = build_model(TINY, tmp_path).eval()
    export_weights(model.state_dict(), tmp_path)
    plain, _, _ = open_clip.create_model_and_transforms(f"local-dir:{tmp_path}")
    tokens = open_clip.get_tokenizer(f"local-dir:{tmp_path}")(["two words", "three more words"])
    assert tokens.shape == (2, 16)
    image = torch.rand(2, 3, 32, 32)
    with torch.inference_mode():
        assert torch.equal(plain.eval().encode_image(image), model.encode_image(image))
        assert torch.equal(plain.encode_text(tokens), model.encode_text(tokens))


def test_patches_are_dropped_while_training_only_and_the_export_does_not_mention_it(tmp_path):
    config = {**CONFIG, "vision_cfg": {**CONFIG["vision_cfg"], "image_size": 64}}  # 16 patches
    spec = ModelSpec("tiny", config)
    export_config(spec, tmp_path)
    model = build_model(spec, tmp_path)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    ClipModule(model, Recipe(epochs=1, batch=1, lr=1.0), Mitigation(patch_dropout=0.75))
    lengths = []
    model.visual.transformer.register_forward_hook(lambda _, inputs, __: lengths.append(inputs[0].shape[1]))
    image = torch.rand(2, 3, 64, 64)
    model.train()
    torch.manual_seed(1)
    first = model.encode_image(image)
    torch.manual_seed(1)
    assert torch.equal(model.encode_image(image), first)  # the draw depends on the seed of the step
    assert not torch.equal(model.encode_image(image), first)
    full = model.eval().encode_image(image)
    assert lengths == [1 + 4] * 3 + [1 + 16]  # the class token is kept
    export_weights(model.state_dict(), tmp_path)
    assert "patch_dropout" not in (tmp_path / "open_clip_config.json").read_text()
    plain, _, _ = open_clip.create_model_and_transforms(f"local-dir:{tmp_path}")
    assert torch.equal(plain.eval().encode_image(image), full)
    assert torch.equal(plain.train().encode_image(image), full)
    assert all(torch.equal(before[name], value) for name, value in plain.state_dict().items())


def test_without_knobs_the_model_is_the_architectures_own(tmp_path):
    export_config(TINY, tmp_path)
    model = build_model(TINY, tmp_path)
    before = [type(part) for part in model.modules()]
    ClipModule(model, Recipe(epochs=1, batch=1, lr=1.0), Mitigation())
    assert [type(part) for part in model.modules()] == before


def test_a_tower_without_patches_refuses_to_drop_them(tmp_path):
    config = {**CONFIG, "vision_cfg": {"image_size": 32, "layers": [1, 1, 1, 1], "width": 8}}
    spec = ModelSpec("tiny", config)
    export_config(spec, tmp_path)
    with pytest.raises(UserError, match=r"patch_dropout=0.5 needs a ViT"):
        ClipModule(build_model(spec, tmp_path), Recipe(epochs=1, batch=1, lr=1.0), Mitigation(patch_dropout=0.5))


def test_fine_tuning_starts_from_the_given_weights(tmp_path):
    export_config(TINY, tmp_path / "base")
    base = build_model(TINY, tmp_path / "base")
    export_weights(base.state_dict(), tmp_path / "base")
    spec = ModelSpec("tiny", CONFIG, init=f"local-dir:{tmp_path / 'base'}")
    export_config(spec, tmp_path / "tuned")
    tuned = build_model(spec, tmp_path / "tuned")
    assert all(torch.equal(a, b) for a, b in zip(base.parameters(), tuned.parameters(), strict=True))
    wider = ModelSpec("tiny", {**CONFIG, "embed_dim": 8}, init=f"local-dir:{tmp_path / 'base'}")
    export_config(wider, tmp_path / "wider")
    with pytest.raises(UserError, match="do not fit"):
        build_model(wider, tmp_path / "wider")


@pytest.mark.parametrize("prefix", ["local-dir:", ""])
def test_fine_tuning_takes_the_preprocessing_and_the_activation_of_the_folder(tmp_path, prefix):
    preprocess = {"mean": [0.5] * 3, "std": [0.25] * 3, "interpolation": "bilinear", "resize_mode": "squash"}
    write_clip(tmp_path / "base/model", config={**CONFIG, "quick_gelu": True}, preprocess=preprocess)
    spec = ModelSpec("tiny", CONFIG, init=f"{prefix}{tmp_path / 'base'}{'/model' if prefix else ''}")
    export_config(spec, tmp_path / "tuned")
    export_weights(build_model(spec, tmp_path / "tuned").state_dict(), tmp_path / "tuned")
    base, tuned = (load_encoder(f"local-dir:{folder}") for folder in (tmp_path / "base/model", tmp_path / "tuned"))
    assert tuned.fingerprint == base.fingerprint
    images = torch.from_numpy(np.stack([tuned.preprocess(sample_image(0, 90, 50))]))
    assert np.array_equal(images[0], base.preprocess(sample_image(0, 90, 50)))
    assert torch.equal(tuned.encode_images(images), base.encode_images(images))


def test_fine_tuning_takes_the_preprocessing_and_the_activation_of_a_model_of_the_hub(tmp_path):
    """From the cache of the Hub's library, as after a download."""
    revision = "0" * 40
    cached = tmp_path / "hub" / "models--somebody--siglip"
    preprocess = {"mean": [0.5] * 3, "std": [0.5] * 3, "interpolation": "bicubic", "resize_mode": "squash"}
    write_clip(cached / "snapshots" / revision, config={**CONFIG, "quick_gelu": True}, preprocess=preprocess)
    (cached / "refs").mkdir()
    (cached / "refs/main").write_text(revision)
    code = (
        "import json, sys\nfrom pathlib import Path\nfrom dejavu_lit.models.build import build_model, export_config\n"
        "from dejavu_lit.models.settings import ModelSpec\nfrom dejavu_lit.utils.errors import UserError\n"
        "for name in ('siglip', 'missing'):\n"
        "    spec = ModelSpec('tiny', json.loads(sys.argv[1]), init=f'hf-hub:somebody/{name}')\n"
        "    try:\n        export_config(spec, Path(name))\n        build_model(spec, Path(name))\n"
        "    except UserError as error:\n        print(error)\n"
    )
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path), "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-c", code, json.dumps(CONFIG)]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, cwd=tmp_path, timeout=120)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("the config of model.init=hf-hub:somebody/missing could not be downloaded")
    exported = json.loads((tmp_path / "siglip/open_clip_config.json").read_text())
    assert exported["preprocess_cfg"].items() >= preprocess.items()
    assert exported["model_cfg"]["quick_gelu"] is True


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"vision_cfg": {**CONFIG["vision_cfg"], "head_width": 32}}, "image encoder"),
        ({"text_cfg": {**CONFIG["text_cfg"], "heads": 1}}, "text encoder"),
        ({"text_cfg": {**CONFIG["text_cfg"], "tokenizer_kwargs": {"clean": "canonicalize"}}}, "tokenizer"),
    ],
)
def test_an_initial_model_that_computes_otherwise_is_refused(tmp_path, change, message):
    write_clip(tmp_path / "base", config={**CONFIG, **change})
    spec = ModelSpec("tiny", CONFIG, init=f"local-dir:{tmp_path / 'base'}")
    export_config(spec, tmp_path / "tuned")
    with pytest.raises(UserError, match=f"differ in their {message}.*model.config"):
        build_model(spec, tmp_path / "tuned")


@pytest.mark.parametrize("init", ["ViT-B-32@openai", "ViT-B/32@openai"])
def test_released_weights_bring_their_activation_in_either_spelling(tmp_path, init):
    export_config(ModelSpec("ViT-B-32", init=init), tmp_path)
    assert json.loads((tmp_path / "open_clip_config.json").read_text())["model_cfg"]["quick_gelu"] is True


def test_an_unknown_architecture_is_named_with_the_nearest_one():
    with pytest.raises(UserError, match=r"ViT-B-33.*did you mean 'ViT-B-32'"):
        architecture(ModelSpec("ViT-B-33"))


def test_every_architecture_of_open_clip_can_be_described():
    assert architecture(ModelSpec("RN50"))["embed_dim"] == 1024
    assert architecture(ModelSpec("ViT-B-16-SigLIP"))["init_logit_bias"] == -10
