"""Any folder of images: one folder a class, or a list of files with labels."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from densekd.classification.datasets.base import LabelledImages
from densekd.errors import DataError, did_you_mean

ENDINGS = ('.jpg', '.jpeg', '.png', '.ppm', '.bmp', '.pgm', '.tif', '.tiff', '.webp')


class ImageFolder(LabelledImages):
    """Images in a folder for each class, however deep; or images and a list of their labels.

    Classes are the folders' names in alphabetical order, or those of `metainfo`, in its order.

    Args:
        data_root: The folder.
        split: A folder in it, such as `'train'`; empty if the classes lie in `data_root` itself.
        ann_file: A list in `data_root` with a file and its label, a number, in each line, for
            images that lie together, as ImageNet's validation images come.
        pipeline: See `LabelledImages`, as for all that follow.
        fraction: The share of each class that is used.
        fraction_seed: Of that choice.
        repeat: How often an epoch has each image.
        metainfo: `dict(classes=…)` names the classes.
        indices: How many images to keep, or which.
        test_mode: Whether it is for scoring.
        lazy_init: Whether nothing is read yet.
    """

    def __init__(
        self,
        data_root: str = '',
        split: str = '',
        ann_file: str = '',
        pipeline: Sequence[Any] = (),
        fraction: float = 1.0,
        fraction_seed: int = 0,
        repeat: int = 1,
        metainfo: Mapping[str, Any] | None = None,
        indices: int | Sequence[int] | None = None,
        test_mode: bool = False,
        lazy_init: bool = False,
    ) -> None:
        self.split, self.listed = split, ann_file
        super().__init__(
            data_root=data_root,
            pipeline=pipeline,
            fraction=fraction,
            fraction_seed=fraction_seed,
            repeat=repeat,
            metainfo=metainfo,
            indices=indices,
            test_mode=test_mode,
            lazy_init=lazy_init,
        )

    def load_data_list(self) -> list[dict[str, Any]]:
        """Returns the path and the label of each image.

        Raises:
            DataError: If a folder is missing, or that of a class has nothing to train on.
        """
        folder = Path(self.data_root or '.') / self.split
        _refuse_no_folder(folder)
        return self._from_list(folder) if self.listed else self._from_folders(folder)

    def _from_folders(self, folder: Path) -> list[dict[str, Any]]:
        found = class_folders(folder)
        names = self._metainfo.get('classes')
        if names is None:
            names = found
            self._metainfo['classes'] = tuple(found)
        if not found:
            raise DataError(f'{folder}: it has no folders, of which each would be a class.')
        for name in names:
            if name not in found:
                raise DataError(
                    f'{folder}: there is no folder of class {name!r}. {did_you_mean(name, found)}'
                )
        entries = []
        for label, name in enumerate(names):
            files = _images(folder / name)
            if not files and not self.test_mode:  # what is scored may lack a class
                raise DataError(
                    f'{folder / name}: the folder of class {name!r} has no images '
                    f'({", ".join(ENDINGS[:4])}, …).'
                )
            entries += [{'img_path': path, 'gt_label': label} for path in files]
        return entries

    def _from_list(self, folder: Path) -> list[dict[str, Any]]:
        path = Path(self.data_root or '.') / self.listed
        if not path.is_file():
            raise DataError(f'{path}: there is no such list of images and labels.')
        entries = []
        for number, line in enumerate(_lines(path), start=1):
            name, _, label = line.strip().rpartition(' ')
            if not line.strip():
                continue
            if not name or not label.isdecimal():
                raise DataError(
                    f'{path}:{number}: a line is a file and the number of its class, not {line!r}.'
                )
            entries.append({'img_path': str(folder / name.strip()), 'gt_label': int(label)})
        return entries


def class_folders(folder: Path) -> list[str]:
    """Returns the names of the folders in a folder, of which each is a class, in their order."""
    above = _real_and_above(folder)
    return sorted(
        p.name
        for p in folder.iterdir()
        if p.is_dir() and p.name[0] != '.' and os.path.realpath(p) not in above
    )


def _refuse_no_folder(folder: Path) -> None:
    if folder.is_dir():
        return
    wanted = folder
    while not wanted.parent.is_dir():
        wanted = wanted.parent
    near = sorted(p.name for p in wanted.parent.iterdir() if p.is_dir())
    hint = did_you_mean(wanted.name, near) if near else f'{wanted.parent} has no folders.'
    raise DataError(f'{folder}: there is no such folder. {hint}')


def _lines(path: Path) -> list[str]:
    # Editors on Windows begin a file with a mark, which is no part of the first name.
    try:
        return path.read_text(encoding='utf-8-sig').splitlines()
    except UnicodeDecodeError as error:
        raise DataError(
            f'{path}: the list is no text in UTF-8 ({error.reason} at byte {error.start}). Save it '
            'as UTF-8.'
        ) from None


def _real_and_above(folder: Any) -> set[str]:
    """Returns the real paths of a folder and of those above it, as it is written and as it is."""
    real = Path(os.path.realpath(folder))
    written = Path(os.path.abspath(folder))
    return {str(real), *map(str, real.parents), *map(os.path.realpath, written.parents)}


def _images(folder: Path) -> list[str]:
    """Returns the image files in a folder and those in it, in order.

    Links are followed, but a folder is visited once, and none that leads back up.
    """
    found = []
    visited = {os.path.realpath(folder)}
    for place, folders, files in os.walk(folder, followlinks=True):
        above = _real_and_above(place) if folders else set()
        inside = []
        for name in sorted(folders):
            real = os.path.realpath(os.path.join(place, name))
            if real not in visited and real not in above:
                visited.add(real)
                inside.append(name)
        # What stands here is where the walk goes on.
        folders[:] = inside
        found += [
            str(Path(place) / name)
            for name in sorted(files)
            if name[0] != '.' and name.lower().endswith(ENDINGS)
        ]
    return found
