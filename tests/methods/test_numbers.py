"""Single numbers that the papers, their code or plain arithmetic fix."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from densekd.methods import (
    binary_kl_loss,
    hint_loss,
    imitation_loss,
    imitation_mask,
    kd_qfl_loss,
    margin_from_bn,
    ofd_loss,
    pkd_loss,
)


def row(*values: float) -> Tensor:
    return torch.tensor(values).reshape(1, 1, 1, -1)


# FitNets


def test_hint_of_a_constant_is_its_square() -> None:
    assert hint_loss(torch.zeros(2, 3, 4, 5), torch.full((2, 3, 4, 5), -3.0)).item() == 9.0
    assert hint_loss(torch.ones(1, 1, 2, 2), torch.ones(1, 1, 2, 2)).item() == 0.0


def test_hint_does_not_change_when_the_batch_is_doubled() -> None:
    s, t = torch.randn(2, 2, 3, 4, 5)
    doubled = hint_loss(torch.cat([s, s]), torch.cat([t, t]))
    torch.testing.assert_close(doubled, hint_loss(s, t))


# OFD


@pytest.mark.parametrize(
    ('gamma', 'beta', 'margin'),
    [
        (1.0, 0.0, -0.797885),
        (1.0, 1.0, -0.525135),
        (1.0, -1.0, -1.287600),
        (-2.0, 1.0, -1.282156),
        (2.0, -1.0, -2.018321),
        (1.0, 3.0, -0.283099),
        (1.0, 3.09, -0.277),  # the last that is not rare yet
        (1.0, 3.1, -3.0),
        (1.0, 4.0, -3.0),
        (0.0, -0.5, -0.5),
        (0.0, 0.5, 0.0),
        (0.0, 0.0, 0.0),
        (1.0, -40.0, -40.0),
        (1e-30, -1.0, -1.0),
    ],
)
def test_margin(gamma: float, beta: float, margin: float) -> None:
    value = margin_from_bn(torch.tensor([gamma]), torch.tensor([beta]))
    tolerance = 5e-4 if margin == -0.277 else 2e-6
    assert value.item() == pytest.approx(margin, abs=tolerance)
    assert value.dtype == torch.float32


def test_margins_are_negative_and_double_stays_double() -> None:
    gamma, beta = torch.randn(2, 1000, dtype=torch.float64)
    margin = margin_from_bn(gamma, 5 * beta)
    assert margin.dtype == torch.float64
    assert bool((margin < 0).all())


def test_ofd_by_hand() -> None:
    s, t = row(-2, -0.5, -0.3, 1, -1, 0.5), row(-0.5, -0.5, -0.6, -2, 2, 2)
    terms = [
        ofd_loss(s[..., i : i + 1], t[..., i : i + 1], torch.tensor([-0.8])).item()
        for i in range(6)
    ]
    assert terms == pytest.approx([0, 0, 0.09, 3.24, 9, 2.25], abs=1e-5)

    s, t = row(-3, -0.6, 0.1, 3, 0.2, -0.6), row(-2, -0.3, 0.5, 2, -0.3, -2)
    value = ofd_loss(s, t, torch.tensor([-0.797885]))
    assert value.item() == pytest.approx(1.449158, abs=1e-5)


def test_ofd_condition_looks_at_the_target_and_not_at_the_teacher() -> None:
    # Against the raw teacher, -1 > -2 would count (-1 + 0.8)^2 = 0.04.
    assert ofd_loss(row(-1), row(-2), torch.tensor([-0.8])).item() == 0.0


def test_ofd_is_a_sum_over_an_image() -> None:
    s, t = torch.ones(2, 3, 4, 5), torch.full((2, 3, 4, 5), 2.0)
    assert ofd_loss(s, t, -torch.ones(3)).item() == 3 * 4 * 5


def test_ofd_of_its_own_target_is_zero() -> None:
    t = torch.randn(2, 3, 4, 5)
    margin = torch.tensor([-0.5, -1.0, -0.1])
    assert ofd_loss(torch.maximum(t, margin.reshape(1, 3, 1, 1)), t, margin).item() == 0.0


# PKD


def test_pkd_does_not_see_scale_and_shift() -> None:
    s, t = torch.randn(2, 2, 3, 4, 5, dtype=torch.float64)
    scale = torch.tensor([0.5, 3.0, 40.0]).double().reshape(1, 3, 1, 1)
    changed = pkd_loss(scale * s - 7, t)
    assert changed.item() == pytest.approx(pkd_loss(s, t).item(), rel=1e-5)
    assert pkd_loss(3 * t + 7, t).item() == pytest.approx(0, abs=1e-11)


def test_pkd_of_the_opposite() -> None:
    t = torch.randn(2, 3, 4, 4)
    assert pkd_loss(-t, t).item() == pytest.approx(1.9375, abs=1e-4)  # 2 (n - 1)/n, n = 32
    ramp = torch.tensor([1.0, 2.0, 3.0, 4.0]).reshape(1, 1, 2, 2)
    assert pkd_loss(ramp.flip(2, 3), ramp).item() == pytest.approx(1.5, abs=1e-4)


def test_pkd_is_one_minus_the_correlation() -> None:
    s, t = torch.randn(2, 2, 3, 4, 5, dtype=torch.float64)
    pairs = [torch.stack([s[:, c].flatten(), t[:, c].flatten()]) for c in range(3)]
    correlation = torch.stack([torch.corrcoef(pair)[0, 1] for pair in pairs])
    expected = 39 / 40 * (1 - correlation).mean()
    assert pkd_loss(s, t).item() == pytest.approx(expected.item(), rel=1e-5)


# FGFI


def toy_anchors() -> Tensor:
    """One 32x32 anchor a cell, centred on (16 x, 16 y), on a grid of 4 rows and 6 columns."""
    y, x = torch.meshgrid(16.0 * torch.arange(4), 16.0 * torch.arange(6), indexing='ij')
    return torch.stack([x - 16, y - 16, x + 16, y + 16], -1)[:, :, None]


def marked(box: list[float], psi: float = 0.5) -> list[list[int]]:
    (mask,) = imitation_mask([toy_anchors()], torch.tensor([box]), psi)
    return mask.nonzero().tolist()


def test_mask_of_a_box_that_an_anchor_fits() -> None:
    box = [16.0, 0.0, 48.0, 32.0]
    assert marked(box) == [[1, 2]]
    # The neighbours overlap by 1/3, the diagonal ones by 1/7: the share decides who is in.
    assert len(marked(box, 0.334)) == 1
    assert len(marked(box, 0.333)) == 5
    assert len(marked(box, 0.143)) == 5
    assert len(marked(box, 0.142)) == 9


def test_mask_of_a_box_between_anchors() -> None:
    box = [20.0, 4.0, 52.0, 36.0]
    assert marked(box) == [[1, 2], [1, 3], [2, 2]]
    # Best overlap 0.620253, then 0.376344 and 0.196262.
    assert len(marked(box, 0.376345 / 0.620252)) == 1
    assert len(marked(box, 0.376343 / 0.620254)) == 3
    assert len(marked(box, 0.196261 / 0.620254)) >= 5


def test_mask_of_a_box_far_away_is_empty() -> None:
    # With >= in place of >, every cell would pass.
    assert marked([900.0, 900.0, 932.0, 932.0]) == []
    assert marked([900.0, 900.0, 932.0, 932.0], psi=0.0) == []


@pytest.mark.parametrize(
    ('side', 'level'), [(20, 0), (56, 0), (111, 0), (112, 1), (224, 2), (448, 3)]
)
def test_assigned_level(side: float, level: int) -> None:
    anchors = [torch.tensor([0.0, 0.0, 600.0, 600.0]).reshape(1, 1, 1, 4)] * 5
    masks = imitation_mask(anchors, torch.tensor([[0.0, 0.0, side, side]]), policy='assigned')
    assert [bool(m.any()) for m in masks] == [i == level for i in range(5)]


def test_global_policy_compares_across_levels_and_per_level_does_not() -> None:
    centre = torch.tensor([100.0, 100.0, 100.0, 100.0])
    corner = torch.tensor([-1.0, -1.0, 1.0, 1.0])
    anchors = [(centre + half * corner).reshape(1, 1, 1, 4) for half in (16.0, 32.0, 64.0)]

    def lit(side: float, policy: str) -> list[bool]:
        box = (centre + side / 2 * corner)[None]
        return [bool(m.any()) for m in imitation_mask(anchors, box, policy=policy)]

    assert lit(32, 'global') == [True, False, False]  # the next level overlaps by 1/4
    assert lit(48, 'global') == [True, True, False]  # 4/9 and 9/16
    assert lit(32, 'per_level') == [True, True, True]


def test_imitation_sums_channels_and_halves() -> None:
    teacher = torch.zeros(1, 3, 2, 2)
    teacher[0, :, 1, 0] = torch.tensor([1.0, 3.0, 5.0])
    mask = torch.zeros(1, 2, 2, dtype=torch.bool)
    mask[0, 1, 0] = True
    value = imitation_loss([torch.zeros(1, 3, 2, 2)], [teacher], [mask])
    assert value.item() == 17.5


def test_imitation_pools_cells_over_levels() -> None:
    students = [torch.zeros(1, 1, 1, 3), torch.zeros(1, 1, 1, 1)]
    teachers = [torch.ones(1, 1, 1, 3), torch.full((1, 1, 1, 1), 3.0)]
    masks = [torch.ones(1, 1, 3, dtype=torch.bool), torch.ones(1, 1, 1, dtype=torch.bool)]
    assert imitation_loss(students, teachers, masks).item() == (3 * 1 + 9) / (2 * 4)


# Sigmoid logits


def test_kd_qfl_and_binary_kl() -> None:
    s, t = torch.tensor([[0.0], [2.0]]), torch.tensor([[0.0], [-2.0]])
    for loss, expected in ((kd_qfl_loss, 1.438287), (binary_kl_loss, 1.523188)):
        assert loss(s[:1], t[:1]).item() == pytest.approx(0.0, abs=1e-7)
        assert loss(s[1:], t[1:]).item() == pytest.approx(expected, abs=1e-6)
        assert loss(s, t).item() == pytest.approx(expected / 2, abs=1e-6)


def test_cross_entropy_has_a_floor_and_binary_kl_has_not() -> None:
    z = torch.tensor([[-2.0]])
    assert kd_qfl_loss(z, z, beta=0.0).item() == pytest.approx(0.36533, abs=1e-5)
    assert binary_kl_loss(z, z).item() == pytest.approx(0.0, abs=1e-7)


def test_gradient_of_binary_kl_is_the_difference_of_probabilities() -> None:
    s, t = torch.randn(2, 4, 3, dtype=torch.float64)
    s.requires_grad_()
    binary_kl_loss(s, t, avg_factor=1.0).backward()
    torch.testing.assert_close(s.grad, (s.sigmoid() - t.sigmoid()).detach())


def test_a_common_shift_of_all_logits_is_seen() -> None:
    t = torch.randn(4, 3)
    for loss in (kd_qfl_loss, binary_kl_loss):
        assert loss(t + 1, t).item() > 0.05


def test_temperature_is_squared() -> None:
    s, t = torch.randn(2, 4, 3, dtype=torch.float64)
    warm = binary_kl_loss(3 * s, 3 * t, tau=3.0)
    assert warm.item() == pytest.approx(9 * binary_kl_loss(s, t).item(), rel=1e-9)
    # Where logits are small against tau, the loss is that of logits: sum (z_s - z_t)^2 / 8.
    hot = binary_kl_loss(s, t, tau=1000.0, avg_factor=1)
    assert hot.item() == pytest.approx(((s - t) ** 2).sum().item() / 8, rel=1e-3)
    assert math.isfinite(hot.item())
