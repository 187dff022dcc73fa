"""A scene's digits can be read, and its ground truth is what can be seen."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn.datasets import load_digits

from densekd.datasets import scenes


@pytest.fixture(scope='module')
def drawn() -> list[scenes.Scene]:
    data = load_digits()
    part = np.arange(0, 1797, 9)
    glyphs = np.stack([scenes.make_glyph(image) for image in data.images[part]])
    return [
        scenes.draw_scene(np.random.default_rng((7, index)), glyphs, data.target[part], part)
        for index in range(60)
    ]


def test_masks_are_disjoint_and_boxes_are_tight(drawn):
    for scene in drawn:
        assert scene.image.shape == (128, 128, 3) and scene.image.dtype == np.uint8
        assert 1 <= len(scene.digits) <= 6
        assert sum(digit.mask.astype(int) for digit in scene.digits).max() == 1
        for digit in scene.digits:
            x, y, width, height = digit.box
            window = digit.mask[y : y + height, x : x + width]
            assert window.sum() == digit.mask.sum()
            assert window[0].any() and window[-1].any()
            assert window[:, 0].any() and window[:, -1].any()


def test_sides_fill_the_range_and_few_digits_are_cut(drawn):
    sides = np.array([max(digit.box[2:]) for scene in drawn for digit in scene.digits])
    assert 24 <= np.median(sides) <= 34
    assert sides.min() < 20 and sides.max() > 46
    # A pixel or two are lost to rounding, and up to a tenth of the ink to a neighbour.
    assert sides.min() >= 12 and sides.max() <= 57


def test_digits_stand_out_from_their_surroundings(drawn):
    contrasts = []
    for scene in drawn:
        luma = scene.image @ scenes.LUMA
        ink = np.any([digit.mask for digit in scene.digits], axis=0)
        for digit in scene.digits:
            x, y, width, height = digit.box
            window = np.s_[max(y - 2, 0) : y + height + 2, max(x - 2, 0) : x + width + 2]
            around = luma[window][~ink[window]]
            contrasts.append(abs(luma[digit.mask].mean() - around.mean()))
    contrasts = np.array(contrasts)
    assert np.quantile(contrasts, 0.02) > 25
    assert contrasts.std() > 15


def test_every_digit_has_its_samples_label(drawn):
    labels = load_digits().target
    for scene in drawn:
        for digit in scene.digits:
            assert digit.sample % 9 == 0
            assert digit.label == labels[digit.sample]


def test_little_of_a_digit_is_hidden():
    # Full cover in a corner: what may still be put there hides a tenth of it at most.
    alpha = np.ones((30, 30))
    there = scenes.paste_map(alpha, (0, 0), 64) >= 0.5
    rng = np.random.default_rng(0)
    for _ in range(50):
        place = scenes.find_place(rng, alpha, [there], [900], 64)
        if place is not None:
            new = scenes.paste_map(alpha, place, 64) >= 0.5
            assert (there & new).sum() <= 90


def test_no_place_is_found_in_a_full_scene():
    full = np.ones((32, 32), bool)
    rng = np.random.default_rng(0)
    assert scenes.find_place(rng, np.ones((16, 16)), [full], [1024], 32) is None


def test_resize_keeps_a_flat_image_and_its_mean():
    assert np.allclose(scenes.resize(np.full((8, 8), 3.0), 20, 12), 3)
    noise = np.random.default_rng(0).random((64, 64))
    assert scenes.resize(noise, 16, 16).mean() == pytest.approx(noise.mean(), abs=0.01)


def test_ink_does_not_reach_over_a_glyphs_edge():
    # Samples touch the edge of their 8 x 8 field; enlarged, they end inside.
    for image in load_digits().images[:50]:
        glyph = scenes.make_glyph(image)
        border = np.concatenate([glyph[0], glyph[-1], glyph[:, 0], glyph[:, -1]])
        assert scenes.sharpen(border).max() < 0.5
