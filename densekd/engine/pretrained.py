"""The weights that a student starts from, found before training and not in the midst of it."""

from __future__ import annotations

import copy
import json
from collections.abc import Mapping
from importlib.resources import files
from pathlib import Path
from typing import Any

from densekd.core.checkpoint import find_checkpoint, read_checkpoint, weights_in
from densekd.engine.run import is_distillation, student_config
from densekd.errors import CheckpointError, did_you_mean
from densekd.wrappers.config import plain

# mmengine's tables of what the names behind a scheme stand for.
TABLES = {
    'torchvision': 'torchvision_0.12.json',
    'modelzoo': 'torchvision_0.12.json',
    'open-mmlab': 'openmmlab.json',
    'openmmlab': 'openmmlab.json',
    'mmcls': 'mmcls.json',
}


def with_local_weights(cfg: Any, trust: bool = False) -> Any:
    """Returns a config whose student starts from local files.

    Every `init_cfg=dict(type='Pretrained', checkpoint=…)` and `pretrained=…` of the student, or of
    a plain config's model, is looked up: paths as they are, names of model zoos and URLs in
    `$DENSEKD_CHECKPOINTS` and among the files fetched before, and only then on their host.

    Args:
        cfg: A prepared config.
        trust: Whether these files may run code while they are read.

    Raises:
        CheckpointError: If one can't be had, or is no checkpoint.
    """
    cfg = copy.deepcopy(cfg)
    where = 'model.student' if is_distillation(cfg) else 'model'
    before = plain(student_config(cfg).model)
    model = _localised(before, where, where, trust)
    if model == before:
        return cfg
    if where == 'model':
        cfg.model = model
    else:
        cfg.model.student = model
    return cfg


def _localised(config: Any, where: str, key: str, trust: bool) -> Any:
    """Returns the config with its sources found.

    Args:
        config: A part of a model's config.
        where: Its place in the whole config.
        key: What to unset for training without: the place of its `init_cfg` or `pretrained`.
        trust: As in `with_local_weights`.
    """
    if isinstance(config, (list, tuple)):
        # A list can't be reached into by --cfg-options in older mmengines, so it is unset whole.
        return type(config)(_localised(v, f'{where}.{i}', key, trust) for i, v in enumerate(config))
    if not isinstance(config, Mapping):
        return config
    if config.get('type') == 'Pretrained' and isinstance(config.get('checkpoint'), str):
        path = _find(config['checkpoint'], key, trust)
        found = {**config, 'checkpoint': str(path)}
        if config['checkpoint'].startswith('mmcls://'):
            found.setdefault('prefix', 'backbone.')  # these files are of whole classifiers
        return found
    result = {}
    for name, value in config.items():
        place = f'{where}.{name}'
        if name == 'pretrained' and isinstance(value, str):
            result[name] = str(_find(value, place, trust))
        else:
            result[name] = _localised(value, place, place if name == 'init_cfg' else key, trust)
    return result


def _find(source: str, key: str, trust: bool) -> Path:
    try:
        path = find_checkpoint(_address(source))
        weights_in(read_checkpoint(path, trust), path)
    except CheckpointError as error:
        named = '' if str(error).startswith(source) else f'{source}: '
        raise CheckpointError(
            f"{key}: the student's initial weights can't be had: {named}{error} To start from "
            f'random weights instead: --cfg-options {key}=None'
        ) from None
    return path


def _address(source: str) -> str:
    scheme, separator, name = source.partition('://')
    table = TABLES.get(scheme)
    if not separator or table is None:
        return source
    folder = files('mmengine.hub')
    addresses = json.loads(folder.joinpath(table).read_text())
    if scheme in ('open-mmlab', 'openmmlab'):
        renamed = json.loads(folder.joinpath('deprecated.json').read_text())
        name = renamed.get(name, name)
    if name not in addresses:
        raise CheckpointError(
            f'{source}: {scheme} has no weights of that name. {did_you_mean(name, addresses)}'
        )
    return addresses[name]
