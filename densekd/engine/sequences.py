"""Several rounds in one config: what one trains is the teacher of the next.

rounds=[dict(name='first', plain=True), dict(name='second'), dict(name='third')]     born again
rounds=[dict(name='assistant', student='…/resnet20.py'), dict(name='student')]       by an assistant

What a round does not say is the config's own; dicts are merged. One with `plain=True` has no
teacher. The teacher of the first round, unless it is plain, is the config's; each later one has the
student of the round before, with the checkpoint that it left last. One Runner a round, in
`work_dir/<name>/`; `rounds.json`, written when a round ends, says where to resume.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from densekd.engine.parts_check import check_optimisation
from densekd.engine.run import (
    RUN_FILE,
    claim,
    fingerprint,
    is_distillation,
    mark,
    prepare,
    student_config,
    train,
    write_json,
)
from densekd.engine.runner import latest_checkpoint
from densekd.engine.stages import train_stages
from densekd.errors import CheckpointError, ConfigError, DenseKDError, did_you_mean
from densekd.wrappers.build import model_config
from densekd.wrappers.config import plain

ROUNDS_FILE = 'rounds.json'
# What is merged with the config's own, and what is put in its place: in the model, and beside it.
MERGED = ('optim_wrapper', 'train_cfg', 'randomness')
REPLACED = ('param_scheduler', 'load_from')
OF_MODEL = ('student', 'preset', 'at', 'distillers', 'scale_student_loss')
ROUND_KEYS = ('name', 'plain', 'take', 'config', *OF_MODEL, *MERGED, *REPLACED)
TAKES = ('last', 'best')


def parse_rounds(cfg: Any) -> list[dict[str, Any]]:
    """Returns the rounds of a config, their form checked; none for a config without.

    Raises:
        ConfigError: If they are no list of dicts, a key is unknown, or a round can't be.
    """
    rounds = cfg.get('rounds')
    if rounds is None:
        return []
    if not isinstance(rounds, (list, tuple)) or not rounds:
        raise ConfigError(f'rounds: a list of dicts is needed, not {rounds!r}.')
    if cfg.get('stages') is not None:
        raise ConfigError('rounds: a config has stages or rounds, not both.')
    if not is_distillation(cfg):
        raise ConfigError(
            "rounds: they need a distillation model, such as type='densekd.DistillClassifier'."
        )
    parsed: list[dict[str, Any]] = []
    for i, one in enumerate(rounds):
        _check_round(cfg, one, f'rounds[{i}]', [r['name'] for r in parsed])
        parsed.append(dict(one))
    return parsed


def _check_round(cfg: Any, one: Any, where: str, names: list[str]) -> None:
    if not isinstance(one, Mapping):
        raise ConfigError(f'{where}: a dict is needed, not {one!r}.')
    for key in one:
        if key not in ROUND_KEYS:
            raise ConfigError(f'{where}: there is no key {key!r}. {did_you_mean(key, ROUND_KEYS)}')
    name = one.get('name')
    if not isinstance(name, str) or not name or '/' in name or name.startswith('.'):
        raise ConfigError(f"{where}: a round needs a 'name', which names its folder as well.")
    if name in names:
        raise ConfigError(f'{where}: the name {name!r} is used twice.')
    if one.get('preset') is not None and one.get('distillers') is not None:
        raise ConfigError(f'{where}: give preset or distillers, not both.')
    for key in MERGED:
        if key in one and not isinstance(one[key], Mapping):
            raise ConfigError(f'{where}.{key}: a dict is needed, not {one[key]!r}.')
    if one.get('take', 'last') not in TAKES:
        hint = did_you_mean(str(one['take']), TAKES)
        raise ConfigError(f'{where}.take: there is no {one["take"]!r}. {hint}')
    if (
        not names
        and not one.get('plain')
        and not one.get('config')
        and not cfg.model.get('teacher')
    ):
        raise ConfigError(
            f'{where}: there is no teacher yet. Give plain=True to train the first round without '
            'one, or model.teacher.'
        )


def round_config(cfg: Any, one: Mapping[str, Any], before: Any) -> Any:
    """Returns the config of one round's runner.

    Args:
        cfg: The whole config.
        one: The round.
        before: The teacher that the round before leaves, as in `model.teacher`; None for the first.

    Raises:
        ConfigError: If the round's own config can't be read, has no place for a teacher, or has an
            optimiser or a scheduler that is no dict.
    """
    work_dir = Path(cfg.work_dir) / one['name']
    if one.get('config'):
        own = prepare(one['config'], work_dir, launcher=cfg.get('launcher', 'none'))
    else:
        own = copy.deepcopy(cfg)
        own.pop('rounds')
        own.work_dir = str(work_dir)
    if is_distillation(own):
        _change_model(own.model, one, before)
    for key in MERGED:
        if key in one:
            merged = copy.deepcopy(own.get(key) or {})
            merged.update(copy.deepcopy(one[key]))
            own[key] = merged
    for key in REPLACED:
        if key in one:
            own[key] = copy.deepcopy(one[key])
    check_optimisation(own)
    # mmengine keeps what belongs to an experiment by its name and the second it began in.
    given = own.get('experiment_name') or Path(getattr(cfg, 'filename', None) or 'rounds').stem
    own.experiment_name = f'{given}_{one["name"]}'
    if one.get('plain') and is_distillation(own):
        own = student_config(own)
    if before is not None and not one.get('plain') and not is_distillation(own):
        raise ConfigError(
            f'round {one["name"]!r}: its config trains without a teacher, and the round before '
            'left one. Give it a distillation model, or plain=True.'
        )
    return own


def _change_model(model: Any, one: Mapping[str, Any], before: Any) -> None:
    if 'preset' in one or 'distillers' in one:
        for key in ('preset', 'at', 'distillers'):
            model.pop(key, None)
    for key in OF_MODEL:
        if one.get(key) is not None:
            model[key] = copy.deepcopy(one[key])
    if one.get('student') is not None:
        model.student = model_config(one['student'], 'student')  # a path's, as if written here
    if before is not None:
        model.teacher = copy.deepcopy(before)


def train_config(
    cfg: Any, resume: bool = False, preflight: bool = True, trust: bool = False
) -> Path:
    """Trains a config by its rounds, by its stages or at once, and returns the last checkpoint.

    Raises:
        DenseKDError: As `train_rounds`, `train_stages` and `train` do.
    """
    by = train_rounds if cfg.get('rounds') is not None else train_stages
    return by(cfg, resume, preflight, trust)


def train_rounds(
    cfg: Any, resume: bool = False, preflight: bool = True, trust: bool = False
) -> Path:
    """Trains the rounds of a prepared config, one after the other; returns the last checkpoint.

    A round that has ended is not run again, and one that was interrupted goes on, with or without
    `resume`.

    Raises:
        ConfigError: If a round is not what it should be.
        DataError: If the work_dir holds another run, or this one, ended.
    """
    from mmengine.dist import barrier, is_main_process
    from mmengine.logging import print_log

    from densekd.engine.preflight import check_before_training

    rounds = parse_rounds(cfg)
    root = Path(cfg.work_dir)
    if not resume and _was_interrupted(cfg, rounds):
        print_log(f'{root}: going on with the rounds that were interrupted there.', 'current')
        resume = True
    claim(cfg, resume)
    done = _read(root) if resume else {}
    for name, own in unrolled(cfg):
        if preflight and name not in done:
            with of_round(name):
                check_before_training(own)
    mark(cfg)
    before: Any = None
    for i, one in enumerate(rounds):
        own = round_config(cfg, one, before)
        if one['name'] in done:
            last = root / done[one['name']]
            if not last.is_file():
                raise CheckpointError(
                    f'{root}: round {one["name"]!r} has ended, but {last} is gone.'
                )
        else:
            begun = latest_checkpoint(own.work_dir) is not None
            with of_round(one['name']):
                # The first was looked at just now, with the teacher that it has.
                last = train(own, begun, preflight and i > 0, trust)
                last = _taken(last, one)
            done[one['name']] = str(last.relative_to(root) if last.is_relative_to(root) else last)
            if is_main_process():
                write_json(root / ROUNDS_FILE, done)
            barrier()
        before = _as_teacher(own, str(last))
    return last


def _as_teacher(cfg: Any, checkpoint: str | None) -> dict[str, Any]:
    """Returns a round's student as the teacher of the next one."""
    model = plain(student_config(cfg).model)
    if checkpoint is None:
        return {'model': model, 'untrained': True}
    return {'model': model, 'checkpoint': checkpoint}


def unrolled(cfg: Any) -> Iterator[tuple[str, Any]]:
    """Yields name and config of each round; teachers that are trained before it are untrained yet.

    Raises:
        ConfigError: If a round is not what it should be.
    """
    before: Any = None
    for one in parse_rounds(cfg):
        with of_round(one['name']):
            own = round_config(cfg, one, before)
            _check_take(own, one)
        yield one['name'], own
        before = _as_teacher(own, None)


def _check_take(cfg: Any, one: Mapping[str, Any]) -> None:
    hooks = cfg.get('default_hooks') or {}
    if one.get('take') == 'best' and not (hooks.get('checkpoint') or {}).get('save_best'):
        raise ConfigError(
            "take='best' needs default_hooks.checkpoint.save_best, which says what is best. Give "
            'it, or take the last.'
        )


def _taken(last: Path, one: Mapping[str, Any]) -> Path:
    if one.get('take', 'last') == 'last':
        return last
    best = sorted(last.parent.glob('best_*.pth'), key=lambda path: path.stat().st_mtime)
    if not best:
        raise CheckpointError(f"{last.parent}: the run left no best checkpoint for take='best'.")
    return best[-1]


@contextmanager
def of_round(name: str) -> Iterator[None]:
    """Puts a round's name before an error."""
    try:
        yield
    except DenseKDError as error:
        raise type(error)(f'round {name!r}: {error}') from error


def _was_interrupted(cfg: Any, rounds: list[dict[str, Any]]) -> bool:
    """Whether the work_dir holds these very rounds, begun and not ended."""
    root = Path(cfg.work_dir)
    try:
        held = json.loads((root / RUN_FILE).read_text())['parts']
    except (OSError, ValueError, KeyError, TypeError):
        return False
    begun = any(latest_checkpoint(root / one['name']) for one in rounds)
    return (
        begun and held == fingerprint(cfg) and not all(one['name'] in _read(root) for one in rounds)
    )


def _read(root: Path) -> dict[str, str]:
    path = root / ROUNDS_FILE
    if not path.is_file():
        return {}
    try:
        return {str(name): str(file) for name, file in json.loads(path.read_text()).items()}
    except (ValueError, AttributeError):
        raise CheckpointError(
            f'{path}: it should say which rounds have ended, and is damaged. Remove it: rounds '
            'that have ended will only be looked at again.'
        ) from None
