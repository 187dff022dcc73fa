"""Class weights in mmseg's cross entropy, which some of its versions can't compute in every case.

mmsegmentation 1.2.2 looks up a weight for pixels to ignore, too, under their number 255, and stops
with an IndexError. onedl-mmsegmentation 1.4.2 leaves them out, but stops where avg_non_ignore is on
beside class weights. What the installed one does is tried, not read from its version.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import torch

from densekd.engine.mask_checks import IGNORED
from densekd.errors import ConfigError, DataError


def _weighed(cfg: Any) -> Iterator[tuple[str, bool]]:
    """Yields the place of each loss that weighs classes, and its `avg_non_ignore`."""
    if cfg.get('default_scope') != 'mmseg' or not isinstance(cfg.get('model'), Mapping):
        return
    from mmseg.models.losses import CrossEntropyLoss

    from densekd.engine.run import is_distillation, student_config

    model = student_config(cfg).model if is_distillation(cfg) else cfg['model']
    for name in ('decode_head', 'auxiliary_head'):
        for head in _list(model.get(name)):
            for loss in _list(head.get('loss_decode')):
                kinds = ('CrossEntropyLoss', 'mmseg.CrossEntropyLoss', CrossEntropyLoss)
                softmax = not loss.get('use_sigmoid') and not loss.get('use_mask')
                mean = loss.get('reduction', 'mean') == 'mean'
                if loss.get('type') in kinds and softmax and mean and loss.get('class_weight'):
                    yield f'{name}.loss_decode', bool(loss.get('avg_non_ignore'))


def _list(value: Any) -> list[Mapping[str, Any]]:
    entries = value if isinstance(value, (list, tuple)) else [value]
    return [entry for entry in entries if isinstance(entry, Mapping)]


def _fails(label: int, avg_non_ignore: bool) -> bool:
    """Whether mmseg's weighed mean over two pixels, one of class 0, fails for the other's label."""
    from mmseg.models.losses import cross_entropy_loss

    labels = torch.tensor([[[0, label]]])
    try:
        cross_entropy_loss.cross_entropy(
            torch.zeros(1, 2, 1, 2),
            labels,
            class_weight=torch.ones(2),
            ignore_index=IGNORED,
            avg_non_ignore=avg_non_ignore,
        )
    except IndexError:
        return True
    return False


def _version() -> str:
    import mmseg

    return f'mmseg {mmseg.__version__}'


def check_class_weights(cfg: Any) -> None:
    """Refuses class weights beside `avg_non_ignore` where the mmseg that is there can't have both.

    Raises:
        ConfigError: Naming the loss.
    """
    for place, avg_non_ignore in _weighed(cfg):
        if avg_non_ignore and _fails(1, avg_non_ignore):
            raise ConfigError(
                f"{place}: {_version()} can't compute class_weight and avg_non_ignore=True "
                'together. Leave out avg_non_ignore: with class_weight, it averages over the '
                'pixels that are not ignored by itself.'
            )


def needs_every_pixel(cfg: Any) -> str | None:
    """Returns the place of a loss that fails where a pixel is to be ignored, or None."""
    for place, avg_non_ignore in _weighed(cfg):
        if _fails(IGNORED, avg_non_ignore):
            return place
    return None


def no_weight(place: str) -> str:
    """Returns what is wrong with such a loss and what to do, as the end of a sentence."""
    return (
        f'for which {_version()} looks up a weight in the class_weight of {place}, and fails. '
        'Leave out class_weight, or install onedl-mmsegmentation instead of mmsegmentation; '
        'avg_non_ignore=True does not help.'
    )


def refuse_padding(cfg: Any, error: Exception) -> None:
    """Refuses such a loss after an error that comes of padding: no mask has ignored pixels.

    Raises:
        DataError: If the error is of this sort.
    """
    if not isinstance(error, IndexError) or f'index {IGNORED} is out of bounds' not in str(error):
        return
    place = needs_every_pixel(cfg)
    if place is not None:
        raise DataError(
            f'train_dataloader: images are padded, with pixels to ignore ({IGNORED}), '
            f'{no_weight(place)}'
        ) from error
