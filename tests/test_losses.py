"""The losses: what each is, where it has a gradient, and the units of its constants."""

import numpy as np
import pytest
import torch
from helpers import make_network
from torch import Tensor
from torch.autograd import gradcheck
from torch.nn import functional

from lipdeploy.errors import UsageError
from lipdeploy.exporters.freeze import freeze_head
from lipdeploy.training.architecture import HEADS
from lipdeploy.training.heads import class_rows, make_head
from lipdeploy.training.lipconvnet import INPUT_GAIN
from lipdeploy.training.losses import (
    annealed_cross_entropy,
    certificate_reward,
    certified_margins,
    offset_cross_entropy,
    training_loss,
)
from lipdeploy.training.options import TrainingOptions

FEATURES, CLASSES, BATCH = 12, 5, 16
OFFSET, TEMPERATURE = 0.6, 0.3


@pytest.fixture
def logits() -> Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randn(BATCH, CLASSES, generator=generator, dtype=torch.float64)


@pytest.fixture
def labels(logits: Tensor) -> Tensor:
    """Right for half of the rows."""
    return torch.where(torch.arange(BATCH) % 2 == 0, logits.argmax(1), logits.argmin(1))


def head_and_features(name: str) -> tuple[torch.nn.Module, Tensor]:
    torch.manual_seed(1)
    head = make_head(name, FEATURES, CLASSES).double()
    with torch.no_grad():
        for parameter_name, parameter in head.named_parameters():
            if parameter_name.endswith("bias"):
                parameter.normal_(0, 0.3)
    return head, 2 * torch.randn(BATCH, FEATURES, dtype=torch.float64)


def test_without_offset_at_temperature_1_it_is_cross_entropy(
    logits: Tensor, labels: Tensor
) -> None:
    expected = functional.cross_entropy(logits, labels)
    torch.testing.assert_close(offset_cross_entropy(logits, labels, 0.0, 1.0), expected)


def test_the_offset_moves_the_label_s_logit_and_nothing_else(
    logits: Tensor, labels: Tensor
) -> None:
    moved = logits.clone()
    moved[torch.arange(BATCH), labels] -= OFFSET
    found = offset_cross_entropy(logits, labels, OFFSET, TEMPERATURE)
    torch.testing.assert_close(found, offset_cross_entropy(moved, labels, 0.0, TEMPERATURE))


def test_annealing_with_exponent_0_is_the_offset_loss(logits: Tensor, labels: Tensor) -> None:
    found = annealed_cross_entropy(logits, labels, OFFSET, TEMPERATURE, 0.0)
    expected = offset_cross_entropy(logits, labels, OFFSET, TEMPERATURE)
    torch.testing.assert_close(found, expected)


def test_annealing_is_the_formula_of_the_paper(logits: Tensor, labels: Tensor) -> None:
    shifted = logits - OFFSET * functional.one_hot(labels, CLASSES)
    p = torch.softmax(shifted / TEMPERATURE, dim=1)[torch.arange(BATCH), labels]
    expected = (-TEMPERATURE * (1 - p) ** 5 * p.log()).mean()
    found = annealed_cross_entropy(logits, labels, OFFSET, TEMPERATURE, 5.0)
    torch.testing.assert_close(found, expected)


@pytest.mark.parametrize("beta", [1.0, 2.5, 5.0])
def test_gradients_of_annealing_are_exact(logits: Tensor, labels: Tensor, beta: float) -> None:
    assert gradcheck(
        lambda z: annealed_cross_entropy(z, labels, OFFSET, TEMPERATURE, beta),
        logits.requires_grad_(),
    )


def test_gradients_of_the_offset_loss_are_exact(logits: Tensor, labels: Tensor) -> None:
    assert gradcheck(
        lambda z: offset_cross_entropy(z, labels, OFFSET, TEMPERATURE), logits.requires_grad_()
    )


def test_annealing_leaves_an_image_alone_the_sooner_the_more_margin_it_has() -> None:
    """Its share of the offset loss's gradient falls as the margin grows (Lai et al., 2025)."""
    shares = []
    for margin in (0.0, 0.5, 1.0, 2.0, 4.0):
        pulls = []
        for beta in (0.0, 5.0):
            z = torch.tensor([[margin, 0.0]], dtype=torch.float64, requires_grad=True)
            annealed_cross_entropy(z, torch.tensor([0]), 0.5, 0.5, beta).backward()
            pulls.append(float(z.grad[0, 0]))
        shares.append(pulls[1] / pulls[0])
    assert shares == sorted(shares, reverse=True)
    assert shares[0] > 0.5
    assert shares[-1] < 1e-6


@pytest.mark.parametrize("beta", [1.0, 1.5, 5.0])
@pytest.mark.parametrize("margin", [-1e4, -50.0, 50.0, 1e4])
def test_gradients_stay_finite_where_an_image_is_sure(beta: float, margin: float) -> None:
    z = torch.tensor([[margin, 0.0, 1.0]], requires_grad=True)
    loss = annealed_cross_entropy(z, torch.tensor([0]), 0.5, 0.1, beta)
    loss.backward()
    assert torch.isfinite(loss)
    assert torch.isfinite(z.grad).all()


@pytest.mark.parametrize("name", ["linear", "lln"])
def test_margins_are_the_certificate_of_the_frozen_head(name: str) -> None:
    head, features = head_and_features(name)
    logits = head(features)
    labels = logits.argmax(dim=1)
    expected = freeze_head(head).radii_lower(features.numpy(), labels.numpy())
    found = certified_margins(logits, labels, class_rows(head)).detach().numpy()
    np.testing.assert_allclose(found, expected, rtol=1e-9)
    assert (expected > 0).all()


def test_rows_of_an_orthogonal_head_are_the_root_of_2_apart() -> None:
    head, features = head_and_features("linear")
    logits = head(features)
    labels = logits.argmin(dim=1)
    others = logits.scatter(1, labels[:, None], -torch.inf).amax(dim=1)
    expected = (logits.gather(1, labels[:, None])[:, 0] - others) / 2**0.5
    found = certified_margins(logits, labels, class_rows(head))
    torch.testing.assert_close(found, expected)
    assert (found < 0).all()


@pytest.mark.parametrize("name", HEADS)
def test_no_change_shorter_than_the_margin_alters_the_class(name: str) -> None:
    head, features = head_and_features(name)
    logits = head(features)
    labels = logits.argmax(dim=1)
    margins = certified_margins(logits, labels, class_rows(head)).detach()
    for seed in range(50):
        torch.manual_seed(seed)
        directions = functional.normalize(torch.randn_like(features), dim=1)
        moved = features + 0.999 * margins[:, None] * directions
        assert torch.equal(head(moved).argmax(dim=1), labels)


@pytest.mark.parametrize("name", HEADS)
def test_the_certificate_rewards_right_answers_only(name: str) -> None:
    head, features = head_and_features(name)
    logits = head(features).detach()
    labels = torch.where(torch.arange(BATCH) % 2 == 0, logits.argmax(1), logits.argmin(1))
    z = logits.clone().requires_grad_()
    certificate_reward(z, labels, head).backward()
    assert not z.grad[1::2].any()
    assert (z.grad[torch.arange(0, BATCH, 2), labels[::2]] > 0).all()


@pytest.mark.parametrize("name", HEADS)
def test_gradients_of_the_reward_are_exact_in_logits_and_rows(name: str) -> None:
    head, features = head_and_features(name)
    logits = head(features).detach()
    labels = torch.where(torch.arange(BATCH) % 2 == 0, logits.argmax(1), logits.argmin(1))
    rows = class_rows(head).detach().requires_grad_()
    assert gradcheck(
        lambda z, w: certified_margins(z, labels, w).relu().mean(), (logits.requires_grad_(), rows)
    )


def test_equal_rows_have_a_finite_gradient() -> None:
    rows = torch.ones(2, 3, requires_grad=True)
    logits = torch.tensor([[1.0, 0.5]], requires_grad=True)
    certified_margins(logits, torch.tensor([0]), rows).sum().backward()
    assert torch.isfinite(rows.grad).all()
    assert torch.isfinite(logits.grad).all()


def test_constants_are_distances_in_pixels() -> None:
    """Offset and temperature are multiplied by what a pixel is multiplied by on the way in."""
    network = make_network()
    torch.manual_seed(0)
    logits, labels = torch.randn(6, 3), torch.arange(6) % 3
    options = TrainingOptions(offset=0.4, temperature=0.25)
    found = training_loss(network, logits, labels, options)
    scaled = 0.4 * INPUT_GAIN, 0.25 * INPUT_GAIN
    torch.testing.assert_close(found, offset_cross_entropy(logits, labels, *scaled))
    options = TrainingOptions(loss="annealed", offset=0.5, temperature=0.1875, beta=5)
    found = training_loss(network, logits, labels, options)
    # xi 2 and T 0.75 on inputs that are divided by 0.25
    torch.testing.assert_close(found, annealed_cross_entropy(logits, labels, 2.0, 0.75, 5.0))


def test_the_reward_is_taken_off_in_units_of_the_loss() -> None:
    network = make_network()
    torch.manual_seed(0)
    logits = torch.randn(6, 3)
    labels = logits.argmax(dim=1)
    plain = training_loss(network, logits, labels, TrainingOptions())
    rewarded = training_loss(network, logits, labels, TrainingOptions(certificate=0.5))
    reward = certificate_reward(logits, labels, network.head)
    torch.testing.assert_close(plain - rewarded, 0.5 * reward)
    assert reward > 0


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"loss": "annealing"}, "--loss annealing: expected one of offset, annealed; did you mean"),
        ({"beta": 0.5}, r"--beta 0.5: must be in \[1, 64\]"),
        ({"beta": float("nan")}, "--beta nan"),
        ({"certificate": -1}, r"--cr -1: must be in \[0, 64\]"),
        ({"certificate": "much"}, "--cr 'much': must be a number"),
        ({"ema": 1.0}, r"--ema 1.0: must be a share in \[0, 1\)"),
        ({"ema": float("nan")}, "--ema nan"),
        ({"keep": "first"}, "--keep first: expected one of last, best"),
        ({"certify_every": -1}, "--certify-every -1: must be 0"),
        ({"certify_every": 1.5}, "--certify-every 1.5: must be a number"),
        ({"loss": 3}, "--loss 3: must be text"),
        ({"recipe": None}, "--recipe None: must be text"),
    ],
    ids=str,
)
def test_other_values_are_refused(options: dict[str, object], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        TrainingOptions(**options)
