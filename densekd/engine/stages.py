"""Several stages in one config: one runner each, weights handed over by name.

stages=[dict(name='pretrain', train=['backbone.*', 'distillers'], preset='fitnet', task_loss=False,
             train_cfg=dict(max_epochs=2), hand_over=['backbone.*']),
        dict(name='train', preset='pkd')]

What a stage does not say is the config's own; dicts are merged, with `_delete_` as in a config. A
stage with `distillers=[]` is the task alone. One with `task_loss=False` is not validated, since the
part of the student that answers has not been trained; the log has its terms.

`train` names parameters: everything else, running statistics included, stays as it is. `hand_over`
names what the next stage starts with: of the student all that it says (all of it, where it says
nothing), and of the distillers what begins with `distillers.`, under the same names.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from densekd.core.checkpoint import read_checkpoint, weights_in
from densekd.core.ops import private_rng
from densekd.engine.run import (
    claim,
    fingerprint,
    mark,
    read_mark,
    ready,
    run,
    student_config,
    train,
    write_json,
)
from densekd.engine.runner import latest_checkpoint, put_in_place
from densekd.engine.stage_config import parse_stages, stage_config
from densekd.errors import CheckpointError, DenseKDError
from densekd.wrappers.build import build_network, without_pretrained
from densekd.wrappers.config import plain
from densekd.wrappers.wiring import matching

STAGES_FILE = 'stages.json'
DISTILLERS = 'distillers.'


def train_stages(
    cfg: Any, resume: bool = False, preflight: bool = True, trust: bool = False
) -> Path:
    """Trains a config, stage by stage where it has stages, and returns the last checkpoint.

    A stage that has ended is not run again: `stages.json` in the work_dir says so. A run that was
    interrupted between its stages or within one goes on, with or without `resume`.

    Raises:
        ConfigError: If a stage is not what it should be.
        DataError: If the work_dir holds another run.
    """
    from mmengine.dist import barrier, is_main_process
    from mmengine.logging import print_log

    stages = parse_stages(cfg)
    if not stages:
        return train(cfg, resume, preflight, trust)
    root = Path(cfg.work_dir)
    if not resume and _was_interrupted(cfg, stages):
        print_log(f'{root}: going on with the run that was interrupted there.', 'current')
        resume = True
    claim(cfg, resume)
    done = _read(root) if resume else {}
    handed = check_hand_over(cfg, stages)
    configs = []
    for stage, weights in zip(stages, handed, strict=True):
        check = preflight and stage['name'] not in done
        with of_stage(stage['name']):
            configs.append(ready(stage_config(cfg, stage), resume, check, trust, weights))
    mark(cfg)
    last: Path | None = None
    for i, (stage, one) in enumerate(zip(stages, configs, strict=True)):
        if stage['name'] in done:
            last = root / done[stage['name']]
            if not last.is_file():
                raise CheckpointError(
                    f'{root}: stage {stage["name"]!r} has ended, but {last} is gone.'
                )
            continue
        begun = latest_checkpoint(one.work_dir) is not None
        if last is not None and not begun:
            target = root / f'{stages[i - 1]["name"]}_to_{stage["name"]}.pth'
            if is_main_process():
                write_handed_over(last, stages[i - 1], target)
            barrier()
            one.load_from = str(target)
        last = run(one, resume=begun, trust=trust)
        done[stage['name']] = str(last.relative_to(root) if last.is_relative_to(root) else last)
        if is_main_process():
            write_json(root / STAGES_FILE, done)
    assert last is not None
    return last


@contextmanager
def of_stage(name: str) -> Iterator[None]:
    """Puts a stage's name before an error; nothing where there are no stages."""
    try:
        yield
    except DenseKDError as error:
        if not name:
            raise
        raise type(error)(f'stage {name!r}: {error}') from error


def _was_interrupted(cfg: Any, stages: list[dict[str, Any]]) -> bool:
    """Whether the work_dir holds a run of this very config that has not ended."""
    root = Path(cfg.work_dir)
    begun = any(latest_checkpoint(root / stage['name']) for stage in stages)
    if not begun or read_mark(root) != fingerprint(cfg):
        return False
    done = _read(root)
    return not all(stage['name'] in done for stage in stages)


def _read(root: Path) -> dict[str, str]:
    path = root / STAGES_FILE
    if not path.is_file():
        return {}
    try:
        return dict(json.loads(path.read_text()))
    except (ValueError, TypeError):
        raise CheckpointError(
            f'{path}: it should say which stages have ended, and is damaged. Remove it: stages '
            'that have ended will only be looked at again.'
        ) from None


def staged(cfg: Any) -> list[tuple[str, Any, dict[str, Tensor]]]:
    """Returns name, config and what the distillers are handed, for each stage of a config.

    A config without stages is the only one, without a name.

    Raises:
        ConfigError: If a stage is not what it should be.
        CheckpointError: If a stage is handed what it has no place for.
    """
    stages = parse_stages(cfg)
    if not stages:
        return [('', cfg, {})]
    found = []
    for stage, weights in zip(stages, check_hand_over(cfg, stages), strict=True):
        with of_stage(stage['name']):
            found.append((stage['name'], stage_config(cfg, stage), weights))
    return found


# What is handed over -----------------------------------------------------------------------------


def _patterns(stage: Mapping[str, Any]) -> tuple[list[str], list[str]]:
    """Returns the patterns of the student's weights, and of the distillers' without `distillers.`.

    Without any of the first sort the whole student is handed over.
    """
    given = list(stage.get('hand_over') or [])
    of_distillers = [p for p in given if p == 'distillers' or p.startswith(DISTILLERS)]
    own = [p for p in given if p not in of_distillers]
    return own or ['*'], [p.removeprefix(DISTILLERS) for p in of_distillers]


def check_hand_over(cfg: Any, stages: list[dict[str, Any]]) -> list[dict[str, Tensor]]:
    """Refuses what can't be handed over, before a stage was trained for it.

    Returns:
        For each stage the weights that its distillers will be handed, not trained yet.

    Raises:
        ConfigError: If a pattern matches nothing.
        CheckpointError: If the next stage has no place for a weight of the distillers.
    """
    handed: list[dict[str, Tensor]] = [{} for _ in stages]
    if not any(stage.get('hand_over') for stage in stages):
        return handed
    config = without_pretrained(plain(student_config(cfg).model))
    with private_rng(0):
        names = build_network(config, cfg.get('default_scope') or 'mmdet', 'student').state_dict()
    for i, stage in enumerate(stages):
        own, of_distillers = _patterns(stage)
        with of_stage(stage['name']):
            matching(names, own, 'hand_over')
            if of_distillers:
                weights = _of_distillers(_distillers(cfg, stage).state_dict(), of_distillers)
        if of_distillers and i + 1 < len(stages):
            with of_stage(stages[i + 1]['name']):
                _distillers(cfg, stages[i + 1], weights)
            handed[i + 1] = weights
    return handed


def _distillers(
    cfg: Any, stage: Mapping[str, Any], handed: Mapping[str, Tensor] | None = None
) -> torch.nn.Module:
    from densekd.engine.preflight import build_model, quiet, without_absent_weights

    with private_rng(0), quiet():
        model: Any = build_model(without_absent_weights(stage_config(cfg, stage))[0])
    model.take_over(handed or {})
    return model.distillers


def _of_distillers(weights: Mapping[str, Tensor], patterns: list[str]) -> dict[str, Tensor]:
    if 'distillers' in patterns:
        patterns = ['*']
    return {name: weights[name] for name in matching(weights, patterns, 'hand_over: distillers')}


def write_handed_over(checkpoint: Path, stage: Mapping[str, Any], target: Path) -> None:
    """Writes what a stage that has ended hands over.

    Args:
        checkpoint: What it left.
        stage: The stage.
        target: The file, which a runner can load from.
    """
    read = read_checkpoint(checkpoint)
    weights = weights_in(read, checkpoint)
    own, of_distillers = _patterns(stage)
    added: dict[str, Tensor] = {}
    with of_stage(stage['name']):
        chosen = {name: weights[name] for name in matching(weights, own, 'hand_over')}
        if of_distillers:
            added = _of_distillers(read['densekd']['distillers'], of_distillers)
    aside = target.with_name(f'.{target.name}.partial')
    content = {'state_dict': chosen, 'meta': {}, 'densekd': {'handed_over': added}}
    torch.save(content, aside)
    put_in_place(aside, target)
