from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch
from support.architectures import ARCHITECTURES, Architecture

from widefield._core.errors import InputError
from widefield.checkpoints.convert import convert, write_converted
from widefield.checkpoints.files import read_checkpoint
from widefield.checkpoints.recognise import recognise

BY_NAME = {architecture.name: architecture for architecture in ARCHITECTURES}


@pytest.mark.parametrize("architecture", ARCHITECTURES, ids=str)
@pytest.mark.parametrize("suffix", [".safetensors", ".pth", ".pt"])
def test_the_authors_file_is_got_back_bit_for_bit(architecture: Architecture, suffix: str, tmp_path: Path) -> None:
    states = [architecture.published()]
    if architecture.family != "slak":
        states.append(architecture.published_merged())
    for published in states:
        found = recognise(published)
        ours, back = tmp_path / f"{found.form}-ours{suffix}", tmp_path / f"{found.form}-back{suffix}"
        write_converted(ours, convert(found.ours(published), found.family, "widefield").tensors, {"source": "here"})
        read = read_checkpoint(ours)
        assert read.metadata == ({"source": "here"} if suffix == ".safetensors" else {})
        again = recognise(read.tensors)
        assert (again.layout, again.form, again.model_kwargs) == ("widefield", found.form, found.model_kwargs)
        write_converted(back, convert(again.ours(read.tensors), again.family, "official").tensors, {})
        final = read_checkpoint(back).tensors
        assert final.keys() == published.keys()
        for key, value in published.items():
            assert final[key].dtype == value.dtype
            assert torch.equal(final[key], value)


def test_a_backbone_has_no_place_for_a_classifier() -> None:
    ours = BY_NAME["slak-plain"].model().state_dict()
    conversion = convert(ours, "slak", "backbone")
    assert conversion.left_out == {"norm": 2, "head": 2}
    assert list(conversion.tensors)[-1] == "backbone.norm3.bias"
    assert len(conversion.tensors) == len(ours) - 4
    assert convert(ours, "slak", "official").left_out == {}


def test_our_merged_stripes_have_no_published_names() -> None:
    from widefield.reparam import fold

    model = BY_NAME["slak"].model()
    fold(model)
    with pytest.raises(InputError, match="a branched SLaK, since the published code has no merged form"):
        convert(model.state_dict(), "slak", "official")


def test_nothing_is_overwritten_and_every_path_is_checked(tmp_path: Path) -> None:
    there = tmp_path / "w.pth"
    there.write_text("precious")
    for path, text in (
        (there, f"Expected a new file to write, but got {there}, which exists: name another with --output."),
        (
            tmp_path / "w.bin",
            f"a file that ends in .safetensors, .pth or .pt, but got {tmp_path / 'w.bin'}: name it so",
        ),
        (tmp_path / "no" / "w.pth", f"Expected a folder to write to, but got {tmp_path / 'no'}, which does not exist"),
    ):
        with pytest.raises(InputError, match=re.escape(text)):
            write_converted(path, {"a": torch.ones(2)}, {})
    assert there.read_text() == "precious"
    assert [entry.name for entry in tmp_path.iterdir()] == ["w.pth"]
