"""Features computed from fewer tokens, in parts, again or compiled are the model's own: same loss, same gradients."""

import copy

import open_clip
import pytest
import torch
from open_clip.loss import ClipLoss
from torch._dynamo.utils import counters
from torch.autograd.graph import saved_tensors_hooks

from dejavu_lit.mitigation import Mitigation
from dejavu_lit.training.clip_module import ClipModule, Recipe
from dejavu_lit.training.features import Compute, Features
from dejavu_lit.training.towers import pack
from dejavu_lit.utils.errors import UserError

VISION = {"image_size": 32, "patch_size": 8, "width": 32, "layers": 2, "head_width": 16}
TEXT = {"context_length": 16, "vocab_size": 99, "width": 24, "heads": 2, "layers": 2}
END = 98  # the largest token, so argmax and eos pooling find it
LENGTHS = (3, 16, 5, 3, 9, 2, 1)  # tokens up to and with the end, in captions of 16


def build(vision=None, text=None, kind=open_clip.CLIP, **options):
    """A tiny model in float64, its gains and biases away from one and zero, so that each of them matters."""
    torch.manual_seed(0)
    model = kind(16, {**VISION, **(vision or {})}, {**TEXT, **(text or {})}, **options).double()
    with torch.no_grad():
        for value in model.parameters():
            value.add_(0.05 * torch.randn_like(value))
    return model.train()


def batch():
    """Images, and captions with tokens behind their ends, which must not matter."""
    draw = torch.Generator().manual_seed(1)
    tokens = torch.randint(1, END, (len(LENGTHS), 16), generator=draw)
    for row, length in enumerate(LENGTHS):
        tokens[row, length - 1] = END
    return torch.randn(len(LENGTHS), 3, 32, 32, generator=draw, dtype=torch.float64), tokens


def same(images):
    return images


def outcome(model, **compute):
    """Loss and gradients, computed as the options say."""
    model = copy.deepcopy(model)
    features = Features(model, Compute(**compute), same)
    images, tokens = batch()
    torch.manual_seed(2)
    loss = ClipLoss()(**features(images, features.captions(tokens)))
    loss.backward()
    return loss.item(), {name: value.grad for name, value in model.named_parameters()}


def check(one, other, tolerance):
    """Losses and all gradients differ by at most this share."""
    assert one[0] == pytest.approx(other[0], rel=max(tolerance, 1e-15))
    for name, gradient in one[1].items():
        assert gradient is not None, name
        difference = (gradient - other[1][name]).norm() / (other[1][name].norm() + 1e-12)
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
        {"text": {"pool_type": "eos", "eos_id": 1000}},  # found in no caption: open_clip pools the first token then
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
    features = Features(model, Compute(), same)
    assert features.text is not None
    assert features.visual is not None
    check(outcome(model), outcome(model, trim=False), 1e-11)


def test_in_single_precision_they_agree_to_its_rounding():
    model = build()
    images, tokens = batch()
    found = []
    for trim in (True, False):
        single = copy.deepcopy(model).float()
        features = Features(single, Compute(trim=trim), same)
        loss = ClipLoss()(**features(images.float(), features.captions(tokens)))
        loss.backward()
        found.append((loss.item(), {name: value.grad for name, value in single.named_parameters()}))
    check(*found, 2e-5)


def test_in_bf16_they_are_as_near_to_double_precision_as_the_model_itself():
    model, exact = build(), outcome(build(), trim=False)[1]
    images, tokens = batch()
    errors = []
    for trim in (True, False):
        single = copy.deepcopy(model).float()
        features = Features(single, Compute(trim=trim), same)
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
    ],
)
def test_towers_for_which_it_would_not_be_exact_are_left_alone(options, text, visual):
    model = build(**options).eval()  # a ResNet's batch statistics apart
    features = Features(model, Compute(), same)
    assert (features.text is not None, features.visual is not None) == (text, visual)
    images, tokens = batch()
    with torch.no_grad():
        found = features(images, features.captions(tokens))
        assert torch.allclose(found["image_features"], model.encode_image(images, normalize=True), rtol=1e-12)
        assert torch.allclose(found["text_features"], model.encode_text(tokens, normalize=True), rtol=1e-12)
        if not text:
            assert torch.equal(found["text_features"], model.encode_text(tokens, normalize=True))
        if not visual:
            assert torch.equal(found["image_features"], model.encode_image(images, normalize=True))


def test_a_coca_is_left_alone():
    torch.manual_seed(0)
    text = {**TEXT, "embed_cls": True, "output_tokens": True}
    vision = {**VISION, "attentional_pool": True, "output_tokens": True, "attn_pooler_heads": 2}
    multimodal = {"context_length": 16, "vocab_size": 99, "width": 24, "heads": 2, "layers": 1}
    model = open_clip.CoCa(16, multimodal_cfg=multimodal, text_cfg=text, vision_cfg=vision)
    features = Features(model, Compute(), same)
    assert features.text is None
    assert features.visual is None


def test_switched_off_it_is_the_model_bit_for_bit():
    model = build(init_logit_bias=-10)
    images, tokens = batch()
    features = Features(model, Compute(trim=False), same)
    found = features(images, features.captions(tokens))
    assert list(found) == ["image_features", "text_features", "logit_scale", "logit_bias"]
    for value, expected in zip(found.values(), model(images, tokens), strict=True):
        assert torch.equal(value, expected)


@pytest.mark.parametrize("trim", [True, False])
@pytest.mark.parametrize("parts", [2, 3, 100])
def test_parts_have_the_loss_and_the_gradients_of_the_whole_batch(trim, parts):
    model = build()
    whole = outcome(model, trim=trim)
    check(outcome(model, trim=trim, parts=parts), whole, 1e-11)
    images, tokens = batch()
    alone = [ClipLoss()(*model(one, two)).item() for one, two in zip(images.split(4), tokens.split(4), strict=True)]
    assert abs(sum(alone) / 2 - whole[0]) > 0.1  # what adding up the gradients of small batches would have trained on


def test_parts_repeat_their_random_draws():
    model = build(vision={"patch_dropout": 0.5})
    images, tokens = batch()
    found = outcome(model, parts=2)
    features = Features(model, Compute(parts=2), same)
    torch.manual_seed(2)
    pairs = zip(images.tensor_split(2), features.captions(tokens), strict=True)
    image, text = map(torch.cat, zip(*[features.encode(*one) for one in pairs], strict=True))
    loss = ClipLoss()(image, text, model.logit_scale.exp())
    loss.backward()
    check(found, (loss.item(), {name: value.grad for name, value in model.named_parameters()}), 1e-13)


def test_parts_of_a_model_with_batch_normalisation_are_refused():
    with pytest.raises(UserError, match=r"recipe\.accumulate=2.*normalises over"):
        Features(build(vision={"layers": [1, 1, 1, 1], "width": 8}), Compute(parts=2), same)


@pytest.mark.parametrize("trim", [True, False])
@pytest.mark.parametrize("parts", [1, 2])
def test_checkpointing_computes_the_same(trim, parts):
    model = build(vision={"patch_dropout": 0.5})
    check(outcome(model, trim=trim, parts=parts, checkpointing=True), outcome(model, trim=trim, parts=parts), 1e-14)


@pytest.mark.parametrize("options", [{"vision": {"layers": [1, 1, 1, 1], "width": 8}}, {"text": {"qk_norm": True}}])
def test_checkpointing_is_refused_where_open_clip_has_none(options):
    with pytest.raises(UserError, match=r"trainer\.checkpointing=true"):
        Features(build(**options), Compute(checkpointing=True), same)


@pytest.mark.parametrize("trim", [True, False])
def test_parts_and_checkpoints_keep_less_for_the_backward_pass(trim):
    def kept(**compute):
        sizes = []

        def note(tensor):
            if tensor.grad_fn is not None:  # weights are there anyway
                sizes.append(tensor.nbytes)
            return tensor

        features = Features(build(text={"layers": 6}, vision={"layers": 6}), Compute(trim=trim, **compute), same)
        images, tokens = batch()
        with saved_tensors_hooks(note, lambda tensor: tensor):
            features(images, features.captions(tokens))
        return sum(sizes)

    whole = kept()
    assert kept(checkpointing=True) < whole / 3
    assert kept(parts=2) < whole / 10  # the features of the parts


@pytest.mark.slow
def test_compiled_features_are_the_same_and_captions_of_any_length_share_their_code():
    model = build(text={"layers": 1}, vision={"layers": 1})
    images, tokens = batch()
    torch._dynamo.reset()
    counters.clear()
    compiled, plain = (Features(model, Compute(compile=choice), same) for choice in (True, False))
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


def test_what_trains_prepares_the_captions_on_the_host():
    model = build().float()
    model.visual.image_mean, model.visual.image_std = (0.5, 0.4, 0.3), (0.2, 0.25, 0.3)
    module = ClipModule(model, Recipe(epochs=1, batch=7, lr=1.0, accumulate=2), Mitigation())
    images, tokens = batch()
    raw = images.mul(20).add(128).clamp(0, 255).to(torch.uint8)
    ready = module.on_before_batch_transfer({"images": raw, "tokens": tokens, "index": torch.arange(7)}, 0)
    assert "tokens" not in ready
    assert [len(part.ends) for part in ready["captions"]] == [4, 3]
    found = module._features(ready["images"], ready["captions"])["image_features"]
    scaled = (images.float() / 255 - module.mean / 255) / (module.std / 255)
    assert torch.allclose(found, model.encode_image(scaled, normalize=True), atol=1e-5)
