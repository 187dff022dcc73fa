"""Proof, before the first step, that every term of a config is wired to something.

The model is built, one batch in the config's own format goes through its own pipeline, one forward
and one backward pass are run, and each term must be finite and reach the student with a gradient.
"""

from __future__ import annotations

import contextlib
import copy
import io
import logging
import math
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import nn

from densekd.core.checkpoint import fetched, find_checkpoint
from densekd.core.moving import MovingTeacher
from densekd.core.ops import private_rng
from densekd.core.schedule import Schedule
from densekd.engine.data_checks import check_data
from densekd.engine.generated_data import with_generated_data
from densekd.engine.parts_check import check_parts, register
from densekd.engine.run import is_distillation, is_own, student_config
from densekd.engine.stored_logits import check_stored
from densekd.engine.weighed_losses import refuse_padding
from densekd.errors import CheckpointError, ConfigError, TapError
from densekd.wrappers.build import build_network, without_pretrained
from densekd.wrappers.config import plain
from densekd.wrappers.model import DistillModel
from densekd.wrappers.stored import StoredLogits
from densekd.wrappers.views import check_padding

# Some cells at a pyramid's coarsest level, since of a single one some losses learn nothing.
SMALL = (192, 320)


@dataclass
class Term:
    """What one distiller did in the tried step."""

    key: str
    student: str
    teacher: str
    shapes: str
    strides: str
    connector: str
    value: float = math.nan
    gradient: float = math.nan


@dataclass
class Report:
    """What a check found."""

    model: str
    batch: tuple[int, ...] = ()
    terms: list[Term] = field(default_factory=list)
    own: dict[str, float] = field(default_factory=dict)
    added: int = 0
    parameters: int = 0
    seconds: float = 0.0
    absent: list[str] = field(default_factory=list)


def check(
    cfg: Any, full_size: bool = True, handed: Mapping[str, torch.Tensor] | None = None
) -> Report:
    """Builds a config's model, runs one step on generated data, and says what it found.

    Args:
        cfg: A prepared config.
        full_size: Whether the batch has the size that training would have; otherwise it is as
            small as the losses allow, and images are drawn at 192x320.
        handed: What the distillers are handed by the stage before.

    Raises:
        DenseKDError: The first thing that is wrong.
    """
    check_parts(cfg)
    cfg, absent = without_absent_weights(cfg)
    with (
        tempfile.TemporaryDirectory(prefix='densekd-check-') as folder,
        private_rng(0),
        quiet(),
    ):
        images = _batch_size(cfg) if full_size else 1
        size = None if full_size else SMALL
        only = ('train',)  # a thousand folders of a class take seconds, and one step reads few
        generated = with_generated_data(cfg, Path(folder) / 'few', images, size, splits=only)
        model = build_model(generated)
        _refuse_small_batches(cfg, model)
        if (fewest := _fewest(model)) > max(images, 2):  # some data comes in twos anyway
            generated = with_generated_data(cfg, Path(folder) / 'more', fewest, size, splits=only)
        if isinstance(model, DistillModel):
            model.take_over(handed or {})
        data = first_batch(generated)
        try:
            report = try_step(model, data)
        except IndexError as error:
            refuse_padding(generated, error)
            raise
    report.absent = absent
    return report


def without_absent_weights(cfg: Any) -> tuple[Any, list[str]]:
    """Leaves out teachers' weights that stand on a host and were not fetched: a check fetches none.

    A path that is not there is left in, and is an error when the teacher is built.
    """
    absent: list[str] = []
    if not is_distillation(cfg):
        return cfg, absent
    cfg = copy.deepcopy(cfg)
    teachers = cfg.model.get('teacher')
    for teacher in teachers if isinstance(teachers, (list, tuple)) else [teachers]:
        source = teacher.get('checkpoint') if isinstance(teacher, Mapping) else None
        if source and '://' in str(source) and fetched(str(source)) is None:
            absent.append(str(source))
            teacher.pop('checkpoint')
            teacher['untrained'] = True
    return cfg, absent


@contextmanager
def quiet() -> Iterator[None]:
    """Keeps libraries from printing what nobody asked for: indexes, initialised layers."""
    from mmengine.logging import MMLogger

    logger = MMLogger.get_current_instance()
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            yield
    finally:
        logger.setLevel(level)


def check_before_training(
    cfg: Any, handed: Mapping[str, torch.Tensor] | None = None
) -> Report | None:
    """Checks a config's data where it is, its teachers' weights, and one step.

    Args:
        cfg: A prepared config.
        handed: What the distillers are handed by the stage before.

    Raises:
        DenseKDError: The first thing that is wrong.
    """
    check_parts(cfg)
    check_data(cfg)
    if not is_distillation(cfg):
        return check(cfg) if is_own(cfg) else None
    teachers = cfg.model.get('teacher')
    for teacher in teachers if isinstance(teachers, (list, tuple)) else [teachers]:
        if isinstance(teacher, Mapping) and not (
            teacher.get('checkpoint') or teacher.get('untrained') or teacher.get('logits')
        ):
            raise ConfigError(
                'teacher: no checkpoint is given, and an untrained teacher has nothing to teach. '
                'Give teacher.checkpoint=…, or teacher.untrained=True if that is meant.'
            )
        if isinstance(teacher, Mapping) and teacher.get('checkpoint'):
            find_checkpoint(teacher['checkpoint'])  # fetches, so that the check is with weights
    check_stored(cfg, bool(cfg.model.get('trust_checkpoint')))
    return check(cfg, handed=handed)


def _batch_size(cfg: Any) -> int:
    loader = cfg.get('train_dataloader') or {}
    return max(2, min(int(loader.get('batch_size') or 2), 8))


def _fewest(model: nn.Module) -> int:
    """Returns how many images a batch must have, lest a loss finds nothing to relate."""
    distillers: Any = model.distillers.values() if isinstance(model, DistillModel) else ()
    return max((d.head.loss.fewest for d in distillers), default=1)


def _refuse_small_batches(cfg: Any, model: nn.Module) -> None:
    """Refuses a batch in which a loss finds too few images to relate, so that it would be 0."""
    images = (cfg.get('train_dataloader') or {}).get('batch_size')
    distillers: Any = model.distillers.items() if isinstance(model, DistillModel) else ()
    for key, distiller in distillers:
        loss = distiller.head.loss
        if images is not None and images < loss.fewest:
            raise ConfigError(
                f'train_dataloader.batch_size: {images} is too small for distiller {key!r}, whose '
                f'{type(loss).__name__} relates {loss.fewest} images of a process at least.'
            )


def build_model(cfg: Any) -> nn.Module:
    """Builds a config's model as training would, but fetches no weights for the student."""
    from mmengine.registry import MODELS, DefaultScope

    from densekd.engine import models  # noqa: F401  registers the wrappers

    scope = cfg.get('default_scope') or 'mmdet'
    model = plain(cfg.model)
    with DefaultScope.overwrite_default_scope(scope):
        if not is_distillation(cfg):
            built = build_network(without_pretrained(model), scope, 'model')
        else:
            model['student'] = without_pretrained(plain(student_config(cfg).model))
            built = MODELS.build(model)
        built.init_weights()
        return built


def first_batch(cfg: Any) -> Any:
    """Returns the first batch that a config's training loader gives."""
    from mmengine.registry import DefaultScope
    from mmengine.runner import Runner

    loader = copy.deepcopy(cfg.get('train_dataloader'))
    if loader is None:
        raise ConfigError('train_dataloader: there is none, so that there is nothing to train on.')
    loader.update(num_workers=0, persistent_workers=False)
    loader.pop('prefetch_factor', None)
    with DefaultScope.overwrite_default_scope(cfg.get('default_scope') or 'mmdet'):
        register(cfg.get('default_scope') or 'mmdet')
        try:
            built = Runner.build_dataloader(loader, seed=0)
        except (TypeError, KeyError, AssertionError, AttributeError) as error:
            reason = str(error).strip().splitlines() or [type(error).__name__]
            raise ConfigError(f"train_dataloader: it can't be built: {reason[0]}") from error
    for data in built:
        return data
    raise ConfigError('train_dataloader: it gives no batch at all.')


def try_step(model: Any, data: Any) -> Report:
    """Runs one forward and backward pass and refuses what is wrong with it.

    Raises:
        TapError: If a term sends no gradient to the student, or is exactly zero.
        ConfigError: If a term is not finite.
        CheckpointError: If a teacher's outputs are not finite.
    """
    begun = time.perf_counter()
    report = Report(type(model).__name__)
    model.train()
    if isinstance(model, DistillModel):
        report.model = f'{type(model).__name__}({type(model.student).__name__})'
        for name, teacher in model.teachers.items():
            if isinstance(teacher.model, StoredLogits):
                teacher.model.stands_in = True  # it has nothing to say of generated images
            check_padding(
                model.data_preprocessor, teacher.model.data_preprocessor, f'teacher {name!r}'
            )
        distillers: Any = model.distillers.values()
        for distiller in distillers:
            distiller.schedule = Schedule()  # a warm-up begins at 0, which would hide the term
        report.terms = [_describe(model, key) for key in model.distillers]
        report.added = sum(p.numel() for p in model.distillers.parameters())
        report.parameters = sum(p.numel() for p in model.student.parameters())
    prepared = model.data_preprocessor(data, True)
    inputs = prepared['inputs']
    report.batch = tuple(inputs.shape) if isinstance(inputs, torch.Tensor) else ()
    losses = model(**prepared, mode='loss')
    for name, value in losses.items():
        number = _number(value)
        if name.startswith('distill.'):
            continue
        report.own[name] = number
        if 'loss' in name and not math.isfinite(number):
            raise ConfigError(
                f"check: the student's own term {name} is {number} on generated data."
            )
    for term in report.terms:
        _try_term(model, term, losses[f'distill.loss_{term.key}'])
    total = sum(_total(v) for k, v in losses.items() if 'loss' in k)
    if not total.requires_grad:
        raise ConfigError('train: no term of the loss depends on what is to train.')
    total.backward()
    report.seconds = time.perf_counter() - begun
    return report


def _describe(model: DistillModel, key: str) -> Term:
    distiller: Any = model.distillers[key]
    student, teacher = model.places[key]
    shapes = _shapes(student), _shapes(teacher)
    connectors = [
        _connector(c)
        for c in (distiller.head.stu_connector, distiller.head.tea_connector)
        if c is not None
    ]
    return Term(
        key,
        _labels(distiller, 'student', distiller.learner),
        _labels(distiller, 'teacher', ', '.join(distiller.teachers)),
        shapes[0] if shapes[0] == shapes[1] else f'{shapes[0]} | {shapes[1]}',
        ', '.join('-' if s is None else f'{s[0]:g}' for s in student.strides),
        ', '.join(connectors) or 'none',
    )


def _labels(distiller: Any, side: str, network: str) -> str:
    labels = ', '.join(t.label for t in distiller.taps(side).values())
    # A network is named where it is not the one that is meant without a word.
    return labels if network in ('student', 'teacher') else f'{network}: {labels}'


def _shapes(place: Any) -> str:
    return ', '.join('x'.join(map(str, shape[1:])) for shape in place.shapes)


def _connector(connector: Any) -> str:
    each: list[Any] = list(connector) if isinstance(connector, nn.ModuleList) else [connector]
    first = each[0]
    weights = [p for p in first.parameters() if p.dim() > 1]
    channels = f' {weights[0].shape[1]}->{weights[-1].shape[0]}' if weights else ''
    times = f' x{len(each)}' if len(each) > 1 else ''
    return f'{type(first).__name__}{channels}{times}'


def _number(value: Any) -> float:
    return float(_total(value).detach())


def _total(value: Any) -> torch.Tensor:
    if isinstance(value, torch.Tensor):
        return value.mean()
    if isinstance(value, Sequence):
        return sum(v.mean() for v in value)
    raise ConfigError(f'check: a loss term is a {type(value).__name__}, not a tensor.')


def _try_term(model: DistillModel, term: Term, loss: torch.Tensor) -> None:
    distiller = model.distillers[term.key]
    term.value = float(loss.detach())
    weightless = distiller.head.loss.loss_weight == 0
    if not math.isfinite(term.value):
        for name in distiller.teachers:
            if name not in model.teachers:
                continue
            state = model.teachers[name].model.state_dict().values()
            if not all(torch.isfinite(t).all() for t in state if t.is_floating_point()):
                raise CheckpointError(f'teacher {name!r}: its weights are not all finite numbers.')
        raise ConfigError(
            f'distiller {term.key!r}: the term is {term.value} on generated data. Its values leave '
            'the range of the loss; check the tap and the loss_weight.'
        )
    network = model.student if distiller.learner == 'student' else model.peers[distiller.learner]
    # Of the teacher alone only a connector learns.
    learner: nn.Module = network if distiller.reads_student else distiller
    parameters = [p for p in learner.parameters() if p.requires_grad]
    if not loss.requires_grad:
        raise TapError(f'distiller {term.key!r}: the term has no gradient at all.')
    gradients = torch.autograd.grad(loss, parameters, retain_graph=True, allow_unused=True)
    reached = [g for g in gradients if g is not None]
    term.gradient = math.sqrt(sum(float(g.double().square().sum()) for g in reached))
    if not reached:
        raise TapError(
            f'distiller {term.key!r}: no trainable parameter of the student is reached from '
            f'{term.student}, so that the term teaches nothing.'
        )
    if not math.isfinite(term.gradient):
        raise ConfigError(f'distiller {term.key!r}: its gradient on the student is not finite.')
    # An average of the student is at first the student itself.
    moving = any(isinstance(model.teachers.get(name), MovingTeacher) for name in distiller.teachers)
    rests = (distiller.head.loss.may_rest or moving) and term.value == 0
    if term.gradient == 0 and not weightless and not rests:
        raise TapError(
            f'distiller {term.key!r}: the term ({term.value:.3g}) sends a gradient of exactly zero '
            'to the student on generated data. Check the tap and the connector.'
        )
