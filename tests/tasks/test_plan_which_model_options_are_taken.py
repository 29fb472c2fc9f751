from __future__ import annotations

import pytest
import torch

from widefield._core.errors import InputError
from widefield.tasks.classification import ModelConfig
from widefield.tasks.classification.card import make_classifier


def test_options_reach_the_model() -> None:
    config = ModelConfig(name="mobilenetv2_lk", options=("small_kernel_size=5", "shortcut=false", "width_mult=0.5"))
    assert config.arguments() == {
        "drop_rate": 0.0,
        "small_kernel_size": 5,
        "shortcut": False,
        "width_mult": 0.5,
    }
    with torch.device("meta"):
        model = make_classifier(config, 10)
    assert not any(getattr(module, "shortcut", False) for module in model.modules())
    parallel = [value for name, value in model.named_parameters() if name.endswith(".small.conv.weight")]
    assert {tuple(value.shape[2:]) for value in parallel} == {(5, 5)}


def test_a_new_head_is_scaled() -> None:
    torch.manual_seed(0)
    whole = make_classifier(ModelConfig(name="unireplknet_a"), 10)
    torch.manual_seed(0)
    small = make_classifier(ModelConfig(name="unireplknet_a", head_init_scale=0.001), 10)
    torch.testing.assert_close(small.get_parameter("head.fc.weight"), 0.001 * whole.get_parameter("head.fc.weight"))


@pytest.mark.parametrize(
    ("option", "sentence"),
    [
        ("shortcut", "Expected model.options as NAME=VALUE, but got 'shortcut': write for instance --model.options"),
        ("drop_rate=1", "without fields of their own, but got 'drop_rate=1': use --model.drop-rate"),
        ("num_classes=3", "but got 'num_classes=3': leave it out: the number of classes comes from the data"),
        (
            "small_kernel_size=null",
            "Expected model.options with a value, but got 'small_kernel_size=null': leave it out",
        ),
        ("depths=[1, 2", r"Expected model.options with values as in YAML, but got 'depths=\[1, 2': write numbers"),
    ],
)
def test_options_that_are_none_are_refused(option: str, sentence: str) -> None:
    with pytest.raises(InputError, match=sentence):
        ModelConfig(options=(option,)).arguments()


def test_a_head_cannot_start_at_nothing() -> None:
    with pytest.raises(InputError, match=r"Expected a positive model.head_init_scale, but got 0: use 1 to leave"):
        ModelConfig(head_init_scale=0.0)


def test_an_option_that_the_model_does_not_know_is_refused() -> None:
    with pytest.raises(InputError, match=r"settings that slak_a takes, but got .*shortcut=False.*model.options"):
        make_classifier(ModelConfig(name="slak_a", options=("shortcut=false",)), 3)
