"""Says in a sentence what is wrong with a data set, before a training's first step."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from xml.etree.ElementTree import ParseError

from densekd.engine.coco_checks import check_coco, refuse_nothing_to_learn
from densekd.engine.labelled_checks import check_labelled, labelled_dataset
from densekd.engine.mask_checks import check_masks, mask_dataset, refuse_ignored
from densekd.engine.voc_checks import VOC_TYPES, check_voc, refuse_class_that_is_not_listed
from densekd.engine.weighed_losses import needs_every_pixel, no_weight, refuse_padding
from densekd.errors import DataError, DenseKDError, did_you_mean


def innermost(dataset: Any) -> list[Any]:
    """Returns the dataset configs inside wrappers that repeat, concatenate, balance or mix."""
    return [d for d in nest(dataset) if _inside(d) is None]


def nest(dataset: Any) -> Iterator[Any]:
    """Yields a dataset config and, if it is a wrapper, all that is inside it."""
    if not isinstance(dataset, Mapping):
        return
    yield dataset
    for inner in _inside(dataset) or ():
        yield from nest(inner)


def _inside(dataset: Mapping[str, Any]) -> list[Any] | None:
    if isinstance(dataset.get('dataset'), Mapping):
        return [dataset['dataset']]
    if isinstance(dataset.get('datasets'), (list, tuple)):
        return list(dataset['datasets'])
    return None


def datasets(
    cfg: Any, splits: tuple[str, ...] = ('train', 'val', 'test')
) -> Iterator[tuple[str, Any]]:
    """Yields each dataset config with the key of its dataloader."""
    for split in splits:
        loader = cfg.get(f'{split}_dataloader')
        if isinstance(loader, Mapping):
            for dataset in innermost(loader.get('dataset')):
                yield f'{split}_dataloader', dataset


def kind_of(dataset: Mapping[str, Any]) -> str:
    """Returns the name of a dataset's type, without its scope."""
    return str(dataset.get('type', '')).rpartition('.')[2]


def class_names(dataset: Mapping[str, Any]) -> list[str] | None:
    """Returns the class names of a dataset config: its own, or else those of its type."""
    classes = (dataset.get('metainfo') or {}).get('classes')
    if classes:
        return [classes] if isinstance(classes, str) else [str(name) for name in classes]
    from mmdet import datasets as module

    meta = getattr(getattr(module, kind_of(dataset), None), 'METAINFO', {})
    return list(meta['classes']) if meta.get('classes') else None


def annotation_path(dataset: Mapping[str, Any]) -> Path | None:
    """Returns the annotation file of a dataset config, or None where it names none."""
    name = dataset.get('ann_file')
    if not name:
        return None
    path = Path(name)
    return path if path.is_absolute() else Path(dataset.get('data_root') or '.') / path


def image_folder(dataset: Mapping[str, Any]) -> Path:
    """Returns the folder of a dataset config's images."""
    prefix = dataset.get('data_prefix') or {}
    return Path(dataset.get('data_root') or '.') / (
        prefix.get('img') or prefix.get('img_path') or ''
    )


def check_data(cfg: Any, whole: bool = False) -> None:
    """Refuses data that is not there, or that is not in the format that its data set reads.

    Args:
        cfg: A prepared config.
        whole: Whether to look into every file also where that takes long.

    Raises:
        DataError: Naming the file and what it lacks.
    """
    trained: tuple[str, ...] = ()
    for key, dataset in datasets(cfg, ('train', 'val')):
        path = annotation_path(dataset)
        if path is not None and not path.is_file():
            raise DataError(f'{key}: there is no annotation file {path}. {_nearest(path)}')
        if labelled_dataset(dataset) is not None:
            trained = check_labelled(cfg, dataset, key, whole, trained) or trained
        elif cfg.get('default_scope') == 'mmseg':
            if mask_dataset(dataset) is not None:
                check_masks(dataset, key, whole)
                place = needs_every_pixel(cfg) if key == 'train_dataloader' else None
                if place is not None:
                    refuse_ignored(dataset, key, no_weight(place), whole)
        elif path is None:
            continue
        elif kind_of(dataset) == 'CocoDataset' and path.stat().st_size < 2**26:
            classes = class_names(dataset)
            own = bool((dataset.get('metainfo') or {}).get('classes'))
            content = check_coco(path, classes, image_folder(dataset), key, own)
            if key == 'train_dataloader':
                refuse_nothing_to_learn(content, classes, path, key)
        elif kind_of(dataset) in VOC_TYPES:
            listed = class_names(dataset) or []
            objects = check_voc(dataset, path, key)
            refuse_class_that_is_not_listed(objects, listed, key)
            if key == 'train_dataloader' and not objects.keys() & set(listed):
                raise DataError(f'{key}: {path} has no objects, so that there is nothing to learn.')


def check_scored(cfg: Any, learnt: Sequence[str] | None) -> None:
    """Refuses labelled images to be scored on that can't be read, or are of other classes.

    Other data sets say themselves what they lack.

    Args:
        cfg: A prepared config.
        learnt: The names of the classes that a checkpoint was trained on, if it says so.

    Raises:
        DataError: Naming the file or the class.
    """
    for key, dataset in datasets(cfg, ('test',)):
        if labelled_dataset(dataset) is not None:
            check_labelled(cfg, dataset, key, trained=tuple(learnt or ()))


def _nearest(path: Path) -> str:
    """Says what is there instead, in the deepest folder of a path that exists."""
    wanted = path
    while not wanted.parent.is_dir():
        wanted = wanted.parent
    here = sorted(p.name for p in wanted.parent.glob('*'))
    if wanted == path:
        return did_you_mean(path.name, here) if here else f'The folder {path.parent} is empty.'
    near = did_you_mean(wanted.name, here) if here else ''
    near = near if near.startswith('Did you mean') else ''
    return f'There is no folder {wanted}. {near}'.rstrip()


@contextmanager
def data_errors(cfg: Any) -> Iterator[None]:
    """Turns an error from inside a dataset into a sentence about the file, where one is at fault.

    Raises:
        DataError: If the data is found to be wrong.
    """
    try:
        yield
    except DenseKDError as error:
        # Out of a process that loads, the sentence comes at the end of its traceback.
        said = str(error).strip()
        if not said.startswith('Caught '):
            raise
        raise type(error)(said.rpartition(f'{type(error).__name__}: ')[2]) from None
    except (
        *(KeyError, FileNotFoundError, AssertionError, IndexError, ParseError),
        *(ValueError, RuntimeError),  # of maps that can't be stacked, or in a process that loads
    ) as error:
        if 'out of memory' not in str(error):
            check_data(cfg, whole=True)  # raises if the data is the reason
            refuse_padding(cfg, error)
        raise error
