"""Single numbers of the losses on class logits that papers or plain arithmetic fix."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from densekd.methods import dist_loss, dkd_loss, kd_loss


def random(*shape: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(shape, generator=generator, dtype=torch.float64)


# DKD


def test_dkd_by_hand() -> None:
    # b_t = (1/2, 1/2) against (1/3, 2/3); h_t = (3/4, 1/4) against (1/2, 1/2).
    s, t = torch.zeros(1, 3), torch.tensor([[4.0, 3.0, 1.0]]).log()
    target = 0.5 * math.log(3 / 2) + 0.5 * math.log(3 / 4)
    other = 0.75 * math.log(3 / 2) + 0.25 * math.log(1 / 2)
    for alpha, beta in ((1, 0), (0, 1), (2, 8)):
        value = dkd_loss(s, t, torch.tensor([0]), alpha, beta, tau=1.0)
        assert value.item() == pytest.approx(alpha * target + beta * other, abs=1e-6)


@pytest.mark.parametrize('tau', [1.0, 4.0])
def test_kd_is_dkd_with_the_teachers_doubt_for_a_factor(tau: float) -> None:
    s, t = 3 * random(6, 5), 3 * random(6, 5, seed=1)
    labels = torch.arange(6) % 5
    doubts = 1 - (t / tau).softmax(1).gather(1, labels[:, None])[:, 0]
    each = [
        dkd_loss(s[i : i + 1], t[i : i + 1], labels[i : i + 1], 1.0, float(doubt), tau)
        for i, doubt in enumerate(doubts)
    ]
    torch.testing.assert_close(torch.stack(each).mean(), kd_loss(s, t, tau))


def test_the_other_classes_do_not_see_the_true_ones_logit() -> None:
    s, t = random(4, 5), random(4, 5, seed=1)
    labels = torch.tensor([0, 3, 4, 1])
    shift = 5 * torch.nn.functional.one_hot(labels, 5)
    expected = dkd_loss(s, t, labels, alpha=0.0)
    torch.testing.assert_close(dkd_loss(s + shift, t, labels, alpha=0.0), expected)
    torch.testing.assert_close(dkd_loss(s, t + shift, labels, alpha=0.0), expected)
    assert not torch.isclose(dkd_loss(s + shift, t, labels), dkd_loss(s, t, labels))


def test_of_two_classes_there_is_one_part() -> None:
    s, t = random(4, 2), random(4, 2, seed=1)
    labels = torch.tensor([0, 1, 1, 0])
    assert dkd_loss(s, t, labels, alpha=0.0).item() == 0.0
    torch.testing.assert_close(dkd_loss(s, t, labels, tau=2.0), kd_loss(s, t, tau=2.0))


def test_dkd_of_a_map_is_the_mean_over_its_labelled_pixels() -> None:
    s, t = torch.zeros(2, 3, 2, 2), torch.zeros(2, 3, 2, 2)
    t[0, :, 0, 1] = torch.tensor([4.0, 3.0, 1.0]).log()
    labels = torch.tensor([[[255, 0], [255, -1]], [[1, 1], [2, 0]]])
    expected = 0.5 * math.log(3 / 2) + 0.5 * math.log(3 / 4)
    # One pixel of five, and neither of eight nor the mean of images.
    value = dkd_loss(s, t, labels, alpha=1.0, beta=0.0, tau=1.0)
    assert value.item() == pytest.approx(expected / 5, abs=1e-6)


def test_the_true_class_is_looked_up_in_its_own_pixel() -> None:
    s, t = random(2, 4, 3, 5), random(2, 4, 3, 5, seed=1)
    labels = torch.randint(4, (2, 3, 5), generator=torch.Generator().manual_seed(0))
    rows = [x.permute(0, 2, 3, 1).reshape(-1, 4) for x in (s, t)]
    torch.testing.assert_close(dkd_loss(s, t, labels), dkd_loss(*rows, labels.flatten()))


# DIST


def probabilities(*rows: list[float]) -> Tensor:
    return torch.tensor(rows, dtype=torch.float64).log()


def test_dist_by_hand() -> None:
    # Rows (1, 0, -1) and (1, -2, 1) about their means: orthogonal. The second pair: opposite.
    s = probabilities([0.5, 1 / 3, 1 / 6], [0.4, 0.3, 0.3])
    t = probabilities([0.4, 0.2, 0.4], [0.2, 0.4, 0.4])
    assert dist_loss(s, t, gamma=0.0).item() == pytest.approx(1 - (0 - 1) / 2, abs=1e-12)
    # Columns of two rows rise or fall: the student falls, falls, rises; the teacher falls, rises
    # and stays, which says nothing.
    assert dist_loss(s, t, beta=0.0).item() == pytest.approx(1 - (1 - 1) / 2, abs=1e-12)


@pytest.mark.parametrize('factor', [0.2, 0.9])
def test_dist_does_not_see_scale_and_level_of_probabilities(factor: float) -> None:
    t = random(6, 4, seed=1)
    # A mixture with the same distribution for all rows: each column scaled and shifted.
    p = factor * t.softmax(1) + (1 - factor) / 4
    assert dist_loss(p.log(), t).item() == pytest.approx(0, abs=1e-12)


def test_dist_is_symmetric_and_knows_no_order_of_rows_or_classes() -> None:
    s, t = random(6, 4), random(6, 4, seed=1)
    value = dist_loss(s, t, 1.0, 2.0, 4.0)
    torch.testing.assert_close(dist_loss(t, s, 1.0, 2.0, 4.0), value)
    rows, classes = torch.tensor([4, 0, 5, 1, 3, 2]), torch.tensor([2, 0, 3, 1])
    torch.testing.assert_close(dist_loss(s[rows], t[rows], 1.0, 2.0, 4.0), value)
    torch.testing.assert_close(dist_loss(s[:, classes], t[:, classes], 1.0, 2.0, 4.0), value)


def test_dist_is_between_agreement_and_the_opposite() -> None:
    t = random(6, 4, seed=1)
    p = t.softmax(1)
    opposite = ((1 - p) / 3).log()
    assert dist_loss(opposite, t, 1.5, 0.5, 1.0).item() == pytest.approx(2 * 2.0, abs=1e-12)
    for seed in range(5):
        assert 0 <= dist_loss(random(6, 4, seed=seed), t, 1.5, 0.5, 2.0).item() <= 2 * 2.0 * 4


def test_dist_has_the_temperature_twice() -> None:
    s, t = random(6, 4), random(6, 4, seed=1)
    torch.testing.assert_close(dist_loss(4 * s, 4 * t, tau=4.0), 16 * dist_loss(s, t))


def test_dist_of_a_map_has_a_row_for_each_pixel_of_all_images() -> None:
    s, t = random(2, 4, 3, 5), random(2, 4, 3, 5, seed=1)
    rows = [x.permute(0, 2, 3, 1).reshape(-1, 4) for x in (s, t)]
    torch.testing.assert_close(dist_loss(s, t), dist_loss(*rows))
    valid = random(2, 3, 5, seed=2) > 0
    kept = [x[valid.flatten()] for x in rows]
    torch.testing.assert_close(dist_loss(s, t, valid=valid), dist_loss(*kept))
