import pytest
import torch
import torch.nn.functional as F
from accelerate import Accelerator
from torch import nn

from lambdanets.training.engine.metrics import measure


class Look(nn.Module):
    """Takes its input for the logits."""

    def forward(self, inputs):
        return inputs


@pytest.mark.parametrize(("images", "classes"), [(50, 10), (7, 3), (1, 2)])
def test_scores_are_those_counted_by_hand(images, classes):
    logits, labels = torch.randn(images, classes), torch.randint(classes, (images,))
    batches = list(zip(logits.split(8), labels.split(8), strict=True))
    scores = measure(Accelerator(cpu=True), Look(), batches, classes)
    ranks = (logits > logits.gather(1, labels[:, None])).sum(1)
    assert scores.images == images
    assert scores.top1 == pytest.approx((ranks == 0).float().mean().item())
    assert scores.top5 == pytest.approx((ranks < 5).float().mean().item())
    assert scores.loss == pytest.approx(F.cross_entropy(logits, labels).item(), rel=1e-5)
    expected = torch.zeros(classes, classes, dtype=torch.long)
    for label, guess in zip(labels, logits.argmax(1), strict=True):
        expected[label, guess] += 1
    torch.testing.assert_close(scores.confusion, expected)


def test_loss_that_is_not_a_number_is_not_hidden():
    logits = torch.tensor([[0.0, 1.0], [float("nan"), 0.0]])
    scores = measure(Accelerator(cpu=True), Look(), [(logits, torch.tensor([0, 1]))], 2)
    assert scores.loss != scores.loss


def test_model_is_measured_in_evaluation_mode_and_put_back():
    model = nn.Dropout(0.9).train()
    logits, labels = torch.eye(4).repeat(8, 1), torch.arange(4).repeat(8)
    assert measure(Accelerator(cpu=True), model, [(logits, labels)], 4).top1 == 1
    assert model.training
