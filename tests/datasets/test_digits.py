"""The embedded data are what their format says, and a folder of them is absent or complete."""

from __future__ import annotations

import hashlib
import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import asdict
from pathlib import Path

import cv2
import numpy as np
import pytest
from sklearn.datasets import load_digits

from densekd.datasets import (
    CLASSES,
    MASK_CLASSES,
    MASK_PALETTE,
    PALETTE,
    DigitsSpec,
    digits,
    make_digits,
)
from densekd.datasets.digits import semantic_mask
from densekd.datasets.scenes import Digit, Scene, tight_box
from densekd.errors import ConfigError, DataError

TINY = {'seed': 3, 'train': 12, 'val': 5, 'test': 4}
SPLITS = ('train', 'val', 'test')


@pytest.fixture(scope='module')
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_digits(tmp_path_factory.mktemp('data') / 'digits', **TINY)


def contents(folder: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in folder.rglob('*')
        if path.is_file()
    }


def table(root: Path, split: str) -> dict:
    return json.loads((root / f'annotations/instances_{split}.json').read_text())


def marker(root: Path) -> dict:
    return json.loads((root / 'digits.json').read_text())


# What is in the folder


def test_same_spec_gives_the_same_bytes(root, tmp_path):
    again = make_digits(tmp_path / 'again', **TINY)
    assert contents(again) == contents(root)


def test_other_seed_gives_other_scenes(root, tmp_path):
    other = make_digits(tmp_path / 'other', seed=4, train=2, val=0, test=0)
    assert (other / 'train/000000.png').read_bytes() != (root / 'train/000000.png').read_bytes()
    assert marker(other)['samples'] != marker(root)['samples']


def test_a_scene_does_not_depend_on_how_many_there_are(root, tmp_path):
    fewer = make_digits(tmp_path / 'fewer', seed=3, train=2, val=1, test=0)
    for name in ('train/000001.png', 'masks/train/000001.png', 'val/000000.png'):
        assert (fewer / name).read_bytes() == (root / name).read_bytes()


def test_splits_have_backgrounds_of_their_own(root):
    train, val, test = (cv2.imread(str(root / split / '000000.png')) for split in SPLITS)
    for one, two in ((train, val), (train, test), (val, test)):
        assert (one == two).mean() < 0.1


def test_no_digit_sample_is_in_two_splits(root):
    samples = marker(root)['samples']
    assert sorted(i for part in samples.values() for i in part) == list(range(1797))
    labels = load_digits().target
    for split, share in zip(SPLITS, (0.6, 0.2, 0.2), strict=True):
        counts = np.bincount(labels[samples[split]])
        assert np.allclose(counts, share * np.bincount(labels), atol=1)
        used = {row['sample'] for row in table(root, split)['annotations']}
        assert used and used <= set(samples[split])


def test_marker_says_the_spec_and_the_checksums_of_what_is_there(root):
    said = marker(root)
    assert said['spec'] == asdict(DigitsSpec(**TINY))
    files = contents(root)
    assert sum(folder['files'] for folder in said['folders'].values()) == len(files) - 1
    for name, folder in said['folders'].items():
        inside = {
            path.split('/')[-1]: content
            for path, content in files.items()
            if path.rpartition('/')[0] == name
        }
        lines = ''.join(
            f'{hashlib.sha256(inside[key]).hexdigest()}  {key}\n' for key in sorted(inside)
        )
        assert folder['sha256'] == hashlib.sha256(lines.encode()).hexdigest()


def a_digit(label, rows, columns):
    mask = np.zeros((40, 40), bool)
    mask[rows, columns] = True
    return Digit(label, 0, mask, tight_box(mask))


def test_a_region_is_the_hull_of_a_digits_ink():
    # A frame around an L, as ink: the L's hull is a triangle.
    frame = np.zeros((40, 40), bool)
    frame[2:38, 2:38] = True
    frame[4:36, 4:36] = False
    outer = Digit(0, 0, frame, tight_box(frame))
    corner = a_digit(7, [10, 20, 30, 30, 30], [10, 10, 10, 20, 30])
    scene = Scene(np.zeros((40, 40, 3), np.uint8), (corner, outer))
    found = semantic_mask(scene)
    rows, columns = np.mgrid[:40, :40]
    assert (found[frame] == 1).all() and (found[:2] == 0).all() and (found[38:] == 0).all()
    triangle = (columns >= 10) & (rows <= 30) & (rows >= columns)
    # Pixels on the slanted edge are those of the line that OpenCV draws.
    assert (found[triangle] == 8).all() and (
        found[~triangle & ~frame & (rows < columns - 1)] != 8
    ).all()
    assert found[6, 35] == 1 and found[34, 34] == 1  # a hull has no hole


def test_ink_lies_on_every_hull():
    spot = a_digit(3, [20, 20], [5, 6])
    around = a_digit(4, [2, 2, 38, 38], [2, 38, 2, 38])
    for both in ((spot, around), (around, spot)):
        found = semantic_mask(Scene(np.zeros((40, 40, 3), np.uint8), both))
        assert (found[spot.mask] == 4).all() and (found[around.mask] == 5).all()


@pytest.mark.parametrize('split', SPLITS)
def test_pycocotools_reads_the_annotations(root, split):
    coco_module = pytest.importorskip('pycocotools.coco')
    coco = coco_module.COCO(str(root / f'annotations/instances_{split}.json'))
    assert [row['name'] for row in coco.loadCats(coco.getCatIds())] == list(CLASSES)
    assert coco.getCatIds() == list(range(1, 11))
    assert len(coco.imgs) == TINY[split]
    assert min(coco.anns) == 1
    for number, row in coco.imgs.items():
        assert row['file_name'] == f'{number:06d}.png'
        image = cv2.imread(str(root / split / row['file_name']))
        semantic = cv2.imread(str(root / 'masks' / split / row['file_name']), cv2.IMREAD_UNCHANGED)
        assert image.shape == (row['height'], row['width'], 3) == (128, 128, 3)
        assert semantic.shape == (128, 128) and semantic.dtype == np.uint8
        ink = np.zeros((128, 128), np.uint8)
        for annotation in coco.loadAnns(coco.getAnnIds(imgIds=[number])):
            mask = coco.annToMask(annotation).astype(bool)
            assert not ink[mask].any()
            ink[mask] = annotation['category_id']
            assert annotation['area'] == mask.sum()
            assert annotation['iscrowd'] == 0
            rows, columns = np.nonzero(mask)
            assert annotation['bbox'] == [
                columns.min(),
                rows.min(),
                columns.max() - columns.min() + 1,
                rows.max() - rows.min() + 1,
            ]
        assert (semantic[ink > 0] == ink[ink > 0]).all()
        assert set(np.unique(semantic)) == {0, *np.unique(ink)}


@pytest.mark.parametrize('split', SPLITS)
def test_crops_lie_in_the_folder_of_their_class(root, split):
    assert sorted(path.name for path in (root / 'crops' / split).iterdir()) == sorted(CLASSES)
    expected = {
        f'{CLASSES[row["category_id"] - 1]}/{row["id"]:06d}.png'
        for row in table(root, split)['annotations']
    }
    files = set(contents(root / 'crops' / split))
    assert files == expected
    for name in files:
        assert cv2.imread(str(root / 'crops' / split / name)).shape == (32, 32, 3)


def test_a_crop_is_the_square_around_the_digit():
    image = np.random.default_rng(0).integers(0, 256, (64, 64, 3)).astype(np.uint8)
    none = np.zeros((64, 64), bool)
    # 20 wide and 12 high: the square has a side of 25, and the size asked for keeps its pixels.
    crop = digits.cut_crop(image, Digit(1, 0, none, (30, 26, 20, 12)), 25)
    assert (crop == image[19:44, 27:52]).all()
    corner = digits.cut_crop(image, Digit(1, 0, none, (0, 0, 20, 20)), 25)
    assert (corner[3:, 3:] == image[:22, :22]).all()
    assert (corner[:3, 5] == image[0, 2]).all()


def test_a_person_sees_the_colours_that_were_painted():
    # A red image must be read back as red: cv2 writes BGR.
    red = np.zeros((4, 4, 3), np.uint8)
    red[..., 0] = 200
    content = np.frombuffer(digits.encode_png(red), np.uint8)
    assert cv2.imdecode(content, cv2.IMREAD_COLOR)[0, 0].tolist() == [0, 0, 200]


def test_constants_fit_each_other():
    assert len(CLASSES) == len(PALETTE) == len(set(PALETTE)) == 10
    assert MASK_CLASSES[1:] == CLASSES and MASK_PALETTE[1:] == PALETTE


# The toolboxes read it


def test_mmdet_reads_it(root):
    pytest.importorskip('mmcv')
    from mmdet.datasets import CocoDataset
    from mmdet.datasets.transforms import LoadAnnotations
    from mmengine.registry import DefaultScope

    data = CocoDataset(
        data_root=str(root),
        ann_file='annotations/instances_train.json',
        data_prefix={'img': 'train/'},
        metainfo={'classes': CLASSES, 'palette': PALETTE},
        filter_cfg={'filter_empty_gt': True, 'min_size': 8},
        pipeline=[],
    )
    assert len(data) == TINY['train']
    rows = table(root, 'train')['annotations']
    assert sum(len(data[index]['instances']) for index in range(len(data))) == len(rows)
    first = data[0]
    assert Path(first['img_path']).is_file()
    with DefaultScope.overwrite_default_scope('mmdet'):
        out = LoadAnnotations(with_bbox=True, with_mask=True)(
            {**first, 'ori_shape': (first['height'], first['width'])}
        )
    here = [row for row in rows if row['image_id'] == 0]
    assert [int(label) for label in out['gt_bboxes_labels']] == [
        row['category_id'] - 1 for row in here
    ]
    assert out['gt_masks'].areas.tolist() == [row['area'] for row in here]
    assert not out['gt_ignore_flags'].any()


def test_mmseg_reads_it(root):
    pytest.importorskip('mmcv')
    pytest.importorskip('ftfy')
    from mmseg.datasets import BaseSegDataset
    from mmseg.datasets.transforms import LoadAnnotations

    data = BaseSegDataset(
        data_root=str(root),
        data_prefix={'img_path': 'val', 'seg_map_path': 'masks/val'},
        img_suffix='.png',
        metainfo={'classes': MASK_CLASSES, 'palette': MASK_PALETTE},
        pipeline=[],
    )
    assert len(data) == TINY['val']
    row = LoadAnnotations()(data[1])
    expected = cv2.imread(str(root / 'masks/val/000001.png'), cv2.IMREAD_UNCHANGED)
    assert (row['gt_seg_map'] == expected).all() and expected.any()


# Using it again


def test_the_same_spec_is_used_again_at_once(root):
    before = {path: path.stat().st_mtime_ns for path in root.rglob('*')}
    make_digits(root, **TINY)
    assert {path: path.stat().st_mtime_ns for path in root.rglob('*')} == before


def test_using_it_again_imports_nothing_heavy(root):
    code = (
        'import sys\n'
        'for name in ("torch", "mmengine", "mmcv", "mmdet", "sklearn", "cv2", "rich"):\n'
        '    sys.modules[name] = None\n'
        'from densekd.datasets import make_digits\n'
        f'make_digits({str(root)!r}, **{TINY!r})\n'
    )
    subprocess.run([sys.executable, '-c', code], check=True, env=environment())


def test_an_empty_folder_and_missing_parents_are_fine(tmp_path):
    empty = tmp_path / 'empty'
    empty.mkdir()
    for place in (empty, tmp_path / 'a/b/c'):
        assert make_digits(place, train=1, val=0, test=0) == place
        assert (place / 'train/000000.png').is_file()
    assert sorted(path.name for path in tmp_path.iterdir()) == ['a', 'empty']


def test_another_spec_is_refused(root):
    before = contents(root)
    with pytest.raises(DataError) as error:
        make_digits(root, **{**TINY, 'train': 13})
    assert str(error.value) == (
        f'{root}: holds digits of another spec (train 12 instead of 13). Give another folder, '
        'ask for that spec, or delete this folder to have it made again.'
    )
    assert contents(root) == before


def test_a_foreign_folder_is_refused_and_left_alone(tmp_path):
    (tmp_path / 'holiday.jpg').write_bytes(b'x')
    with pytest.raises(DataError) as error:
        make_digits(tmp_path, **TINY)
    assert str(error.value) == (
        f'{tmp_path}: was not made by densekd.datasets.digits, it holds holiday.jpg. '
        'Give a new or an empty folder.'
    )
    assert contents(tmp_path) == {'holiday.jpg': b'x'}


def test_a_file_in_its_place_is_refused(tmp_path):
    (tmp_path / 'digits').write_text('x')
    with pytest.raises(DataError, match='is a file, and the digits need a folder'):
        make_digits(tmp_path / 'digits', **TINY)


@pytest.mark.parametrize(
    ('text', 'message'),
    [
        ('{', 'digits.json can not be read'),
        ('[]', 'was not written by densekd.datasets.digits'),
        ('{"made_by": "densekd.datasets.digits", "format": 0}', 'format 0, this version'),
        ('{"made_by": "densekd.datasets.digits", "format": 2}', 'lacks the spec'),
    ],
)
def test_a_marker_that_is_not_ours_is_refused(tmp_path, text, message):
    (tmp_path / 'digits.json').write_text(text)
    with pytest.raises(DataError, match=message):
        make_digits(tmp_path, **TINY)


def test_a_changed_folder_is_refused(tmp_path):
    spec = {'train': 2, 'val': 1, 'test': 0}
    lost = make_digits(tmp_path / 'lost', **spec)
    (lost / 'masks/train/000001.png').unlink()
    with pytest.raises(DataError, match='masks/train has 1 files instead of 2'):
        make_digits(lost, **spec)
    cut = make_digits(tmp_path / 'cut', **spec)
    (cut / 'train/000001.png').write_bytes(b'')
    with pytest.raises(DataError, match=r'train has \d+ bytes instead of'):
        make_digits(cut, **spec)
    edited = make_digits(tmp_path / 'edited', **spec)
    path = edited / 'annotations/instances_val.json'
    path.write_text(path.read_text().replace('"iscrowd":0', '"iscrowd":1'))
    with pytest.raises(DataError, match='annotations has another checksum'):
        make_digits(edited, **spec)


@pytest.mark.parametrize(
    ('change', 'message'),
    [
        ({'train': -1}, 'digits: train is -1, it must be a whole number of at least 0.'),
        ({'seed': 1.5}, 'digits: seed is 1.5, it must be a whole number of at least 0.'),
        ({'max_side': 200}, 'digits: max_side is 200, more than size, which is 128.'),
        ({'min_digits': 7}, 'digits: min_digits is 7, more than max_digits, which is 6.'),
    ],
)
def test_a_spec_that_makes_no_sense_is_refused(tmp_path, change, message):
    with pytest.raises(ConfigError) as error:
        make_digits(tmp_path / 'digits', **change)
    assert str(error.value) == message
    assert not (tmp_path / 'digits').exists()


# Never half-written


def environment() -> dict[str, str]:
    package = Path(digits.__file__).parents[2]
    return {**os.environ, 'PYTHONPATH': str(package), 'OMP_NUM_THREADS': '1'}


def start(place: Path, **spec: int) -> subprocess.Popen:
    code = f'from densekd.datasets import make_digits; make_digits({str(place)!r}, **{spec!r})'
    return subprocess.Popen(
        [sys.executable, '-c', code], env=environment(), stderr=subprocess.PIPE, text=True
    )


@pytest.mark.parametrize('kind', [RuntimeError, KeyboardInterrupt])
def test_an_exception_leaves_nothing(tmp_path, monkeypatch, kind):
    original = digits.write_scene

    def fail(writer, table, split, number, *rest):
        if number == 3:
            raise kind
        original(writer, table, split, number, *rest)

    monkeypatch.setattr(digits, 'write_scene', fail)
    with pytest.raises(kind):
        make_digits(tmp_path / 'digits', **TINY)
    assert list(tmp_path.iterdir()) == []


def test_a_killed_process_leaves_nothing_in_place_and_is_cleaned_up_after(tmp_path):
    place = tmp_path / 'digits'
    process = start(place, train=5000)
    deadline = time.monotonic() + 30
    while not list(tmp_path.glob('.digits.partial-*/train/000005.png')):
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.02)
    # While it lives, another one leaves its files alone.
    make_digits(tmp_path / 'neighbour', train=1, val=0, test=0)
    make_digits(place, train=1, val=0, test=0)
    assert list(tmp_path.glob('.digits.partial-*/train/000005.png'))
    process.send_signal(signal.SIGKILL)
    process.communicate()
    [leftover] = tmp_path.glob('.digits.partial-*')
    assert leftover.is_dir() and len(list(place.glob('train/*'))) == 1
    other = tmp_path / '.digits.partial-elsewhere-1'
    other.mkdir()
    for path in sorted(place.rglob('*'), reverse=True):
        path.rmdir() if path.is_dir() else path.unlink()
    make_digits(place, train=2, val=0, test=0)
    # One that another machine may be writing stays.
    assert sorted(path.name for path in tmp_path.iterdir()) == [other.name, 'digits', 'neighbour']


def test_processes_that_race_all_end_with_the_same_folder(root, tmp_path):
    place = tmp_path / 'digits'
    processes = [start(place, **TINY) for _ in range(3)]
    for process in processes:
        _, errors = process.communicate(timeout=60)
        assert process.returncode == 0, errors
    assert contents(place) == contents(root)
    assert [path.name for path in tmp_path.iterdir()] == ['digits']


def test_a_race_lost_to_something_else_is_an_error(tmp_path, monkeypatch):
    original = digits.write_scene

    def intrude(writer, *rest):
        (tmp_path / 'digits').mkdir(exist_ok=True)
        (tmp_path / 'digits' / 'foreign').touch()
        original(writer, *rest)

    monkeypatch.setattr(digits, 'write_scene', intrude)
    with pytest.raises(DataError, match='it holds foreign'):
        make_digits(tmp_path / 'digits', train=1, val=0, test=0)
    assert contents(tmp_path) == {'digits/foreign': b''}


def test_progress_is_shown_on_a_terminal_only(tmp_path, capfd, monkeypatch):
    make_digits(tmp_path / 'silent', train=1, val=0, test=0)
    assert capfd.readouterr() == ('', '')
    monkeypatch.setenv('FORCE_COLOR', '1')  # rich's way to be told that it writes to a terminal
    make_digits(tmp_path / 'shown', train=1, val=0, test=0)
    shown = capfd.readouterr()
    assert shown.out == '' and 'digits' in shown.err and '100%' in shown.err
    make_digits(tmp_path / 'off', train=1, val=0, test=0, progress=False)
    assert capfd.readouterr() == ('', '')
