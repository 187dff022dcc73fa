"""A teacher's logits for fixed views: computed once, written to a file, and checked before use."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch

from densekd.core.checkpoint import find_checkpoint
from densekd.core.ops import private_rng
from densekd.engine.files import refuse_existing, save_whole
from densekd.engine.parts_check import register
from densekd.engine.run import is_distillation
from densekd.errors import ConfigError, DataError
from densekd.wrappers.build import build_teachers, model_config
from densekd.wrappers.stored import KIND, VIEW, missing, read_logits

# How many images are looked at, and how often, before the first step.
LOOKED_AT, TIMES = 24, 4
PACK = ('densekd.PackImage',)


def stored_teachers(cfg: Any) -> list[Mapping[str, Any]]:
    """Returns the teachers of a config that are files of logits."""
    if not is_distillation(cfg):
        return []
    given = cfg.model.get('teacher') or []
    teachers = given if isinstance(given, (list, tuple)) else [given]
    return [t for t in teachers if isinstance(t, Mapping) and t.get('logits')]


def with_digests(cfg: Any) -> None:
    """Makes the training pipeline of a config note the digest of each view.

    Raises:
        ConfigError: If its last step is not one that can.
    """
    from densekd.engine.data_checks import datasets

    for key, dataset in datasets(cfg, ('train',)):
        steps = list(dataset.get('pipeline') or [])
        if not steps or steps[-1].get('type') not in PACK:
            raise ConfigError(
                f'{key}: stored logits are for pipelines that end with densekd.PackImage, which '
                'notes what each view is.'
            )
        steps[-1]['digest'] = True
        dataset['pipeline'] = steps


def training_data(cfg: Any) -> Any:
    """Returns the training data set of a config, built."""
    from mmengine.registry import DATASETS, DefaultScope

    scope = cfg.get('default_scope') or 'mmengine'
    with DefaultScope.overwrite_default_scope(scope):
        register(scope)
        return DATASETS.build(copy.deepcopy(cfg.train_dataloader.dataset))


def views_of(data: Any, index: int, times: int = TIMES) -> list[tuple[str, Mapping[str, Any]]]:
    """Returns digest and metainfo of an image, as often as it is looked at, by other seeds."""
    found = []
    for seed in range(times):
        with private_rng(seed):
            meta = data[index]['data_samples'].metainfo
        found.append((meta[VIEW], meta))
    return found


def _some(count: int) -> Iterator[int]:
    """Yields indices that are spread over all."""
    yield from sorted({int(i) for i in np.linspace(0, count - 1, min(LOOKED_AT, count))})


def refuse_varying(cfg: Any, data: Any) -> None:
    """Refuses augmentation, by which no view would ever be met again.

    Raises:
        ConfigError: Naming what varies.
    """
    student = model_config(cfg.model.student, 'student')
    own = student.get('data_preprocessor') if isinstance(student, Mapping) else None
    for key in ('mixup', 'cutmix'):
        if isinstance(own, Mapping) and own.get(key):
            raise ConfigError(
                f'logits: the data_preprocessor mixes images ({key}), so that no view is met again.'
            )
    for index in _some(len(data)):
        views = views_of(data, index)
        if len({view for view, _ in views}) > 1:
            meta = views[0][1]
            image = meta.get('img_path') or f'image {meta.get("sample_idx")}'
            raise ConfigError(
                f'logits: augmentation shows {image} in another view each time, and logits are '
                'stored for one. Leave out PadCrop, Flip and RandomResizedCrop; CenterCrop and '
                'ResizeEdge may stay.'
            )


def check_stored(cfg: Any, trust: bool = False) -> None:
    """Looks, before training, whether stored logits are there for what will be shown.

    Raises:
        ConfigError: If views vary.
        DataError: If one is not in the file.
    """
    stored = stored_teachers(cfg)
    if not stored:
        return
    data = training_data(cfg)
    refuse_varying(cfg, data)
    for teacher in stored:
        path = find_checkpoint(teacher['logits'])
        held = set(read_logits(path, trust)[0])
        for index in _some(len(data)):
            ((view, meta),) = views_of(data, index, 1)
            if view not in held:
                raise DataError(missing(str(path), meta))


@torch.no_grad()
def write_logits(
    cfg: Any, target: str | Path, teacher: str | None = None, trust: bool = False, batch: int = 64
) -> tuple[int, int]:
    """Runs a config's teacher over its training images, and writes what it says of them.

    Args:
        cfg: A prepared distillation config.
        target: The file to write.
        teacher: Which of several teachers.
        trust: Whether its checkpoint may run code while it is read.
        batch: Images at once.

    Returns:
        Numbers of views and of classes.

    Raises:
        ConfigError: If there is no such teacher, or views vary.
        DataError: If the file is there already.
    """
    target = Path(target)
    refuse_existing(target, 'Give another --out.')
    if not is_distillation(cfg) or stored_teachers(cfg):
        raise ConfigError('logits: a distillation config is needed, with a teacher that can run.')
    cfg = copy.deepcopy(cfg)
    chosen = _chosen(cfg.model.get('teacher'), teacher)
    if not (chosen.get('checkpoint') or chosen.get('untrained')):
        raise ConfigError('logits: the teacher has no checkpoint, and so nothing to teach.')
    with_digests(cfg)
    data = training_data(cfg)
    refuse_varying(cfg, data)
    (held,) = build_teachers(chosen, 'mmengine', 0, trust).values()
    network: Any = held.model
    device = 'cuda' if torch.cuda.is_available() else 'cpu'
    network.to(device)
    rows: dict[str, torch.Tensor] = {}
    for begin in range(0, len(data), batch):
        items = [data[i] for i in range(begin, min(begin + batch, len(data)))]
        inputs = {'inputs': [item['inputs'] for item in items]}
        images = network.data_preprocessor(inputs, False)['inputs'].to(device)
        for item, row in zip(items, network(images).float().cpu(), strict=True):
            rows[item['data_samples'].metainfo[VIEW]] = row
    logits = torch.stack(list(rows.values()))
    classes = (held.manifest.get('dataset_meta') or {}).get('classes')
    content = {
        'kind': KIND,
        'version': 1,
        'views': list(rows),
        'logits': logits,
        'classes': classes,
        'teacher': dict(held.manifest),
    }
    save_whole(content, target)
    return len(logits), logits.shape[1]


def _chosen(given: Any, name: str | None) -> dict[str, Any]:
    teachers = list(given) if isinstance(given, (list, tuple)) else [given] if given else []
    found = [t for t in teachers if name is None or t.get('name') == name]
    if len(found) == 1:
        return dict(found[0])
    names = ', '.join(str(t.get('name')) for t in teachers) or 'none'
    raise ConfigError(f'logits: say with --teacher which of these it is: {names}.')
