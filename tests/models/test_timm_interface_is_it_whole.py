from __future__ import annotations

import copy
import re
from typing import Any

import pytest
import timm
import torch
from support.random_statistics import randomise
from timm.models._manipulate import group_parameters
from torch import Tensor, nn

from widefield import create_model, list_models
from widefield._core.errors import InputError
from widefield.checkpoints.replknet import to_published
from widefield.models.replknet import RepLKNet

SMALL = ["replknet_nano", "replknet_tiny"]
LARGE = ["replknet_small", "replknet_3b", "replknet_7b", "replknet_13b", "replknet_25b", "replknet_31b"]
HUGE = ["replknet_31l", "replknet_xl"]
REAL = [*SMALL, *(pytest.param(name, marks=pytest.mark.slow) for name in LARGE)]


def make(name: str = "replknet_nano", **options: Any) -> Any:
    torch.manual_seed(0)
    return timm.create_model(name, **options)


def images(**options: Any) -> Tensor:
    return torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(1), **options)


def test_the_lists_of_models_agree() -> None:
    assert list_models() == [*SMALL, *LARGE, *HUGE]
    assert list_models("*_31?") == ["replknet_31b", "replknet_31l"]
    assert sorted(list_models()) == sorted(timm.list_models("replknet_*"))


@pytest.mark.parametrize("name", REAL)
def test_every_parameter_gets_a_gradient(name: str) -> None:
    model = make(name, num_classes=10).train()
    y = model(images())
    assert y.shape == (2, 10)
    y.mean().backward()
    missing = [key for key, parameter in model.named_parameters() if parameter.grad is None]
    assert missing == []
    assert all(torch.isfinite(p.grad).all() for p in model.parameters())


@pytest.mark.parametrize("name", list_models())
@torch.no_grad()
def test_a_model_on_the_meta_device_has_shapes_and_a_true_configuration(name: str) -> None:
    model = make(name, device="meta")
    assert all(value.is_meta for value in model.state_dict().values())
    config = model.pretrained_cfg
    size = config["input_size"][-1]
    x = torch.empty(1, *config["input_size"], device="meta")
    features = model.forward_features(x)
    assert features.shape == (1, model.num_features, *config["pool_size"])
    assert config["pool_size"] == (size // 32, size // 32)
    assert model.forward_head(features, pre_logits=True).shape == (1, model.head_hidden_size)
    assert model.forward_head(features).shape == (1, config["num_classes"])
    parts = dict(model.named_modules())
    assert isinstance(parts[config["first_conv"]], nn.Conv2d)
    assert parts[config["classifier"]] is model.get_classifier()
    assert model.get_classifier().out_features == model.num_classes == config["num_classes"]
    assert model.no_weight_decay() == set()
    model.reset_classifier(0)
    assert model.forward_head(features).shape == (1, model.num_features)
    model.reset_classifier(0, "")
    assert model.forward_head(features).shape == features.shape
    model.reset_classifier(7, "avg")
    assert model.num_classes == 7


def test_other_inputs_and_outputs_are_arguments() -> None:
    assert make(in_chans=1)(images()[:, :1]).shape == (2, 1000)
    assert make(num_classes=0)(images()).shape == (2, 256)
    assert make(num_classes=0, global_pool="")(images()).shape == (2, 256, 2, 2)
    assert make(num_classes=3, global_pool="max")(images()).shape == (2, 3)
    assert make(kernel_sizes=(3, 5, 7, 9), num_classes=2)(images()[..., :50]).shape == (2, 2)


def test_a_stage_with_a_kernel_no_larger_than_the_small_one_has_no_small_one() -> None:
    model = make(kernel_sizes=(5, 7, 3, 13), small_kernel_size=5)
    smalls = [stage.blocks[0].large_kernel.small is not None for stage in model.stages]
    assert smalls == [False, True, False, True]


def test_drop_path_grows_from_the_first_pair_to_the_last() -> None:
    model = make(drop_path_rate=0.3, drop_rate=0.1)
    rates = [getattr(b.drop_path, "drop_prob", 0.0) for stage in model.stages for b in stage.blocks]
    assert rates == pytest.approx([0.3 * pair / 5 for pair in range(6) for _ in range(2)])
    assert model.head.drop.p == pytest.approx(0.1) if isinstance(model.head.drop, nn.Dropout) else model.head.drop_rate


def test_an_unknown_keyword_is_refused() -> None:
    with pytest.raises(TypeError, match="unexpected keyword argument 'kernel_sises'"):
        make(kernel_sises=(3, 3, 3, 3))


def test_an_unknown_model_is_answered_with_the_nearest_names() -> None:
    text = "Expected the name of a model, but got 'replknet_31c': did you mean 'replknet_31"
    with pytest.raises(InputError, match=re.escape(text)):
        create_model("replknet_31c")
    assert isinstance(create_model("replknet_nano", num_classes=2), RepLKNet)
    assert type(create_model("resnet18", device="meta")).__name__ == "ResNet"


def test_a_source_with_a_scheme_is_left_to_timm(tmp_path: Any) -> None:
    with pytest.raises(Exception, match=r"(?i)config\.json|folder|director"):
        create_model(f"local-dir:{tmp_path / 'absent'}")


@pytest.mark.parametrize(("indices", "channels"), [(None, [32, 64, 128, 256]), ((1, 3), [64, 256]), ((0,), [32])])
def test_features_come_at_strides_4_to_32(indices: tuple[int, ...] | None, channels: list[int]) -> None:
    options: dict[str, Any] = {} if indices is None else {"out_indices": indices}
    model = make(features_only=True, **options).eval()
    reductions = [4 * 2**index for index in (indices or range(4))]
    assert model.feature_info.channels() == channels
    assert model.feature_info.reduction() == reductions
    outputs = model(images())
    assert [tuple(y.shape) for y in outputs] == [
        (2, c, 64 // r, 64 // r) for c, r in zip(channels, reductions, strict=True)
    ]
    whole = make().eval()
    expected = whole.forward_intermediates(images(), indices=list(indices or range(4)), intermediates_only=True)
    for actual, stage in zip(outputs, expected, strict=True):
        torch.testing.assert_close(actual, stage, rtol=1e-4, atol=1e-5)


def test_intermediates_are_the_stages_and_the_final_features() -> None:
    model = randomise(make())
    x = images()
    features, stages = model.forward_intermediates(x)
    torch.testing.assert_close(features, model.forward_features(x))
    assert len(stages) == 4
    torch.testing.assert_close(model.norm(stages[-1]), features)
    last = model.forward_intermediates(x, indices=1, norm=True, intermediates_only=True)
    assert len(last) == 1
    torch.testing.assert_close(last[0], features)
    normed = model.forward_intermediates(x, norm=True, intermediates_only=True)
    for actual, expected in zip(normed, [*stages[:3], features], strict=True):
        torch.testing.assert_close(actual, expected)
    early, some = model.forward_intermediates(x, indices=[0, 1], stop_early=True)
    torch.testing.assert_close(early, stages[1])
    torch.testing.assert_close(some[0], stages[0])
    with pytest.raises(AssertionError, match="Expected the output format NCHW, but got NLC: these are feature maps"):
        model.forward_intermediates(x, output_fmt="NLC")


def test_pruning_keeps_the_stages_that_are_asked_for() -> None:
    model = randomise(make())
    x = images()
    _, stages = model.forward_intermediates(x)
    cut = copy.deepcopy(model)
    assert cut.prune_intermediate_layers([1]) == [1]
    assert len(cut.stages) == 2
    assert cut.num_features == 64
    torch.testing.assert_close(cut.forward_features(x), stages[1])
    torch.testing.assert_close(cut(x), stages[1])
    assert set(group_parameters(cut, cut.group_matcher(), reverse=True).values()) <= set(range(4))
    whole = copy.deepcopy(model)
    assert whole.prune_intermediate_layers(1, prune_head=False) == [3]
    torch.testing.assert_close(whole(x), model(x))
    bare = copy.deepcopy(model)
    bare.prune_intermediate_layers(1, prune_norm=True)
    torch.testing.assert_close(bare(x), stages[3])


def test_checkpointing_gives_the_same_gradients_and_statistics() -> None:
    plain, saved = make(num_classes=5), make(num_classes=5)
    saved.set_grad_checkpointing()
    assert all(stage.grad_checkpointing for stage in saved.stages)
    for model in (plain, saved):
        model.train()(images()).square().mean().backward()
    for (name, a), b in zip(plain.named_parameters(), saved.parameters(), strict=True):
        assert torch.equal(a.grad, b.grad), name
    saved.set_grad_checkpointing(False)
    assert not any(stage.grad_checkpointing for stage in saved.stages)


def published_layer(key: str) -> int:
    """Layer of a published key: the stem, the first two stages with the transitions after them, pairs of the third."""
    parts = key.split(".")
    if parts[0] == "stem":
        return 0
    if parts[0] == "transitions":
        return {0: 1, 1: 2, 2: 11}[int(parts[1])]
    if parts[0] == "stages":
        return {0: 1, 1: 2, 2: 3 + int(parts[3]) // 4, 3: 12}[int(parts[1])]
    return 13


def test_layers_for_learning_rate_decay_are_the_published_ones() -> None:
    model = make("replknet_31b", device="meta")
    layers = group_parameters(model, model.group_matcher(), reverse=True)
    names = dict.fromkeys(dict(model.named_parameters()))
    theirs = list(to_published(names))
    expected = {ours: published_layer(key) for ours, key in zip(names, theirs, strict=True)}
    assert layers == expected
    assert set(layers.values()) == set(range(14))
    coarse = group_parameters(model, model.group_matcher(coarse=True), reverse=True)
    assert set(coarse.values()) == set(range(6))


@pytest.mark.parametrize(("name", "count"), [("replknet_nano", 7), ("replknet_small", 12)])
def test_shallower_variants_have_a_layer_for_every_two_pairs_of_the_third_stage(name: str, count: int) -> None:
    model = make(name, device="meta")
    assert set(group_parameters(model, model.group_matcher(), reverse=True).values()) == set(range(count))


@pytest.mark.parametrize("suffix", ["pth", "safetensors"])
def test_published_weights_come_from_a_file_for_any_number_of_classes(suffix: str, tmp_path: Any) -> None:
    from safetensors.torch import save_file

    source = randomise(make())
    path = tmp_path / f"published.{suffix}"
    weights = to_published(source.state_dict())
    (save_file if suffix == "safetensors" else torch.save)(weights, path)
    overlay = {"file": str(path)}
    same = make(pretrained=True, pretrained_cfg_overlay=overlay).eval()
    torch.testing.assert_close(same(images()), source(images()), rtol=0, atol=0)
    other = make(pretrained=True, pretrained_cfg_overlay=overlay, num_classes=7, in_chans=1).eval()
    assert other.get_classifier().out_features == 7
    kept, given = other.state_dict(), source.state_dict()
    lost = [k for k in given if k not in ("head.fc.weight", "head.fc.bias", "stem.0.conv.weight")]
    assert all(torch.equal(kept[key], given[key]) for key in lost)
    torch.testing.assert_close(kept["stem.0.conv.weight"], given["stem.0.conv.weight"].sum(1, keepdim=True))


def test_our_own_weights_come_from_a_file_too(tmp_path: Any) -> None:
    source = randomise(make())
    torch.save({"state_dict": source.state_dict()}, tmp_path / "ours.pth")
    same = make(pretrained=True, pretrained_cfg_overlay={"file": str(tmp_path / "ours.pth")}).eval()
    torch.testing.assert_close(same(images()), source(images()), rtol=0, atol=0)


def test_training_follows_the_type_that_is_asked_for() -> None:
    model = make(dtype=torch.float64, num_classes=2)
    assert {p.dtype for p in model.parameters()} == {torch.float64}
    assert model(images(dtype=torch.float64)).dtype == torch.float64
