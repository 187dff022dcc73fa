"""A teacher that is a file: its logits for the very views that training shows, computed before.

    densekd logits CONFIG --out logits.pth          # by the config's teacher, once
    teacher=dict(logits='logits.pth')               # and from then on without it

A view is known by its bytes, so that one that augmentation has changed is not found.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from densekd.core.checkpoint import file_hash, find_checkpoint, read_checkpoint
from densekd.core.taps import Tap
from densekd.core.teacher import Teacher
from densekd.errors import CheckpointError, ConfigError, DataError

KIND = 'densekd.logits'
# What a sample's metainfo calls the digest of its view.
VIEW = 'view'


class _Rows(nn.Module):
    """Where stored logits come out: a classifier's head without any weights."""

    def __init__(self, num_classes: int) -> None:
        super().__init__()
        self.num_classes = num_classes

    def forward(self, rows: Tensor) -> Tensor:
        return rows


class StoredLogits(nn.Module):
    """Gives the stored logits of the views that it was told of last.

    Args:
        views: The digest of each view.
        logits: Its logits, (R, K).
        source: The file, for messages.

    Example:
        >>> from types import SimpleNamespace
        >>> stored = StoredLogits(['aa', 'bb'], torch.tensor([[0.0, 1.0], [2.0, 3.0]]), 'file')
        >>> stored.look_up([SimpleNamespace(metainfo={'view': 'bb'})])
        >>> stored.head(stored.extract_feat(torch.zeros(1, 3, 8, 8)))
        tensor([[2., 3.]])
    """

    data_preprocessor = None

    def __init__(self, views: Sequence[str], logits: Tensor, source: str) -> None:
        super().__init__()
        self.head = _Rows(logits.shape[1])
        self.source = source
        self.rows = {view: row for row, view in enumerate(views)}
        # No buffer: a whole data set's logits need not lie where the student does.
        self.__dict__['logits'] = logits
        self.wanted: Tensor | None = None
        self.stands_in = False

    def look_up(self, data_samples: Sequence[Any]) -> None:
        """Notes which views are asked for next.

        Raises:
            DataError: If one is not stored.
        """
        found = []
        for position, sample in enumerate(data_samples):
            view = sample.metainfo.get(VIEW)
            row = position % len(self.rows) if self.stands_in else self.rows.get(view, -1)
            if row < 0:
                raise DataError(missing(self.source, sample.metainfo))
            found.append(row)
        self.wanted = torch.tensor(found)

    def extract_feat(self, images: Tensor) -> Tensor:
        """Returns the logits of the views; zeros where none was asked for, as for a trace."""
        if self.wanted is None:
            return images.new_zeros(len(images), self.head.num_classes)
        return self.__dict__['logits'][self.wanted].to(images.device, images.dtype)


def missing(source: str, metainfo: Mapping[str, Any]) -> str:
    """Returns the sentence for a view that a file lacks."""
    image = metainfo.get('img_path') or f'image {metainfo.get("sample_idx")}'
    if VIEW not in metainfo:
        return (
            f'teacher.logits: {image} comes without a digest of its view. Let the pipeline end '
            "with dict(type='densekd.PackImage', digest=True)."
        )
    return (
        f'teacher.logits: {source} has no logits for {image} as training shows it: augmentation '
        'varies it, or the file was made of other data. Take a fixed view, as without PadCrop, '
        'Flip and RandomResizedCrop, and make the file with it: densekd logits.'
    )


def stored_taps(model: StoredLogits) -> dict[str, Tap]:
    """Returns the one named tap of stored logits."""
    return {'logits': Tap('head', name='logits', level='head', copy=False)}


def stored_teacher(entry: Mapping[str, Any], name: str, where: str, trust: bool) -> Teacher:
    """Returns the teacher that a config's `logits` name.

    Raises:
        ConfigError: If the entry names a network as well.
        CheckpointError: If the file is missing, or holds no logits.
    """
    for key in ('model', 'checkpoint', 'untrained', 'precision'):
        if entry.get(key):
            raise ConfigError(
                f'{where}: logits stand for a network that was run before. Leave out {key}, or '
                'leave out logits.'
            )
    path = find_checkpoint(entry['logits'])
    views, logits, classes = read_logits(path, trust)
    manifest = {
        'model': 'stored logits',
        'checkpoint': str(entry['logits']),
        'sha256': file_hash(path),
        'dataset_meta': {'classes': classes} if classes else None,
        'untrained': False,
        'declared_untrained': False,
    }
    return Teacher(StoredLogits(views, logits, str(path)), name, manifest, fuse=False)


def read_logits(
    path: str | os.PathLike[str], trust: bool = False
) -> tuple[list[str], Tensor, list[str] | None]:
    """Returns the views, their logits and the classes of a file of logits.

    Raises:
        CheckpointError: If it is none, or its parts don't fit.
    """
    held = read_checkpoint(path, trust)
    if not isinstance(held, Mapping) or held.get('kind') != KIND:
        raise CheckpointError(
            f'{path}: it holds no logits. Make such a file: densekd logits CONFIG --out {path}.'
        )
    views, logits, classes = held['views'], held['logits'], held.get('classes')
    fits = isinstance(logits, Tensor) and logits.dim() == 2 and len(logits) == len(views) > 0
    if not fits or not bool(torch.isfinite(logits).all()):
        raise CheckpointError(f'{path}: it is damaged: not one row of finite logits for each view.')
    return list(views), logits, list(classes) if classes else None
