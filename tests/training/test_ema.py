"""Weight averaging: the recursion by hand, and where the average is used."""

import pytest
import pytorch_lightning as pl
import torch

from dejavu_lit.training.ema import Averaging, averaged


class SingleWeight(pl.LightningModule):
    """A single weight; ``trained`` lists its values after each step, ``validated`` those during validation."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.tensor(1.0))
        self.register_buffer("mask", torch.tensor([0.0, -torch.inf]))
        self.trained, self.validated = [], []

    def training_step(self, batch, index):
        return (self.weight - batch.mean()).square()

    def on_train_batch_end(self, *args):
        self.trained.append(self.weight.item())

    def validation_step(self, batch, index):
        self.validated.append(self.weight.item())

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)


@pytest.fixture
def fitted(tmp_path):
    torch.manual_seed(0)
    module, data = SingleWeight(), torch.utils.data.DataLoader(torch.randn(6, 1), batch_size=1)
    trainer = pl.Trainer(
        max_epochs=1,
        callbacks=[Averaging(0.8)],
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        num_sanity_val_steps=0,
        default_root_dir=tmp_path,
    )
    trainer.fit(module, data, torch.utils.data.DataLoader(torch.zeros(1, 1)))
    return trainer, module


def test_the_average_follows_the_recursion_and_is_used_for_validation_and_export(fitted):
    _, module = fitted
    expected = module.trained[0]  # it starts from the weights after the first step
    for weight in module.trained[1:]:
        expected = 0.8 * expected + 0.2 * weight
    assert module.weight.item() == pytest.approx(expected, rel=1e-6)
    assert module.validated == [pytest.approx(expected, rel=1e-6)]
    assert expected != pytest.approx(module.trained[-1], rel=1e-3)
    assert torch.equal(module.mask, torch.tensor([0.0, -torch.inf]))  # buffers are not averaged


def test_the_module_has_the_average_within_the_block_only(fitted):
    trainer, module = fitted
    average = module.weight.item()
    module.weight.data.fill_(5.0)
    with averaged(trainer, module):
        assert module.weight.item() == average
    assert module.weight.item() == 5.0


def test_without_averaging_the_block_changes_nothing():
    module = SingleWeight()
    with averaged(pl.Trainer(logger=False, enable_checkpointing=False), module):
        assert module.weight.item() == 1.0
