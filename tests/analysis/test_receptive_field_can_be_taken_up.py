from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from widefield._core.errors import InputError
from widefield.analysis.images import NoiseTensors
from widefield.analysis.receptive_field import (
    ReceptiveField,
    load_receptive_field,
    load_receptive_fields,
    save_receptive_fields,
)
from widefield.analysis.receptive_field_measurement import measure_receptive_field, measure_receptive_fields


class CutOffError(Exception):
    pass


def cut_off(images: Sequence[Tensor], after: int) -> Iterator[Tensor]:
    yield from images[:after]
    raise CutOffError


def network(seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Conv2d(3, 8, 5, padding=2), nn.GELU(), nn.Conv2d(8, 4, 5, padding=2))


def assert_equal(one: ReceptiveField, other: ReceptiveField) -> None:
    assert one.summary() == other.summary()
    assert torch.equal(one.mean, other.mean)
    assert torch.equal(one.standard_error, other.standard_error)
    assert one.group_sums is not None
    assert other.group_sums is not None
    assert torch.equal(one.group_sums, other.group_sums)


@pytest.fixture
def images() -> list[Tensor]:
    drawn = list(NoiseTensors(14, (12, 12)))
    drawn[2] = torch.full((1, 3, 12, 12), float("nan"))
    return drawn


@pytest.mark.parametrize("after", [0, 1, 3, 12, 14])
def test_a_broken_off_field_ends_as_if_it_had_not_been(after: int, images: list[Tensor], tmp_path: Path) -> None:
    model, state = network(), tmp_path / "state.safetensors"
    whole = measure_receptive_field(model, images)
    assert (whole.images, whole.skipped) == (13, 1)
    with pytest.raises(CutOffError):
        measure_receptive_field(model, cut_off(images, after), state_file=state)
    assert state.exists() == (after > 0)
    computed: list[int] = []
    handle = model.register_forward_hook(lambda *_: computed.append(1))
    field = measure_receptive_field(model, images, state_file=state)
    handle.remove()
    assert_equal(field, whole)
    # One more pass chooses the layer.
    assert len(computed) == (14 - after + 1 if after < 14 else 0)


def test_a_finished_state_takes_more_images(images: list[Tensor], tmp_path: Path) -> None:
    state = tmp_path / "state.safetensors"
    locations = [(0, 0), (6, 6)]
    measure_receptive_fields(network(), images[:5], locations=locations, state_file=state)
    fields = measure_receptive_fields(network(), images, locations=locations, state_file=state)
    for field, whole in zip(fields, measure_receptive_fields(network(), images, locations=locations), strict=True):
        assert_equal(field, whole)


def test_progress_counts_every_image(images: list[Tensor], tmp_path: Path) -> None:
    state = tmp_path / "state.safetensors"
    measure_receptive_field(network(), images[:5], state_file=state)
    done: list[int] = []
    measure_receptive_field(network(), images, state_file=state, on_progress=done.append)
    assert done == [1] * 14


def test_the_state_of_something_else_is_refused(images: list[Tensor], tmp_path: Path) -> None:
    state = tmp_path / "state.safetensors"
    measure_receptive_field(network(), images[:3], state_file=state)
    content = state.read_bytes()
    with pytest.raises(InputError, match=r"the state of this network, but got .*, of other weights: go on with"):
        measure_receptive_field(network(1), images, state_file=state)
    told = r"a state of '0' at the centre, but got .*, of the default layer at the centre: go on with the same"
    with pytest.raises(InputError, match=told):
        measure_receptive_field(network(), images, layer="0", state_file=state)
    with pytest.raises(InputError, match=r"a state of the default layer at \(0, 0\), but got"):
        measure_receptive_field(network(), images, location=(0, 0), state_file=state)
    with pytest.raises(InputError, match="the images that the state has seen, first and in their order, but got other"):
        measure_receptive_field(network(), images[1:], state_file=state)
    with pytest.raises(InputError, match=r"first and in their order, but got 2 of the 3 in .*state.safetensors: go on"):
        measure_receptive_field(network(), images[:2], state_file=state)
    with pytest.raises(InputError, match="images of one size, 12 x 12 px as the first, but got one of 16 x 16 px"):
        measure_receptive_field(network(), NoiseTensors(3, (16, 16)), state_file=state)
    assert state.read_bytes() == content


def test_a_file_that_is_no_state_is_refused_and_kept(images: list[Tensor], tmp_path: Path) -> None:
    field = tmp_path / "field.safetensors"
    measure_receptive_field(network(), images).save(field)
    text = tmp_path / "text.safetensors"
    text.write_text("mine")
    for path in (field, text):
        content = path.read_bytes()
        with pytest.raises(InputError, match=r"the state of a receptive field, but got .*, which is none: name"):
            measure_receptive_field(network(), images, state_file=path)
        assert path.read_bytes() == content


def test_a_field_is_the_same_after_saving_and_loading(images: list[Tensor], tmp_path: Path) -> None:
    path = tmp_path / "field.safetensors"
    field = measure_receptive_field(network(), images, thresholds=(0.4,), name="small", weights="random", around="map")
    field.save(path)
    assert_equal(load_receptive_field(path), field)
    with pytest.raises(InputError, match=r"Expected a new file to write, but got .*field\.safetensors, which exists"):
        field.save(path)
    several = tmp_path / "several.safetensors"
    fields = measure_receptive_fields(network(), images, locations=[(0, 0), (1, 2)])
    save_receptive_fields(several, fields)
    for loaded, saved in zip(load_receptive_fields(several), fields, strict=True):
        assert_equal(loaded, saved)
    with pytest.raises(InputError, match="Expected a file of one receptive field, but got 2 in"):
        load_receptive_field(several)
    (tmp_path / "none").write_text("mine")
    for wrong in (tmp_path / "none", tmp_path / "missing"):
        with pytest.raises(InputError, match=r"Expected a file of receptive fields, but got .*, which is none: name"):
            load_receptive_fields(wrong)
