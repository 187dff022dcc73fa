"""CIFAR as it was published: pickles and records, folders and archives, whole and damaged."""

from __future__ import annotations

import pickle
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from densekd.classification.datasets import CIFAR10, CIFAR100
from densekd.classification.datasets.cifar_files import FORMS, PIXELS, read_cifar
from densekd.engine.generated_labelled import write_cifar
from densekd.errors import ConfigError, DataError

KINDS = {'cifar10': CIFAR10, 'cifar100': CIFAR100}


def archived(folder: Path, form: Any) -> Path:
    """Packs the published folder as it was published, and takes the folder away."""
    place = folder / form.folder
    path = folder / form.archive
    with tarfile.open(path, 'w:gz') as archive:
        archive.add(place, form.folder)
    for file in place.iterdir():
        file.unlink()
    place.rmdir()
    return path


def recorded(folder: Path, form: Any) -> Path:
    """Writes the pickles as records of bytes, and takes them away."""
    place = folder / form.folder
    other = folder / form.binary[1]
    other.mkdir()
    for split, names in form.files.items():
        for name, target in zip(names, form.records[split], strict=True):
            batch = pickle.loads((place / name).read_bytes(), encoding='bytes')
            labels = [batch[b'coarse_labels']] if form.leading else []
            columns = np.stack([*labels, batch[form.label]], 1).astype(np.uint8)
            (other / target).write_bytes(np.hstack([columns, batch[b'data']]).tobytes())
            (place / name).unlink()
    place.rmdir()
    return other


@pytest.mark.parametrize('name', KINDS)
def test_every_form_gives_the_same(name: str, tmp_path: Path) -> None:
    form = FORMS[name]
    for folder in ('a', 'b', 'c'):
        write_cifar(tmp_path / folder, form, each=2)
    archive, records = archived(tmp_path / 'b', form), recorded(tmp_path / 'c', form)
    roots = [tmp_path / 'a', tmp_path / 'a' / form.folder, tmp_path / 'b', archive]
    for split in ('train', 'test'):
        images, labels = read_cifar(roots[0], form, split)
        assert images.shape == (2 * form.classes, 32, 32, 3)
        assert np.bincount(labels).tolist() == [2] * form.classes
        for root in (*roots[1:], tmp_path / 'c', records):
            again = read_cifar(root, form, split)
            assert np.array_equal(again[0], images) and np.array_equal(again[1], labels)


def test_pixels_are_where_they_belong(tmp_path: Path) -> None:
    """A row is 1024 red values, line by line, then the green ones, then the blue ones."""
    place = write_cifar(tmp_path)
    row = np.arange(PIXELS) % 251
    batch = {b'data': np.tile(row, (10, 1)).astype(np.uint8), b'labels': list(range(10))}
    (place / 'test_batch').write_bytes(pickle.dumps(batch, protocol=2))
    image = CIFAR10(str(tmp_path), split='test').get_data_info(3)['img']
    assert image[0, 1].tolist() == [1, 1025 % 251, 2049 % 251]
    assert image[2, 0].tolist() == [64, (1024 + 64) % 251, (2048 + 64) % 251]


def test_a_batch_of_python_2_is_read(tmp_path: Path) -> None:
    """The published files are of protocol 2, their text is bytes, their array is of old numpy."""
    place = write_cifar(tmp_path)
    array = np.zeros((10, PIXELS), np.uint8)
    old = pickle.dumps({b'data': array, b'labels': list(range(10))}, protocol=2)
    old = old.replace(b'numpy._core.multiarray', b'numpy.core.multiarray')
    (place / 'test_batch').write_bytes(old)
    assert read_cifar(tmp_path, FORMS['cifar10'], 'test')[1].tolist() == list(range(10))


def test_the_data_set(tmp_path: Path) -> None:
    write_cifar(tmp_path, each=10)
    whole, tenth = CIFAR10(str(tmp_path)), CIFAR10(str(tmp_path), fraction=0.1)
    assert (len(whole), len(tenth)) == (100, 10)
    assert sorted(tenth.get_data_info(i)['gt_label'] for i in range(10)) == list(range(10))
    info = tenth.get_data_info(4)
    found = [i for i in range(100) if np.array_equal(whole.get_data_info(i)['img'], info['img'])]
    assert len(found) == 1 and whole.get_data_info(found[0])['gt_label'] == info['gt_label']
    assert whole.metainfo['classes'][3] == 'cat' and whole.get_cat_ids(0) == [
        whole.get_data_info(0)['gt_label']
    ]
    assert len(CIFAR100.METAINFO['classes']) == 100
    assert list(CIFAR100.METAINFO['classes']) == sorted(CIFAR100.METAINFO['classes'])
    with pytest.raises(ConfigError, match=r"CIFAR10: there is no split 'val'"):
        CIFAR10(str(tmp_path), split='val')


def cut(share: float) -> Callable[[Path], None]:
    def change(root: Path) -> None:
        path = archived(root, FORMS['cifar10'])
        path.write_bytes(path.read_bytes()[: int(path.stat().st_size * share)])

    return change


def flipped(root: Path) -> None:
    # Noise isn't packed any smaller: this is a pixel of the last file, which training doesn't read.
    path = archived(root, FORMS['cifar10'])
    content = bytearray(path.read_bytes())
    content[-5000] ^= 1
    path.write_bytes(content)


def shortened(kept: int) -> Callable[[Path], None]:
    def change(root: Path) -> None:
        path = root / 'cifar-10-batches-py' / 'data_batch_2'
        batch = pickle.loads(path.read_bytes(), encoding='bytes')
        short = {key: batch[key][:kept] for key in (b'data', b'labels')}
        path.write_bytes(pickle.dumps(short, protocol=2))

    return change


def without_labels(root: Path) -> None:
    path = root / 'cifar-10-batches-py' / 'data_batch_2'
    batch = pickle.loads(path.read_bytes(), encoding='bytes')
    path.write_bytes(pickle.dumps({**batch, b'labels': None}, protocol=2))


def rewritten(**entries: Any) -> Callable[[Path], None]:
    def change(root: Path) -> None:
        path = root / 'cifar-10-batches-py' / 'data_batch_2'
        batch = pickle.loads(path.read_bytes(), encoding='bytes')
        batch.update({k.encode(): v for k, v in entries.items()})
        batch = {k: v for k, v in batch.items() if v is not None}
        path.write_bytes(pickle.dumps(batch, protocol=2))

    return change


def truncated(root: Path) -> None:
    path = root / 'cifar-10-batches-py' / 'data_batch_2'
    path.write_bytes(path.read_bytes()[:500])


class Malicious:
    """A pickle of this would run a command."""

    def __reduce__(self) -> Any:
        return (exec, ("raise SystemExit('it ran')",))


WHOLE = 'cifar-10-batches-py: data_batch_2: '
NO_LIST = "'labels' is no list of whole numbers, one for each image"
REFUSED: dict[str, tuple[Callable[[Path], Any], str]] = {
    'half an archive': (cut(0.5), r'python.tar.gz: the archive is cut short or damaged \('),
    'almost none of it': (cut(0.01), r'it has [0-9,]+ of 170,498,071 bytes. Fetch it again: https'),
    'a page instead': (
        lambda root: [archived(root, FORMS['cifar10']).write_bytes(b'<html>not found</html>')],
        'the archive is cut short or damaged',
    ),
    'a batch cut short': (truncated, WHOLE + 'it is cut short or damaged'),
    'a batch that is missing': (
        lambda root: (root / 'cifar-10-batches-py' / 'data_batch_4').unlink(),
        'cifar-10-batches-py: data_batch_4 is missing. Unpack the archive again',
    ),
    'code': (rewritten(filenames=Malicious()), WHOLE + r'it holds \w+.exec, which is no data'),
    'a label out of range': (
        rewritten(labels=[0, 1, 2, 10]),
        WHOLE + 'it has the label 10, and CIFAR-10 has 10 classes: 0 to 9',
    ),
    'too few labels': (rewritten(labels=[0]), WHOLE + r'it has 4 images and \(1,\) labels'),
    'ragged labels': (rewritten(labels=[[1], 2, 3, 4]), WHOLE + NO_LIST),
    'labels that are text': (rewritten(labels=['1', '2', '3', '4']), WHOLE + NO_LIST),
    'labels that are broken numbers': (rewritten(labels=[1.0, 2, 3, 4]), WHOLE + NO_LIST),
    'labels that are nothing': (without_labels, WHOLE + NO_LIST),
    'fewer images': (
        shortened(1),
        WHOLE + 'it has 1 images and data_batch_1 has 4, and the files of a split have as many',
    ),
    'a bit that flipped': (flipped, r'python.tar.gz: the archive is cut short or damaged \(CRC'),
    'no labels': (rewritten(labels=None), WHOLE + r".*'labels' is missing. It has: batch_label, d"),
    'no pixels': (
        rewritten(data=np.zeros((4, 100), np.uint8)),
        WHOLE + r'images are rows of 3072 bytes, and here they are uint8 \(4, 100\)',
    ),
    'a list of pixels': (rewritten(data=[1, 2]), WHOLE + r'.* and here they are no array'),
    'nothing': (
        lambda root: archived(root, FORMS['cifar10']).unlink(),
        'CIFAR-10 is not there. Put cifar-10-python.tar.gz into that folder',
    ),
}  # fmt: skip


@pytest.mark.parametrize('name', REFUSED)
def test_it_is_refused_in_a_sentence(name: str, tmp_path: Path) -> None:
    change, sentence = REFUSED[name]
    write_cifar(tmp_path)
    CIFAR10(str(tmp_path))
    change(tmp_path)
    with pytest.raises(DataError, match=sentence) as caught:
        CIFAR10(str(tmp_path))
    assert '\n' not in str(caught.value)


def test_records_cut_short_are_refused(tmp_path: Path) -> None:
    write_cifar(tmp_path)
    path = recorded(tmp_path, FORMS['cifar10']) / 'data_batch_3.bin'
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(DataError, match=r'data_batch_3.bin: .* are no whole number of records'):
        CIFAR10(str(tmp_path))


def test_records_of_unlike_files_are_refused(tmp_path: Path) -> None:
    write_cifar(tmp_path)
    path = recorded(tmp_path, FORMS['cifar10']) / 'data_batch_1.bin'
    path.write_bytes(path.read_bytes()[: 2 * (1 + PIXELS)])
    with pytest.raises(DataError, match='bin: data_batch_1.bin: it has 2 images and data_batch_2'):
        CIFAR10(str(tmp_path))


@pytest.mark.parametrize(('given', 'asked'), [('cifar10', 'cifar100'), ('cifar100', 'cifar10')])
@pytest.mark.parametrize('split', ['train', 'test'])
def test_the_archive_of_the_other_data_set_is_told(
    given: str, asked: str, split: str, tmp_path: Path
) -> None:
    write_cifar(tmp_path, FORMS[given])
    path = archived(tmp_path, FORMS[given])
    kind, other = KINDS[asked], KINDS[given]
    with pytest.raises(DataError, match=f"this is the archive of .* Use type='{other.__name__}'"):
        kind(str(path), split=split)
    assert len(other(str(path), split=split)) > 0
