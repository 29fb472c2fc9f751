from __future__ import annotations

from pathlib import Path

import pytest
import torch
from support.random_statistics import randomise

from widefield.checkpoints import replknet, slak, unireplknet
from widefield.tasks.classification import ModelConfig
from widefield.tasks.classification.card import load_classifier, make_classifier, start_from


@pytest.mark.parametrize(
    ("name", "rules"), [("replknet_nano", replknet), ("slak_a", slak), ("unireplknet_a", unireplknet)]
)
def test_the_authors_names_are_read_and_a_head_for_other_classes_is_new(
    name: str, rules: object, tmp_path: Path
) -> None:
    torch.manual_seed(0)
    source = randomise(make_classifier(ModelConfig(name=name), 6))
    path = tmp_path / "published.pth"
    torch.save({"model": rules.to_published(source.state_dict())}, path)
    other = make_classifier(ModelConfig(name=name), 4)
    before = other.state_dict()["head.fc.weight"].clone()
    start_from(other, path)
    given, taken = source.state_dict(), other.state_dict()
    assert all(torch.equal(taken[key], given[key]) for key in given if not key.startswith("head.fc."))
    assert torch.equal(taken["head.fc.weight"], before)
    same, card = load_classifier(path, model=name)
    assert len(card.classes) == 6
    assert all(torch.equal(value, given[key]) for key, value in same.state_dict().items())
