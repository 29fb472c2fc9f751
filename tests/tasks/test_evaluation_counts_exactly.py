from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn

from widefield._core.errors import InputError
from widefield.data import DataConfig, evaluation_loader
from widefield.tasks.classification import evaluate

CLASSES = tuple("abcdefg")


class ListSource:
    """Grey images whose value says what the network below shall answer."""

    classes = CLASSES

    def __init__(self, labels: list[int], answers: list[int]) -> None:
        self.labels, self.answers = labels, answers

    def __len__(self) -> int:
        return len(self.labels)

    def load(self, index: int) -> tuple[Image.Image, int]:
        value = 10 * self.answers[index]
        return Image.new("RGB", (8, 8), (value, value, value)), self.labels[index]

    def name(self, index: int) -> str:
        return str(index)


class Oracle(nn.Module):
    """Logits that fall with the distance of a class from the answer the image carries."""

    def forward(self, x: Tensor) -> Tensor:
        answer = (x[:, 0, 0, 0] * 255 / 10).round()
        return -(answer[:, None] - torch.arange(len(CLASSES))).abs()


def counted(labels: list[int], answers: list[int], batch_size: int):
    data = DataConfig(image_size=8, batch_size=batch_size, workers=0, mean=(0.0,) * 3, std=(1.0,) * 3)
    loader = evaluation_loader(ListSource(labels, answers), data)
    return evaluate(Oracle(), loader, len(CLASSES), torch.device("cpu"))


@pytest.mark.parametrize("batch_size", [1, 4, 64])
def test_counts_do_not_depend_on_the_batch(batch_size: int) -> None:
    labels = [0, 0, 1, 2, 3, 6, 6]
    answers = [0, 1, 1, 2, 0, 6, 0]
    result = counted(labels, answers, batch_size)
    assert result.count == 7
    assert result.top1 == 100 * 4 / 7
    assert result.predictions.tolist() == answers
    assert result.confusion[0].tolist() == [1, 1, 0, 0, 0, 0, 0]
    # From 0, class 6 is the farthest of seven and the only one beyond the five nearest together with 5.
    assert result.top5 == 100 * 6 / 7
    logits = -(torch.tensor(answers)[:, None] - torch.arange(7)).abs().float()
    expected = F.cross_entropy(logits, torch.tensor(labels), reduction="sum").item()
    assert result.loss == pytest.approx(expected / 7, rel=1e-6)


def test_the_mode_of_the_model_is_restored() -> None:
    data = DataConfig(image_size=8, workers=0)
    model = Oracle().train()
    evaluate(model, evaluation_loader(ListSource([0], [0]), data), 7, torch.device("cpu"))
    assert model.training


def test_no_image_that_can_be_read_is_an_error() -> None:
    from widefield.data import UndecodableImageError

    class Broken(ListSource):
        def load(self, index: int) -> tuple[Image.Image, int]:
            raise UndecodableImageError("an image", "none", "replace it")

    data = DataConfig(image_size=8, workers=0, on_error="skip")
    with pytest.raises(InputError):
        evaluate(Oracle(), evaluation_loader(Broken([0], [0]), data), 7, torch.device("cpu"))
