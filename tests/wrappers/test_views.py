"""The teacher's view of a batch is what its own preprocessor would have made of the raw images."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from densekd.errors import ConfigError
from densekd.wrappers.views import check_padding, same_view, teacher_view

mmdet = pytest.importorskip('mmdet.models.data_preprocessors')

PYTORCH = dict(mean=[123.675, 116.28, 103.53], std=[58.395, 57.12, 57.375], bgr_to_rgb=True)
CAFFE = dict(mean=[103.530, 116.280, 123.675], std=[1.0, 1.0, 1.0], bgr_to_rgb=False)
SAME_NUMBERS_OTHER_ORDER = dict(PYTORCH, bgr_to_rgb=False)
OTHER_STD = dict(PYTORCH, std=[50.0, 60.0, 70.0])
BARE = dict()

PAIRS = {
    'pytorch to caffe': (PYTORCH, CAFFE),
    'caffe to pytorch': (CAFFE, PYTORCH),
    'channel order alone': (PYTORCH, SAME_NUMBERS_OTHER_ORDER),
    'std alone': (PYTORCH, OTHER_STD),
    'not normalised to normalised': (BARE, PYTORCH),
    'normalised to not normalised': (CAFFE, BARE),
}
# One wide, one narrow: each is padded, on another side.
SIZES = [(32, 60), (50, 32)]


def preprocessor(statistics: dict[str, Any], divisor: int = 32) -> Any:
    return mmdet.DetDataPreprocessor(**statistics, pad_size_divisor=divisor)


def images() -> list[Tensor]:
    generator = torch.Generator().manual_seed(0)
    return [torch.randint(0, 256, (3, *s), generator=generator, dtype=torch.uint8) for s in SIZES]


def prepared(made: Any) -> Tensor:
    return made({'inputs': images()})['inputs']


@pytest.mark.parametrize('pair', PAIRS)
def test_the_view_equals_the_teachers_own_preprocessing(pair: str) -> None:
    student, teacher = (preprocessor(s) for s in PAIRS[pair])
    batch, wanted = prepared(student), prepared(teacher)
    assert batch.shape == wanted.shape == (2, 3, 64, 64)
    assert not torch.allclose(batch, wanted)
    before = batch.clone()
    view = teacher_view(student, teacher, batch, SIZES)
    torch.testing.assert_close(view, wanted, rtol=1e-5, atol=1e-3)
    assert torch.equal(batch, before)  # the student's batch is left as it was


@pytest.mark.parametrize('pair', PAIRS)
def test_padding_is_exactly_zero(pair: str) -> None:
    student, teacher = (preprocessor(s) for s in PAIRS[pair])
    view = teacher_view(student, teacher, prepared(student), SIZES)
    for image, (h, w) in zip(view, SIZES, strict=True):
        assert not image[:, h:].any() and not image[:, :, w:].any()
        assert image[:, :h, :w].abs().mean() > 0


@pytest.mark.parametrize('statistics', [PYTORCH, CAFFE, BARE])
def test_equal_statistics_are_the_same_batch(statistics: dict[str, Any]) -> None:
    student, teacher = preprocessor(statistics), preprocessor(statistics)
    batch = prepared(student)
    assert same_view(student, teacher)
    assert teacher_view(student, teacher, batch, SIZES) is batch


@pytest.mark.parametrize('pair', PAIRS)
def test_other_statistics_are_another_view(pair: str) -> None:
    student, teacher = (preprocessor(s) for s in PAIRS[pair])
    assert not same_view(student, teacher) and not same_view(teacher, student)


def test_a_view_is_in_the_batchs_precision() -> None:
    student, teacher = preprocessor(PYTORCH), preprocessor(CAFFE)
    view = teacher_view(student, teacher, prepared(student).half(), SIZES)
    assert view.dtype == torch.float16


def test_a_view_and_back_is_the_batch() -> None:
    student, teacher = preprocessor(PYTORCH), preprocessor(CAFFE)
    batch = prepared(student)
    there = teacher_view(student, teacher, batch, SIZES)
    torch.testing.assert_close(
        teacher_view(teacher, student, there, SIZES), batch, atol=1e-5, rtol=1e-4
    )


@pytest.mark.parametrize(('own', 'other'), [(32, 32), (32, 1), (32, 16), (64, 32), (1, 1)])
def test_padding_that_serves_both_passes(own: int, other: int) -> None:
    check_padding(preprocessor(PYTORCH, own), preprocessor(PYTORCH, other), 'teacher')


@pytest.mark.parametrize(('own', 'other', 'advice'), [(1, 32, 32), (16, 32, 32), (48, 32, 96)])
def test_padding_that_serves_one_is_refused(own: int, other: int, advice: int) -> None:
    with pytest.raises(ConfigError) as caught:
        check_padding(preprocessor(PYTORCH, own), preprocessor(PYTORCH, other), 'teacher')
    assert str(caught.value) == (
        f'teacher: the teacher pads images to multiples of {other} and the student to multiples '
        f"of {own}, but both see one batch. Set the student's data_preprocessor.pad_size_divisor "
        f'to {advice}.'
    )
    # Following the advice helps.
    check_padding(preprocessor(PYTORCH, advice), preprocessor(PYTORCH, other), 'teacher')


def test_a_preprocessor_without_a_divisor_pads_to_nothing() -> None:
    check_padding(SimpleNamespace(), SimpleNamespace(pad_size_divisor=None), 'teacher')
