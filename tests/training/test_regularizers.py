"""Smoothed targets: the formula, equality to open_clip's loss at 0, two ranks against one. Gradient noise: size and seed."""

from pathlib import Path

import pytest
import torch
from open_clip.loss import ClipLoss, SigLipLoss
from torch import nn
from torch.nn.functional import log_softmax, normalize

from dejavu_lit.training.regularizers import SmoothedClipLoss, add_gradient_noise, contrastive_loss
from dejavu_lit.utils.errors import UserError
from tests.conftest import spawn_ranks

SCALE = torch.tensor(7.0)


def features(pairs: int = 6, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    images, captions = (normalize(torch.randn(pairs, 5, generator=generator), dim=1) for _ in range(2))
    return images.requires_grad_(), captions.requires_grad_()


def test_without_smoothing_the_loss_is_open_clips_own():
    assert torch.equal(contrastive_loss(False, 0.0, 0, 1)(*features(), SCALE), ClipLoss()(*features(), SCALE))
    assert type(contrastive_loss(True, 0.0, 0, 1)) is SigLipLoss


def test_the_smoothed_loss_is_the_cross_entropy_with_the_mixed_targets():
    images, captions = features()
    logits = SCALE * images @ captions.T
    targets = 0.7 * torch.eye(6) + 0.3 / 6
    expected = -(targets * (log_softmax(logits, 1) + log_softmax(logits.T, 1))).sum(1).mean() / 2
    assert torch.allclose(contrastive_loss(False, 0.3, 0, 1)(images, captions, SCALE), expected)
    assert not torch.allclose(ClipLoss()(images, captions, SCALE), expected)


def test_in_evaluation_mode_targets_are_not_smoothed():
    loss = SmoothedClipLoss(0.3).eval()
    assert torch.equal(loss(*features(), SCALE), ClipLoss()(*features(), SCALE))


def test_siglip_refuses_smoothing():
    with pytest.raises(UserError, match=r"label_smoothing=0.1.*SigLIP"):
        contrastive_loss(True, 0.1, 0, 1)


def save_gradients(rank: int, folder: Path) -> None:
    """One of two ranks: save its loss and gradients."""
    images, captions = (half.detach()[3 * rank : 3 * rank + 3].requires_grad_() for half in features())
    loss = contrastive_loss(False, 0.3, rank, 2)(images, captions, SCALE)
    loss.backward()
    torch.save((loss.detach(), images.grad, captions.grad), folder / f"{rank}.pt")


def test_two_ranks_have_the_loss_and_the_gradients_of_one(tmp_path):
    images, captions = features()
    loss = contrastive_loss(False, 0.3, 0, 1)(images, captions, SCALE)
    loss.backward()
    spawn_ranks(save_gradients, tmp_path)
    ranks = [torch.load(tmp_path / f"{rank}.pt") for rank in range(2)]
    assert torch.allclose(torch.stack([rank_loss for rank_loss, _, _ in ranks]).mean(), loss)
    # DDP averages over the ranks, so the gradients of each count half
    assert torch.allclose(torch.cat([grad for _, grad, _ in ranks]) / 2, images.grad, atol=1e-6)
    assert torch.allclose(torch.cat([grad for _, _, grad in ranks]) / 2, captions.grad, atol=1e-6)


def parameters() -> list[nn.Parameter]:
    """A large gradient, a small one, a scalar, and a parameter without a gradient."""
    large, small, scalar, frozen = (nn.Parameter(torch.zeros(shape)) for shape in ((200, 50), (10_000,), (), (3,)))
    large.grad = torch.full((200, 50), 100.0)
    small.grad = torch.linspace(-1e-3, 1e-3, 10_000)
    scalar.grad = torch.tensor(2.0)
    return [large, small, scalar, frozen]


def noise(scale: float, seed: int) -> list[torch.Tensor | None]:
    noisy = parameters()
    add_gradient_noise(noisy, scale, seed)
    return [None if n.grad is None else n.grad - p.grad for n, p in zip(noisy, parameters(), strict=True)]


def test_the_noise_is_relative_to_each_gradients_root_mean_square():
    large, small, scalar, frozen = noise(0.5, 0)
    assert large.std().item() == pytest.approx(0.5 * 100, rel=0.05)
    assert small.std().item() == pytest.approx(0.5 * 1e-3 / 3**0.5, rel=0.05)  # of a uniform spread
    assert abs(large.mean().item()) < 3 * 50 / 100
    assert scalar.item() != 0
    assert frozen is None
    assert not torch.allclose(large.flatten() / 100, small * 1e3)  # each gradient gets its own draws


def test_the_noise_depends_on_its_seed_alone():
    first = noise(0.5, 7)
    torch.rand(3)
    state = torch.get_rng_state()
    again = noise(0.5, 7)
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(a, b) for a, b in zip(first[:3], again[:3], strict=True))
    assert not torch.equal(first[0], noise(0.5, 8)[0])
