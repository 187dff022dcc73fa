"""Several stages in one config: one runner each, weights handed over by name.

stages=[dict(name='pretrain', train=['backbone.*', 'distillers'], preset='fitnet', task_loss=False,
             train_cfg=dict(max_epochs=2), hand_over=['backbone.*']),
        dict(name='train', preset='pkd')]
"""

from __future__ import annotations

import copy
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from densekd.core.checkpoint import read_checkpoint, weights_in
from densekd.core.ops import private_rng
from densekd.engine.run import (
    claim,
    is_distillation,
    mark,
    ready,
    run,
    student_config,
    train,
    write_json,
)
from densekd.errors import CheckpointError, ConfigError, DenseKDError, did_you_mean
from densekd.wrappers.build import build_network, without_pretrained
from densekd.wrappers.config import plain
from densekd.wrappers.wiring import matching

STAGE_KEYS = (
    'name', 'train', 'preset', 'at', 'distillers', 'scale_student_loss', 'task_loss',
    'optim_wrapper',    'param_scheduler', 'train_cfg', 'hand_over',
)  # fmt: skip
STAGES_FILE = 'stages.json'


def parse_stages(cfg: Any) -> list[dict[str, Any]]:
    """Returns the stages of a config, their form checked; none for a config without.

    Raises:
        ConfigError: If they are no list of dicts, a key is unknown, or a name is missing or twice.
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
        for key in stage:
            if key not in STAGE_KEYS:
                raise ConfigError(
                    f'{where}: there is no key {key!r}. {did_you_mean(key, STAGE_KEYS)}'
                )
        name = stage.get('name')
        if not name or '/' in str(name):
            raise ConfigError(f"{where}: a stage needs a 'name', which names its folder as well.")
        if name in [s['name'] for s in parsed]:
            raise ConfigError(f'{where}: the name {name!r} is used twice.')
        if stage.get('preset') is not None and stage.get('distillers') is not None:
            raise ConfigError(f'{where}: give preset or distillers, not both.')
        for key in ('train', 'hand_over'):
            if key in stage and (isinstance(stage[key], str) or not stage[key]):
                raise ConfigError(
                    f'{where}.{key}: a list of patterns such as ["backbone.*"] is needed.'
                )
        parsed.append(dict(stage))
    return parsed


def train_stages(
    cfg: Any, resume: bool = False, preflight: bool = True, trust: bool = False
) -> Path:
    """Trains a config, stage by stage where it has stages, and returns the last checkpoint.

    A stage that has ended is not run again: `stages.json` in the work_dir says so.

    Raises:
        ConfigError: If a stage is not what it should be.
        DataError: If the work_dir holds another run.
    """
    stages = parse_stages(cfg)
    if not stages:
        return train(cfg, resume, preflight, trust)
    claim(cfg, resume)
    root = Path(cfg.work_dir)
    done = _read(root / STAGES_FILE) if resume else {}
    check_hand_over(cfg, stages)
    configs = []
    for stage in stages:
        one = stage_config(cfg, stage)
        try:
            configs.append(ready(one, resume, preflight and stage['name'] not in done, trust))
        except DenseKDError as error:
            raise type(error)(f'stage {stage["name"]!r}: {error}') from error
    mark(cfg)
    last: Path | None = None
    for stage, one in zip(stages, configs, strict=True):
        if stage['name'] in done:
            last = root / done[stage['name']]
            if not last.is_file():
                raise CheckpointError(
                    f'{root}: stage {stage["name"]!r} has ended, but {last} is gone.'
                )
            continue
        if last is not None:
            one.load_from = str(_handed_over(last, stages, stage, root))
        begun = any(Path(one.work_dir).glob('*.pth'))
        last = run(one, resume=begun, trust=trust)
        done[stage['name']] = str(last.relative_to(root) if last.is_relative_to(root) else last)
        write_json(root / STAGES_FILE, done)
    assert last is not None
    return last


def check_hand_over(cfg: Any, stages: list[dict[str, Any]]) -> None:
    """Refuses a pattern of `hand_over` that matches nothing, before a stage was trained for it.

    Raises:
        ConfigError: Naming the stage and the pattern.
    """
    asked = [stage for stage in stages if stage.get('hand_over')]
    if not asked:
        return
    config = without_pretrained(plain(student_config(cfg).model))
    with private_rng(0):
        names = build_network(config, cfg.get('default_scope') or 'mmdet', 'student').state_dict()
    for stage in asked:
        matching(names, stage['hand_over'], f'stage {stage["name"]!r}: hand_over')


def _read(path: Path) -> dict[str, str]:
    return json.loads(path.read_text()) if path.is_file() else {}


def stage_config(cfg: Any, stage: Mapping[str, Any]) -> Any:
    """Returns the config of one stage's runner; keys that it does not say are the config's own."""
    one = copy.deepcopy(cfg)
    one.pop('stages')
    one.work_dir = str(Path(cfg.work_dir) / stage['name'])
    model = one.model
    if 'preset' in stage or 'distillers' in stage:
        for key in ('preset', 'at', 'distillers'):
            model.pop(key, None)
    for key in ('preset', 'at', 'distillers', 'scale_student_loss'):
        if stage.get(key) is not None:
            model[key] = stage[key]
    if stage.get('task_loss') is False:
        model['task_loss'] = False
    if stage.get('train') is not None:
        model['trainable'] = list(stage['train'])
    for key in ('optim_wrapper', 'train_cfg'):
        if key in stage:
            merged = copy.deepcopy(one.get(key) or {})
            merged.update(copy.deepcopy(stage[key]))
            one[key] = merged
    if 'param_scheduler' in stage:
        one.param_scheduler = copy.deepcopy(stage['param_scheduler'])
    return one


def _handed_over(
    checkpoint: Path, stages: list[dict[str, Any]], stage: Mapping[str, Any], root: Path
) -> Path:
    """Writes the weights that the stage before hands over, and returns the file."""
    names = [s['name'] for s in stages]
    before = stages[names.index(stage['name']) - 1]
    weights = weights_in(read_checkpoint(checkpoint), checkpoint)
    chosen = matching(
        weights, before.get('hand_over') or ['*'], f'stage {before["name"]!r}: hand_over'
    )
    target = root / f'{before["name"]}_to_{stage["name"]}.pth'
    aside = target.with_name(f'.{target.name}.partial')
    torch.save({'state_dict': {k: weights[k] for k in chosen}, 'meta': {}}, aside)
    aside.replace(target)
    return target
