from __future__ import annotations

import pytest
import torch
from torch import nn

from widefield._core.errors import InputError
from widefield.bench import model
from widefield.bench.model import ModelSettings, bench_models, throughput_ratio
from widefield.nn import DepthwiseConv2d
from widefield.ops.depthwise_conv.channels_last import ChannelsLastBackend
from widefield.ops.dispatch import forced_backend

SMALL = ModelSettings(batch=2, image_size=32)


def test_ours_is_merged_checked_and_timed_beside_another() -> None:
    record = bench_models(
        "replknet_nano", against=["resnet10t"], backends=("auto", "aten"), settings=SMALL, budget_s=0.1
    )
    ours, forced, other = record.models
    assert [(e.model, e.form, e.backend) for e in record.models] == [
        ("replknet_nano", "merged", "auto"),
        ("replknet_nano", "merged", "aten"),
        ("resnet10t", "as it is", ""),
    ]
    assert ours.result.relative_error is not None
    assert ours.result.relative_error < 1e-4
    assert forced.result.relative_error == 0
    assert all(entry.result.median_ms for entry in record.models)
    assert throughput_ratio(record, 0, 2) == pytest.approx(ours.images_per_s / other.images_per_s)
    assert record.is_complete


def test_a_training_step_is_that_of_the_train_form(monkeypatch) -> None:
    seen: list[bool] = []
    step = torch.optim.AdamW.step
    monkeypatch.setattr(torch.optim.AdamW, "step", lambda self: (seen.append(True), step(self))[1])
    settings = ModelSettings(batch=2, image_size=64, mode="train_step", dtype=torch.bfloat16)
    (entry,) = bench_models("replknet_nano", settings=settings, budget_s=0.05).models
    assert (entry.form, entry.mode, entry.dtype) == ("branched", "train_step", "bfloat16")
    assert len(seen) >= 3


def test_a_network_can_stay_branched() -> None:
    settings = ModelSettings(image_size=32, is_merged=False)
    (entry,) = bench_models("replknet_nano", settings=settings, budget_s=0.05).models
    assert entry.form == "branched"


def test_wrong_logits_are_recorded_and_not_timed(monkeypatch) -> None:
    right = ChannelsLastBackend.forward
    monkeypatch.setattr(ChannelsLastBackend, "forward", lambda self, *operands: 3 * right(self, *operands))
    (entry,) = bench_models("replknet_nano", backends=("channels_last",), settings=SMALL, budget_s=0.05).models
    assert entry.result.is_wrong
    assert entry.result.median_ms is None
    assert entry.images_per_s == 0.0


def test_blocks_that_start_as_the_identity_are_opened() -> None:
    closed = nn.Sequential(nn.BatchNorm2d(3), nn.BatchNorm2d(3))
    nn.init.zeros_(closed[0].weight)
    model._open_residual_branches(closed)
    assert closed[0].weight.tolist() == pytest.approx([0.1] * 3)
    assert closed[1].weight.tolist() == [1, 1, 1]
    assert closed[0].bias.tolist() == [0, 0, 0]


@pytest.mark.parametrize(
    ("name", "options", "words"),
    [
        ("replknet_31", {}, "Expected the name of a model, but got 'replknet_31'"),
        ("replknet_nano", {"backends": ("atten",)}, "Expected the name of a backend, but got 'atten'"),
        ("replknet_nano", {"settings": ModelSettings(batch=0)}, "Expected positive sizes, but got 0, 224"),
    ],
)
def test_what_does_not_exist_is_refused(name: str, options: dict, words: str) -> None:
    with pytest.raises(InputError) as caught:
        bench_models(name, **options)
    assert words in str(caught.value)


def test_contiguous_inputs_are_made_for_pytorchs_convolution_alone() -> None:
    record = bench_models(
        "replknet_nano",
        backends=("auto", "aten_nchw"),
        settings=ModelSettings(image_size=32, layout="channels_last"),
        budget_s=0.05,
    )
    assert [entry.backend for entry in record.models] == ["auto", "aten_nchw"]
    layer = DepthwiseConv2d(4, 3)
    x = torch.randn(2, 4, 5, 6).contiguous(memory_format=torch.channels_last)
    with model._on("aten_nchw", layer):
        assert layer(x).is_contiguous()
        assert forced_backend() == "aten"
    assert not layer(x).is_contiguous()
    assert forced_backend() == ""
