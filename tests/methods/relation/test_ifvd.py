"""IFVD: single numbers, labels of all kinds, where it is refused, its preset.

Its loops are in test_reference.py.
"""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from densekd.core.anatomy import Anatomy
from densekd.core.batch import Batch
from densekd.core.distiller import Distiller, check_needs
from densekd.core.taps import Place, Tap
from densekd.errors import ConfigError, ShapeError
from densekd.methods import IFVDLoss, build, ifvd_loss, kd_loss
from densekd.registry import PRESETS


def pixels(*features: tuple[float, ...]) -> Tensor:
    """Returns a map of one row, with these features."""
    return torch.tensor(features, dtype=torch.float32).T.reshape(1, -1, 1, len(features))


def row(*labels: int) -> Tensor:
    return torch.tensor(labels).reshape(1, 1, -1)


def test_a_class_at_a_right_angle() -> None:
    """Each pixel is 45 degrees from the mean, where the teacher's are on it."""
    s, t = pixels((1, 0), (0, 1)), pixels((2, 2, 0), (5, 5, 0))
    expected = (1 - math.sqrt(0.5)) ** 2
    assert ifvd_loss(s, t, row(0, 0)).item() == pytest.approx(0.085786, abs=1e-6)
    assert ifvd_loss(s, t, row(3, 3)).item() == pytest.approx(expected)
    assert ifvd_loss(t, s, row(0, 0)).item() == pytest.approx(expected)
    assert ifvd_loss(s, t, row(0, 1)).item() == pytest.approx(0.0, abs=1e-12)  # each its own mean
    longer = pixels((3, 0), (0, 1))  # the mean leans to the longer one
    cosines = torch.tensor([3.0, 1.0]) / math.sqrt(10)
    assert ifvd_loss(longer, t, row(0, 0)).item() == pytest.approx(
        (1 - cosines).square().mean().item()
    )


def test_ignored_pixels_stay_in_the_divisor() -> None:
    s, t = pixels((1, 0), (0, 1), (7, 3), (2, -9)), pixels((1, 1), (1, 1), (-4, 1), (5, 5))
    value = ifvd_loss(s, t, row(0, 0, 255, 255))
    assert value.item() == pytest.approx((1 - math.sqrt(0.5)) ** 2 / 2)
    assert ifvd_loss(s, t, row(0, 0, 9, 9), 9).item() == pytest.approx(value.item())
    assert abs(ifvd_loss(s, t, row(0, 0, 255, 255), 9).item() - value.item()) > 0.01


@pytest.mark.parametrize('junk', [float('inf'), float('nan'), 1e30])
def test_ignored_pixels_may_hold_anything(junk: float) -> None:
    s, t = torch.randn(2, 3, 4, 5), torch.randn(2, 6, 4, 5)
    labels = torch.randint(3, (2, 4, 5)).masked_fill(torch.rand(2, 4, 5) < 0.4, 255)
    hidden = (labels == 255)[:, None]
    expected = ifvd_loss(s, t, labels)
    x = s.masked_fill(hidden, junk).requires_grad_()
    value = ifvd_loss(x, t.masked_fill(hidden, junk), labels)
    value.backward()
    torch.testing.assert_close(value, expected)
    assert bool(x.grad.isfinite().all()) and not x.grad[hidden.expand_as(s)].any()


def test_a_crop_without_a_label_is_an_attached_zero() -> None:
    s = torch.randn(2, 3, 4, 5, requires_grad=True)
    value = ifvd_loss(s, torch.randn(2, 3, 4, 5), torch.full((2, 8, 10), 255))
    value.backward()
    assert value.item() == 0.0 and not s.grad.any()
    # Beside one with labels, each image by itself.
    x, t = torch.randn(2, 2, 3, 4, 5)
    labels = torch.randint(3, (2, 4, 5))
    labels[0] = 255
    torch.testing.assert_close(ifvd_loss(x, t, labels), ifvd_loss(x[1:], t[1:], labels[1:]) / 2)


def test_means_are_of_an_image_and_not_of_the_batch() -> None:
    s, t = torch.randn(3, 3, 4, 5), torch.randn(3, 3, 4, 5)
    labels = torch.randint(2, (3, 4, 5))
    alone = [ifvd_loss(s[i : i + 1], t[i : i + 1], labels[i : i + 1]) for i in range(3)]
    torch.testing.assert_close(ifvd_loss(s, t, labels), torch.stack(alone).mean())


def test_numbers_of_classes_mean_nothing() -> None:
    s, t = torch.randn(2, 2, 3, 4, 5, dtype=torch.float64)
    labels = torch.randint(3, (2, 4, 5))
    names = torch.tensor([41, 0, 60000])
    for dtype in (torch.int32, torch.int64):
        value = ifvd_loss(s, t, names[labels].to(dtype))
        torch.testing.assert_close(value, ifvd_loss(s, t, labels))
    torch.testing.assert_close(value, ifvd_loss(s, t, labels.to(torch.uint8)))


def test_labels_are_resized_by_the_nearest_pixel() -> None:
    s, t = torch.randn(2, 2, 3, 2, 3)
    cells = torch.tensor([[[0, 1, 0], [255, 1, 1]], [[0, 0, 0], [2, 2, 255]]])
    large = torch.full((2, 8, 12), 7)
    large[:, ::4, ::4] = cells  # only the pixel at a cell's corner is looked at
    torch.testing.assert_close(ifvd_loss(s, t, large), ifvd_loss(s, t, cells))


def test_the_student_says_which_pixels_count() -> None:
    """A label of 255 is a class where its wrapper says so, and another one is ignored."""
    s, t = torch.randn(2, 2, 3, 4, 5)
    labels = torch.randint(2, (2, 4, 5)) * 255
    valid = torch.rand(2, 4, 5) > 0.3
    module = IFVDLoss(loss_weight=3.0)
    expected = 3 * ifvd_loss(s, t, (labels + 1).masked_fill(~valid, 77), 77)
    found = module(s, t, Batch({'labels': labels, 'valid': lambda: valid}))
    torch.testing.assert_close(found, expected)
    bytes_ = module(s, t, Batch({'labels': labels.to(torch.uint8), 'valid': valid}))
    torch.testing.assert_close(bytes_, expected)
    plain = module(s, t, Batch({'labels': labels}))
    torch.testing.assert_close(plain, 3 * ifvd_loss(s, t, labels))


def test_a_feature_of_zero_has_no_gradient() -> None:
    s = pixels((0, 0), (0, 2), (1, 1)).requires_grad_()
    value = ifvd_loss(s, pixels((1, 0), (0, 1), (1, 2)), row(0, 0, 0))
    value.backward()
    assert bool(s.grad.isfinite().all()) and s.grad.abs().max() < 10
    opposite = pixels((1, 0), (-1, 0)).requires_grad_()  # the mean has no direction
    value = ifvd_loss(opposite, pixels((1, 0), (1, 0)), row(0, 0))
    value.backward()
    assert value.item() == 1.0 and not opposite.grad.any()
    assert ifvd_loss(torch.full((1, 2, 1, 2), torch.nan), s.detach()[..., :2], row(0, 0)).isnan()


def test_what_cannot_be_compared_is_refused() -> None:
    s = torch.zeros(2, 3, 4, 5)
    for labels in (torch.zeros(2), torch.zeros(2, 1, 8, 10), torch.zeros(1, 8, 10)):
        with pytest.raises(ShapeError, match='needs one for each pixel'):
            ifvd_loss(s, s, labels)
    with pytest.raises(ShapeError, match='images, H and W must agree'):
        ifvd_loss(s, torch.zeros(2, 3, 4, 6), torch.zeros(2, 4, 5))
    place = Place(Tap('embedding', name='embedding'), ((1, 3, 1, 1),), (None,))
    with pytest.raises(ShapeError, match="IFVDLoss: tap 'embedding' gives"):
        IFVDLoss().bind(place, place)
    distiller = Distiller(build('IFVDDistillationHead'), Tap('x'), Tap('x'), 'head_x')
    with pytest.raises(ConfigError, match='IFVDLoss needs labels'):
        check_needs([distiller], ('inputs', 'gt_boxes', 'valid'), 'Wrapper')
    with pytest.raises(ConfigError, match='IFVDLoss needs valid'):  # labels of images have none
        check_needs([distiller], ('inputs', 'labels'), 'Wrapper')


def anatomy(*names: str) -> Anatomy:
    taps = {name: Tap(name, name=name) for name in names}
    return Anatomy(taps, taps, 'segmentor')


def test_the_preset_has_the_papers_pixel_term_beside_it() -> None:
    preset = PRESETS.get('ifvd', 'test')
    distillers = preset(anatomy('decode.aspp', 'decode.feature', 'decode.logits'))
    heads = {d['head']['name']: build(d['head']) for d in distillers}
    assert [d['student_module'] for d in distillers] == ['decode.feature', 'decode.logits']
    assert heads['ifvd'].loss.loss_weight == 200.0
    # 10 times the mean over images, pixels and the 19 classes of Cityscapes.
    s, t = torch.randn(2, 2, 19, 3, 4)
    published = (
        10 * torch.nn.functional.kl_div(s.log_softmax(1), t.softmax(1), reduction='none').mean()
    )
    torch.testing.assert_close(heads['ifvd_kd'].loss(s, t), published, rtol=0.01, atol=0.0)
    assert kd_loss(s, t, 1.0) > published
    with pytest.raises(ConfigError, match="preset 'ifvd': it needs a tap decode.logits"):
        preset(anatomy('decode.feature'))
    with pytest.raises(ConfigError, match="preset 'ifvd': there is no at='neck'"):
        preset(anatomy('decode.feature', 'decode.logits'), 'neck')
