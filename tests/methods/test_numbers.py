"""Single numbers that the papers, their code or plain arithmetic fix."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from densekd.methods import (
    MGDLoss,
    ab_loss,
    at_loss,
    attention_map,
    binary_kl_loss,
    bounded_regression_loss,
    cwd_loss,
    ensemble_kd_loss,
    hint_loss,
    imitation_loss,
    imitation_mask,
    kd_loss,
    kd_qfl_loss,
    margin_from_bn,
    mgd_loss,
    ofd_loss,
    pkd_loss,
    weighted_soft_label_loss,
    weighted_soft_objectness_loss,
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


# AT


def test_attention_by_hand() -> None:
    assert at_loss(row(1, 0), row(0, 2)).item() == 1.0  # unit maps (1, 0), (0, 1): (1 + 1) / 2
    feature = torch.tensor([[1.0, -2.0], [-3.0, 0.5]]).reshape(1, 2, 1, 2)
    assert attention_map(feature, p=1).tolist() == [[[4.0, 2.5]]]  # signs do not cancel
    assert attention_map(feature, p=3).tolist() == [[[28.0, 8.125]]]
    assert attention_map(feature, kind='max').tolist() == [[[9.0, 4.0]]]


def test_attention_does_not_see_scale_channel_order_or_channel_count() -> None:
    s, t = torch.randn(2, 2, 3, 4, 5, dtype=torch.float64)
    value = at_loss(s, t)
    for same in (-7 * s, 1e-3 * s, s[:, [2, 0, 1]], torch.cat([s, s], 1)):
        torch.testing.assert_close(at_loss(same, t), value)
    torch.testing.assert_close(at_loss(s, 1e3 * t), value)
    torch.testing.assert_close(at_loss(torch.cat([s, s]), torch.cat([t, t])), value)
    assert at_loss(s, -2 * s).item() == pytest.approx(0, abs=1e-15)


def test_attention_is_at_most_two_over_the_number_of_cells() -> None:
    s, t = torch.zeros(2, 1, 3, 4, 5)
    s[..., 0, 0], t[..., 3, 4] = 1.0, 1.0
    assert at_loss(s, t).item() == pytest.approx(2 / 20)
    assert at_loss(torch.randn(4, 3, 1, 1), torch.randn(4, 3, 1, 1)).item() == 0.0


# AB


def test_boundaries_by_hand() -> None:
    s, t = row(0, 2, -3, 0.5), row(1, 1, -1, -1)
    terms = [ab_loss(s[..., i : i + 1], t[..., i : i + 1]).item() for i in range(4)]
    assert terms == [1.0, 0.0, 0.0, 2.25]
    assert ab_loss(s, t).item() == 3.25


def test_boundaries_do_not_see_the_scale_of_the_teacher() -> None:
    s, t = torch.randn(2, 2, 3, 4, 5)
    assert ab_loss(s, 40 * t).item() == ab_loss(s, t).item()
    assert ab_loss(s, t.relu()).item() == ab_loss(s, t).item()  # 0 counts as inactive
    assert ab_loss(3 * s, t).item() != ab_loss(s, t).item()


def test_boundaries_of_a_student_at_zero_are_the_squared_margin_of_each_element() -> None:
    assert ab_loss(torch.zeros(2, 3, 4, 5), torch.randn(2, 3, 4, 5), 2.0).item() == 4.0 * 60


def test_boundaries_are_not_zero_between_equal_maps() -> None:
    assert ab_loss(row(0.5, -0.25), row(0.5, -0.25)).item() == 0.25 + 0.5625
    assert ab_loss(row(1.5, -1.25), row(1.5, -1.25)).item() == 0.0


# CWD


def test_channels_as_distributions_by_hand() -> None:
    third = math.log(3)
    assert cwd_loss(row(0, 0), row(0, third)).item() == pytest.approx(0.130812, abs=1e-6)
    s = row(0, 1, 2, 3).reshape(1, 1, 2, 2)
    t = s.flip(2, 3)
    assert cwd_loss(s, t).item() == pytest.approx(1.985305, abs=1e-6)
    assert cwd_loss(s, t, tau=4.0).item() == pytest.approx(2.456761, abs=1e-6)
    assert cwd_loss(s + 5, t).item() == pytest.approx(1.985305, abs=1e-6)
    twice = [torch.cat([x, x], 1) for x in (s, t)]
    assert cwd_loss(*twice).item() == pytest.approx(1.985305, abs=1e-6)
    assert cwd_loss(2 * s, t).item() != pytest.approx(1.985305, abs=1e-2)


def test_channels_do_not_see_a_constant_of_their_own() -> None:
    s, t = torch.randn(2, 2, 3, 4, 5, dtype=torch.float64)
    shift = torch.randn(2, 3, 1, 1, dtype=torch.float64)
    torch.testing.assert_close(cwd_loss(s + shift, t - 3 * shift), cwd_loss(s, t))
    assert cwd_loss(t + shift, t).item() == pytest.approx(0, abs=1e-14)


def test_gradient_of_channels_is_the_difference_of_shares() -> None:
    s, t = torch.randn(2, 2, 3, 4, 5, dtype=torch.float64)
    s.requires_grad_()
    cwd_loss(s, t, tau=2.0).backward()
    shares = [x.detach().flatten(2).div(2.0).softmax(2).reshape(x.shape) for x in (s, t)]
    torch.testing.assert_close(s.grad, 2.0 * (shares[0] - shares[1]) / 6)


# MGD


def test_generation_that_changes_nothing_is_a_squared_distance() -> None:
    s, t = torch.randn(2, 2, 3, 4, 5, dtype=torch.float64)
    every = torch.ones(2, 1, 4, 5)
    value = mgd_loss(s, t, torch.nn.Identity(), every)
    torch.testing.assert_close(value, (s - t).square().sum() / 2)
    assert mgd_loss(t, t, torch.nn.Identity(), every).item() == 0.0


def test_generation_from_nothing_does_not_see_the_student() -> None:
    s, t = torch.randn(2, 2, 3, 4, 5, dtype=torch.float64)
    s.requires_grad_()
    value = mgd_loss(s, t, torch.nn.Identity(), torch.zeros(2, 3, 1, 1))
    value.backward()
    torch.testing.assert_close(value.detach(), t.square().sum() / 2)
    assert not s.grad.any()


def test_masks_have_the_published_share_and_one_value_a_position_or_a_channel() -> None:
    x = torch.zeros(4, 50, 40, 60)
    mask = MGDLoss(masked=0.65).mask(x, seed=0)
    assert mask.shape == (4, 1, 40, 60)
    assert mask.float().mean().item() == pytest.approx(0.35, abs=0.02)
    mask = MGDLoss(masked=0.15, mask_kind='channel').mask(x, seed=0)
    assert mask.shape == (4, 50, 1, 1)
    assert mask.float().mean().item() == pytest.approx(0.85, abs=0.06)
    assert MGDLoss(masked=0.0).mask(x, seed=0).all()
    assert not MGDLoss(masked=1.0).mask(x, seed=0).any()


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


# KD


def test_kd_by_hand() -> None:
    s, t = torch.tensor([[0.0, 0.0]]), torch.tensor([[0.0, 2.0]])
    assert kd_loss(s, t, tau=2.0).item() == pytest.approx(0.443777, abs=1e-6)
    assert kd_loss(s, t, tau=1.0).item() == pytest.approx(0.327813, abs=1e-6)


def test_kd_of_a_map_is_the_mean_over_its_pixels() -> None:
    s = torch.zeros(2, 2, 4, 5)
    t = torch.tensor([0.0, 2.0]).reshape(1, 2, 1, 1).expand_as(s)
    # Divided by the images alone, it would be 20 times that of one pixel.
    assert kd_loss(s, t, tau=2.0).item() == pytest.approx(0.443777, abs=1e-6)


def test_kd_pools_valid_pixels_over_images() -> None:
    s = torch.zeros(2, 2, 1, 3)
    t = torch.zeros(2, 2, 1, 3)
    t[0, 1] = 2.0
    valid = torch.tensor([[[True, False, False]], [[True, True, True]]])
    # One pixel of four, and not the mean of one of one and none of three.
    value = kd_loss(s, t, tau=2.0, valid=valid)
    assert value.item() == pytest.approx(0.443777 / 4, abs=1e-6)


def test_gradient_of_kd() -> None:
    s, t = torch.randn(2, 5, 3, dtype=torch.float64)
    for tau in (1.0, 4.0):
        x = s.clone().requires_grad_()
        kd_loss(x, t, tau).backward()
        expected = tau * ((s / tau).softmax(1) - (t / tau).softmax(1)) / 5
        torch.testing.assert_close(x.grad, expected)


def test_kd_of_equal_logits_up_to_a_constant_is_zero_and_flat() -> None:
    t = torch.randn(5, 3, dtype=torch.float64)
    s = (t + 7 * torch.randn(5, 1, dtype=torch.float64)).requires_grad_()
    value = kd_loss(s, t)
    value.backward()
    assert value.item() == pytest.approx(0, abs=1e-14)
    assert float(s.grad.abs().max()) < 1e-14


def test_hot_kd_is_that_of_centred_logits() -> None:
    s, t = torch.randn(2, 5, 3, dtype=torch.float64)
    gap = (s - s.mean(1, keepdim=True)) - (t - t.mean(1, keepdim=True))
    expected = gap.square().sum(1).mean().item() / (2 * 3)
    assert kd_loss(s, t, tau=1000.0).item() == pytest.approx(expected, rel=1e-3)


@pytest.mark.parametrize(('mode', 'p'), [('mean_prob', 0.2590), ('mean_logit', 0.1192)])
def test_ensembles_average_probabilities_or_logits(mode: str, p: float) -> None:
    teachers = [torch.tensor([[0.0, 4.0]]), torch.tensor([[0.0, 0.0]])]
    s = torch.zeros(1, 2, requires_grad=True)
    ensemble_kd_loss(s, teachers, tau=1.0, mode=mode).backward()
    assert s.grad[0].tolist() == pytest.approx([0.5 - p, p - 0.5], abs=1e-4)


def test_an_ensemble_averages_at_the_temperature() -> None:
    teachers = [torch.tensor([[0.0, 4.0]]), torch.tensor([[0.0, 0.0]])]
    s = torch.zeros(1, 2, requires_grad=True)
    ensemble_kd_loss(s, teachers, tau=2.0).backward()
    first, second = 1 / (1 + math.exp(2)), 0.5
    p = (first + second) / 2
    assert s.grad[0].tolist() == pytest.approx([2 * (0.5 - p), 2 * (p - 0.5)], abs=1e-6)


@pytest.mark.parametrize('mode', ['mean_prob', 'mean_logit'])
def test_a_teacher_counted_thrice_is_one_teacher(mode: str) -> None:
    s, t = torch.randn(2, 4, 3)
    value = ensemble_kd_loss(s, [t, t, t], mode=mode)
    torch.testing.assert_close(value, kd_loss(s, t))


# Chen 2017


def test_weighted_soft_labels_by_hand() -> None:
    t = torch.tensor([[2.0, 0.0, 1.0], [0.0, 0.0, 3.0]])
    s = torch.tensor([[1.0, 1.0, 1.0], [0.0, 1.0, 2.0]])
    rows = [weighted_soft_label_loss(s[i : i + 1], t[i : i + 1]).item() for i in range(2)]
    assert rows == pytest.approx([1.233043, 0.728789], abs=1e-6)
    # The background is the last column: with the weight on the first it would be 1.0310.
    assert weighted_soft_label_loss(s, t).item() == pytest.approx(0.980916, abs=1e-6)
    assert weighted_soft_label_loss(s, t, 1.0).item() == pytest.approx(0.821027, abs=1e-6)


def test_weighted_soft_labels_lean_to_the_background() -> None:
    p = torch.tensor([[0.2, 0.3, 0.5]], dtype=torch.float64)
    s = torch.tensor([[0.16, 0.24, 0.60]], dtype=torch.float64).log().requires_grad_()
    weighted_soft_label_loss(s, p.log()).backward()
    assert float(s.grad.abs().max()) < 1e-12
    s = p.log().requires_grad_()
    weighted_soft_label_loss(s, p.log()).backward()
    weight = torch.tensor([1.0, 1.0, 1.5]).double()
    torch.testing.assert_close(s.grad, p * (weight * p).sum() - weight * p)


@pytest.mark.parametrize('tau', [1.0, 3.0])
def test_unweighted_soft_labels_have_the_gradient_of_kd(tau: float) -> None:
    s, t = torch.randn(2, 5, 4, dtype=torch.float64)
    s.requires_grad_()
    (weighted,) = torch.autograd.grad(weighted_soft_label_loss(s, t, 1.0, tau), s)
    (plain,) = torch.autograd.grad(kd_loss(s, t, tau), s)
    torch.testing.assert_close(weighted, plain)


def test_objectness_is_a_softmax_over_object_and_background() -> None:
    s, t = torch.randn(2, 6, 2, dtype=torch.float64)
    value = weighted_soft_objectness_loss(s[:, 0] - s[:, 1], t[:, 0] - t[:, 1], 1.5)
    assert value.item() == pytest.approx(weighted_soft_label_loss(s, t, 1.5).item())


@pytest.mark.parametrize(
    ('margin', 'expected'),
    # The second box is better than the teacher's, but not by 0.03.
    [(0.0, [0, 0, 0.18, 0]), (0.01, [0, 0, 0.18, 0]), (0.03, [0, 0.04, 0.18, 0])],
)
def test_bounded_regression_by_hand(margin: float, expected: list[float]) -> None:
    # Errors of the student 0.04, 0.04, 0.18, 0 and of the teacher 0.08, 0.0625, 0.01, 0.25.
    y = torch.randn(4, 4, dtype=torch.float64)
    s, t = torch.zeros(2, 4, 4, dtype=torch.float64)
    s[0, 0], s[1, 3], s[2, 1], s[2, 2] = 0.2, -0.2, 0.3, 0.3
    t[0, 1], t[0, 2], t[1, 0], t[2, 2], t[3, 0] = 0.2, -0.2, 0.25, 0.1, -0.5
    s, t = s + y, t + y
    values = [
        bounded_regression_loss(s[i : i + 1], t[i : i + 1], y[i : i + 1], margin).item()
        for i in range(4)
    ]
    assert values == pytest.approx(expected, abs=1e-12)
    total = bounded_regression_loss(s, t, y, margin)
    assert total.item() == pytest.approx(sum(expected) / 4)
    assert bounded_regression_loss(s, t, y, margin, 10).item() == pytest.approx(sum(expected) / 10)


@pytest.mark.parametrize(('error', 'expected'), [(0.5, 0.5), (0.4, 0.0)])
def test_the_margin_is_how_far_the_student_must_be_ahead(error: float, expected: float) -> None:
    s = torch.tensor([[math.sqrt(error), 0.0, 0.0, 0.0]], requires_grad=True)
    t = torch.tensor([[0.0, math.sqrt(0.55), 0.0, 0.0]])
    value = bounded_regression_loss(s, t, torch.zeros(1, 4), margin=0.1)
    value.backward()
    assert value.item() == pytest.approx(expected, abs=1e-6)
    assert bool(s.grad.any()) == (expected > 0)


def test_a_student_as_good_as_its_teacher_is_left_alone_without_a_margin() -> None:
    s, y = torch.randn(2, 6, 4)
    assert bounded_regression_loss(s, s.clone(), y).item() == 0.0
    value = bounded_regression_loss(s, s.clone(), y, margin=1e-3, avg_factor=1)
    torch.testing.assert_close(value, (s - y).square().sum())
