"""Features computed from fewer tokens, in parts, with checkpoints or compiled: same loss and gradients as the model."""

import copy

import open_clip
import pytest
import torch
from open_clip.loss import ClipLoss
from torch._dynamo.utils import counters
from torch.autograd.graph import saved_tensors_hooks

from dejavu_lit.mitigation import Mitigation
from dejavu_lit.models import towers
from dejavu_lit.models.towers import pack
from dejavu_lit.training.clip_module import ClipModule
from dejavu_lit.training.features import Features
from dejavu_lit.training.settings import Recipe, TrainerSettings
from dejavu_lit.utils.errors import UserError

VISION = {"image_size": 32, "patch_size": 8, "width": 32, "layers": 2, "head_width": 16}
TEXT = {"context_length": 16, "vocab_size": 99, "width": 24, "heads": 2, "layers": 2}
END = 98  # the largest token, so argmax and eos pooling find it
LENGTHS = (3, 16, 5, 3, 9, 2, 1)  # tokens up to and including the end, in captions of 16


def build(vision=None, text=None, kind=open_clip.CLIP, **options):
    """A tiny model in float64; its gains and biases differ from one and zero, so each of them matters."""
    torch.manual_seed(0)
    model = kind(16, {**VISION, **(vision or {})}, {**TEXT, **(text or {})}, **options).double()
    with torch.no_grad():
        for value in model.parameters():
            value.add_(0.05 * torch.randn_like(value))
    return model.train()


def batch():
    """Images, and captions with tokens after their ends, which must not matter."""
    draw = torch.Generator().manual_seed(1)
    tokens = torch.randint(1, END, (len(LENGTHS), 16), generator=draw)
    for row, length in enumerate(LENGTHS):
        tokens[row, length - 1] = END
    return torch.randn(len(LENGTHS), 3, 32, 32, generator=draw, dtype=torch.float64), tokens


def unchanged(images):
    return images


def outcome(model, parts=1, **trainer):
    """Loss and gradients of a batch in ``parts`` under these settings of the trainer."""
    model = copy.deepcopy(model)
    features = Features(model, TrainerSettings(**trainer), unchanged, parts)
    images, tokens = batch()
    torch.manual_seed(2)
    loss = ClipLoss()(**features(images, features.captions(tokens)))
    loss.backward()
    return loss.item(), {name: value.grad for name, value in model.named_parameters()}


def check(actual, expected, tolerance):
    """The loss and every gradient differ by at most this share."""
    assert actual[0] == pytest.approx(expected[0], rel=max(tolerance, 1e-15))
    for name, gradient in actual[1].items():
        assert gradient is not None, name
        difference = (gradient - expected[1][name]).norm() / (expected[1][name].norm() + 1e-12)
        assert difference <= tolerance, (name, float(difference))


def test_captions_are_packed_by_hand():
    tokens = torch.tensor([[7, 9, 0, 0], [5, 6, 9, 0], [9, 1, 1, 1]])
    packed = pack(tokens, tokens.argmax(1))
    assert packed.ids.tolist() == [7, 9, 5, 6, 9, 9]
    assert packed.positions.tolist() == [0, 1, 0, 1, 2, 0]
    assert packed.slots.tolist() == [0, 1, 3, 4, 5, 6]
    assert packed.pooled.tolist() == [1, 4, 5]
    assert packed.ends.tolist() == [1, 2, 0]
    assert packed.length == 3


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"text": {"pool_type": "eos", "eos_id": END}},
        {"text": {"pool_type": "eos", "eos_id": 1000}},  # in no caption: open_clip then pools the first token
        {"kind": open_clip.CustomTextCLIP},
        {"kind": open_clip.CustomTextCLIP, "text": {"proj_bias": True, "ls_init_value": 0.3}},
        {"kind": open_clip.CustomTextCLIP, "text": {"proj_type": "none", "width": 16}},
        {"vision": {"pool_type": "avg"}},
        {"vision": {"final_ln_after_pool": True, "no_ln_pre": True, "ls_init_value": 0.3}},
        {"quick_gelu": True},
        {"text": {"layers": 1}, "vision": {"layers": 1}},
    ],
)
def test_trimmed_features_have_the_loss_and_the_gradients_of_the_model(options):
    model = build(**options)
    features = Features(model, TrainerSettings(), unchanged)
    assert features.text is not None
    assert features.visual is not None
    check(outcome(model), outcome(model, trim=False), 1e-11)


def onednn_used(monkeypatch, choice):
    """Let wide and narrow layers be computed by oneDNN, or none."""
    if choice and not torch.backends.mkldnn.is_available():
        pytest.skip("this torch has no oneDNN")
    monkeypatch.setattr(towers, "WIDE", 1)
    monkeypatch.setattr(towers, "mkl_is_slow", lambda: choice)


@pytest.mark.parametrize("by_onednn", [False, True])
def test_in_single_precision_they_agree_to_its_rounding(monkeypatch, by_onednn):
    onednn_used(monkeypatch, by_onednn)
    model = build()
    images, tokens = batch()
    outcomes = []
    for trim in (True, False):
        single = copy.deepcopy(model).float()
        features = Features(single, TrainerSettings(trim=trim), unchanged)
        with torch.profiler.profile() as profile:
            loss = ClipLoss()(**features(images.float(), features.captions(tokens)))
            loss.backward()
        outcomes.append((loss.item(), {name: value.grad for name, value in single.named_parameters()}))
        names = {event.key for event in profile.key_averages()}
        assert ("aten::mkldnn_linear" in names) == (by_onednn and trim)
    check(*outcomes, 2e-5)


def test_a_layer_by_onednn_keeps_no_more_for_the_backward_pass_than_torchs_own(monkeypatch):
    x, weight, bias = torch.ones(2, 5, 24, requires_grad=True), torch.ones(32, 24), torch.ones(32)
    kept = []
    for by_onednn in (False, True):
        onednn_used(monkeypatch, by_onednn)
        sizes = []
        with saved_tensors_hooks(lambda tensor, sizes=sizes: sizes.append(tensor.nbytes) or tensor, unchanged):
            towers.linear(x, weight.requires_grad_(), bias.requires_grad_())
        kept.append(sum(sizes))
    assert kept == [x.nbytes + weight.nbytes] * 2


def test_a_caption_has_the_same_features_on_any_number_of_threads(monkeypatch):
    onednn_used(monkeypatch, True)
    tower = towers.text_tower(build(text={"width": 384, "heads": 6}).float())
    found = []
    before = torch.get_num_threads()
    try:
        for threads in (1, 2):
            torch.set_num_threads(threads)
            with torch.inference_mode():
                found.append(tower.separately(batch()[1]))
    finally:
        torch.set_num_threads(before)
    assert torch.equal(*found)


def test_in_bf16_they_are_as_close_to_double_precision_as_the_model_itself():
    model, exact = build(), outcome(build(), trim=False)[1]
    images, tokens = batch()
    errors = []
    for trim in (True, False):
        single = copy.deepcopy(model).float()
        features = Features(single, TrainerSettings(trim=trim), unchanged)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            loss = ClipLoss()(**features(images.float(), features.captions(tokens)))
        loss.backward()
        gradients = {name: value.grad for name, value in single.named_parameters()}
        errors.append(sum(float((gradients[n] - exact[n]).norm() / (exact[n].norm() + 1e-12)) for n in exact))
    assert errors[0] < 1.3 * errors[1]


@pytest.mark.parametrize(
    ("options", "text", "visual"),
    [
        ({"text": {"no_causal_mask": True}}, False, True),
        ({"text": {"pool_type": "last"}}, False, True),
        ({"text": {"pool_type": "first"}}, False, True),
        ({"text": {"qk_norm": True}}, False, True),
        ({"kind": open_clip.CustomTextCLIP, "text": {"embed_cls": True}}, False, True),
        ({"kind": open_clip.CustomTextCLIP, "text": {"no_causal_mask": True, "pool_type": "last"}}, False, True),
        ({"vision": {"qk_norm": True}}, True, False),
        ({"vision": {"attentional_pool": True}}, True, False),
        ({"vision": {"layers": [1, 1, 1, 1], "width": 8}}, True, False),
        ({"vision": {"patch_size": 12}}, True, False),  # of 32 pixels, 8 are in no patch
    ],
)
def test_towers_for_which_trimming_is_not_exact_are_not_trimmed(options, text, visual):
    model = build(**options).eval()  # evaluation mode, because of the batch statistics of a ResNet
    features = Features(model, TrainerSettings(), unchanged)
    assert (features.text is not None, features.visual is not None) == (text, visual)
    images, tokens = batch()
    with torch.no_grad():
        output = features(images, features.captions(tokens))
        assert torch.allclose(output["image_features"], model.encode_image(images, normalize=True), rtol=1e-12)
        assert torch.allclose(output["text_features"], model.encode_text(tokens, normalize=True), rtol=1e-12)
        if not text:
            assert torch.equal(output["text_features"], model.encode_text(tokens, normalize=True))
        if not visual:
            assert torch.equal(output["image_features"], model.encode_image(images, normalize=True))


def test_a_coca_is_not_trimmed():
    torch.manual_seed(0)
    text = {**TEXT, "embed_cls": True, "output_tokens": True}
    vision = {**VISION, "attentional_pool": True, "output_tokens": True, "attn_pooler_heads": 2}
    multimodal = {"context_length": 16, "vocab_size": 99, "width": 24, "heads": 2, "layers": 1}
    model = open_clip.CoCa(16, multimodal_cfg=multimodal, text_cfg=text, vision_cfg=vision)
    features = Features(model, TrainerSettings(), unchanged)
    assert features.text is None
    assert features.visual is None


def test_without_trimming_the_output_is_the_models_bit_for_bit():
    model = build(init_logit_bias=-10)
    images, tokens = batch()
    features = Features(model, TrainerSettings(trim=False), unchanged)
    output = features(images, features.captions(tokens))
    assert list(output) == ["image_features", "text_features", "logit_scale", "logit_bias"]
    for value, expected in zip(output.values(), model(images, tokens), strict=True):
        assert torch.equal(value, expected)


@pytest.mark.parametrize("trim", [True, False])
@pytest.mark.parametrize("parts", [2, 3, 100])
def test_parts_have_the_loss_and_the_gradients_of_the_whole_batch(trim, parts):
    model = build()
    full_batch = outcome(model, trim=trim)
    check(outcome(model, trim=trim, parts=parts), full_batch, 1e-11)
    images, tokens = batch()
    halves = zip(images.split(4), tokens.split(4), strict=True)
    half_losses = [ClipLoss()(*model(*half)).item() for half in halves]
    assert abs(sum(half_losses) / 2 - full_batch[0]) > 0.1  # plain gradient accumulation would train on this loss


def test_parts_repeat_their_random_draws():
    model = build(vision={"patch_dropout": 0.5})
    images, tokens = batch()
    actual = outcome(model, parts=2)
    features = Features(model, TrainerSettings(), unchanged, parts=2)
    torch.manual_seed(2)
    pairs = zip(images.tensor_split(2), features.captions(tokens), strict=True)
    image, text = map(torch.cat, zip(*[features.encode(*pair) for pair in pairs], strict=True))
    loss = ClipLoss()(image, text, model.logit_scale.exp())
    loss.backward()
    check(actual, (loss.item(), {name: value.grad for name, value in model.named_parameters()}), 1e-13)


def test_parts_of_a_model_with_batch_normalization_are_refused():
    with pytest.raises(UserError, match=r"recipe\.accumulate=2.*normalizes over"):
        Features(build(vision={"layers": [1, 1, 1, 1], "width": 8}), TrainerSettings(), unchanged, parts=2)


@pytest.mark.parametrize("trim", [True, False])
@pytest.mark.parametrize("parts", [1, 2])
def test_checkpointing_computes_the_same(trim, parts):
    model = build(vision={"patch_dropout": 0.5})
    check(outcome(model, trim=trim, parts=parts, checkpointing=True), outcome(model, trim=trim, parts=parts), 1e-14)


@pytest.mark.parametrize("options", [{"vision": {"layers": [1, 1, 1, 1], "width": 8}}, {"text": {"qk_norm": True}}])
def test_checkpointing_is_refused_if_open_clip_does_not_support_it(options):
    with pytest.raises(UserError, match=r"trainer\.checkpointing=true"):
        Features(build(**options), TrainerSettings(checkpointing=True), unchanged)


@pytest.mark.parametrize("trim", [True, False])
def test_parts_and_checkpoints_save_less_for_the_backward_pass(trim):
    def saved_bytes(parts=1, checkpointing=False):
        sizes = []

        def record(tensor):
            if tensor.grad_fn is not None:  # weights are in memory anyway
                sizes.append(tensor.nbytes)
            return tensor

        model = build(text={"layers": 6}, vision={"layers": 6})
        features = Features(model, TrainerSettings(trim=trim, checkpointing=checkpointing), unchanged, parts)
        images, tokens = batch()
        with saved_tensors_hooks(record, lambda tensor: tensor):
            features(images, features.captions(tokens))
        return sum(sizes)

    plain = saved_bytes()
    assert saved_bytes(checkpointing=True) < plain / 3
    assert saved_bytes(parts=2) < plain / 10  # the features of the parts


@pytest.mark.slow
def test_compiled_features_are_the_same_and_captions_of_any_length_share_a_graph():
    model = build(text={"layers": 1}, vision={"layers": 1})
    images, tokens = batch()
    torch._dynamo.reset()
    counters.clear()
    compiled, plain = (Features(model, TrainerSettings(compile=choice), unchanged) for choice in (True, False))
    graphs = []
    for rows in ([0, 1, 2, 3], [0, 0, 2, 3], [2, 4, 2, 5], [3, 3, 5, 0]):
        gradients = []
        for features in (compiled, plain):
            model.zero_grad()
            loss = ClipLoss()(**features(images[rows], features.captions(tokens[rows])))
            loss.backward()
            gradients.append((loss.item(), {name: value.grad for name, value in model.named_parameters()}))
        check(*gradients, 1e-10)
        graphs.append(counters["stats"]["unique_graphs"])
    assert 1 <= graphs[0] <= graphs[1] == graphs[3]
    torch._dynamo.reset()


def test_the_module_prepares_the_captions_on_the_host():
    model = build().float()
    model.visual.image_mean, model.visual.image_std = (0.5, 0.4, 0.3), (0.2, 0.25, 0.3)
    module = ClipModule(model, Recipe(epochs=1, batch=7, lr=1.0, accumulate=2), Mitigation())
    images, tokens = batch()
    raw = images.mul(20).add(128).clamp(0, 255).to(torch.uint8)
    ready = module.on_before_batch_transfer({"images": raw, "tokens": tokens, "index": torch.arange(7)}, 0)
    assert "tokens" not in ready
    assert [len(part.ends) for part in ready["captions"]] == [4, 3]
    features = module._features(ready["images"], ready["captions"])["image_features"]
    scaled = (raw.float() / 255 - module.mean / 255) / (module.std / 255)
    assert torch.allclose(features, model.encode_image(scaled, normalize=True), atol=1e-5)
