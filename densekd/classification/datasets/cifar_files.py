"""The files that CIFAR was published in: pickles or records of bytes, in a folder or an archive."""

from __future__ import annotations

import tarfile
import zlib
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from densekd.classification.datasets.plain_pickle import load_plain
from densekd.errors import DataError

PIXELS = 3 * 32 * 32
HOST = 'https://www.cs.toronto.edu/~kriz/'


@dataclass(frozen=True)
class Form:
    """How a data set was published.

    Attributes:
        name: What it is called.
        type: The type of its data set in a config.
        archive: The archive of pickles.
        size: Bytes of that archive.
        folder: The folder in it.
        binary: The archive of records, and the folder in that.
        files: The pickles of each split.
        records: The files of records of each split.
        label: The key of the labels in a pickle.
        leading: Labels before the one that is meant, in a record.
        classes: How many classes there are.
    """

    name: str
    type: str
    archive: str
    size: int
    folder: str
    binary: tuple[str, str]
    files: Mapping[str, tuple[str, ...]]
    records: Mapping[str, tuple[str, ...]]
    label: bytes
    leading: int
    classes: int


_FIVE = tuple(f'data_batch_{i}' for i in range(1, 6))
FORMS = {
    'cifar10': Form(
        'CIFAR-10',
        'CIFAR10',
        'cifar-10-python.tar.gz',
        170498071,
        'cifar-10-batches-py',
        ('cifar-10-binary.tar.gz', 'cifar-10-batches-bin'),
        {'train': _FIVE, 'test': ('test_batch',)},
        {'train': tuple(f'{name}.bin' for name in _FIVE), 'test': ('test_batch.bin',)},
        b'labels',
        0,
        10,
    ),
    'cifar100': Form(
        'CIFAR-100',
        'CIFAR100',
        'cifar-100-python.tar.gz',
        169001437,
        'cifar-100-python',
        ('cifar-100-binary.tar.gz', 'cifar-100-binary'),
        {'train': ('train',), 'test': ('test',)},
        {'train': ('train.bin',), 'test': ('test.bin',)},
        b'fine_labels',
        1,
        100,
    ),
}


def read_cifar(root: str | Path, form: Form, split: str) -> tuple[np.ndarray, np.ndarray]:
    """Returns the images (N, 32, 32, 3), RGB, and labels (N,) of a split.

    Args:
        root: A folder with the archive or its folder in it, or one of these two itself.
        form: Which data set.
        split: `'train'` or `'test'`.

    Raises:
        DataError: If it is not there, or not what was published.
    """
    place, binary = _find(Path(root), form)
    names = (form.records if binary else form.files)[split]
    contents = _from_archive(place, names, form) if place.is_file() else _from_folder(place, names)
    parse = _from_record if binary else _from_pickle
    parts = [parse(contents[name], form, f'{place}: {name}') for name in names]
    _check_even({name: len(labels) for name, (_, labels) in zip(names, parts, strict=True)}, place)
    images = np.concatenate([pixels for pixels, _ in parts]).reshape(-1, 3, 32, 32)
    labels = np.concatenate([labels for _, labels in parts])
    return images.transpose(0, 2, 3, 1), labels


def _find(root: Path, form: Form) -> tuple[Path, bool]:
    """Returns the archive or folder to read, and whether it holds records and no pickles."""
    archive, folder = form.binary
    if root.is_file():
        return root, root.name == archive
    for one, names, binary in (
        (form.folder, form.files, False),
        (folder, form.records, True),
    ):
        for place in (root / one, root):
            if (place / names['test'][0]).is_file() or (place.name == one and place.is_dir()):
                return place, binary
    for one, binary in ((form.archive, False), (archive, True)):
        if (root / one).is_file():
            return root / one, binary
    raise DataError(
        f'{root}: {form.name} is not there. Put {form.archive} into that folder, as it is; it is '
        f'{HOST}{form.archive}'
    )


def _from_folder(folder: Path, names: tuple[str, ...]) -> dict[str, bytes]:
    for name in names:
        if not (folder / name).is_file():
            raise DataError(f'{folder}: {name} is missing. Unpack the archive again.')
    return {name: (folder / name).read_bytes() for name in names}


def _from_archive(path: Path, names: tuple[str, ...], form: Form) -> dict[str, bytes]:
    found: dict[str, bytes] = {}
    folders: set[str] = set()
    # Read in one go and never written to the disk: no member's path is of any consequence.
    try:
        with tarfile.open(path, 'r:*') as archive:
            for member in archive:
                name = Path(member.name).name
                folders.update(Path(member.name).parts)
                file = archive.extractfile(member) if name in names else None
                if file is not None:
                    found[name] = file.read()
            # What is packed has its checksum at the very end, behind the last member.
            while archive.fileobj is not None and archive.fileobj.read(2**20):
                pass
    except (tarfile.TarError, EOFError, OSError, zlib.error) as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0].rstrip(':')
        raise DataError(_cut(path, form, reason)) from None
    missing = [name for name in names if name not in found]
    for other in FORMS.values() if missing else ():
        if other is not form and folders & {other.folder, other.binary[1]}:
            raise DataError(
                f'{path}: this is the archive of {other.name}, and not of {form.name}. Use '
                f"type='{other.type}' for it, or give the archive of {form.name}."
            )
    if missing:
        raise DataError(_cut(path, form, f'{missing[0]} is missing in it'))
    return found


def _check_even(counts: dict[str, int], place: Path) -> None:
    # How many is not looked at: a small data set in the published files is as good.
    usual, _ = Counter(counts.values()).most_common(1)[0]
    like = next(name for name, count in counts.items() if count == usual)
    for name, count in counts.items():
        if count != usual:
            raise DataError(
                f'{place}: {name}: it has {count:,} images and {like} has {usual:,}, and the files '
                'of a split have as many as each other. Unpack or fetch the archive again.'
            )


def _cut(path: Path, form: Form, reason: str) -> str:
    size = path.stat().st_size
    original = f' of {form.size:,}' if path.name == form.archive else ''
    return (
        f'{path}: the archive is cut short or damaged ({reason}); it has {size:,}{original} bytes. '
        f'Fetch it again: {HOST}{path.name}'
    )


def _from_pickle(content: bytes, form: Form, where: str) -> tuple[np.ndarray, np.ndarray]:
    held: Any = load_plain(content, where)
    if not isinstance(held, dict):
        raise DataError(f'{where}: it is no batch of {form.name}: it holds no dict.')
    # Written again by a newer Python, the keys are text.
    held = {key.encode() if isinstance(key, str) else key: value for key, value in held.items()}
    missing = [key.decode() for key in (b'data', form.label) if key not in held]
    if missing:
        has = ', '.join(sorted(k.decode(errors='replace') for k in held if isinstance(k, bytes)))
        raise DataError(
            f'{where}: it is no batch of {form.name}: {missing[0]!r} is missing. It has: {has}.'
        )
    try:
        labels = np.asarray(held[form.label])
    except ValueError:  # a list of lists of unlike lengths
        labels = np.asarray(None)
    if labels.ndim != 1 or (labels.size and labels.dtype.kind not in 'iu'):
        raise DataError(
            f'{where}: {form.label.decode()!r} is no list of whole numbers, one for each image.'
        )
    return _checked(held[b'data'], labels, form, where)


def _from_record(content: bytes, form: Form, where: str) -> tuple[np.ndarray, np.ndarray]:
    width = form.leading + 1 + PIXELS
    if not content or len(content) % width:
        raise DataError(
            f'{where}: it is cut short or damaged: {len(content):,} bytes are no whole number of '
            f'records of {width:,}.'
        )
    rows = np.frombuffer(content, np.uint8).reshape(-1, width)
    return _checked(rows[:, form.leading + 1 :], rows[:, form.leading], form, where)


def _checked(
    pixels: Any, labels: np.ndarray, form: Form, where: str
) -> tuple[np.ndarray, np.ndarray]:
    good = isinstance(pixels, np.ndarray) and pixels.dtype == np.uint8
    if not good or pixels.ndim != 2 or pixels.shape[1] != PIXELS:
        shape = f'{pixels.dtype} {pixels.shape}' if isinstance(pixels, np.ndarray) else 'no array'
        raise DataError(f'{where}: images are rows of {PIXELS} bytes, and here they are {shape}.')
    if labels.shape != (len(pixels),):
        raise DataError(f'{where}: it has {len(pixels)} images and {labels.shape} labels.')
    wrong = labels[(labels < 0) | (labels >= form.classes)]
    if wrong.size:
        raise DataError(
            f'{where}: it has the label {int(wrong[0])}, and {form.name} has {form.classes} '
            f'classes: 0 to {form.classes - 1}.'
        )
    return pixels, labels.astype(np.int64)
