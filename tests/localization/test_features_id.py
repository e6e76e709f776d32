"""A box regressor is accepted with the net whose features it was trained on, and with no other."""

import copy

import pytest
import torch

import overfeat
from overfeat.cli.assets import SHIPPED_CELLS, SHIPPED_DETECTOR, SHIPPED_WEIGHTS
from overfeat.errors import InputError
from overfeat.models.architecture import ARCHITECTURES
from overfeat.models.box_regressor import BoxRegressor, train_together
from overfeat.models.checkpoint import find_regressor
from overfeat.models.transfer import with_background

IMAGE = torch.zeros(3, 60, 60, dtype=torch.uint8)
REFUSED = "trained on the features of another net of the same architecture; load both from one file"


def pair(path):
    return overfeat.load(path), overfeat.load_regressor(path)


def test_the_regressor_of_another_file_is_refused(tmp_path):
    net, regressor = overfeat.load(SHIPPED_WEIGHTS), overfeat.load_regressor(SHIPPED_DETECTOR)
    assert net.architecture == regressor.architecture
    with pytest.raises(InputError, match=REFUSED):
        overfeat.localize(net, regressor, IMAGE, scales=[1.0])
    with pytest.raises(InputError, match=REFUSED):
        overfeat.detect(net, regressor, IMAGE)
    with pytest.raises(InputError, match=REFUSED):
        overfeat.save(net, tmp_path / "net.safetensors", regressor=regressor)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("path", [SHIPPED_WEIGHTS, SHIPPED_DETECTOR, SHIPPED_CELLS], ids=lambda path: path.stem)
@pytest.mark.parametrize("dtype", [None, torch.bfloat16])
def test_those_of_one_file_belong_together(tmp_path, path, dtype):
    net, regressor = pair(path)
    overfeat.save(net, tmp_path / "copy.safetensors", dtype=dtype, regressor=regressor)
    for together in ((net, regressor), (net.half(), regressor.half()), pair(tmp_path / "copy.safetensors")):
        together[1].check_made_for(together[0])
        assert together[0].features_id == together[1].features_id is not None


def test_classifiers_on_the_same_features_share_a_regressor(tmp_path):
    net, regressor = pair(SHIPPED_WEIGHTS)
    other = with_background(copy.deepcopy(net), ["cat", "dog"])
    overfeat.save(other, tmp_path / "net.safetensors")
    for same in (other, overfeat.load(tmp_path / "net.safetensors")):
        regressor.check_made_for(same)
    assert find_regressor(tmp_path / "net.safetensors") is None


def test_unknown_features_are_accepted():
    net, regressor = pair(SHIPPED_WEIGHTS)
    new = BoxRegressor(ARCHITECTURES["small"])
    assert overfeat.build("small", 2).features_id is None and new.features_id is None
    new.check_made_for(net)
    regressor.check_made_for(overfeat.build("small", 2))
    other = overfeat.load(SHIPPED_DETECTOR)
    with pytest.raises(InputError, match=REFUSED):
        regressor.check_made_for(other)
    other.load_state_dict(other.state_dict())  # whoever loads other weights knows what belongs together
    regressor.check_made_for(other)


def test_training_decides_what_belongs_together():
    net, regressor = pair(SHIPPED_WEIGHTS)
    frozen, tuned = copy.deepcopy(net), copy.deepcopy(net)
    frozen.feature_layers.requires_grad_(False)
    train_together(frozen)
    regressor.check_made_for(frozen)
    train_together(tuned)
    with pytest.raises(InputError, match=REFUSED):
        regressor.check_made_for(tuned)
    new, untrained = BoxRegressor(net.architecture), overfeat.build("small", 10)
    train_together(tuned, new)
    new.check_made_for(tuned)
    with pytest.raises(InputError, match=REFUSED):
        new.check_made_for(net)
    train_together(untrained, new)
    assert new.features_id == untrained.features_id is not None
