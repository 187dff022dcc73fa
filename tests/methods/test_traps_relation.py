"""Relations: where the plain formula, a framework or a batch would go wrong."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from densekd.core.taps import Place, Tap
from densekd.errors import CheckpointError, ConfigError, ShapeError, TapError
from densekd.methods import (
    CCLoss,
    FELoss,
    FSPDistillationHead,
    FSPLoss,
    FTDistillationHead,
    FTLoss,
    KDSVDLoss,
    NSTLoss,
    Paraphraser,
    RKDLoss,
    VIDDistillationHead,
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
from densekd.methods.feature import nst
from densekd.methods.relation import rkd

Loss = Callable[[Tensor, Tensor], Tensor]

LOSSES: dict[str, Loss] = {
    'rkd_distance': rkd_distance_loss,
    'rkd_angle': rkd_angle_loss,
    'pkt': pkt_loss,
    'sp': sp_loss,
    'cc': cc_loss,
    'lp': lp_loss,
}
relations = pytest.mark.parametrize('loss', LOSSES.values(), ids=LOSSES.keys())


def gradient(loss: Loss, student: Tensor, teacher: Tensor) -> Tensor:
    x = student.detach().clone().requires_grad_()
    value = loss(x, teacher)
    assert bool(value.isfinite())
    value.backward()
    assert x.grad is not None and bool(x.grad.isfinite().all())
    return x.grad


# All of them


@relations
def test_images_that_coincide_have_an_ordinary_gradient(loss: Loss) -> None:
    s, t = torch.randn(2, 6, 4)
    for rows in ([0, 0, 2, 3, 4, 5], [0, 0, 0, 3, 3, 5], [1] * 6):
        assert gradient(loss, s[rows], t).abs().max() < 10
        assert gradient(loss, s, t[rows]).abs().max() < 10
        assert gradient(loss, s[rows], t[rows]).abs().max() < 10


@relations
def test_images_without_any_activation_have_an_ordinary_gradient(loss: Loss) -> None:
    s, t = torch.randn(2, 6, 4)
    for zeros in ([0], [1, 4], list(range(6))):
        bare = s.clone()
        bare[zeros] = 0
        assert gradient(loss, bare, t).abs().max() < 10
        bare = t.clone()
        bare[zeros] = 0
        assert gradient(loss, s, bare).abs().max() < 10


@relations
def test_one_image_relates_to_nothing(loss: Loss) -> None:
    for images in (0, 1):
        for s in (torch.randn(images, 4), torch.zeros(images, 4)):
            x = s.requires_grad_()
            value = loss(x, torch.randn(images, 3))
            value.backward()
            assert value.item() == 0.0 and x.grad is not None and not x.grad.any()


@relations
def test_the_order_of_the_images_does_not_matter(loss: Loss) -> None:
    s, t = torch.randn(7, 4).double(), torch.randn(7, 3).double()
    order = torch.randperm(7)
    torch.testing.assert_close(loss(s[order], t[order]), loss(s, t))


@relations
def test_no_gradient_reaches_the_teacher(loss: Loss) -> None:
    s, t = torch.randn(5, 4).requires_grad_(), torch.randn(5, 3).requires_grad_()
    loss(s, t).backward()
    assert t.grad is None and bool(s.grad.any())


@relations
def test_other_images_or_other_shapes_are_refused(loss: Loss) -> None:
    with pytest.raises(ShapeError, match='the student '):
        loss(torch.zeros(3, 4), torch.zeros(4, 4))
    if loss is not sp_loss:
        with pytest.raises(ShapeError, match=r'both must be one vector an image'):
            loss(torch.zeros(3, 4, 2, 2), torch.zeros(3, 4))
    with pytest.raises(ShapeError, match=r'RKDLoss: it compares one vector.*\(3, 4, 2\)'):
        RKDLoss()(torch.zeros(3, 4, 2), torch.zeros(3, 4))


@pytest.mark.parametrize('scale', [1e-6, 1.0, 1e6])
@pytest.mark.parametrize('name', ['rkd_distance', 'rkd_angle', 'pkt', 'sp', 'cc'])
def test_large_and_small_values_give_the_same(name: str, scale: float) -> None:
    s, t = torch.randn(6, 4), torch.randn(6, 3)
    expected = LOSSES[name](s.double(), t.double()).float()
    torch.testing.assert_close(LOSSES[name](scale * s, scale * t), expected, rtol=1e-4, atol=1e-7)


def test_of_opposite_images_alone_pkt_has_nothing_to_say() -> None:
    s = torch.tensor([[1.0, 0.0], [-1.0, 0.0]])
    options = {'exclude_self': True}
    value = gradient(lambda s, t: pkt_loss(s, t, **options), s, torch.randn(2, 3))
    assert value.isfinite().all() and value.abs().max() < 1e-3


# RKD


@pytest.mark.parametrize('loss', [rkd_distance_loss, rkd_angle_loss])
def test_far_from_the_origin_no_digits_are_lost(loss: Loss) -> None:
    """Inner products of such vectors are equal to six digits, their distances are not."""
    s, t = torch.randn(8, 16), torch.randn(8, 16)
    far = s + 300.0
    expected = loss(far.double(), t.double()).float()  # what float32 holds of them is exact
    torch.testing.assert_close(loss(far, t), expected, rtol=1e-5, atol=1e-9)


def test_angles_of_images_that_nearly_coincide_are_those_of_one_image() -> None:
    """The law of cosines has no digits left there, and its slope would be that of rounding."""
    s, t = torch.randn(8, 16), torch.randn(8, 16)
    s[1] = s[0]
    near = s.clone()
    near[1] += 1e-4 * torch.nn.functional.normalize(torch.randn(16), dim=0)
    slopes = [gradient(rkd_angle_loss, x, t) for x in (s, near)]
    torch.testing.assert_close(slopes[1], slopes[0], rtol=1e-3, atol=1e-6)


def test_angles_of_a_tight_cluster_have_their_digits() -> None:
    """Its points are far closer to each other than to the rest of the batch."""
    s, t = torch.randn(8, 16), torch.randn(8, 16)
    s[4:] = 1e-3 * s[4:] + s[0]
    expected = rkd_angle_loss(s.double(), t.double()).float()
    torch.testing.assert_close(rkd_angle_loss(s, t), expected, rtol=1e-4, atol=0)


def test_points_that_differ_by_rounding_are_one() -> None:
    """A slope of 1 over their distance would be one of a million."""
    s, t = torch.randn(8, 16), torch.randn(8, 16)
    s[1] = s[0] * (1 + 2e-7)
    t[2] = t[3] * (1 - 2e-7)
    assert gradient(rkd_angle_loss, s, t).abs().max() < 1
    once, twice = s.clone(), t.clone()
    once[1], twice[2] = s[0], t[3]
    torch.testing.assert_close(rkd_angle_loss(s, t), rkd_angle_loss(once, twice), rtol=1e-4, atol=0)


def test_angles_hold_n_cubed_numbers_and_not_n_squared_vectors(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def held(budget: int) -> int:
        monkeypatch.setattr(rkd, 'BUDGET', budget)
        sizes = []

        def pack(x: Tensor) -> Tensor:
            sizes.append(x.numel())
            return x

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda x: x):
            rkd_angle_loss(torch.randn(16, 1024).requires_grad_(), torch.randn(16, 8))
        return sum(sizes)

    assert held(2**22) < 10 * 16**3 + 4 * 16 * 1024
    assert held(16**2) < 16**3 + 4 * 16 * 1024  # each j is made again in the backward pass


def test_rkd_needs_a_factor() -> None:
    with pytest.raises(ConfigError, match='RKDLoss: distance=0 and angle=0 are factors'):
        RKDLoss(distance=0, angle=0)
    with pytest.raises(ConfigError, match='none negative'):
        RKDLoss(angle=-1.0)


# PKT, CC, FE


def test_pkt_of_opposite_images() -> None:
    """Their probability is 0, or a rounding error on either side of it."""
    s = torch.randn(50, 3)
    value = pkt_loss(torch.cat([s, -s]), torch.randn(100, 3))
    assert bool(value.isfinite())


def test_options_are_checked() -> None:
    with pytest.raises(ConfigError, match='CCLoss: gamma must be positive, and 0 is not'):
        CCLoss(gamma=0)
    with pytest.raises(ConfigError, match='FELoss: k is a number of neighbours, not 0'):
        FELoss(k=0)


def test_lp_of_a_teacher_that_has_collapsed_takes_every_pair_whole() -> None:
    s = torch.randn(4, 2)
    square = torch.cdist(s, s).square()
    torch.testing.assert_close(lp_loss(s, torch.ones(4, 3)), square.sum() / 12)


def test_a_neighbour_that_is_a_duplicate_counts_and_oneself_does_not() -> None:
    t = torch.tensor([[0.0], [0.0], [9.0], [9.5]])
    s = torch.tensor([[0.0], [1.0], [0.0], [0.0]])
    # Two pairs at distance 0 with weight 1, two at 0.5 between equal vectors.
    assert lp_loss(s, t, k=1).item() == pytest.approx(2 / 4)


# NST


@pytest.mark.parametrize('kernel', nst.KERNELS)
def test_a_dead_channel_has_no_gradient_and_harms_no_other(kernel: str) -> None:
    for size in ((2, 2), (5, 5)):
        s, t = torch.randn(2, 6, *size), torch.randn(2, 5, *size)
        s[:, 2] = 0
        grad = gradient(lambda x, y: nst_loss(x, y, kernel), s, t)
        assert not grad[:, 2].any() and bool(grad[:, 1].any()) and grad.abs().max() < 10
        assert gradient(lambda x, y: nst_loss(x, y, kernel), s, 0 * t).abs().max() < 10
        assert not gradient(lambda x, y: nst_loss(x, y, kernel), 0 * s, t).any()
        assert not gradient(lambda x, y: nst_loss(x, y, kernel), 0 * s, 0 * t).any()


@pytest.mark.parametrize('kernel', nst.KERNELS)
@pytest.mark.parametrize('size', [(3, 3), (12, 12)])
def test_the_discrepancy_of_equals_is_no_less_than_rounding(kernel: str, size: Any) -> None:
    for seed in range(5):
        x = torch.randn(2, 32, *size, generator=torch.Generator().manual_seed(seed))
        assert -1e-6 < nst_loss(x, x, kernel).item() < 1e-6
        assert nst_loss(x + 1e-3 * torch.randn_like(x), x, kernel).item() > -1e-6


def test_channels_that_are_all_alike_have_a_width_all_the_same() -> None:
    """Their distances are rounding errors, of either sign."""
    for channel in torch.randn(9, 1, 1, 5, 5):
        s, t = (scale * channel.expand(1, 7, 5, 5) for scale in (1.0, 3.0))
        assert abs(nst_loss(s, t, 'gaussian').item()) < 1e-5
        assert gradient(lambda x, y: nst_loss(x, y, 'gaussian'), s, t).abs().max() < 1e-5


def test_nst_never_holds_a_difference_of_every_pair_of_channels() -> None:
    """As broadcasting would: 2 * 64 * 64 * 100 numbers."""
    for kernel in nst.KERNELS:
        for size in ((10, 10), (3, 3)):
            sizes = []

            def pack(x: Tensor, sizes: list[int] = sizes) -> Tensor:
                sizes.append(x.numel())
                return x

            s, t = torch.randn(2, 2, 64, *size)
            with torch.autograd.graph.saved_tensors_hooks(pack, lambda x: x):
                nst_loss(s.requires_grad_(), t, kernel)
            assert max(sizes) <= 2 * 64 * max(64, size[0] * size[1])
            if kernel == 'poly' and size == (3, 3):  # nor a product of every pair
                assert max(sizes) == 2 * 64 * 9


def test_nst_resizes_and_refuses() -> None:
    s, t = torch.randn(1, 3, 4, 4), torch.randn(1, 5, 2, 8)
    small = torch.nn.functional.adaptive_avg_pool2d
    torch.testing.assert_close(NSTLoss()(s, t), nst_loss(small(s, (2, 4)), small(t, (2, 4))))
    with pytest.raises(ShapeError, match='nst_loss: the student map .* N, H and W must agree'):
        nst_loss(s, t)
    with pytest.raises(ConfigError, match="no kernel 'polynom'. Did you mean 'poly'"):
        NSTLoss(kernel='polynom')
    for options in ({'sigma2': 1.0}, {'kernel': 'gaussian', 'sigma2': 0.0}):
        with pytest.raises(ConfigError, match="sigma2 is the width of the kernel 'gaussian'"):
            NSTLoss(**options)


# FSP


def two_places(*shapes: tuple[int, ...]) -> Place:
    return Place(Tap('x', name='backbone'), shapes, ((8.0, 8.0),) * len(shapes))


def test_fsp_is_between_two_maps() -> None:
    ones = torch.ones(1, 2, 2, 2)
    for shapes in (((1, 2, 2, 2),), ((1, 2, 2, 2),) * 3, ((1, 2, 2, 2), (1, 4))):
        with pytest.raises(TapError, match=r"FSPLoss: tap 'backbone' gives .* list of two places"):
            FSPLoss().bind(two_places(*shapes), two_places((1, 2, 2, 2), (1, 2, 2, 2)))
    with pytest.raises(ShapeError, match='fsp_loss: the teacher gives 3 maps'):
        fsp_loss((ones, ones), [ones] * 3)
    with pytest.raises(ShapeError, match=r'pair is \[\(1, 2, 2, 2\).*images and channels must'):
        fsp_loss((ones, ones), (torch.ones(1, 4, 2, 2), ones))


def test_fsp_converts_what_differs_and_nothing_else() -> None:
    head = FSPDistillationHead()
    head.bind(two_places((1, 2, 4, 4), (1, 4, 2, 2)), two_places((1, 2, 4, 4), (1, 6, 2, 2)))
    first, second = head.stu_connector
    assert list(first.parameters()) == [] and second.layers.conv.out_channels == 6
    s = [torch.randn(2, 2, 4, 4), torch.randn(2, 4, 2, 2)]
    t = [torch.randn(2, 2, 6, 6), torch.randn(2, 6, 3, 3)]  # sizes are each side's own
    assert head(s, t).isfinite()


def test_fsp_of_few_cells_never_holds_a_matrix_and_loses_no_digit() -> None:
    """What is left of two flows that nearly agree is far smaller than they are."""
    s, t = ([torch.randn(2, c, 3, 3) for c in (48, 64)] for _ in range(2))
    near = [x + 1e-3 * y for x, y in zip(s, t, strict=True)]
    for teacher in (t, near):
        matrices = [fsp_matrix(*(x.double() for x in side)) for side in (s, teacher)]
        expected = (matrices[0] - matrices[1]).square().mean().float()
        torch.testing.assert_close(fsp_loss(s, teacher), expected, rtol=1e-5, atol=0)
    sizes = []

    def pack(x: Tensor) -> Tensor:
        sizes.append(x.numel())
        return x

    s[0].requires_grad_()
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda x: x):
        fsp_loss(s, t)
    assert max(sizes) <= 2 * 64 * 18 < 2 * 48 * 64


def test_fsp_of_large_half_precision_maps_is_finite() -> None:
    x = torch.full((1, 2, 64, 64), 200.0, dtype=torch.bfloat16)
    value = FSPLoss()([x, x], [x / 2, x / 2])
    assert value.item() == pytest.approx((200.0**2 - 100.0**2) ** 2)


# KD-SVD


def layers(*last: Tensor) -> list[Tensor]:
    return [torch.randn(2, 3, 3, 3), *last]


DEGENERATE = {
    'zero': torch.zeros(2, 4, 2, 2),
    'of rank one': torch.ones(2, 4, 2, 2) * torch.arange(1.0, 5.0)[:, None, None],
    'with one value four times': torch.eye(4).reshape(1, 4, 2, 2).repeat(2, 1, 1, 1),
    'with one value in more channels than cells': torch.eye(6)[:, :4]
    .reshape(1, 6, 2, 2)
    .repeat(2, 1, 1, 1),
}


@pytest.mark.parametrize('basis', ['teacher', 'own'])
@pytest.mark.parametrize('name', DEGENERATE)
def test_degenerate_maps_have_an_ordinary_gradient(basis: str, name: str) -> None:
    """Its derivative through a decomposition has 1 / (lambda_i - lambda_j)."""
    x = DEGENERATE[name]
    other = torch.randn(x.shape)
    for s, t in ((x, other), (other, x), (x, x)):
        student, teacher = layers(s), layers(t)
        grad = gradient(lambda m, y, st=student: kdsvd_loss([st[0], m], y, basis), s, teacher)
        assert grad.abs().max() < 10
    both = gradient(lambda m, y: kdsvd_loss([m, m], y, basis), x, [x, other])
    assert both.abs().max() < 10


def test_values_that_are_nearly_equal_have_a_bounded_slope() -> None:
    """Without a bound it is the inverse of their gap: 1e9 and more."""
    other = layers(torch.randn(2, 4, 2, 2))
    for gap in (1e-9, 1e-12):
        x = torch.eye(4).double() + gap * torch.randn(2, 4, 4).double()
        student = [other[0].double(), x.reshape(2, 4, 2, 2)]
        teacher = [y.double() for y in other]
        grad = gradient(
            lambda m, y, s=student: kdsvd_loss([s[0], m], y, 'own', k=1), student[1], teacher
        )
        assert grad.abs().max() < 1e5


def test_kdsvd_in_single_precision_is_that_in_double() -> None:
    """Entries of vectors of many channels are small, and all relations close to 1."""
    torch.manual_seed(1)
    s, t = ([torch.randn(2, c, 4, 4) for c in (192, 256)] for _ in range(2))
    for basis in ('teacher', 'own'):
        exact = kdsvd_loss([x.double() for x in s], [x.double() for x in t], basis).float()
        torch.testing.assert_close(kdsvd_loss(s, t, basis), exact, rtol=1e-4, atol=0)


def test_kdsvd_never_holds_the_relation_of_two_layers() -> None:
    """Which would be 2 * 4 * 300 * 400 numbers."""
    sizes = []

    def pack(x: Tensor) -> Tensor:
        sizes.append(x.numel())
        return x

    s, t = ([torch.randn(2, c, 3, 3) for c in (300, 400)] for _ in range(2))
    s[1].requires_grad_()
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda x: x):
        kdsvd_loss(s, t)
    assert max(sizes) < 2 * 4 * 400 * 20


def test_kdsvd_averages_large_maps_down() -> None:
    s, t = ([torch.randn(1, 3, 8, 6), torch.randn(1, 4, 3, 3)] for _ in range(2))
    small = [[torch.nn.functional.adaptive_avg_pool2d(x[0], (4, 4)), x[1]] for x in (s, t)]
    torch.testing.assert_close(KDSVDLoss(size=4)(s, t), kdsvd_loss(*small))
    torch.testing.assert_close(KDSVDLoss()(s, t), kdsvd_loss(s, t))


def test_kdsvd_refuses_what_does_not_follow() -> None:
    x = torch.randn(1, 3, 2, 2)
    with pytest.raises(TapError, match=r"KDSVDLoss: tap 'backbone' gives .* list of places"):
        KDSVDLoss().bind(two_places((1, 3, 2, 2)), two_places((1, 3, 2, 2)))
    for students, teachers in (([x], [x]), ([x, x], [x, x, x])):
        with pytest.raises(ShapeError, match='kdsvd_loss: the student gives'):
            kdsvd_loss(students, teachers)
    taller = torch.randn(1, 3, 4, 2)
    with pytest.raises(ShapeError, match='images, channels, H and W must agree'):
        kdsvd_loss([x, x], [x, taller])
    assert kdsvd_loss([x, x], [x, taller], 'own').isfinite()
    with pytest.raises(ShapeError, match='images, channels must agree'):
        kdsvd_loss([x, x], [x, x[:, :2]], 'own')
    with pytest.raises(ConfigError, match="no basis 'teachers'. Did you mean 'teacher'"):
        KDSVDLoss(basis='teachers')
    for options in ({'k': 0}, {'size': 0}):
        with pytest.raises(ConfigError, match='is a number of'):
            KDSVDLoss(**options)


# VID


def test_its_variances_are_parameters_that_learn() -> None:
    """In one port they stand in a list, where no optimiser finds them."""
    head = VIDDistillationHead()
    s, t = torch.randn(4, 3, 2, 2), torch.randn(4, 5, 2, 2)
    value = head(s, t)
    own = dict(head.named_parameters())
    assert own['loss.raw_variance'].shape == (5,)
    before = {name: p.detach().clone() for name, p in own.items()}
    optimizer = torch.optim.SGD(own.values(), lr=0.1)
    for _ in range(2):
        optimizer.zero_grad()
        value.backward()
        optimizer.step()
        value = head(s, t)
    assert all(not torch.equal(p, before[name]) for name, p in own.items())


@pytest.mark.parametrize('raw', [-200.0, 0.0, 200.0])
def test_no_raw_variance_overflows(raw: float) -> None:
    s, t = torch.randn(2, 3, 2, 2), torch.randn(2, 3, 2, 2)
    variances = torch.full((3,), raw, requires_grad=True)
    value = vid_loss(s, t, variances)
    value.backward()
    assert value.isfinite() and variances.grad is not None and variances.grad.isfinite().all()
    loss = VIDLoss(variance=1e4)  # of which exp() would not be finite
    loss.bind(two_places((1, 3, 2, 2)), two_places((1, 3, 2, 2)))
    assert loss.raw_variance is not None and loss.raw_variance.tolist() == [pytest.approx(1e4)] * 3


def test_vid_refuses_what_does_not_fit() -> None:
    x = torch.zeros(1, 3, 2, 2)
    with pytest.raises(ShapeError, match='there must be one for each channel'):
        vid_loss(x, x, torch.zeros(2))
    with pytest.raises(ConfigError, match='VIDLoss: it has a variance for each channel'):
        VIDLoss()(x, x)
    with pytest.raises(TapError, match='variances belong to the channels of one'):
        VIDLoss().bind(two_places((1, 3, 2, 2)), two_places(*((1, 3, 2, 2),) * 2))
    for options in ({'eps': 0.0}, {'variance': 1e-6}):
        with pytest.raises(ConfigError, match='must be positive, and variance='):
            VIDLoss(**options)


# FT


def paraphrasers(folder: Path, **options: Any) -> FTDistillationHead:
    """Returns a head with weights that a paraphraser was saved with."""
    torch.save(Paraphraser(6).state_dict(), folder / 'paraphraser.pth')
    path = str(folder / 'paraphraser.pth')
    connector = {'type': 'ParaphraserConnector', 'checkpoint': path, **options}
    return FTDistillationHead(tea_connector=connector)


def test_a_paraphraser_learns_to_rebuild_and_is_then_left_alone(tmp_path: Path) -> None:
    torch.manual_seed(0)
    maps = torch.randn(16, 2, 4, 4).repeat(1, 3, 1, 1).relu()
    paraphraser = Paraphraser(6)
    optimizer = torch.optim.Adam(paraphraser.parameters(), lr=0.01)
    values = []
    for _ in range(40):
        optimizer.zero_grad()
        value = paraphraser_loss(paraphraser(maps), maps)
        value.backward()
        optimizer.step()
        values.append(value.item())
    assert values[-1] < 0.8 * values[0]
    assert all(p.grad is not None and p.grad.any() for p in paraphraser.parameters())

    torch.save({'state_dict': paraphraser.state_dict()}, tmp_path / 'it.pth')
    head = FTDistillationHead(
        tea_connector={'type': 'ParaphraserConnector', 'checkpoint': tmp_path / 'it.pth'}
    )
    student = torch.randn(16, 4, 4, 4, requires_grad=True)
    head(student, maps).backward()
    encoder = head.tea_connector.encoder
    for name, weight in encoder.state_dict().items():
        assert torch.equal(weight, paraphraser.encoder.state_dict()[name])
    trained = {name for name, p in head.named_parameters() if p.requires_grad}
    assert trained and all(name.startswith('stu_connector.') for name in trained)
    head.train()
    assert not head.tea_connector.training and not encoder.training
    expected = ft_loss(head.stu_connector(student), paraphraser.encoder(maps))
    torch.testing.assert_close(head(student, maps), 500 * expected)


def test_an_untrained_paraphraser_is_refused() -> None:
    s, t = torch.randn(2, 4, 2, 2), torch.randn(2, 6, 2, 2)
    with pytest.raises(ConfigError, match='ParaphraserConnector: no weights are given'):
        FTDistillationHead()(s, t)
    meant = FTDistillationHead(tea_connector={'type': 'ParaphraserConnector', 'untrained': True})
    assert meant(s, t).isfinite()


def test_a_resumed_head_has_its_paraphraser_without_the_file(tmp_path: Path) -> None:
    s, t = torch.randn(2, 4, 2, 2), torch.randn(2, 6, 2, 2)
    first = paraphrasers(tmp_path)
    expected = first(s, t)
    second = FTDistillationHead()
    second._bind_to(s, t)
    second.load_state_dict(first.state_dict())
    torch.testing.assert_close(second.train()(s, t), first(s, t))
    assert expected.isfinite()


def test_weights_of_other_channels_or_another_rate_are_refused(tmp_path: Path) -> None:
    s = torch.randn(2, 4, 2, 2)
    with pytest.raises(CheckpointError, match='paraphraser'):
        paraphrasers(tmp_path)(s, torch.randn(2, 8, 2, 2))
    with pytest.raises(CheckpointError, match='paraphraser'):
        paraphrasers(tmp_path, rate=1.0)(s, torch.randn(2, 6, 2, 2))
    with pytest.raises(ConfigError, match='FT: rate is a share'):
        Paraphraser(6, rate=0.0)
    with pytest.raises(ConfigError, match='FT: p is 1 or 2, not 3'):
        FTLoss(p=3)


def test_a_finer_map_is_averaged_before_it_is_translated(tmp_path: Path) -> None:
    """A factor is no linear function of its map, and averaging it is another thing."""
    head = paraphrasers(tmp_path)
    fine = Place(Tap('s', name='s'), ((1, 4, 8, 8),), ((8.0, 8.0),))
    coarse = Place(Tap('t', name='t'), ((1, 6, 4, 8),), ((16.0, 8.0),))
    head.bind(fine, coarse)
    s, t = torch.randn(2, 4, 7, 6), torch.randn(2, 6, 4, 6)
    small = torch.nn.functional.adaptive_avg_pool2d(s, (4, 6))
    head.eval()
    expected = ft_loss(head.stu_connector.layers(small), head.tea_connector.encoder(t))
    torch.testing.assert_close(head(s, t), 500 * expected)


def test_a_finer_teacher_is_paraphrased_as_it_was_trained(tmp_path: Path) -> None:
    """Its encoder has seen the map as it is; the factor is what is averaged down."""
    head = paraphrasers(tmp_path)
    coarse = Place(Tap('s', name='s'), ((1, 4, 4, 4),), ((16.0, 16.0),))
    fine = Place(Tap('t', name='t'), ((1, 6, 8, 8),), ((8.0, 8.0),))
    head.bind(coarse, fine)
    head.eval()
    s, t = torch.randn(2, 4, 4, 4), torch.randn(2, 6, 8, 8)
    factor = torch.nn.functional.adaptive_avg_pool2d(head.tea_connector.encoder(t), (4, 4))
    expected = ft_loss(head.stu_connector.layers(s), factor)
    torch.testing.assert_close(head(s, t), 500 * expected)


def test_a_factor_of_zeros_harms_nothing() -> None:
    s, t = torch.randn(3, 2, 2, 2), torch.randn(3, 2, 2, 2)
    s[1] = 0
    grad = gradient(ft_loss, s, t)
    assert not grad[1].any() and bool(grad[0].any()) and grad.abs().max() < 10
    assert gradient(ft_loss, s, 0 * t).abs().max() < 10
