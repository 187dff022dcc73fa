"""Relations: single numbers that the papers, their code or plain arithmetic fix."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from densekd.core.taps import Place, Tap
from densekd.methods import (
    CCLoss,
    FELoss,
    FTLoss,
    KDSVDLoss,
    NSTLoss,
    PKTLoss,
    RKDLoss,
    SPLoss,
    VIDLoss,
    cc_loss,
    fsp_loss,
    fsp_matrix,
    ft_loss,
    kdsvd_loss,
    lp_loss,
    nst_loss,
    paraphraser_loss,
    pkt_loss,
    rkd_angle_loss,
    rkd_distance_loss,
    sp_loss,
    vid_loss,
)

Loss = Callable[[Tensor, Tensor], Tensor]

TRIANGLE = torch.tensor([[0.0, 0.0], [3.0, 0.0], [0.0, 4.0]])
CORNER = torch.tensor([[0.0, 0.0], [1.0, 0.0], [0.0, 1.0]])


def rotation(size: int) -> Tensor:
    return torch.linalg.qr(torch.randn(size, size, dtype=torch.float64))[0]


# RKD


def test_rkd_of_two_triangles() -> None:
    assert rkd_distance_loss(TRIANGLE, CORNER).item() == pytest.approx(0.00348125, rel=1e-5)
    assert rkd_angle_loss(TRIANGLE, CORNER).item() == pytest.approx(0.000744482, rel=1e-4)
    loss = RKDLoss(loss_weight=25.0)(TRIANGLE, CORNER).item()
    assert loss == pytest.approx(25 * (0.00348125 + 2 * 0.000744482), rel=1e-4)


@pytest.mark.parametrize('loss', [rkd_distance_loss, rkd_angle_loss])
def test_rkd_is_blind_to_where_a_side_lies_and_how_large_it_is(loss: Loss) -> None:
    s, t = torch.randn(6, 4).double(), torch.randn(6, 3).double()
    expected = loss(s, t)
    assert expected > 0
    torch.testing.assert_close(loss(7.0 * s @ rotation(4) + 2.0, t), expected)
    torch.testing.assert_close(loss(s, 0.1 * t @ rotation(3) - 5.0), expected)
    assert loss(s, 3 * s @ rotation(4)).item() < 1e-25


def test_rkd_leaves_out_what_has_no_factor() -> None:
    s, t = torch.randn(5, 4), torch.randn(5, 3)
    torch.testing.assert_close(RKDLoss(angle=0.0)(s, t), rkd_distance_loss(s, t))
    torch.testing.assert_close(RKDLoss(distance=0.0)(s, t), 2 * rkd_angle_loss(s, t))


# PKT


def test_pkt_of_two_images() -> None:
    value = pkt_loss(torch.eye(2), torch.tensor([[1.0, 0.0], [1.0, 0.0]])).item()
    # Each row is (2/3, 1/3) in the student, and (1/2, 1/2) in the teacher.
    row = 0.5 * math.log(0.5 / (2 / 3)) + 0.5 * math.log(0.5 / (1 / 3))
    assert value == pytest.approx(0.0294457, rel=1e-5) == pytest.approx(row / 2, rel=1e-5)


def test_pkt_is_the_authors_to_n_parts_in_ten_millions() -> None:
    """As passalis/probabilistic_kt has it: the constant stands within the logarithm alone."""
    s, t = torch.randn(8, 4).double(), torch.randn(8, 3).double()

    def neighbours(x: Tensor) -> Tensor:
        unit = x / x.norm(dim=1, keepdim=True)
        kernel = (unit @ unit.T + 1) / 2
        return kernel / kernel.sum(1, keepdim=True)

    q, p = neighbours(s), neighbours(t)
    theirs = (p * torch.log((p + 1e-7) / (q + 1e-7))).mean()
    torch.testing.assert_close(pkt_loss(s, t), theirs, rtol=1e-6, atol=0)


def test_pkt_is_blind_to_rotation_and_to_the_length_of_each_vector() -> None:
    s, t = torch.randn(6, 4).double(), torch.randn(6, 3).double()
    lengths = torch.rand(6, 1).double() + 0.1
    torch.testing.assert_close(pkt_loss(lengths * s @ rotation(4), lengths * t), pkt_loss(s, t))
    assert pkt_loss(s, lengths * s).abs().item() < 1e-15


# SP


def test_sp_by_hand() -> None:
    value = sp_loss(torch.eye(2), torch.ones(2, 1)).item()
    assert value == pytest.approx(2 * ((1 - 0.5**0.5) ** 2 + 0.5) / 4)


def test_sp_is_blind_to_scale_and_to_the_form_of_the_maps() -> None:
    s, t = torch.randn(5, 3, 2, 4), torch.randn(5, 6, 3, 3)
    expected = sp_loss(s, t)
    torch.testing.assert_close(sp_loss(7 * s, 0.1 * t), expected)
    torch.testing.assert_close(sp_loss(s.flatten(1).flip(1), t.transpose(1, 3)), expected)
    assert sp_loss(s, -s).item() == 0.0
    larger = s.clone()
    larger[0] *= 3  # one image among the others
    assert sp_loss(larger, s).item() > 1e-3


# CC


def test_cc_by_hand() -> None:
    value = cc_loss(torch.eye(2), torch.tensor([[1.0, 0.0], [2.0, 0.0]])).item()
    assert value == pytest.approx((math.exp(-0.8) * (0.8 + 0.32)) ** 2 / 2)


def test_cc_is_close_to_the_kernel_that_it_stands_for() -> None:
    """Of vectors that are near, the series has little left behind its second order."""
    s, t = (torch.randn(4, 3).double() * 0.2 + 1 for _ in range(2))

    def kernel(x: Tensor) -> Tensor:
        unit = x / x.norm(dim=1, keepdim=True)
        return torch.exp(-0.02 * torch.cdist(unit, unit) ** 2)

    full = (kernel(s) - kernel(t)).square().mean()
    torch.testing.assert_close(cc_loss(s, t, gamma=0.02), full, rtol=0.01, atol=0)


# FE


def test_lp_by_hand() -> None:
    s, t = torch.tensor([[0.0], [1.0], [5.0]]), torch.tensor([[0.0], [2.0], [5.0]])
    scale = 17 / 3
    expected = (2 * math.exp(-4 / scale) + 16 * math.exp(-9 / scale)) / 3
    assert lp_loss(s, t, k=1).item() == pytest.approx(expected)


def test_lp_is_nothing_where_the_student_has_collapsed_and_four_times_where_it_doubles() -> None:
    s, t = torch.randn(7, 4), torch.randn(7, 3)
    assert lp_loss(torch.ones(7, 4), t).item() == 0.0
    torch.testing.assert_close(lp_loss(2 * s, t), 4 * lp_loss(s, t))
    torch.testing.assert_close(lp_loss(s, 9 * t), lp_loss(s, t))
    assert lp_loss(s, s).item() > 0.1
    torch.testing.assert_close(FELoss(unit=True)(3 * s, 2 * t), FELoss(unit=True)(s, t))


def test_lp_has_no_pairs_between_clusters() -> None:
    t = torch.cat([torch.randn(4, 2), torch.randn(4, 2) + 100])
    s = torch.randn(8, 3)
    moved = s + torch.tensor([0.0] * 4 + [50.0] * 4)[:, None]
    torch.testing.assert_close(lp_loss(moved, t, k=3), lp_loss(s, t, k=3), rtol=1e-4, atol=0)
    assert lp_loss(moved, t, k=4) > 10 * lp_loss(s, t, k=4)


# NST


def test_nst_of_the_linear_kernel_is_the_distance_of_two_mean_channels() -> None:
    s, t = torch.randn(3, 4, 2, 3), torch.randn(3, 5, 2, 3)
    means = [(x.flatten(2) / x.flatten(2).norm(dim=2, keepdim=True)).mean(1) for x in (s, t)]
    expected = (means[0] - means[1]).square().sum(1).mean()
    torch.testing.assert_close(nst_loss(s, t, 'linear'), expected)


@pytest.mark.parametrize('kernel', ['linear', 'poly', 'gaussian'])
@pytest.mark.parametrize('size', [(2, 2), (5, 6)])  # fewer cells than channels, and more
def test_nst_is_blind_to_scale_order_and_number_of_channels(
    kernel: str, size: tuple[int, int]
) -> None:
    s, t = torch.randn(2, 6, *size).double(), torch.randn(2, 5, *size).double()
    expected = nst_loss(s, t, kernel)
    assert expected > 1e-3
    scale = torch.rand(1, 6, 1, 1).double() + 0.5
    for same in (scale * s, s[:, torch.randperm(6)], torch.cat([s, s], 1)):
        torch.testing.assert_close(nst_loss(same, t, kernel), expected)
        assert abs(nst_loss(same, s, kernel).item()) < 1e-12
    torch.testing.assert_close(nst_loss(torch.cat([s, s]), torch.cat([t, t]), kernel), expected)


def test_nst_by_hand() -> None:
    x = torch.tensor([[1.0, 0.0], [0.0, 2.0]]).reshape(1, 2, 1, 2)
    first = x[:, :1]
    assert nst_loss(x, first).item() == pytest.approx(0.5)
    # Squared distances across are 0 and 2: sigma2 = 1.
    expected = (1 + math.exp(-1)) / 2 + 1 - 2 * (1 + math.exp(-1)) / 2
    assert nst_loss(x, first, 'gaussian').item() == pytest.approx(expected)
    assert nst_loss(x, first, 'gaussian', sigma2=1.0).item() == pytest.approx(expected)
    assert NSTLoss(loss_weight=50.0)(x, first).item() == pytest.approx(25.0)


# FSP


def test_fsp_of_ones_is_ones() -> None:
    ones = fsp_matrix(torch.ones(2, 3, 4, 5), torch.ones(2, 4, 4, 5))
    torch.testing.assert_close(ones, torch.ones(2, 3, 4))
    first, second = torch.randn(2, 3, 1, 1), torch.randn(2, 4, 1, 1)
    outer = first[:, :, 0] * second[:, None, :, 0, 0]
    torch.testing.assert_close(fsp_matrix(first, second), outer)


def test_fsp_pools_the_larger_map_by_its_maximum() -> None:
    first = torch.tensor([[1.0, 5.0], [2.0, 3.0]]).reshape(1, 1, 2, 2)
    second = torch.tensor([10.0, 100.0]).reshape(1, 1, 2, 1)
    assert fsp_matrix(first, second).item() == (5 * 10 + 3 * 100) / 2


def test_fsp_grows_with_the_square_and_does_not_see_positions() -> None:
    s, t = torch.randn(2, 3, 2, 3), torch.randn(2, 3, 2, 4)
    torch.testing.assert_close(fsp_matrix(2 * s, 2 * t), 4 * fsp_matrix(s, t))
    shuffled = [
        x.flatten(2)[:, :, torch.tensor([4, 2, 0, 5, 1, 3])].reshape(2, 3, 2, 3) for x in (s, s + 1)
    ]
    torch.testing.assert_close(fsp_matrix(*shuffled), fsp_matrix(s, s + 1))
    assert fsp_loss((s, s + 1), shuffled).item() < 1e-12
    with_twice = fsp_loss(
        (torch.cat([s, s]), torch.cat([t, t])), (torch.cat([t, t]), torch.cat([s, s]))
    )
    torch.testing.assert_close(with_twice, fsp_loss((s, t), (t, s)))


# KD-SVD


def test_kdsvd_by_hand() -> None:
    x = torch.ones(1, 1, 1, 2)
    y = torch.tensor([[2.0, 0.0], [0.0, 1.0]]).reshape(1, 2, 1, 2)
    # The teacher's first vectors are (1) and (1, 0); those of the turned student (1) and (0, 1).
    expected = 2 * (1 - math.exp(-1 / 8)) ** 2
    assert kdsvd_loss([x, y.flip(1)], [x, y], k=1).item() == pytest.approx(expected)


def maps_in_a_row(channels: int = 4) -> list[Tensor]:
    sizes = ((3, 4, 4), (channels, 2, 3), (6, 2, 2))
    return [torch.randn(2, *size, dtype=torch.float64) for size in sizes]


@pytest.mark.parametrize('basis', ['teacher', 'own'])
def test_kdsvd_is_blind_to_scale_and_to_positions(basis: str) -> None:
    students, teachers = maps_in_a_row(), maps_in_a_row()
    expected = kdsvd_loss(students, teachers, basis)
    assert expected > 1e-3
    for factor in (3.0, 0.1):
        scaled = [factor * x for x in students]
        torch.testing.assert_close(kdsvd_loss(scaled, teachers, basis), expected)
        scaled = [factor * x for x in teachers]
        torch.testing.assert_close(kdsvd_loss(students, scaled, basis), expected)
    orders = [torch.randperm(x.shape[2:].numel()) for x in students]

    def shuffled(maps: list[Tensor]) -> list[Tensor]:
        pairs = zip(maps, orders, strict=True)
        return [x.flatten(2)[:, :, order].reshape(x.shape) for x, order in pairs]

    value = kdsvd_loss(shuffled(students), shuffled(teachers), basis)
    torch.testing.assert_close(value, expected)
    twice = ([torch.cat([x, x]) for x in side] for side in (students, teachers))
    torch.testing.assert_close(kdsvd_loss(*twice, basis), expected)


@pytest.mark.parametrize('basis', ['teacher', 'own'])
def test_kdsvd_is_nothing_between_equals(basis: str) -> None:
    maps = maps_in_a_row()
    for k in (1, 2, 4, 9):
        assert kdsvd_loss([5 * x for x in maps], maps, basis, k).item() < 1e-20
    assert KDSVDLoss(basis=basis)([x.float() for x in maps], [x.float() for x in maps]) < 1e-8


def test_kdsvd_with_a_basis_of_its_own_does_not_see_signs() -> None:
    students, teachers = maps_in_a_row(), maps_in_a_row()
    turned = [-students[0], *students[1:]]
    expected = kdsvd_loss(students, teachers, 'own')
    torch.testing.assert_close(kdsvd_loss(turned, teachers, 'own'), expected)
    assert abs(kdsvd_loss(turned, teachers) - kdsvd_loss(students, teachers)) > 1e-3


# VID


def raw_of(variance: float, eps: float = 1e-5) -> Tensor:
    return torch.tensor([math.log(math.expm1(variance - eps))], dtype=torch.float64)


def test_vid_of_an_exact_mean_is_half_the_logarithm_of_the_variance() -> None:
    x = torch.randn(2, 1, 3, 3, dtype=torch.float64)
    for variance, value in ((5.0, 0.804719), (1.0, 0.0), (1e-4, 0.5 * math.log(1e-4))):
        assert vid_loss(x, x, raw_of(variance)).item() == pytest.approx(value, abs=1e-6)
    assert vid_loss(x, x, torch.full((1,), -50.0)).item() == pytest.approx(-5.756, abs=1e-3)


def test_vid_with_a_variance_of_1_is_half_the_squared_error() -> None:
    s, t = torch.randn(2, 2, 1, 3, 3, dtype=torch.float64)
    torch.testing.assert_close(vid_loss(s, t, raw_of(1.0)), 0.5 * (s - t).square().mean())


def test_vid_is_least_where_the_variance_is_the_squared_error() -> None:
    s, t = torch.randn(2, 2, 1, 3, 3, dtype=torch.float64)
    raw = raw_of((s - t).square().mean().item()).requires_grad_()
    vid_loss(s, t, raw).backward()
    assert raw.grad is not None and abs(raw.grad.item()) < 1e-12


def test_vid_starts_from_a_variance_of_5() -> None:
    loss = VIDLoss()
    loss.bind(*(Place(Tap('x'), ((1, 3, 2, 2),), (None,)) for _ in range(2)))
    raw = loss.raw_variance
    assert raw is not None and raw.tolist() == pytest.approx([4.99323] * 3, abs=2e-5)
    x = torch.randn(2, 3, 2, 2)
    assert loss(x, x).item() == pytest.approx(0.804719, rel=1e-5)


# FT


def test_ft_by_hand_and_blind_to_scale() -> None:
    s, t = torch.tensor([[[[3.0, 4.0]]]]), torch.tensor([[[[2.0, 0.0]]]])
    assert ft_loss(s, t).item() == pytest.approx((0.4 + 0.8) / 2)
    assert ft_loss(s, t, p=2).item() == pytest.approx((0.16 + 0.64) / 2)
    assert FTLoss(loss_weight=500.0)(7 * s, 0.1 * t).item() == pytest.approx(300.0)
    x = torch.randn(3, 4, 2, 2).double()
    assert ft_loss(5 * x, x).item() < 1e-16 and ft_loss(-x, x) > 0.1
    assert paraphraser_loss(torch.zeros(1, 2, 1, 2), torch.full((1, 2, 1, 2), -3.0)).item() == 9.0


# All of them


def test_a_map_stands_for_its_mean() -> None:
    s, t = torch.randn(5, 4, 2, 3), torch.randn(5, 3, 4, 4)
    for loss in (RKDLoss(), PKTLoss(), CCLoss(), FELoss()):
        torch.testing.assert_close(loss(s, t), loss(s.mean((2, 3)), t.mean((2, 3))))
    assert SPLoss()(s, t) != SPLoss()(s.mean((2, 3)), t.mean((2, 3)))
