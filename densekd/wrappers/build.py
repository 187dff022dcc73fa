"""From configs to networks: the student, its teachers, and the list of distillers."""

from __future__ import annotations

import re
import warnings
from collections.abc import Mapping, Sequence
from typing import Any

from mmengine.registry import Registry
from torch import nn

from densekd.core.checkpoint import file_hash, find_checkpoint, load_weights, read_checkpoint
from densekd.core.ops import private_rng
from densekd.core.teacher import Teacher
from densekd.errors import ConfigError, did_you_mean
from densekd.wrappers.config import load_config, plain
from densekd.wrappers.stored import stored_teacher

TEACHER_KEYS = (
    'model', 'checkpoint', 'name', 'untrained', 'precision', 'fuse', 'classes', 'logits',
)  # fmt: skip
PRECISIONS = ('fp32', 'bf16')
DISTILLER_KEYS = (
    'student_module', 'teacher_module', 'head', 'teacher', 'schedule', 'lr_mult', 'student',
    'clip_to_task',
)  # fmt: skip


def model_config(source: Any, who: str) -> Any:
    """Returns the model's part of a config: a path, a `Config` or a dict, or the model's own dict.

    Raises:
        ConfigError: If there is no model in it.
    """
    if isinstance(source, nn.Module):
        return source
    if source is None or isinstance(source, (bool, int, float)):
        raise ConfigError(f'{who}: a config path, a Config or a dict is needed, not {source!r}.')
    config = source if isinstance(source, Mapping) and 'type' in source else load_config(source)
    if 'type' in config:
        return plain(config)
    model = config.get('model')
    if not isinstance(model, Mapping) or 'type' not in model:
        raise ConfigError(f'{who}: the config {_label(source)} has no model.')
    if str(model['type']).startswith('densekd.Distill'):
        # The student of a student: a distillation config named where a plain one is meant.
        return model_config(model.get('student'), who)
    return plain(model)


def _label(source: Any) -> str:
    return str(
        getattr(source, 'filename', None) or (source if isinstance(source, str) else 'given')
    )


def build_network(config: Any, scope: str, who: str) -> nn.Module:
    """Builds a network of a toolbox, whatever scope is the default just now.

    Raises:
        ConfigError: If the toolbox has no such type or refuses an argument.
    """
    if isinstance(config, nn.Module):
        return config
    from mmengine.config import ConfigDict
    from mmengine.registry import MODELS, DefaultScope

    # Detectors read their train_cfg by attribute, which a plain dict does not offer.
    config = ConfigDict(config)
    kind = config.get('type')
    try:
        _register(scope)
        with DefaultScope.overwrite_default_scope(config.get('_scope_', scope)):
            return MODELS.build(config)
    except KeyError as error:
        raise ConfigError(f"{who}: {scope} can't build {kind}: {_reason(error)}") from error
    except (TypeError, AttributeError, AssertionError, ValueError) as error:
        if isinstance(error, ConfigError):
            raise
        raise ConfigError(f"{who}: {scope} can't build {kind}: {_reason(error)}") from error


def own_names(root: Registry) -> set[str]:
    """Returns what densekd has in one of mmengine's registries, as configs name it."""
    own = root.children.get('densekd')
    if own is None:
        return set()
    own.import_from_location()
    return {f'densekd.{name}' for name in own.module_dict}


def _reason(error: BaseException) -> str:
    unknown = re.search(r'(?:(\w+)\.)?(\w+) is not in the (\w+)::model registry', str(error))
    if unknown:
        from mmengine.registry import MODELS

        said, name, scope = unknown.groups()
        child = MODELS.children.get(said or scope)
        names = {*MODELS.module_dict, *(child.module_dict if child is not None else ())}
        if not said and scope == 'mmengine':
            names |= own_names(MODELS)
        return f'there is no model {name!r}. {did_you_mean(name, names)}'
    lines = [line.strip() for line in str(error).strip().splitlines() if line.strip()]
    return lines[0] if lines else type(error).__name__


def _register(scope: str) -> None:
    from densekd import registry

    registry.MODELS  # noqa: B018  makes densekd.X known to mmengine
    try:
        if scope == 'mmdet':
            import mmdet.models  # noqa: F401  registers what it holds
        elif scope == 'mmseg':
            import mmseg.models  # noqa: F401
    except ImportError as error:
        raise ConfigError(
            f"{scope} can't be imported ({_reason(error)}). Run: make env, or "
            'pip install "densekd[onedl,det,seg]".'
        ) from error


def build_teachers(cfg: Any, scope: str, seed: int, trust: bool) -> dict[str, Teacher]:
    """Builds and loads the teachers of a config, by name, without drawing from the caller's RNG.

    Raises:
        ConfigError: If the config is not one teacher or a list of named ones.
        CheckpointError: If a checkpoint is missing, broken, of another model, or carries code.
    """
    if cfg is None:
        raise ConfigError('teacher: there is none. Give teacher=dict(model=…, checkpoint=…).')
    many = isinstance(cfg, Sequence) and not isinstance(cfg, str)
    entries = list(cfg) if many else [cfg]
    if not entries:
        raise ConfigError('teacher: the list is empty. Give teacher=dict(model=…, checkpoint=…).')
    teachers: dict[str, Teacher] = {}
    for i, entry in enumerate(entries):
        where = f'teacher[{i}]' if many else 'teacher'
        if not isinstance(entry, Mapping) or ('model' not in entry and 'type' in entry):
            entry = {'model': entry}
        for key in entry:
            if key not in TEACHER_KEYS:
                raise ConfigError(
                    f'{where}: there is no key {key!r}. {did_you_mean(key, TEACHER_KEYS)}'
                )
        if 'model' not in entry and not entry.get('logits'):
            raise ConfigError(f"{where}: 'model' is missing: a config path, a Config or a dict.")
        precision = entry.get('precision', 'fp32')
        if precision not in PRECISIONS:
            hint = did_you_mean(str(precision), PRECISIONS)
            raise ConfigError(f'{where}.precision: there is no {precision!r}. {hint}')
        name = entry.get('name') or 'teacher'
        if len(entries) > 1 and not entry.get('name'):
            raise ConfigError(f"{where}: with several teachers each needs a 'name'.")
        if name in teachers:
            raise ConfigError(f'{where}: the name {name!r} is used twice.')
        if entry.get('logits'):
            if scope != 'mmengine':
                raise ConfigError(f'{where}.logits: stored logits are for classifiers.')
            teachers[name] = stored_teacher(entry, name, where, trust)
            continue
        with private_rng(seed + i):
            teachers[name] = _teacher(entry, name, scope, where, trust)
    return teachers


def _teacher(entry: Mapping[str, Any], name: str, scope: str, where: str, trust: bool) -> Teacher:
    config = model_config(entry['model'], f'{where}.model')
    if isinstance(config, Mapping):
        config = without_pretrained(config)
    model = build_network(config, scope, f'{where}.model')
    source = entry.get('checkpoint')
    manifest: dict[str, Any] = {'model': _label(entry['model']), 'checkpoint': None}
    if source:
        path = find_checkpoint(source)
        checkpoint = read_checkpoint(path, trust)
        load_weights(model, checkpoint, path, 'teacher')
        meta = checkpoint.get('meta') if isinstance(checkpoint, Mapping) else None
        manifest.update(
            checkpoint=str(source),
            sha256=file_hash(path),
            dataset_meta=_meta(meta),
        )
    elif isinstance(entry['model'], nn.Module):
        manifest['checkpoint'] = 'built by the caller'
    elif not entry.get('untrained'):
        warnings.warn(
            f'{where}: no checkpoint is given, so that the teacher is untrained. Give '
            'checkpoint=…, or untrained=True if that is meant.',
            stacklevel=2,
        )
    if entry.get('classes'):
        manifest['dataset_meta'] = {'classes': [str(name) for name in entry['classes']]}
    manifest['untrained'] = manifest['checkpoint'] is None
    manifest['declared_untrained'] = bool(entry.get('untrained'))
    from mmengine.model import revert_sync_batchnorm

    # A teacher in eval never synchronises, and SyncBN does not run everywhere.
    return Teacher(
        revert_sync_batchnorm(model),
        name,
        manifest,
        entry.get('precision', 'fp32'),
        bool(entry.get('fuse', True)),
    )


def _meta(meta: Any) -> dict[str, Any] | None:
    found = meta.get('dataset_meta') if isinstance(meta, Mapping) else None
    if not isinstance(found, Mapping):
        return None
    lowered = {str(k).lower(): v for k, v in found.items()}
    return {'classes': list(lowered['classes'])} if lowered.get('classes') else None


def without_pretrained(config: Any) -> Any:
    """Returns a model config in which nothing is fetched: its own checkpoint brings all weights."""
    if isinstance(config, Mapping):
        result: dict[str, Any] = {}
        for key, value in config.items():
            if key == 'pretrained' or (key == 'init_cfg' and _is_pretrained(value)):
                result[key] = None
            else:
                result[key] = without_pretrained(value)
        return result
    if isinstance(config, (list, tuple)):
        return type(config)(without_pretrained(item) for item in config)
    return config


def _is_pretrained(init_cfg: Any) -> bool:
    entries = init_cfg if isinstance(init_cfg, (list, tuple)) else [init_cfg]
    return any(isinstance(e, Mapping) and e.get('type') == 'Pretrained' for e in entries)


def check_distillers(cfg: Any) -> list[dict[str, Any]]:
    """Returns the list of distillers of a config, its form checked.

    Raises:
        ConfigError: If it is no list of dicts, or a key is unknown or missing.
    """
    if isinstance(cfg, Mapping):
        cfg = [cfg]
    if not isinstance(cfg, Sequence) or isinstance(cfg, str):
        raise ConfigError(f'distillers: a list of dicts is needed, not {cfg!r}.')
    result = []
    for i, entry in enumerate(cfg):
        where = f'distillers[{i}]'
        if not isinstance(entry, Mapping):
            raise ConfigError(f'{where}: a dict is needed, not {entry!r}.')
        for key in entry:
            if key not in DISTILLER_KEYS:
                hint = did_you_mean(key, DISTILLER_KEYS)
                raise ConfigError(f'{where}: there is no key {key!r}. {hint}')
        for key in ('student_module', 'head'):
            if key not in entry:
                raise ConfigError(f'{where}: {key!r} is missing.')
        result.append(dict(entry))
    return result
