"""Several rounds in one config: what one trains is the teacher of the next.

rounds=[dict(name='first', plain=True), dict(name='second'), dict(name='third')]     born again
rounds=[dict(name='assistant', student='…/resnet20.py'), dict(name='student')]       by an assistant

What a round does not say is the config's own; dicts are merged, with `_delete_` as in a config.
One with `plain=True` has no teacher; one with `config=` is that file instead, stages included, and
`--cfg-options` and `--amp` reach it only through what the round says (`rounds.0.train_cfg.…`). The
teacher of the first round, unless it is plain, is the config's; each later one has the student of
the round before, with the checkpoint that it left last. One Runner a round, in `work_dir/<name>/`;
`rounds.json`, written when a round ends, says where to resume.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from densekd.core.checkpoint import read_checkpoint
from densekd.engine.parts_check import check_optimisation
from densekd.engine.run import (
    claim,
    is_distillation,
    mark,
    prepare,
    student_config,
    write_json,
)
from densekd.engine.stage_config import (
    check_length,
    check_name,
    merged,
    parse_stages,
    stage_config,
)
from densekd.engine.stages import (
    has_begun,
    of_stage,
    read_ended,
    ready_and_tried,
    staged,
    train_stages,
    was_interrupted,
)
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
    check_name(one, 'round', where, names)
    if not isinstance(one.get('plain', False), bool):
        raise ConfigError(f'{where}.plain: True or False, not {one["plain"]!r}.')
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
            optimiser, a scheduler or a length that is none.
    """
    work_dir = Path(cfg.work_dir) / one['name']
    if one.get('config'):
        own = prepare(one['config'], work_dir, launcher=cfg.get('launcher', 'none'))
        if own.get('rounds') is not None:
            raise ConfigError(
                f'round {one["name"]!r}: its config has rounds of its own. Write them out here.'
            )
    else:
        own = copy.deepcopy(cfg)
        own.pop('rounds')
        own.work_dir = str(work_dir)
    if is_distillation(own):
        _change_model(own.model, one, before)
    for key in MERGED:
        if key in one:
            own[key] = merged(own.get(key) or {}, one[key], key)
    for key in REPLACED:
        if key in one:
            own[key] = copy.deepcopy(one[key])
    check_optimisation(own)
    check_length(own)
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

    rounds = parse_rounds(cfg)
    root = Path(cfg.work_dir)
    if not resume and was_interrupted(cfg, rounds, ROUNDS_FILE):
        print_log(f'{root}: going on with the rounds that were interrupted there.', 'current')
        resume = True
    claim(cfg, resume)
    done = read_ended(root / ROUNDS_FILE) if resume else {}
    for name, own in unrolled(cfg):
        if name not in done:
            with of_round(name):
                _look_ahead(own, preflight, trust)
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
            begun = has_begun(own.work_dir)
            with of_round(one['name']):
                # The first was looked at just now, with the teacher that it has.
                last = train_stages(own, begun, preflight and i > 0, trust)
                last = _taken(last, one)
            done[one['name']] = str(last.relative_to(root) if last.is_relative_to(root) else last)
            if is_main_process():
                write_json(root / ROUNDS_FILE, done)
            barrier()
        before = _as_teacher(own, str(last))
    return last


def _look_ahead(cfg: Any, preflight: bool, trust: bool) -> None:
    """Looks at a round, or each of its stages, before anything is trained.

    Raises:
        DenseKDError: The first thing that is wrong.
    """
    begun = has_begun(cfg.work_dir)
    if cfg.get('load_from') and not begun:
        try:
            read_checkpoint(cfg.load_from, trust)
        except CheckpointError as error:
            raise CheckpointError(f'load_from: {error}') from None
    for stage, own, handed in staged(cfg):
        with of_stage(stage):
            ready_and_tried(own, begun, preflight, trust, handed)


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
    if one.get('take') != 'best':
        return
    for stage in parse_stages(cfg)[-1:]:
        cfg = stage_config(cfg, stage)  # the last one's is taken
    if not ((cfg.get('default_hooks') or {}).get('checkpoint') or {}).get('save_best'):
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
