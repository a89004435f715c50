"""Smoothed contrastive targets: the formula, equality to open_clip's loss at 0, and two ranks against one."""

import socket
from pathlib import Path

import pytest
import torch
import torch.multiprocessing as mp
from open_clip.loss import ClipLoss, SigLipLoss
from torch.nn.functional import log_softmax, normalize

from dejavu_lit.training.loss import SmoothedClipLoss, contrastive_loss
from dejavu_lit.utils.errors import UserError

SCALE = torch.tensor(7.0)


def features(pairs: int = 6, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    images, captions = (normalize(torch.randn(pairs, 5, generator=generator), dim=1) for _ in range(2))
    return images.requires_grad_(), captions.requires_grad_()


def test_without_smoothing_the_loss_is_open_clips_own():
    assert type(contrastive_loss(False, 0.0, 0, 1)) is ClipLoss
    assert type(contrastive_loss(True, 0.0, 0, 1)) is SigLipLoss
    assert torch.equal(SmoothedClipLoss(0.0)(*features(), SCALE), ClipLoss()(*features(), SCALE))


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


def one_of_two(rank: int, port: int, folder: str) -> None:
    torch.distributed.init_process_group("gloo", init_method=f"tcp://127.0.0.1:{port}", rank=rank, world_size=2)
    images, captions = (half.detach()[3 * rank : 3 * rank + 3].requires_grad_() for half in features())
    loss = contrastive_loss(False, 0.3, rank, 2)(images, captions, SCALE)
    loss.backward()
    torch.save((loss.detach(), images.grad, captions.grad), Path(folder) / f"{rank}.pt")
    torch.distributed.destroy_process_group()


def test_two_ranks_have_the_loss_and_the_gradients_of_one(tmp_path):
    images, captions = features()
    whole = contrastive_loss(False, 0.3, 0, 1)(images, captions, SCALE)
    whole.backward()
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    mp.spawn(one_of_two, args=(port, str(tmp_path)), nprocs=2)
    parts = [torch.load(tmp_path / f"{rank}.pt") for rank in range(2)]
    assert torch.allclose(torch.stack([loss for loss, _, _ in parts]).mean(), whole)
    # DDP averages over the ranks, so each one's gradients count half
    assert torch.allclose(torch.cat([grad for _, grad, _ in parts]) / 2, images.grad, atol=1e-6)
    assert torch.allclose(torch.cat([grad for _, _, grad in parts]) / 2, captions.grad, atol=1e-6)
