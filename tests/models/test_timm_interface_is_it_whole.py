from __future__ import annotations

import copy
import re
from typing import Any

import pytest
import timm
import torch
from support.families import FAMILIES, Family, images
from support.random_statistics import randomise
from timm.models import get_pretrained_cfg
from timm.models._manipulate import group_parameters
from torch import nn
from torchvision.models.feature_extraction import create_feature_extractor

from widefield import create_model, list_models
from widefield._core.errors import InputError
from widefield.models import RepLKNet

of_each_family = pytest.mark.parametrize("family", FAMILIES, ids=str)


def size_of(name: str) -> int:
    return sum(parameter.numel() for parameter in timm.create_model(name, device="meta").parameters())


def affordable() -> list[Any]:
    """Every variant whose training step fits a small machine, the larger ones in the nightly selection."""
    sizes = {name: size_of(name) for name in list_models()}
    return [
        name if size < 12e6 else pytest.param(name, marks=pytest.mark.slow)
        for name, size in sizes.items()
        if size < 110e6
    ]


def test_the_lists_of_models_agree() -> None:
    prefixes = ("replknet_*", "slak_*", "pelk_*", "unireplknet_*", "convnext_lk_*", "mobilenetv2_lk*")
    assert list_models("*_31?") == ["replknet_31b", "replknet_31l"]
    assert sorted(list_models()) == sorted(name for prefix in prefixes for name in timm.list_models(prefix))
    assert list(dict.fromkeys(name.partition("_")[0] for name in list_models())) == [
        "replknet",
        "slak",
        "pelk",
        "unireplknet",
        "convnext",
        "mobilenetv2",
    ]


@pytest.mark.parametrize("name", affordable())
def test_every_parameter_gets_a_gradient(name: str) -> None:
    torch.manual_seed(0)
    model = timm.create_model(name, num_classes=10).train()
    y = model(images())
    assert y.shape == (2, 10)
    y.square().mean().backward()
    missing = [key for key, parameter in model.named_parameters() if parameter.grad is None]
    assert missing == []
    assert all(torch.isfinite(p.grad).all() for p in model.parameters() if p.grad is not None)


@pytest.mark.parametrize("name", list_models())
@torch.no_grad()
def test_a_model_on_the_meta_device_has_shapes_and_a_true_configuration(name: str) -> None:
    model: Any = timm.create_model(name, device="meta")
    assert all(value.is_meta for value in model.state_dict().values())
    with torch.device("meta"):
        assert all(value.is_meta for value in timm.create_model(name).state_dict().values())
    config = model.pretrained_cfg
    size = config["input_size"][-1]
    x = torch.empty(1, *config["input_size"], device="meta")
    features = model.forward_features(x)
    *_, last = model.forward_intermediates(x, intermediates_only=True)
    assert last.shape == (1, model.feature_info[-1]["num_chs"], *config["pool_size"])
    assert config["pool_size"] == (size // 32, size // 32)
    assert model.forward_head(features, pre_logits=True).shape == (1, model.head_hidden_size)
    assert model.forward_head(features).shape == (1, config["num_classes"])
    parts = dict(model.named_modules())
    assert isinstance(parts[config["first_conv"]], nn.Conv2d)
    assert parts[config["classifier"]] is model.get_classifier()
    assert model.get_classifier().out_features == model.num_classes == config["num_classes"]
    assert isinstance(model.no_weight_decay(), set)
    model.reset_classifier(0)
    assert model.forward_head(features).shape == (1, model.num_features)
    model.reset_classifier(0, "")
    assert model.forward_head(features).shape == features.shape
    model.reset_classifier(7, "avg")
    assert model.num_classes == 7
    assert model.forward_head(features).shape == (1, 7)


@of_each_family
def test_the_skeleton_of_names_is_the_same(family: Family) -> None:
    model = family.make(device="meta")
    assert [name for name, _ in model.named_children()] == ["stem", "stages", "norm", "head"]
    assert [[name for name, _ in stage.named_children()] for stage in model.stages] == [["downsample", "blocks"]] * 4


@of_each_family
def test_other_inputs_and_outputs_are_arguments(family: Family) -> None:
    assert family.make(in_chans=1)(images()[:, :1]).shape == (2, 1000)
    assert family.make(num_classes=0)(images()).shape == (2, family.features)
    assert family.make(num_classes=0, global_pool="")(images()).shape == (2, family.features, 2, 2)
    assert family.make(num_classes=3, global_pool="max")(images()).shape == (2, 3)
    assert family.make(kernel_sizes=(3, 5, 7, 9), num_classes=2)(images()[..., :50]).shape == (2, 2)


@of_each_family
@pytest.mark.parametrize("size", [(1, 3, 384, 128), (1, 3, 50, 70), (2, 3, 97, 33)])
@torch.no_grad()
def test_any_size_of_image_gives_finite_logits(family: Family, size: tuple[int, ...]) -> None:
    model = randomise(family.make())
    assert bool(torch.isfinite(model(images(*size))).all())


@of_each_family
def test_one_image_is_trained_on(family: Family) -> None:
    model = family.make(num_classes=4).train()
    model(images(1, 3, 128, 64)).square().mean().backward()
    assert all(bool(torch.isfinite(p.grad).all()) for p in model.parameters())


@of_each_family
def test_lists_of_different_length_are_refused(family: Family) -> None:
    with pytest.raises(
        InputError, match=r"Expected (one width, one depth|channels, depths, kernel sizes|4 (or 6 )?kernel sizes)"
    ):
        family.make(kernel_sizes=(3, 3, 3))


@of_each_family
def test_drop_path_grows_from_the_first_block_to_the_last(family: Family) -> None:
    model = family.make(drop_path_rate=0.3, drop_rate=0.1)
    rates = [m.drop_prob for m in model.modules() if type(m).__name__ == "DropPath"]
    assert rates == sorted(rates)
    assert rates[-1] == pytest.approx(0.3)
    assert model.head.drop.p == pytest.approx(0.1)


@of_each_family
def test_an_unknown_keyword_is_refused(family: Family) -> None:
    with pytest.raises(TypeError, match="unexpected keyword argument 'kernel_sises'"):
        family.make(kernel_sises=(3, 3, 3, 3))


def test_an_unknown_model_is_answered_with_the_nearest_names() -> None:
    text = "Expected the name of a model, but got 'replknet_31c': did you mean 'replknet_31"
    with pytest.raises(InputError, match=re.escape(text)):
        create_model("replknet_31c")
    assert isinstance(create_model("replknet_nano", num_classes=2), RepLKNet)
    assert type(create_model("resnet18", device="meta")).__name__ == "ResNet"


def test_a_source_with_a_scheme_is_left_to_timm(tmp_path: Any) -> None:
    with pytest.raises(Exception, match=r"(?i)config\.json|folder|director"):
        create_model(f"local-dir:{tmp_path / 'absent'}")


@of_each_family
@pytest.mark.parametrize("indices", [None, (1, 3), (0,)])
def test_features_come_at_strides_4_to_32(family: Family, indices: tuple[int, ...] | None) -> None:
    options: dict[str, Any] = {} if indices is None else {"out_indices": indices}
    model = family.make(features_only=True, **options).eval()
    reductions = [4 * 2**index for index in (indices or range(4))]
    channels = [family.channels[index] for index in (indices or range(4))]
    assert model.feature_info.channels() == channels
    assert model.feature_info.reduction() == reductions
    outputs = model(images())
    assert [tuple(y.shape) for y in outputs] == [
        (2, c, 64 // r, 64 // r) for c, r in zip(channels, reductions, strict=True)
    ]
    whole = family.make().eval()
    expected = whole.forward_intermediates(images(), indices=list(indices or range(4)), intermediates_only=True)
    for actual, stage in zip(outputs, expected, strict=True):
        torch.testing.assert_close(actual, stage, rtol=1e-4, atol=1e-5)
    sum(y.mean() for y in model(images())).backward()
    assert [name for name, parameter in model.named_parameters() if parameter.grad is None] == []


@pytest.mark.parametrize("family", [f for f in FAMILIES if f.variant != "mobilenetv2_lk"], ids=str)
def test_features_can_have_norms_of_their_own(family: Family) -> None:
    model = family.make(features_only=True, feature_norms=True, out_indices=(1, 3)).train()
    plain = family.make(features_only=True, out_indices=(1, 3)).train()
    outputs, bare = model(images()), plain(images())
    for y, x in zip(outputs, bare, strict=True):
        assert y.shape == x.shape
        assert not torch.allclose(y, x)
    assert bool((outputs[1].mean((0, 2, 3) if "replknet_nano" in str(family) else 1).abs() < 1e-4).all())
    sum(y.square().mean() for y in outputs).backward()
    assert [name for name, parameter in model.named_parameters() if parameter.grad is None] == []


@of_each_family
@torch.no_grad()
def test_a_symbolic_trace_gives_the_same_features(family: Family) -> None:
    model = randomise(family.make())
    traced = create_feature_extractor(model, ["stages.1", "stages.3"])
    _, stages = model.forward_intermediates(images())
    torch.testing.assert_close(list(traced(images()).values()), [stages[1], stages[3]])
    graph = family.make(features_only=True, feature_cls="fx").eval()
    assert [y.shape[1] for y in graph(images())] == list(family.channels)


@of_each_family
@torch.no_grad()
def test_intermediates_are_the_stages_and_the_final_features(family: Family) -> None:
    model = randomise(family.make())
    x = images()
    features, stages = model.forward_intermediates(x)
    torch.testing.assert_close(features, model.forward_features(x))
    assert len(stages) == 4
    normed_last = model.norm(stages[-1])
    torch.testing.assert_close(stages[-1] if model.norm_after_pool else normed_last, features)
    last = model.forward_intermediates(x, indices=1, norm=True, intermediates_only=True)
    assert len(last) == 1
    torch.testing.assert_close(last[0], normed_last)
    normed = model.forward_intermediates(x, norm=True, intermediates_only=True)
    for actual, expected in zip(normed, [*stages[:3], normed_last], strict=True):
        torch.testing.assert_close(actual, expected)
    early, some = model.forward_intermediates(x, indices=[0, 1], stop_early=True)
    torch.testing.assert_close(early, stages[1])
    torch.testing.assert_close(some[0], stages[0])
    with pytest.raises(AssertionError, match="Expected the output format NCHW, but got NLC: these are feature maps"):
        model.forward_intermediates(x, output_fmt="NLC")


@of_each_family
@torch.no_grad()
def test_pruning_keeps_the_stages_that_are_asked_for(family: Family) -> None:
    model = randomise(family.make())
    x = images()
    _, stages = model.forward_intermediates(x)
    cut = copy.deepcopy(model)
    assert cut.prune_intermediate_layers([1]) == [1]
    assert len(cut.stages) == 2
    assert cut.num_features == family.channels[1]
    torch.testing.assert_close(cut.forward_features(x), stages[1])
    torch.testing.assert_close(cut(x), stages[1])
    groups = set(group_parameters(cut, cut.group_matcher(), reverse=True).values())
    assert groups == set(range(len(groups)))
    whole = copy.deepcopy(model)
    assert whole.prune_intermediate_layers(1, prune_head=False) == [3]
    torch.testing.assert_close(whole(x), model(x))
    bare = copy.deepcopy(model)
    bare.prune_intermediate_layers(1, prune_norm=True)
    torch.testing.assert_close(bare(x), stages[3])


@of_each_family
def test_layers_for_learning_rate_decay_cover_every_parameter(family: Family) -> None:
    model = family.make(device="meta")
    layers = group_parameters(model, model.group_matcher(), reverse=True)
    assert set(layers) == {name for name, _ in model.named_parameters()}
    first = {number for name, number in layers.items() if name.startswith("stem")}
    last = {number for name, number in layers.items() if name.startswith("head")}
    assert (first, last) == ({0}, {max(layers.values())})
    for name, number in layers.items():
        if name.startswith("stages."):
            assert 0 < number < max(layers.values()), name
    coarse = group_parameters(model, model.group_matcher(coarse=True), reverse=True)
    assert set(coarse.values()) == set(range(6))


@of_each_family
def test_checkpointing_gives_the_same_gradients_and_statistics(family: Family) -> None:
    plain, saved = family.make(num_classes=5), family.make(num_classes=5)
    saved.set_grad_checkpointing()
    assert all(stage.grad_checkpointing for stage in saved.stages)
    for model in (plain, saved):
        model.train()(images()).square().mean().backward()
    for (name, a), b in zip(plain.named_parameters(), saved.parameters(), strict=True):
        assert torch.equal(a.grad, b.grad), name
    saved.set_grad_checkpointing(False)
    assert not any(stage.grad_checkpointing for stage in saved.stages)


@of_each_family
def test_training_follows_the_type_that_is_asked_for(family: Family) -> None:
    model = family.make(dtype=torch.float64, num_classes=2)
    assert {p.dtype for p in model.parameters()} == {torch.float64}
    assert model(images(dtype=torch.float64)).dtype == torch.float64


@of_each_family
def test_the_state_of_one_network_fits_another_of_its_kind(family: Family) -> None:
    source, other = randomise(family.make()), family.make().eval()
    other.load_state_dict(source.state_dict())
    torch.testing.assert_close(other(images()), source(images()), rtol=0, atol=0)
    assert copy.deepcopy(source).state_dict().keys() == source.state_dict().keys()


@pytest.mark.parametrize("name", list_models())
def test_a_default_configuration_has_what_tools_ask_for(name: str) -> None:
    config = get_pretrained_cfg(name)
    assert config is not None
    assert isinstance(config.mean, tuple)
    assert config.interpolation == "bicubic"
    assert config.license
