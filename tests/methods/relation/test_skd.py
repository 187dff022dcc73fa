"""SKD: single numbers, what stands in ignored pixels, where its parts are refused, its preset.

Its loops are in test_reference.py.
"""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from densekd.core.anatomy import Anatomy
from densekd.core.batch import Batch
from densekd.core.taps import Place, Tap
from densekd.errors import ConfigError, ShapeError
from densekd.methods import (
    SKDPairwiseLoss,
    SKDPixelwiseDistillationHead,
    SKDPixelwiseLoss,
    build,
    skd_pairwise_loss,
    skd_pixelwise_loss,
)
from densekd.registry import PRESETS


def pixels(*features: tuple[float, ...]) -> Tensor:
    """Returns a map of one row, with these features."""
    return torch.tensor(features, dtype=torch.float32).T.reshape(1, -1, 1, len(features))


def place(name: str, *shape: int) -> Place:
    return Place(Tap(name, name=name), (shape,), (None,))


# Pairs


def test_a_right_angle_where_the_teacher_has_none() -> None:
    """Two of four entries of the matrix differ by 1, in any direction and at any length."""
    s, t = pixels((1, 0), (0, 3)), pixels((2, 2, 0), (5, 5, 0))
    assert skd_pairwise_loss(s, t).item() == pytest.approx(0.5)
    assert skd_pairwise_loss(t, s).item() == pytest.approx(0.5)
    both = torch.cat([s, s]), torch.cat([t, t])
    assert skd_pairwise_loss(*both).item() == pytest.approx(0.5)  # a mean over images
    assert skd_pairwise_loss(s, -s).item() == 0.0  # each has the same angle


@pytest.mark.parametrize(
    ('size', 'scale', 'regions'),
    [((4, 6), 0.5, 4), ((5, 7), 0.5, 9), ((8, 12), 0.25, 16), ((1, 2), 0.5, 2), ((3, 3), 0.1, 9)],
)
def test_regions_are_parts_of_the_map(size: tuple[int, int], scale: float, regions: int) -> None:
    """The divisor is their number squared: one pair that differs by 2, twice in the matrix."""
    s = torch.ones(1, 1, *size)
    s[..., -1, -1] = 5.0
    t = -torch.ones(1, 1, *size)
    t[..., 0, 0] = 1.0  # the first region's maximum; where it is alone, all others are -1
    # (regions - 1) pairs with the first have the cosine -1 in the teacher, and 1 in the student.
    expected = 2 * (regions - 1) * 4 / regions**2
    assert skd_pairwise_loss(s, t, scale).item() == pytest.approx(expected)


def test_the_maximum_of_a_region_is_compared_and_not_its_mean() -> None:
    s, t = torch.zeros(2, 1, 2, 4, 4)
    s[0, 0, 1, 1], s[0, 1, 3, 3], s[0, 1, 0, 2], s[0, 1, 2, 0] = 2.0, 2.0, 2.0, 2.0
    s[0, 0, 0, 0] = -9.0
    t[0, 0, :2, :2], t[0, 1, 2:], t[0, 1, :2, 2:] = 1.0, 1.0, 1.0
    assert skd_pairwise_loss(s, t).item() == 0.0


def test_the_gradient_takes_lengths_for_constants() -> None:
    """A feature is lengthened too, which changes no cosine."""
    s = pixels((1.0, 0.0), (0.0, 2.0)).requires_grad_()
    skd_pairwise_loss(s, pixels((1.0, 1.0), (1.0, 1.0))).backward()
    # d a_12 / d f_1 = f_2 / (|f_1| |f_2|), and -1 is missing twice of 4.
    torch.testing.assert_close(s.grad[0, :, 0, 0], torch.tensor([0.0, -1.0]))
    torch.testing.assert_close(s.grad[0, :, 0, 1], torch.tensor([-0.5, 0.0]))


def test_a_region_that_says_nothing_has_no_gradient() -> None:
    s = pixels((1, 2), (0, 0), (2, 1)).requires_grad_()
    value = skd_pairwise_loss(s, pixels((1, 0), (1, 0), (0, 1)), 0.2)
    value.backward()
    assert bool(value.isfinite()) and bool(s.grad.isfinite().all())
    assert not s.grad[..., 1].any() and bool(s.grad.any())
    assert skd_pairwise_loss(torch.full((1, 2, 4, 4), torch.nan), torch.ones(1, 2, 4, 4)).isnan()


@pytest.mark.parametrize('junk', [float('inf'), float('nan'), 1e30])
def test_ignored_cells_take_no_part_in_the_maximum(junk: float) -> None:
    s, t = torch.randn(2, 2, 3, 4, 6)
    valid = torch.ones(2, 4, 6, dtype=torch.bool)
    valid[..., 5] = False
    low = s.clone(), t.clone()
    for x in low:
        x[..., 5] = -1e3
    expected = skd_pairwise_loss(*low)
    s[..., 5], t[..., 5] = junk, junk
    s.requires_grad_()
    value = skd_pairwise_loss(s, t, valid=valid)
    value.backward()
    torch.testing.assert_close(value, expected)
    assert bool(s.grad.isfinite().all()) and not s.grad[..., 5].any() and bool(s.grad.any())


def test_a_region_of_padding_adds_nothing_and_stays_in_the_divisor() -> None:
    s, t = torch.randn(2, 1, 3, 1, 4)
    valid = torch.tensor([[[True, True, False, False]]])
    inner = skd_pairwise_loss(s[..., :2], t[..., :2])
    torch.testing.assert_close(skd_pairwise_loss(s, t, 0.25, valid), inner * 4 / 16)
    x = s.clone().requires_grad_()
    value = skd_pairwise_loss(x, t, valid=torch.zeros_like(valid))
    value.backward()
    assert value.item() == 0.0 and not x.grad.any()


def test_maps_that_cannot_be_compared_are_refused() -> None:
    with pytest.raises(ShapeError, match='images, H and W must agree'):
        skd_pairwise_loss(torch.zeros(1, 2, 4, 4), torch.zeros(1, 2, 4, 5))
    with pytest.raises(ShapeError, match=r'needs maps \(N, C, H, W\)'):
        skd_pairwise_loss(torch.zeros(1, 2), torch.zeros(1, 2))
    with pytest.raises(ShapeError, match=r'valid is \(1, 4, 5\)'):
        whole = torch.ones(1, 4, 5, dtype=torch.bool)
        skd_pairwise_loss(torch.zeros(1, 2, 4, 4), torch.zeros(1, 2, 4, 4), valid=whole)
    with pytest.raises(ShapeError, match="'embedding' gives .*before the pooling"):
        SKDPairwiseLoss().bind(place('decode.feature', 1, 3, 4, 5), place('embedding', 1, 3, 1, 1))
    for scale in (0.0, 1.0, -0.5, float('nan')):
        with pytest.raises(ConfigError, match='between 0 and 1, not'):
            SKDPairwiseLoss(scale=scale)


# Pixels


def test_two_pixels_of_two_equal_classes() -> None:
    s = torch.zeros(1, 2, 1, 2)
    assert skd_pixelwise_loss(s, s).item() == pytest.approx(math.log(2))
    # Over classes and images it is a sum.
    more = torch.zeros(3, 8, 5, 7)
    assert skd_pixelwise_loss(more, more).item() == pytest.approx(3 * math.log(8), rel=1e-5)


def test_a_certain_teacher_is_a_label() -> None:
    s = torch.randn(2, 4, 3, 5)
    labels = torch.randint(4, (2, 3, 5))
    t = 1e3 * torch.nn.functional.one_hot(labels, 4).permute(0, 3, 1, 2).float()
    expected = torch.nn.functional.cross_entropy(s, labels, reduction='sum') / 15
    torch.testing.assert_close(skd_pixelwise_loss(s, t), expected)


@pytest.mark.parametrize('junk', [float('inf'), float('nan'), 1e30])
def test_ignored_pixels_may_hold_anything(junk: float) -> None:
    s, t = torch.randn(2, 2, 3, 4, 5)
    valid = torch.rand(2, 4, 5) > 0.5
    every = torch.stack([skd_pixelwise_loss(s[i : i + 1], t[i : i + 1]) for i in range(2)]).sum()
    rows = -(t.softmax(1) * s.log_softmax(1)).sum(1)
    torch.testing.assert_close(every, rows.sum() / 20)
    hidden = ~valid[:, None].expand_as(s)
    x = s.masked_fill(hidden, junk).requires_grad_()
    value = skd_pixelwise_loss(x, t.masked_fill(hidden, junk), valid)
    value.backward()
    torch.testing.assert_close(value, rows[valid].sum() / 20)
    assert bool(x.grad.isfinite().all()) and not x.grad[hidden].any()


def test_modules_take_valid_pixels_from_the_batch_where_they_are_known() -> None:
    s, t = torch.randn(2, 2, 3, 2, 4)
    cells = torch.rand(2, 2, 4) > 0.4
    batch = Batch({'valid': cells.repeat_interleave(4, 1).repeat_interleave(4, 2)})
    for loss, expected in (
        (SKDPixelwiseLoss(2.0), 2 * skd_pixelwise_loss(s, t, cells)),
        (SKDPairwiseLoss(2.0, 0.25), 2 * skd_pairwise_loss(s, t, 0.25, cells)),
    ):
        torch.testing.assert_close(loss(s, t, batch), expected)
        assert abs(float(loss(s, t) - expected)) > 1e-4


def test_logits_that_are_no_softmax_over_pixels_are_refused() -> None:
    logits = place('decode.logits', 1, 4, 4, 5)
    with pytest.raises(ConfigError, match='SKDPixelwiseLoss: .*kd_qfl or binary_kl'):
        SKDPixelwiseLoss().bind(place('head.cls_logits', 1, 4, 4, 5), logits)
    with pytest.raises(ShapeError, match='classes of each pixel.*Take kd'):
        SKDPixelwiseLoss().bind(place('logits', 1, 4), place('logits', 1, 4))
    with pytest.raises(ShapeError, match='the student has 3 classes and the teacher 4'):
        SKDPixelwiseDistillationHead().bind(place('decode.logits', 1, 3, 4, 5), logits)
    with pytest.raises(ShapeError, match='one logit a place'):
        one = place('decode.logits', 1, 1, 4, 5)
        SKDPixelwiseDistillationHead().bind(one, one)
    with pytest.raises(ShapeError, match='the student has 3 classes and the teacher 1'):
        skd_pixelwise_loss(torch.zeros(1, 3, 2, 2), torch.zeros(1, 1, 2, 2))
    with pytest.raises(ShapeError, match=r'needs maps \(N, C, H, W\)'):
        skd_pixelwise_loss(torch.zeros(1, 3), torch.zeros(1, 3))


# The preset


def anatomy(*names: str) -> Anatomy:
    taps = {name: Tap(name, name=name) for name in names}
    return Anatomy(taps, taps, 'segmentor')


def test_the_preset_has_the_published_weights() -> None:
    preset = PRESETS.get('skd', 'test')
    distillers = preset(anatomy('decode.aspp', 'decode.feature', 'decode.logits', 'aux.logits'))
    heads = {d['head']['name']: build(d['head']) for d in distillers}
    assert [d['student_module'] for d in distillers] == ['decode.feature', 'decode.logits']
    assert [d['teacher_module'] for d in distillers] == ['decode.feature', 'decode.logits']
    assert {name: head.loss.loss_weight for name, head in heads.items()} == {
        'skd_pairwise': 0.5,
        'skd_pixelwise': 10.0,
    }
    assert heads['skd_pairwise'].loss.scale == 0.5
    with pytest.raises(ConfigError, match="preset 'skd': it needs a tap decode.feature"):
        preset(anatomy('decode.logits'))
    with pytest.raises(ConfigError, match="preset 'skd': there is no at='neck'"):
        preset(anatomy('decode.feature', 'decode.logits'), 'neck')
