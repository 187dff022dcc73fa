"""The steps of a pipeline."""

from __future__ import annotations

import struct
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from densekd.classification import transforms
from densekd.errors import ConfigError, DataError


def noise(height: int = 40, width: int = 60) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)


@pytest.mark.parametrize('mode', ['RGB', 'L', 'RGBA', 'P'])
def test_every_kind_of_file_becomes_rgb(mode: str, tmp_path: Path) -> None:
    picture = Image.fromarray(noise()).convert(mode)
    path = tmp_path / 'eine Überraschung.png'
    picture.save(path)
    found = transforms.LoadImage()({'img_path': str(path)})['img']
    assert np.array_equal(found, np.asarray(picture.convert('RGB')))


@pytest.mark.parametrize('content', [b'', b'not an image'])
def test_a_file_that_is_no_image_is_a_sentence(content: bytes, tmp_path: Path) -> None:
    path = tmp_path / 'a.jpg'
    path.write_bytes(content)
    with pytest.raises(DataError, match=r"a.jpg: the image can't be read"):
        transforms.LoadImage()({'img_path': str(path)})
    with pytest.raises(DataError, match=r'No such file'):
        transforms.LoadImage()({'img_path': str(tmp_path / 'b.jpg')})


def test_a_header_that_says_any_size_is_a_sentence(tmp_path: Path) -> None:
    def chunk(kind: bytes, data: bytes) -> bytes:
        end = struct.pack('>I', zlib.crc32(kind + data))
        return struct.pack('>I', len(data)) + kind + data + end

    header = chunk(b'IHDR', struct.pack('>IIBBBBB', 100_000, 100_000, 8, 2, 0, 0, 0))
    body = chunk(b'IDAT', zlib.compress(b'')) + chunk(b'IEND', b'')
    path = tmp_path / 'a.png'
    path.write_bytes(b'\x89PNG\r\n\x1a\n' + header + body)
    with pytest.raises(DataError, match=r"a.png: the image can't be read: OpenCV refuses it") as e:
        transforms.LoadImage()({'img_path': str(path)})
    assert '\n' not in str(e.value)


def test_pad_crop_takes_each_place_there_is() -> None:
    np.random.seed(0)
    image = np.full((8, 8, 3), 9, np.uint8)
    step = transforms.PadCrop(8, 2)
    found = {step({'img': image})['img'][..., 0].astype(bool).tobytes() for _ in range(400)}
    assert len(found) == 25
    with pytest.raises(DataError, match='image 7: the image is 12x12, and 16x16 is cut out'):
        transforms.PadCrop(16, 2)({'img': image, 'sample_idx': 7})


def test_flip() -> None:
    np.random.seed(0)
    image = noise()
    found = [transforms.Flip(0.25)({'img': image})['img'] for _ in range(400)]
    turned = [np.array_equal(x, image[:, ::-1]) for x in found]
    assert all(t or np.array_equal(x, image) for t, x in zip(turned, found, strict=True))
    assert 70 < sum(turned) < 130


def test_random_resized_crop_draws_area_and_ratio() -> None:
    np.random.seed(0)
    step = transforms.RandomResizedCrop(16)
    parts = [step._part(300, 400) for _ in range(300)]
    areas = np.array([h * w for _, _, h, w in parts]) / (300 * 400)
    ratios = np.array([w / h for _, _, h, w in parts])
    assert areas.min() > 0.07 and areas.max() > 0.8 and ratios.min() > 0.72 and ratios.max() < 1.36
    assert all(t + h <= 300 and x + w <= 400 for t, x, h, w in parts)
    assert step({'img': noise()})['img'].shape == (16, 16, 3)
    # Into a strip no such part fits: its middle is taken.
    top, left, height, width = step._part(10, 1000)
    assert (top, height, width) == (0, 10, 13) and left == 493
    with pytest.raises(ConfigError, match='RandomResizedCrop: area'):
        transforms.RandomResizedCrop(16, area=(0.5, 0.1))


def test_the_middle_of_what_is_resized_by_its_shorter_edge() -> None:
    image = np.zeros((50, 100, 3), np.uint8)
    image[:, 45:55] = 200
    resized = transforms.ResizeEdge(100)({'img': image})
    assert resized['img'].shape == (100, 200, 3)
    middle = transforms.CenterCrop(20)(resized)['img']
    assert middle.shape == (20, 20, 3) and middle.min() > 95
    with pytest.raises(DataError, match=r'a.jpg: the image is 50x100, and 60x60 is cut out'):
        transforms.CenterCrop(60)({'img': image, 'img_path': 'a.jpg'})


def test_what_a_batch_is_made_from() -> None:
    packed = transforms.PackImage()({'img': noise()[:, ::-1], 'gt_label': 3, 'sample_idx': 5})
    assert packed['inputs'].shape == (3, 40, 60) and packed['inputs'].dtype == torch.uint8
    sample = packed['data_samples']
    assert int(sample.gt_label) == 3 and sample.img_shape == (40, 60) and sample.sample_idx == 5


SIZED = (
    transforms.PadCrop,
    transforms.RandomResizedCrop,
    transforms.ResizeEdge,
    transforms.CenterCrop,
)


@pytest.mark.parametrize('size', [(32, 32), 0, -1, '32', 32.0, True, None])
@pytest.mark.parametrize('step', SIZED)
def test_a_size_is_a_whole_number(step: Any, size: Any) -> None:
    with pytest.raises(ConfigError, match=f'^{step.__name__}: size is a whole number from 1 on'):
        step(size)


NAN = float('nan')
WRONG: list[tuple[Any, dict[str, Any], str]] = [
    *(
        (transforms.PadCrop, dict(padding=value), 'PadCrop: padding is a whole number from 0 on')
        for value in (-1, 1.5, '4', True)
    ),
    *(
        (transforms.RandomResizedCrop, {name: value}, 'RandomResizedCrop: area')
        for name in ('area', 'ratio')
        for value in (0.5, (0.5,), (0.5, 0.1), ('0.1', '1'), (0, 1), (0.1, NAN), None, '01')
    ),
    (transforms.RandomResizedCrop, dict(area=(0.5, 1.5)), 'RandomResizedCrop: area'),
    (transforms.RandomResizedCrop, dict(ratio=(1, float('inf'))), 'RandomResizedCrop: area'),
    *(
        (transforms.Flip, dict(prob=value), 'Flip: prob is a number from 0 to 1, not ')
        for value in (-0.1, 1.5, '0.5', NAN, True, None)
    ),
]


@pytest.mark.parametrize(('step', 'arguments', 'sentence'), WRONG)
def test_wrong_arguments_are_a_sentence(
    step: Any, arguments: dict[str, Any], sentence: str
) -> None:
    with pytest.raises(ConfigError, match=sentence):
        step(**arguments)


def test_the_edges_of_what_is_right() -> None:
    for prob in (0, 1):
        transforms.Flip(prob)
    assert transforms.PadCrop(8, 0)({'img': noise()})['img'].shape == (8, 8, 3)
    assert transforms.RandomResizedCrop(4, [1, 1], [1, 1])({'img': noise()})['img'].shape[0] == 4


@pytest.mark.parametrize('step', [*SIZED, transforms.Flip, transforms.PackImage])
def test_a_pipeline_that_loads_nothing_is_a_sentence(step: Any) -> None:
    sentence = f'^{step.__name__}: there is no image yet: begin the pipeline with densekd.LoadImage'
    with pytest.raises(ConfigError, match=sentence):
        step()({'img_path': 'a.jpg', 'gt_label': 0})
