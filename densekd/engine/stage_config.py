"""The stages of a config: their form, and the config of each one's runner."""

from __future__ import annotations

import copy
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from densekd.engine.parts_check import check_optimisation
from densekd.engine.run import is_distillation
from densekd.errors import ConfigError, did_you_mean

STAGE_KEYS = (
    'name', 'train', 'preset', 'at', 'distillers', 'scale_student_loss', 'task_loss',
    'optim_wrapper', 'param_scheduler', 'train_cfg', 'hand_over',
)  # fmt: skip


def parse_stages(cfg: Any) -> list[dict[str, Any]]:
    """Returns the stages of a config, their form checked; none for a config without.

    Raises:
        ConfigError: If they are no list of dicts, a key is unknown or holds something else, or a
            name is missing or twice.
    """
    stages = cfg.get('stages')
    if stages is None:
        return []
    if not isinstance(stages, (list, tuple)) or not stages:
        raise ConfigError(f'stages: a list of dicts is needed, not {stages!r}.')
    if not is_distillation(cfg):
        raise ConfigError(
            'stages: they need a distillation model (type="densekd.DistillDetector").'
        )
    parsed: list[dict[str, Any]] = []
    for i, stage in enumerate(stages):
        where = f'stages[{i}]'
        if not isinstance(stage, Mapping):
            raise ConfigError(f'{where}: a dict is needed, not {stage!r}.')
        _check_values(stage, where)
        check_name(stage, 'stage', where, [s['name'] for s in parsed])
        parsed.append(dict(stage))
    return parsed


def _check_values(stage: Mapping[str, Any], where: str) -> None:
    for key in stage:
        if key not in STAGE_KEYS:
            raise ConfigError(f'{where}: there is no key {key!r}. {did_you_mean(key, STAGE_KEYS)}')
    if stage.get('preset') is not None and stage.get('distillers') is not None:
        raise ConfigError(f'{where}: give preset or distillers, not both.')
    for key in ('train', 'hand_over'):
        given = stage.get(key, ['*'])
        if (
            not isinstance(given, (list, tuple))
            or not given
            or not all(isinstance(pattern, str) for pattern in given)
        ):
            raise ConfigError(
                f'{where}.{key}: a list of patterns such as ["backbone.*"] is needed.'
            )
    for key in ('optim_wrapper', 'train_cfg'):
        if not isinstance(stage.get(key, {}), Mapping):
            raise ConfigError(f'{where}.{key}: a dict is needed, not {stage[key]!r}.')
    if not isinstance(stage.get('task_loss', True), bool):
        raise ConfigError(f'{where}.task_loss: True or False, not {stage["task_loss"]!r}.')
    if _is_task_alone(stage) and stage.get('task_loss') is False:
        raise ConfigError(
            f'{where}: it has neither distillers nor the task to learn from. Give it one of them.'
        )


def check_name(one: Mapping[str, Any], kind: str, where: str, taken: Sequence[str]) -> None:
    """Refuses the name of a stage or a round that can't be its folder's.

    Args:
        one: The stage or the round.
        kind: Which of them it is.
        where: Its place in the config.
        taken: The names before it.

    Raises:
        ConfigError: If it is none, is that of a file, or is used twice.
    """
    name = one.get('name')
    if not isinstance(name, str) or not re.fullmatch(r'\w[\w .-]*', name):
        raise ConfigError(f"{where}: a {kind} needs a 'name', which names its folder as well.")
    if Path(name).suffix in ('.json', '.pth'):
        raise ConfigError(
            f"{where}: a {kind} can't be called {name!r}, as files in the work_dir are. Leave out "
            'the ending.'
        )
    if name in taken:
        raise ConfigError(f'{where}: the name {name!r} is used twice.')


def _is_task_alone(stage: Mapping[str, Any]) -> bool:
    given = stage.get('distillers')
    return given is not None and not given


def stage_config(cfg: Any, stage: Mapping[str, Any]) -> Any:
    """Returns the config of one stage's runner; keys that it does not say are the config's own.

    Raises:
        ConfigError: If a dict of the stage can't be merged with the config's, its optimiser or a
            scheduler is no dict, or its length is none.
    """
    one = copy.deepcopy(cfg)
    one.pop('stages')
    one.work_dir = str(Path(cfg.work_dir) / stage['name'])
    # mmengine shares loggers between runs of one name that begin in the same second.
    stem = cfg.get('experiment_name') or Path(str(getattr(cfg, 'filename', None) or 'run')).stem
    one.experiment_name = f'{stem}_{stage["name"]}'
    model = one.model
    if 'preset' in stage or 'distillers' in stage:
        for key in ('preset', 'at', 'distillers'):
            model.pop(key, None)
    for key in ('preset', 'at', 'distillers', 'scale_student_loss'):
        if stage.get(key) is not None:
            model[key] = stage[key]
    if stage.get('train') is not None:
        model['trainable'] = list(stage['train'])
    elif _is_task_alone(stage):
        model['trainable'] = ['*']
    for key in ('optim_wrapper', 'train_cfg'):
        if key in stage:
            one[key] = merged(one.get(key) or {}, stage[key], key)
    if 'param_scheduler' in stage:
        one.param_scheduler = copy.deepcopy(stage['param_scheduler'])
    check_optimisation(one)
    check_length(one)
    if stage.get('task_loss') is not None:
        model['task_loss'] = stage['task_loss']
    if model.get('task_loss') is False:
        _leave_out_validation(one)
    return one


def merged(base: Mapping[str, Any], change: Mapping[str, Any], where: str) -> Any:
    """Returns a dict of a config, changed by a stage's or a round's as configs are by others.

    Raises:
        ConfigError: If a dict is merged with what is none.
    """
    from mmengine.config import Config

    try:
        # Within a dict, where `_delete_` means at the top what it means below.
        both = Config._merge_a_into_b({'': copy.deepcopy(dict(change))}, {'': dict(base)})
    except (TypeError, KeyError) as error:
        raise ConfigError(f'{where}: {str(error).strip().splitlines()[0]}') from None
    return both['']


def check_length(cfg: Any) -> None:
    """Refuses a length of training that is no whole number above 0.

    Raises:
        ConfigError: Naming the key.
    """
    loop = cfg.get('train_cfg')
    for key in ('max_epochs', 'max_iters', 'val_interval'):
        value = loop.get(key) if isinstance(loop, Mapping) else None
        whole = isinstance(value, (int, float)) and not isinstance(value, bool) and value % 1 == 0
        if value is not None and not (whole and value > 0):
            raise ConfigError(f'train_cfg.{key}: a whole number above 0 is needed, not {value!r}.')


def _leave_out_validation(cfg: Any) -> None:
    for key in ('val_dataloader', 'val_evaluator', 'val_cfg'):
        cfg.pop(key, None)
    checkpoint = (cfg.get('default_hooks') or {}).get('checkpoint')
    for key in ('save_best', 'rule'):
        if isinstance(checkpoint, dict):
            checkpoint.pop(key, None)
