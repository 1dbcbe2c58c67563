"""Frozen equals trained, in float64, for everything that a network is made of."""

import numpy as np
import pytest
import torch
from helpers import make_network, random_pixels
from hypothesis import given, settings
from hypothesis import strategies as st

from lipdeploy.artifact import digest
from lipdeploy.errors import FreezeError, ModelError, ShapeError
from lipdeploy.exporters.freeze import freeze
from lipdeploy.exporters.plan import LayerShape, candidates
from lipdeploy.frozen import FrozenNetwork, Shift
from lipdeploy.structure import describe, restore
from lipdeploy.training.lipconvnet import LipConvNet
from lipdeploy.training.soc import SkewOrthogonalConvolution


def converged(network: LipConvNet) -> LipConvNet:
    """The same network in float64 with its series run to convergence."""
    network = network.double()
    for module in network.modules():
        if isinstance(module, SkewOrthogonalConvolution):
            module.evaluation_degree = 40
    return network


def assert_same(network: LipConvNet, frozen: FrozenNetwork) -> None:
    size = network.architecture.image_size
    pixels = random_pixels(5, size)
    with torch.no_grad():
        reference = converged(network)
        features = reference.features(torch.from_numpy(pixels)).numpy()
        logits = reference(torch.from_numpy(pixels)).numpy()
    mine = frozen.features(pixels)
    assert np.abs(mine - features).max() <= 1e-10 * np.abs(features).max()
    assert np.abs(frozen.head.logits(mine) - logits).max() <= 1e-10 * np.abs(logits).max()


@settings(max_examples=12)
@given(
    size=st.integers(4, 12),
    width=st.sampled_from([4, 6]),
    depth=st.sampled_from([5, 10]),
    head=st.sampled_from(["linear", "lln", "mlp"]),
    padding=st.sampled_from(["circular", "zero"]),
    classes=st.integers(2, 5),
    seed=st.integers(0, 99),
)
def test_frozen_network_equals_trained_network_in_float64(
    size: int, width: int, depth: int, head: str, padding: str, classes: int, seed: int
) -> None:
    network = make_network(
        seed, size, width=width, depth=depth, head=head, padding=padding, classes=classes
    )
    assert_same(network, freeze(network))


@pytest.mark.parametrize(
    ("padding", "form"),
    [
        ("circular", "spectral"),
        ("circular", "fused"),
        ("circular", "dense"),
        ("zero", "dense"),
        ("zero", "taylor"),
    ],
)
def test_every_form_is_the_same_function(padding: str, form: str) -> None:
    network = make_network(1, 8, padding=padding)
    frozen = freeze(network, form)
    assert form in {layer.operator.form for layer in frozen.linear()}
    assert_same(network, frozen)


@pytest.mark.parametrize("padding", ["circular", "zero"])
def test_a_network_of_32_pixels_is_the_same_function(padding: str) -> None:
    network = make_network(2, 32, width=4, padding=padding)
    assert_same(network, freeze(network))


def test_the_bundled_model_is_the_same_function(bundled: LipConvNet) -> None:
    assert_same(bundled, freeze(bundled))


@pytest.mark.parametrize("head", ["linear", "lln", "mlp"])
@pytest.mark.parametrize("padding", ["circular", "zero"])
def test_networks_survive_description_and_restoration(head: str, padding: str) -> None:
    frozen = freeze(make_network(head=head, padding=padding)).stored_as("float16")
    structure, weights = describe(frozen), frozen.weights()
    again = restore(structure, weights)
    pixels = random_pixels(2, 8)
    assert np.array_equal(again.features(pixels), frozen.features(pixels))
    assert digest(describe(again), again.weights()) == digest(structure, weights)


def test_the_digest_sees_one_ulp_and_one_name(frozen_network: FrozenNetwork) -> None:
    structure, weights = describe(frozen_network), dict(frozen_network.weights())
    before = digest(structure, weights)
    changed = weights["layer0.bias"].copy()
    changed[0] = np.nextafter(changed[0], np.float32(9))
    assert digest(structure, weights | {"layer0.bias": changed}) != before
    assert digest(structure | {"image_size": 9}, weights) != before


def test_a_network_that_does_not_fit_together_is_refused(frozen_network: FrozenNetwork) -> None:
    operations = frozen_network.operations
    with pytest.raises(ShapeError):
        FrozenNetwork(8, operations[:-1], frozen_network.head)
    with pytest.raises(ShapeError):
        FrozenNetwork(9, operations, frozen_network.head)
    structure, weights = describe(frozen_network), dict(frozen_network.weights())
    weights["head.bias"] = np.array([np.nan, 0, 0], dtype=np.float32)
    with pytest.raises(ModelError, match="NaN"):
        restore(structure, weights)


def test_a_frozen_network_first_takes_off_the_rounded_mean(bundled: LipConvNet) -> None:
    for network in (make_network(), bundled):
        first = freeze(network).operations[0]
        assert isinstance(first, Shift)
        assert first.colour == tuple(network.mean.round().int().tolist())


def test_a_shift_comes_first_and_is_a_colour(frozen_network: FrozenNetwork) -> None:
    shift, *others = frozen_network.operations
    with pytest.raises(ShapeError, match="must come first"):
        FrozenNetwork(8, (*others[:1], shift, *others[1:]), frozen_network.head)
    for colour in ((1, 2), (1, 2, 256), (1, -2, 3), (1, 2, 3.0), (1, 2, True)):
        with pytest.raises(ShapeError, match="no colour"):
            Shift(colour)


def test_freezing_needs_evaluation_mode() -> None:
    with pytest.raises(FreezeError, match="evaluation mode"):
        freeze(make_network().train())


def test_forms_that_do_not_exist_are_refused_with_a_way_out() -> None:
    zero = LayerShape(32, 16, 16, 3, "zero")
    for form in ("spectral", "fused"):
        with pytest.raises(FreezeError, match="--form dense"):
            candidates(zero, form)
    with pytest.raises(FreezeError, match=r"GiB.*--form auto"):
        candidates(LayerShape(224, 4, 4, 3, "circular"), "fused")
    with pytest.raises(FreezeError, match=r"GiB.*--form auto"):
        candidates(LayerShape(64, 16, 16, 3, "zero"), "dense")
    with pytest.raises(FreezeError, match="--form spectral"):
        candidates(LayerShape(8, 4, 4, 3, "circular"), "taylor")
