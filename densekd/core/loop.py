"""Distillers beside two networks, in a training loop of the caller's own."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from densekd.core.batch import FIELDS, Batch
from densekd.core.clip import clip_to_task, growing_share
from densekd.core.distiller import Distiller, check_needs, check_pairing, joined, method_name
from densekd.core.ops import private_rng
from densekd.core.taps import Place, Tap, Taps, resolve
from densekd.core.teacher import Teacher
from densekd.core.trace import find
from densekd.errors import ConfigError, DenseKDError, TapError, did_you_mean

# What the loop counts by itself, and what takes another way of running both networks.
COUNTED = ('iteration', 'seed')
GIVEN = tuple(name for name in FIELDS if name not in (*COUNTED, 'input_grad'))
NUMBERS = ('dense_avg_factor', 'rpn_avg_factor')


class Distillers(nn.Module):
    """Compares any student with any teacher while the student trains in a plain loop.

    Where the student runs inside `with distillers:`, its taps are read; `losses` then runs the
    teacher, no deeper than its taps, and compares. The teacher is frozen, in eval mode and
    otherwise left as it is; the student is not touched. Only connectors are parameters here: they
    go to the optimiser beside the student's, and in its checkpoint `state_dict` holds them and the
    iteration. Their gradients are not averaged over several processes.

    Args:
        student: The network that learns.
        teacher: The network that teaches.
        distillers: What is compared where.
        inputs: What both networks can be called with, such as the images of a batch. One pass
            in eval mode says what each place gives, from which connectors are built.
        seed: Seed of connectors' weights and of random masks; the caller's generators stay.

    Attributes:
        epoch: Epochs begun before this one, set by a loop in which a schedule counts them.
        iteration: Calls of `losses` in training mode, which other schedules count.

    Raises:
        ConfigError: If something is given that can't be used here.
        TapError: If a tap names no place, or one that never runs.
        ShapeError: If two places can't be compared.

    Example:
        >>> from torch import arange, nn, optim, randn
        >>> from densekd import Distiller, Distillers, methods
        >>> student = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(16, 10))
        >>> teacher = nn.Sequential(nn.Conv2d(3, 9, 3), nn.ReLU(), nn.Flatten(), nn.Linear(36, 10))
        >>> images, labels = randn(8, 3, 4, 4), arange(8)
        >>> hint = Distiller(methods.FitNetDistillationHead(), student='1', teacher='1')
        >>> distillers = Distillers(student, teacher, [hint], images)
        >>> optimizer = optim.SGD([*student.parameters(), *distillers.parameters()], lr=0.1)
        >>> for _ in range(3):
        ...     with distillers:
        ...         loss = nn.functional.cross_entropy(student(images), labels)
        ...     optimizer.zero_grad()
        ...     (loss + sum(distillers.losses(images).values())).backward()
        ...     optimizer.step()
    """

    student: nn.Module

    def __init__(
        self,
        student: nn.Module,
        teacher: nn.Module,
        distillers: Sequence[Distiller],
        *inputs: Any,
        seed: int = 0,
    ) -> None:
        super().__init__()
        _check_given(student, teacher, distillers, inputs)
        self.__dict__['student'] = student  # no submodule: its parameters are not counted here
        # Nothing of it is folded: it is the caller's, who may use it elsewhere.
        self.teacher = Teacher(teacher)
        self.seed = seed
        self.iteration = 0
        self.epoch: int | None = None
        self._open: Taps | None = None
        self._read: Taps | None = None
        self._watch: Any = None
        self._entered = True
        self._passes: list[bool] = []
        self._factors: dict[Distiller, float] = {}
        self.distillers = nn.ModuleDict()
        for i, distiller in enumerate(distillers):
            _check_one(distiller, f'distillers[{i}]')
            distiller.key = _name(distiller)
            if distiller.key in self.distillers:
                raise ConfigError(
                    f'distillers[{i}]: the name {distiller.key!r} is used twice; give each head a '
                    'name of its own.'
                )
            self.distillers[distiller.key] = distiller
        self._bind(inputs)
        check_needs(self._all, (*GIVEN, *COUNTED), type(self).__name__)
        # Connectors go where the student is, and compute as it does.
        parameter = next(student.parameters(), None)
        if parameter is not None:
            self.to(parameter)

    def _bind(self, inputs: Sequence[Any]) -> None:
        student = self._places('student', self.student, inputs)
        teacher = self._places('teacher', self.teacher.model, inputs)
        for distiller in self._all:
            check_pairing(student[distiller], teacher[distiller], _where(distiller), distiller.head)
        for i, distiller in enumerate(self._all):
            try:
                with private_rng(self.seed + 1000 + i):
                    distiller.head.bind(student[distiller], teacher[distiller])
            except DenseKDError as error:
                raise type(error)(f'{_where(distiller)}: {error}') from None
            distiller.refuse_idle()

    def _places(self, side: str, model: nn.Module, inputs: Sequence[Any]) -> dict[Distiller, Place]:
        for distiller in self._all:
            for tap in distiller.taps(side).values():
                resolve(model, tap, f'{_where(distiller)}: the {side}')
        taps = _taps(self._all, side)
        found = find(model, taps, lambda: model(*inputs), _size(inputs))
        return {d: joined([found[key] for key in d.taps(side)]) for d in self._all}

    @property
    def _all(self) -> list[Distiller]:
        return list(self.distillers.values())  # type: ignore[arg-type]

    def _factor(self, distiller: Distiller) -> float:
        if distiller.schedule.by == 'epoch' and self.epoch is None:
            raise ConfigError(
                f'{_where(distiller)}: its schedule counts epochs. Say which one begins, as in '
                'distillers.epoch = 0.'
            )
        return distiller.weight(self.iteration, self.epoch)

    def __enter__(self) -> Distillers:
        if self._open is not None:
            raise ConfigError(
                'Distillers: one `with` stands inside another of the same distillers.'
            )
        self._factors = {distiller: self._factor(distiller) for distiller in self._all}
        read = [d for d, factor in self._factors.items() if factor > 0 and d.reads_student]
        taps = Taps(self.student, _taps(read, 'student'), student=True)
        self._open = self._read = taps.__enter__()
        self._entered, self._passes = torch.is_grad_enabled(), []
        # A place inside the student can't tell: activation checkpointing takes its gradient away.
        self._watch = self.student.register_forward_pre_hook(self._note_pass)
        return self

    def __exit__(self, kind: Any, error: Any, trace: Any) -> None:
        if self._open is not None:
            self._open.__exit__(kind, error, trace)
            self._watch.remove()
        self._open = self._watch = None
        if kind is not None:
            self._read = None

    def _note_pass(self, *_: Any) -> None:
        self._passes.append(torch.is_grad_enabled())

    def losses(self, *inputs: Any, task: Tensor | None = None, **fields: Any) -> dict[str, Tensor]:
        """Returns the weighted loss of each distiller on the student's last pass.

        Args:
            inputs: What the teacher is called with: the student's inputs, or its own view of them.
            task: The student's own loss, for distillers that are clipped to it.
            fields: What losses need of the batch, by name, such as `labels` for DKD.

        Raises:
            ConfigError: If the student has not run, or a loss needs something else.
            TapError: If no gradient reaches the student in training mode, or a place did not run.
            ShapeError: If two tensors can't be compared.
        """
        reading, self._read = self._read, None
        if reading is None:
            raise ConfigError(
                'losses: the student has not run since the last call. Run it inside '
                '`with distillers:` before each.'
            )
        reading.size = _size(inputs)
        active = [distiller for distiller, factor in self._factors.items() if factor > 0]
        self._refuse_no_gradients(active)
        batch = self._batch(active, inputs, fields)
        # What holds both networks may have put the teacher into training mode, too.
        self.teacher.freeze()
        taught = None
        if active:
            taps = _taps(active, 'teacher')
            taught = self.teacher.run(taps, lambda model: model(*inputs), reading.size)
        losses = {}
        for distiller, factor in self._factors.items():
            if taught is None or factor <= 0:
                losses[distiller.key] = distiller.silent(_device(self.student))
                continue
            student = distiller.read('student', reading) if distiller.reads_student else None
            teacher = distiller.read('teacher', taught)
            reaches = distiller.reaches_student(self.iteration, self.epoch)
            losses[distiller.key] = distiller(student, teacher, batch, factor, reaches)
        losses.update(self._clipped(losses, active, task))
        if self.training:
            self.iteration += 1
        return losses

    def _refuse_no_gradients(self, active: Sequence[Distiller]) -> None:
        # Without a note, a part of the student was called by itself.
        learns = any(self._passes or [self._entered])
        if learns or not self.training or not torch.is_grad_enabled():
            return
        for distiller in active:
            # A connector may learn first, or of the teacher alone.
            reaches = distiller.reaches_student(self.iteration, self.epoch)
            if distiller.reads_student and reaches:
                raise TapError(
                    f'losses: {_where(distiller)}: the student ran under torch.no_grad(), so that '
                    'no gradient reaches it and nothing is taught. Run it with gradients, or write '
                    'distillers.eval() where terms are only measured.'
                )

    def _clipped(
        self, losses: Mapping[str, Tensor], active: Sequence[Distiller], task: Tensor | None
    ) -> dict[str, Tensor]:
        chosen = [d for d in active if d.clips(self.iteration, self.epoch)]
        if not chosen:
            return {}
        if task is None:
            raise ConfigError(
                f"losses: {_where(chosen[0])} is clipped to the task's gradient. Write "
                'losses(…, task=loss), with the loss that the student has without distillation.'
            )
        terms = {d.key: losses[d.key] for d in chosen}
        return clip_to_task(terms, task, self.student, self, growing_share(self.epoch))

    def _batch(
        self, active: Sequence[Distiller], inputs: Sequence[Any], fields: Mapping[str, Any]
    ) -> Batch:
        for name in fields:
            if name not in GIVEN:
                raise ConfigError(
                    f'losses: a batch has no field {name!r}. {did_you_mean(name, GIVEN)}'
                )
            _check_field(name, fields[name])
        values = {
            'iteration': self.iteration,
            'seed': self.seed * 1_000_003 + self.iteration,
            **({'inputs': inputs[0]} if inputs else {}),
            **fields,
        }
        for distiller in active:
            for need in distiller.head.needs:
                if need not in values:
                    loss = type(distiller.head.loss).__name__
                    raise ConfigError(
                        f'losses: {_where(distiller)}: {loss} needs {need} ({FIELDS[need]}). Write '
                        f'losses(…, {need}={need}).'
                    )
        return Batch(values)

    def get_extra_state(self) -> dict[str, Any]:
        """Returns what else a resumed run needs."""
        return {'iteration': self.iteration}

    def set_extra_state(self, state: Mapping[str, Any]) -> None:
        """Takes it back."""
        self.iteration = int(state['iteration'])


def _where(distiller: Distiller) -> str:
    return f'distiller {distiller.key!r}'


def _name(distiller: Distiller) -> str:
    """Returns what the term is called: as it says, or by its method and the student's place."""
    given = distiller.key or distiller.head.name
    if given:
        return given.replace('.', '_')
    labels = [tap.label for tap in distiller.taps('student').values()]
    own = labels[0].replace('.', '_') if len(labels) == 1 else ''
    return '_'.join(part for part in (method_name(distiller.head), own) if part)


def _taps(distillers: Sequence[Distiller], side: str) -> dict[Any, Tap]:
    return {key: tap for d in distillers for key, tap in d.taps(side).items()}


def _size(inputs: Sequence[Any]) -> tuple[int, int] | None:
    """Returns height and width, where what a network is called with starts with images."""
    first = inputs[0] if inputs else None
    if isinstance(first, Tensor) and first.dim() == 4:
        return first.shape[-2], first.shape[-1]
    return None


def _check_field(name: str, value: Any) -> None:
    """Refuses what losses can't compute with: an array of numpy, or a list of numbers."""
    if callable(value) or (name in NUMBERS and isinstance(value, (int, float))):
        return
    several = isinstance(value, (list, tuple, Mapping))
    parts = list(value.values() if isinstance(value, Mapping) else value) if several else [value]
    # Several tensors are one for each image or level, and a number is neither.
    if parts and all(isinstance(p, Tensor) and (p.dim() or not several) for p in parts):
        return
    raise ConfigError(
        f'losses: {name} ({FIELDS[name]}) is given as {type(value).__name__}, and a tensor is '
        f'needed. Write {name}=torch.as_tensor({name}).'
    )


def _device(model: nn.Module) -> torch.device:
    parameter = next(model.parameters(), None)
    return torch.device('cpu') if parameter is None else parameter.device


def _check_given(student: Any, teacher: Any, distillers: Any, inputs: Sequence[Any]) -> None:
    for side, model in (('student', student), ('teacher', teacher)):
        if not isinstance(model, nn.Module):
            raise ConfigError(f'Distillers: the {side} is an nn.Module, not {model!r}.')
    shared = {id(p) for p in student.parameters()} & {id(p) for p in teacher.parameters()}
    if shared:
        raise ConfigError(
            f'Distillers: student and teacher share {len(shared)} parameters, and a teacher is '
            'frozen. Give it weights of its own, as copy.deepcopy does.'
        )
    if not isinstance(distillers, (list, tuple)) or not distillers:
        raise ConfigError(
            'Distillers: a list of distillers is needed, such as [Distiller(head, '
            f"student='layer2', teacher='layer3')], not {distillers!r}."
        )
    if not inputs:
        raise ConfigError(
            'Distillers: give the images of one batch after the distillers; channels are read '
            'from a pass with them.'
        )


def _check_one(distiller: Any, where: str) -> None:
    if not isinstance(distiller, Distiller):
        raise ConfigError(f'{where}: a Distiller is needed, not {distiller!r}.')
    if distiller.head.bound:
        raise ConfigError(
            f'{where}: its head has connectors for other networks already, or was called before. '
            'Build a new one.'
        )
    if distiller.teachers != ('teacher',) or distiller.learner != 'student':
        raise ConfigError(
            f'{where}: here one teacher teaches one student. Several teachers, and peers, are for '
            'DistillClassifier.'
        )
    if distiller.lr_mult != 1.0:
        raise ConfigError(
            f'{where}: lr_mult is for an optimiser that densekd builds. Give '
            'distillers.parameters() a group of their own, with another lr.'
        )
