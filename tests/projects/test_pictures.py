"""The benchmark's masks side by side: which images are chosen, and that they are drawn."""

from __future__ import annotations

import doctest

import numpy as np
import pytest
import torch

pytest.importorskip('mmseg')

from mmengine.structures import PixelData
from mmseg.structures import SegDataSample

import projects.digits_benchmark.pictures as pictures

SIZE = (8, 12)


class Says:
    """A segmentor that says the same class of every pixel."""

    def __init__(self, label):
        self.label = label

    def test_step(self, batch):
        mask = torch.full((1, *SIZE), self.label)
        return [SegDataSample(pred_sem_seg=PixelData(data=mask))]


def batch(label):
    truth = SegDataSample(gt_sem_seg=PixelData(data=torch.full((1, *SIZE), label)))
    return dict(inputs=[torch.zeros(3, *SIZE, dtype=torch.uint8)], data_samples=[truth])


def test_the_examples_run():
    assert doctest.testmod(pictures).failed == 0


def test_an_image_that_became_worse_is_chosen_too():
    assert pictures.most_changed([1, -9, 5, 0], 2) == [2, 1]


def test_what_nobody_labelled_is_neither_right_nor_wrong():
    truth = np.full(SIZE, pictures.IGNORED)
    assert pictures.gained(truth, np.zeros(SIZE), np.full(SIZE, pictures.IGNORED)) == 0


def test_the_picture_has_a_row_an_image_and_a_column_a_mask(tmp_path, monkeypatch):
    import matplotlib.pyplot as plt

    drawn = []
    monkeypatch.setattr(plt, 'close', drawn.append)
    models = dict(plain=Says(0), distilled=Says(1), teacher=Says(2))
    palette = [(0, 0, 0), (255, 0, 0), (0, 255, 0)]
    batches = [batch(2), batch(0), batch(1)]  # unchanged, worse, better
    pictures.draw_masks(models, batches, palette, tmp_path / 'masks.png', rows=2)
    axes = drawn[0].axes
    assert len(axes) == 2 * 5
    assert axes[3].get_title() == 'distilled (+96)' and axes[8].get_title() == 'distilled (-96)'
    assert tuple(axes[1].images[0].get_array()[0, 0]) == palette[1]  # the truth of the best
    assert (tmp_path / 'masks.png').stat().st_size > 1000
