"""Several stages in one config: one runner each, weights handed over by name.

stages=[dict(name='pretrain', train=['backbone.*', 'distillers'], preset='fitnet', task_loss=False,
             train_cfg=dict(max_epochs=2), hand_over=['backbone.*']),
        dict(name='train', preset='pkd')]

What a stage does not say is the config's own; dicts are merged, with `_delete_` as in a config. A
stage with `distillers=[]` is the task alone. One with `task_loss=False` is not validated, since the
part of the student that answers has not been trained; the log has its terms.

`train` names parameters: everything else, running statistics included, stays as it is. `hand_over`
names what the next stage starts with: of the student all that it says (all of it, where it says
nothing), and of the distillers what begins with `distillers.`, under the same names. Peers and
averages are handed over whole.
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
from densekd.engine.files import save_whole
from densekd.engine.optim import try_optimisation
from densekd.engine.run import (
    claim,
    fingerprint,
    mark,
    read_mark,
    ready,
    run,
    student_config,
    train,
    trusted,
    write_json,
)
from densekd.engine.runner import latest_checkpoint
from densekd.engine.stage_config import parse_stages, stage_config
from densekd.errors import CheckpointError, DenseKDError
from densekd.wrappers.build import build_network, without_pretrained
from densekd.wrappers.config import plain
from densekd.wrappers.model import BESIDE
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
    if not resume and was_interrupted(cfg, stages, STAGES_FILE):
        print_log(f'{root}: going on with the run that was interrupted there.', 'current')
        resume = True
    claim(cfg, resume)
    done = read_ended(root / STAGES_FILE) if resume else {}
    handed = check_hand_over(trusted(cfg, trust), stages)
    configs = []
    for stage, weights in zip(stages, handed, strict=True):
        check = preflight and stage['name'] not in done
        with of_stage(stage['name']):
            configs.append(ready_and_tried(stage_config(cfg, stage), resume, check, trust, weights))
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


def ready_and_tried(
    cfg: Any, resume: bool, preflight: bool, trust: bool, handed: Mapping[str, Tensor]
) -> Any:
    """As `ready`, for what is trained only after something else has been.

    Raises:
        DenseKDError: The first thing that is wrong.
    """
    cfg = ready(cfg, resume, preflight, trust, handed)
    try_optimisation(cfg)
    return cfg


def has_begun(folder: str | Path) -> bool:
    """Whether a run, or a stage of it, has left a checkpoint."""
    root = Path(folder)
    inside = [path for path in root.iterdir() if path.is_dir()] if root.is_dir() else []
    return any(latest_checkpoint(place) for place in [root, *inside])


def was_interrupted(cfg: Any, parts: list[dict[str, Any]], file: str) -> bool:
    """Whether the work_dir holds this very config, of which a part was begun and not all ended.

    Args:
        cfg: The whole config.
        parts: Its stages or rounds.
        file: The name of the file that says which of them have ended.
    """
    root = Path(cfg.work_dir)
    names = [part['name'] for part in parts]
    if not any(has_begun(root / name) for name in names) or read_mark(root) != fingerprint(cfg):
        return False
    done = read_ended(root / file)
    return not all(name in done for name in names)


def read_ended(path: Path) -> dict[str, str]:
    """Returns the last checkpoint of each stage or round that has ended, by name.

    Raises:
        CheckpointError: If the file is damaged.
    """
    if not path.is_file():
        return {}
    try:
        return {str(name): str(file) for name, file in json.loads(path.read_text()).items()}
    except (ValueError, AttributeError):
        raise CheckpointError(
            f'{path}: it should say which {path.stem} have ended, and is damaged. Remove it: '
            f'{path.stem} that have ended will only be looked at again.'
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
    added: dict[str, Any] = {}
    with of_stage(stage['name']):
        chosen = {name: weights[name] for name in matching(weights, own, 'hand_over')}
        if of_distillers:
            added = _of_distillers(read['densekd']['distillers'], of_distillers)
    beside = {key: read['densekd'].get(key, {}) for key in ('peers', 'moving')}
    handed = {**added, BESIDE: beside} if any(beside.values()) else added
    save_whole({'state_dict': chosen, 'meta': {}, 'densekd': {'handed_over': handed}}, target)
