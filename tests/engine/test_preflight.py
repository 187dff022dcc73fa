"""What the check before a run refuses, and what it lets pass."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from densekd.engine.preflight import check, try_step
from densekd.engine.run import prepare
from densekd.errors import ConfigError, TapError
from tests.helpers.detectors import batch, bounded, distilled, entry, faster_rcnn

DIGITS = (
    Path(__file__).resolve().parents[2] / 'configs/kd/kd/classification/resnet/'
    'kd_resnet8w8_8e_digits_teacher_resnet20w16_head_mimic.py'
)


def certain(model: torch.nn.Module) -> None:
    """Makes a teacher's boxes so bad that every student's are better."""
    with torch.no_grad():
        model.teachers['teacher'].model.roi_head.bbox_head.fc_reg.bias.fill_(50.0)


def test_a_bound_that_is_met_is_no_error() -> None:
    model = distilled('faster_rcnn', [bounded('roi.bbox_deltas', 'roi')])
    certain(model)
    (term,) = try_step(model, batch()).terms
    assert term.value == 0 and term.gradient == 0


def test_a_term_that_should_teach_and_does_not_is_one() -> None:
    model = distilled('faster_rcnn', [entry('neck.p3', 'PKD')], dict(model=faster_rcnn(8, 24)))
    for connector in model.distillers.modules():
        if isinstance(connector, torch.nn.Conv2d):
            torch.nn.init.zeros_(connector.weight)
    with pytest.raises(TapError, match='sends a gradient of exactly zero'):
        try_step(model, batch())


@pytest.mark.parametrize(('preset', 'images'), [('rkd', 3), ('pkt', 2), ('kd', 2)])
def test_a_small_batch_is_large_enough_for_the_loss(preset: str, images: int) -> None:
    """Of two images there is one distance, and nothing to relate it to."""
    cfg = prepare(str(DIGITS))
    cfg.model.preset = preset
    cfg.model.teacher = dict(model=cfg.model.teacher.model, untrained=True)
    report = check(cfg, full_size=False)
    assert report.batch[0] == images
    (term,) = report.terms
    assert term.value > 0 and term.gradient > 0


@pytest.mark.parametrize(('preset', 'loss', 'fewest'), [('rkd', 'RKD', 3), ('pkt', 'PKT', 2)])
def test_a_batch_with_too_few_images_to_relate_is_refused(
    preset: str, loss: str, fewest: int
) -> None:
    """Rounding may leave it a gradient that is not quite 0."""
    cfg = prepare(str(DIGITS), options={'train_dataloader.batch_size': fewest - 1})
    cfg.model.preset = preset
    cfg.model.teacher = dict(model=cfg.model.teacher.model, untrained=True)
    sentence = f'batch_size: {fewest - 1} is too small for .*{loss}Loss relates {fewest} images'
    with pytest.raises(ConfigError, match=sentence):
        check(cfg)
