"""Gradient noise: Gaussian noise on every gradient, in units of that gradient's own size.

g ← g + σ · rms(g) · ξ with ξ ~ N(0, 1) for each entry and rms(g) = ‖g‖₂ / √n over the n entries of one parameter. The
size is relative because the optimizer, AdamW, divides by the gradients' size: a fixed one would mean another thing for
every layer and every step. After Neelakantan et al., arXiv 1511.06807, whose noise is absolute and decays.
"""

from collections.abc import Iterable

import torch
from torch import nn


@torch.no_grad()
def add_gradient_noise(parameters: Iterable[nn.Parameter], scale: float, seed: int) -> None:
    """Add the noise of standard deviation ``scale`` · rms to every gradient there is; the same for the same ``seed``."""
    generators: dict[torch.device, torch.Generator] = {}
    for parameter in parameters:
        gradient = parameter.grad
        if gradient is None:
            continue
        if gradient.device not in generators:
            generators[gradient.device] = torch.Generator(gradient.device).manual_seed(seed)
        noise = torch.empty_like(gradient).normal_(generator=generators[gradient.device])
        gradient.add_(noise.mul_(scale * gradient.square().mean().sqrt()))
