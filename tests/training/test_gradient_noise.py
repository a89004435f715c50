"""Gradient noise: its size relative to each gradient, its seed, and what it leaves alone."""

import pytest
import torch
from torch import nn

from dejavu_lit.training.gradient_noise import add_gradient_noise


def parameters() -> list[nn.Parameter]:
    """A large gradient, a small one, a scalar and none."""
    found = [nn.Parameter(torch.zeros(shape)) for shape in ((200, 50), (10_000,), (), (3,))]
    found[0].grad = torch.full((200, 50), 100.0)
    found[1].grad = torch.linspace(-1e-3, 1e-3, 10_000)
    found[2].grad = torch.tensor(2.0)
    return found


def noise(scale: float, seed: int) -> list[torch.Tensor | None]:
    noisy = parameters()
    add_gradient_noise(noisy, scale, seed)
    return [None if n.grad is None else n.grad - p.grad for n, p in zip(noisy, parameters(), strict=True)]


def test_the_noise_has_the_given_share_of_each_gradients_root_mean_square():
    large, small, scalar, none = noise(0.5, 0)
    assert large.std().item() == pytest.approx(0.5 * 100, rel=0.05)
    assert small.std().item() == pytest.approx(0.5 * 1e-3 / 3**0.5, rel=0.05)  # of a uniform spread
    assert abs(large.mean().item()) < 3 * 50 / 100
    assert scalar.item() != 0
    assert none is None
    assert not torch.allclose(large.flatten() / 100, small * 1e3)  # each has draws of its own


def test_the_noise_is_that_of_its_seed_whatever_was_drawn_before():
    first = noise(0.5, 7)
    torch.rand(3)
    state = torch.get_rng_state()
    again = noise(0.5, 7)
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(a, b) for a, b in zip(first[:3], again[:3], strict=True))
    assert not torch.equal(first[0], noise(0.5, 8)[0])
