"""Locked towers do not move by a bit, merged adapters are the adapted model, and what cannot be fine-tuned is refused."""

import copy

import open_clip
import pytest
import torch
from open_clip.loss import ClipLoss
from safetensors.torch import load_file, save_file
from torch.nn.utils.parametrize import is_parametrized

from dejavu_lit.mitigation import Mitigation
from dejavu_lit.models.build import WEIGHTS
from dejavu_lit.models.zoo import load_encoder
from dejavu_lit.training.clip_module import ClipModule, Recipe
from dejavu_lit.training.features import Features
from dejavu_lit.training.finetuning import apply_finetuning, merged
from dejavu_lit.training.regularizers import add_text_noise
from dejavu_lit.training.settings import TrainerSettings
from dejavu_lit.utils.errors import UserError
from tests.conftest import SMALL, call
from tests.training.test_features import batch, build, unchanged

RESNET = {"layers": [1, 1, 1, 1], "width": 8}
TIMM = {"timm_pool": "token", "timm_proj": "linear"}


def coca(embed_dim, vision, text):
    vision = {**vision, "attentional_pool": True, "attn_pooler_heads": 2, "output_tokens": True}
    text = {**text, "width": embed_dim}
    multimodal = {**text, "attn_pooler_heads": 2}
    return open_clip.CoCa(embed_dim, multimodal, {**text, "embed_cls": True, "output_tokens": True}, vision)


def hugging_face(folder):
    """A model whose text tower is a BERT with the random weights that its config in ``folder`` asks for."""
    transformers = pytest.importorskip("transformers")
    size = {"hidden_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 48}
    transformers.BertConfig(vocab_size=99, max_position_embeddings=16, **size).save_pretrained(folder)
    text = {"hf_model_name": str(folder), "hf_model_pretrained": False, "hf_proj_type": "mlp"}
    return build(text=text, kind=open_clip.CustomTextCLIP)


ARCHITECTURES = {
    "clip": lambda folder: build(),
    "custom text": lambda folder: build(kind=open_clip.CustomTextCLIP),
    "resnet": lambda folder: build(vision=RESNET),
    "coca": lambda folder: build(kind=coca),
    "timm": lambda folder: build(vision={**TIMM, "timm_model_name": "test_vit"}),
    "hugging face": hugging_face,
}


def state(folder):
    return load_file(folder / "model" / WEIGHTS)


def changed(before, after):
    """The names of the entries that differ in a bit."""
    assert before.keys() == after.keys()
    return {name for name, value in before.items() if not torch.equal(value, after[name])}


def is_image(name):
    return name.startswith("visual.")


def is_text(name):
    return not is_image(name) and name != "logit_scale"


@pytest.fixture
def finetune(scenes, runs, tmp_path):
    """Fine-tune the reference run with options; gives the run and the names of the weights that changed."""

    def run(*options):
        out = tmp_path / "tuned"
        options = [*SMALL, f"data.dir={scenes}", f"model.init={runs['reference']}", *options, f"out={out}"]
        done = call("train", "side=target", *options)
        assert done.returncode == 0, done.stderr
        return out, changed(state(runs["reference"]), state(out))

    return run


def test_without_locks_everything_but_constant_buffers_moves(finetune, runs):
    assert finetune()[1] == set(state(runs["reference"])) - {"attn_mask"}


@pytest.mark.parametrize(
    ("options", "locked"),
    [(["lock_image"], is_image), (["lock_text"], is_text), (["lock_image", "lora_rank"], is_image)],
)
def test_a_locked_tower_does_not_move_by_a_bit(finetune, options, locked):
    _, moved = finetune(*[f"mitigation.{name}={4 if name == 'lora_rank' else 'true'}" for name in options])
    assert moved
    assert not any(map(locked, moved))
    assert "logit_scale" in moved


def test_the_last_groups_of_both_towers_can_stay_unlocked(finetune):
    _, moved = finetune("mitigation.lock_image=true", "mitigation.lock_text=true", "mitigation.unlocked_groups=1")
    assert moved == {"visual.proj", "text_projection", "logit_scale"}


def test_adapters_change_the_matrices_of_the_blocks_alone_and_each_saved_epoch_is_merged(finetune, runs, scenes):
    out, moved = finetune("mitigation.lora_rank=4", "mitigation.ema=0.9")
    matrices = ("attn.in_proj_weight", "attn.out_proj.weight", "mlp.c_fc.weight", "mlp.c_proj.weight")
    blocks = [f"{tower}transformer.resblocks.0." for tower in ("", "visual.")]
    assert moved == {block + matrix for block in blocks for matrix in matrices} | {"logit_scale"}
    before, after = state(runs["reference"]), state(out)
    for name in moved - {"logit_scale"}:
        assert torch.linalg.matrix_rank(after[name].double() - before[name].double(), rtol=1e-4) <= 4
    assert load_encoder(f"{out}@2").fingerprint == load_encoder(str(out)).fingerprint
    plain = open_clip.create_model(f"local-dir:{out / 'model'}")  # open_clip alone
    assert all(torch.equal(value, after[name]) for name, value in plain.state_dict().items())


def adapted(rank=3, **options):
    """A model with trained adapters, that is, with ones that are not 0."""
    model = build(**options)
    apply_finetuning(model, Mitigation(lora_rank=rank))
    torch.manual_seed(3)
    for name, parameter in model.named_parameters():
        if name.endswith(".up"):
            torch.nn.init.normal_(parameter, std=0.3)
    return model


@pytest.mark.parametrize("name", ARCHITECTURES)
@pytest.mark.parametrize("trim", [True, False])
def test_the_merged_model_computes_what_the_adapters_do(tmp_path, name, trim):
    base, model, plain = (ARCHITECTURES[name](tmp_path) for _ in range(3))
    apply_finetuning(model, Mitigation(lora_rank=3, lock_image=name == "resnet"))
    for parameter_name, parameter in model.named_parameters():
        if parameter_name.endswith(".up"):
            torch.nn.init.normal_(parameter, std=0.3)
    plain.load_state_dict(merged(model.state_dict()), strict=name != "resnet")
    images, tokens = batch()
    base, model, plain = (network.float().eval() for network in (base, model, plain))
    features = Features(model, TrainerSettings(trim=trim), unchanged)
    with torch.no_grad():
        output = features(images.float(), features.captions(tokens))
        assert (output["image_features"] - plain.encode_image(images.float(), normalize=True)).abs().max() < 1e-5
        assert (output["text_features"] - plain.encode_text(tokens, normalize=True)).abs().max() < 1e-5
        assert (plain.encode_text(tokens) - base.encode_text(tokens)).abs().max() > 1e-2


@pytest.mark.parametrize(
    ("name", "locked", "adapted"), [("hugging face", "lock_text", "visual."), ("timm", "lock_image", "transformer.")]
)
def test_adapters_leave_a_locked_tower_alone_whose_projection_open_clip_keeps_trained(tmp_path, name, locked, adapted):
    model = ARCHITECTURES[name](tmp_path)
    apply_finetuning(model, Mitigation(lora_rank=3, **{locked: True}))
    trained = {name for name, parameter in model.named_parameters() if parameter.requires_grad} - {"logit_scale"}
    assert trained
    assert all(name.startswith(adapted) and name.endswith((".up", ".down")) for name in trained)


def test_the_attention_of_open_clips_own_blocks_is_adapted_too():
    names = dict(adapted(text={"qk_norm": True}).named_parameters())
    assert "transformer.resblocks.0.attn.parametrizations.in_proj_weight.0.up" in names


def test_trimmed_and_complete_towers_have_the_same_gradients_of_the_adapters():
    model, gradients = adapted(), []
    images, tokens = batch()
    for trim in (True, False):
        single = copy.deepcopy(model)
        features = Features(single, TrainerSettings(trim=trim), unchanged)
        ClipLoss()(**features(images, features.captions(tokens))).backward()
        gradients.append({name: p.grad for name, p in single.named_parameters() if p.requires_grad})
    assert gradients[0].keys() == {
        name for name, _ in model.named_parameters() if name.endswith((".up", ".down")) or name == "logit_scale"
    }
    for name, gradient in gradients[0].items():
        assert torch.allclose(gradient, gradients[1][name], rtol=1e-9, atol=1e-12), name
        assert gradient.abs().sum() > 0, name


@pytest.mark.parametrize("rank", [0, None])
def test_rank_0_is_off(rank):
    model, random = build(), torch.get_rng_state()
    apply_finetuning(model, Mitigation(lora_rank=rank))
    assert not any(map(is_parametrized, model.modules()))
    assert all(parameter.requires_grad for parameter in model.parameters())
    assert torch.equal(torch.get_rng_state(), random)
    assert all(torch.equal(value, model.state_dict()[name]) for name, value in merged(model.state_dict()).items())


def test_the_batch_statistics_of_a_locked_tower_stay(tmp_path):
    model = build(vision=RESNET).float()
    before = {name: value.clone() for name, value in model.visual.state_dict().items()}
    images, tokens = batch()
    apply_finetuning(model, Mitigation(lock_image=True))
    model.train()(images.float(), tokens)
    after = model.visual.state_dict()
    assert all(torch.equal(value, after[name]) for name, value in before.items() if "num_batches" not in name)
    save_file(model.state_dict(), tmp_path / "locked.safetensors")
    open_clip.load_checkpoint(build(vision=RESNET), str(tmp_path / "locked.safetensors"))  # strict


@pytest.mark.parametrize("unlocked", [0, 1])
def test_a_locked_tower_of_timm_computes_what_it_did_in_evaluation(unlocked):
    """Its batch normalization includes the activation, which open_clip's own freezing leaves out."""
    model = build(vision={**TIMM, "timm_pool": "avg", "timm_model_name": "test_efficientnet"}).float()
    images = batch()[0].float()
    expected = model.eval().encode_image(images)
    apply_finetuning(model, Mitigation(lock_image=True, unlocked_groups=unlocked))
    assert torch.allclose(model.encode_image(images), expected, atol=1e-6)
    if not unlocked:
        assert torch.allclose(model.train().encode_image(images), expected, atol=1e-6)


def test_the_noise_has_its_norm_before_the_vectors_are_normalized_again():
    torch.manual_seed(0)
    features = torch.nn.functional.normalize(torch.randn(2000, 64), dim=-1)
    noisy = add_text_noise(features, 0.5)
    assert torch.allclose(noisy.norm(dim=-1), torch.ones(2000), atol=1e-6)
    # t + ν·u with u almost orthogonal to t: the cosine is about 1 / √(1 + ν²)
    assert (noisy * features).sum(1).mean().item() == pytest.approx(1 / 1.25**0.5, abs=5e-3)
    assert not torch.equal(add_text_noise(features, 0.5), noisy)


def test_noise_acts_on_training_alone(scenes, runs, tmp_path):
    options = [*SMALL, f"data.dir={scenes}", "recipe.epochs=1", "recipe.lr=1e-12"]  # the weights hardly move
    rows = {}
    for norm in (0, 0.5):
        out = tmp_path / str(norm)
        done = call("train", "side=target", *options, f"mitigation.text_noise={norm}", f"out={out}")
        assert done.returncode == 0, done.stderr
        lines = [line.split(",") for line in (out / "metrics.csv").read_text().splitlines()]
        rows[norm] = {line[2]: float(line[3]) for line in lines if line[2] in ("loss", "val_loss")}
    assert rows[0]["loss"] != rows[0.5]["loss"]
    assert rows[0]["val_loss"] == pytest.approx(rows[0.5]["val_loss"], abs=1e-6)


@pytest.mark.parametrize("knob", ["lock_image=true", "lock_text=true", "lora_rank=4"])
def test_without_a_model_to_start_from_there_is_nothing_to_fine_tune(scenes, tmp_path, knob):
    done = call("train", "side=target", f"data.dir={scenes}", f"mitigation.{knob}", f"out={tmp_path / 'run'}", *SMALL)
    assert done.returncode == 1
    assert "fine-tunes a model, and there is none to start from; give model.init=" in done.stderr
    assert "Traceback" not in done.stderr


def test_a_base_of_another_architecture_is_refused(scenes, runs, tmp_path):
    options = [*SMALL, "model.config.embed_dim=16", f"model.init={runs['reference']}", "mitigation.lora_rank=4"]
    done = call("train", "side=target", f"data.dir={scenes}", f"out={tmp_path / 'run'}", *options)
    assert done.returncode == 1
    assert "do not fit" in done.stderr
    assert "Traceback" not in done.stderr


BOTH = {"lock_image": True, "lock_text": True}


@pytest.mark.parametrize(
    ("knobs", "name", "message"),
    [
        ({"lora_rank": 4}, "resnet", "the image tower .ModifiedResNet. has none; lock this tower as a whole"),
        (
            {"lora_rank": 4, "lock_image": True, "unlocked_groups": 1},
            "clip",
            "image tower .VisionTransformer. has none",
        ),
        ({"lora_rank": 4, "lock_text": True, "unlocked_groups": 1}, "clip", "text tower .Transformer. has none"),
        (BOTH, "clip", "leave nothing to train"),
        (BOTH, "coca", "leave nothing to train"),
        ({**BOTH, "lora_rank": 4}, "timm", "leave nothing to train"),
        ({"lock_image": True, "unlocked_groups": 1}, "resnet", r"lock_image=true with .*unlocked_groups=1"),
        ({"lock_image": True, "unlocked_groups": 9}, "clip", "=9 locks nothing, because the image tower"),
        ({"lock_image": True, "unlocked_groups": 9}, "timm", "=9 locks nothing, because the image tower"),
        ({"lock_text": True, "unlocked_groups": 9}, "clip", "=9 locks nothing, because the text tower"),
    ],
)
def test_what_a_model_cannot_do_is_refused(tmp_path, knobs, name, message):
    with pytest.raises(UserError, match=message):
        ClipModule(ARCHITECTURES[name](tmp_path), Recipe(epochs=1, batch=2, lr=1.0), Mitigation(**knobs))
