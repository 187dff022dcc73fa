"""One training step of a student beside its teachers, for whatever toolbox the student is from."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any, ClassVar

from mmengine.logging import print_log
from mmengine.model import BaseModel
from torch import Tensor, nn
from torch.optim import Optimizer

from densekd.core.anatomy import Anatomy
from densekd.core.batch import Batch
from densekd.core.clip import clip_to_task, growing_share
from densekd.core.distiller import Distiller, check_needs
from densekd.core.input_grad import wants_input_grad
from densekd.core.moving import MovingTeacher
from densekd.core.ops import private_rng
from densekd.core.taps import Place, Tap, Taps
from densekd.core.teacher import Teacher
from densekd.core.trace import TRACE_SIZE
from densekd.errors import CheckpointError, ConfigError, did_you_mean
from densekd.registry import PRESETS
from densekd.wrappers.build import build_network, build_teachers, check_distillers, model_config
from densekd.wrappers.classes import (
    ClassMatch,
    check_count,
    match_classes,
    refuse_disjoint,
    with_columns,
)
from densekd.wrappers.inherit import inherited
from densekd.wrappers.input_grad import check_input_grad, differentiable, differentiated
from densekd.wrappers.peers import (
    STUDENT,
    Partner,
    build_peers,
    load_peers,
    peers_state,
    refuse_unread,
)
from densekd.wrappers.presets import expand
from densekd.wrappers.student_state import show_only_student
from densekd.wrappers.wiring import (
    as_names,
    find_places,
    matching,
    parse_wire,
    parts_of,
    resting,
    taps_of,
)

STATE_VERSION = 1
# Where in what a stage hands over its peers are; a distiller's weight has a dot in its name.
BESIDE = 'peers'
PATTERNS = "patterns such as ['backbone.*']"


class DistillModel(BaseModel):
    """Trains a student while distillers compare it with frozen teachers.

    To a runner it looks like the student: `predict` and `tensor` are the student's, its
    `state_dict` has the plain student's keys, and attributes that it lacks are the student's.

    Args:
        student: The student: a config path, a `Config`, a dict, or a network.
        teacher: `dict(model=…, checkpoint=…)`, or a list of these, each with a `name`.
        distillers: The list of comparisons.
        preset: A method's name, which stands for its list of distillers; instead of `distillers`.
        at: Where the preset taps, if it offers a choice: `'backbone'`, `'neck'` or `'head'`.
        scale_student_loss: Factors on terms of the student's own loss, by name.
        task_loss: Whether the student learns its own task too; without, only the distillers teach.
        trainable: Patterns of what trains, such as `['backbone.*', 'distillers']`; everything else
            is frozen and in eval mode. None trains all.
        peers: What changes beside the student, a list: `dict(name='b', model=…)` is a model that
            learns too, with its own task loss; `dict(name='mean', ema=0.999)` the moving average of
            the student. Distillers name them as teachers, and as `student` those that they teach.
            Whoever steps the optimiser himself calls `after_step()`.
        classes: Names of the student's classes, in the order of its head. With those of a teacher,
            from its checkpoint, class columns are compared by name; the same number of classes is
            taken for the same list where one of them is not known. A runner takes them from the
            training data.
        inherit: Patterns of parameters that start as the teacher's, such as `['neck',
            'bbox_head']`, where names and shapes are the same.
        seed: Seed of what distillation draws: connectors' weights, random masks.
        trust_checkpoint: Whether teachers' checkpoints may run code while they are read.

    Raises:
        ConfigError: If the config can't be built.
        CheckpointError: If a teacher's weights are missing or of another model.
        TapError: If a tap names no place, or one that does not run.
        ShapeError: If two places can't be compared, or what is inherited has another shape.
    """

    scope: ClassVar[str] = 'mmengine'
    takes_peers: ClassVar[bool] = False
    # Height and width of the image that taps are looked for with.
    trace_size: ClassVar[tuple[int, int]] = TRACE_SIZE

    def __init__(
        self,
        student: Any,
        teacher: Any = None,
        distillers: Any = None,
        preset: str | None = None,
        at: str | None = None,
        scale_student_loss: Mapping[str, float] | None = None,
        task_loss: bool = True,
        trainable: Sequence[str] | None = None,
        peers: Any = None,
        classes: Sequence[str] | None = None,
        inherit: Sequence[str] | None = None,
        seed: int = 0,
        trust_checkpoint: bool = False,
    ) -> None:
        super().__init__()
        if isinstance(seed, bool) or not isinstance(seed, int):
            raise ConfigError(f'seed: a whole number is needed, not {seed!r}.')
        for key, value in (('task_loss', task_loss), ('trust_checkpoint', trust_checkpoint)):
            if not isinstance(value, bool):
                raise ConfigError(f'{key}: True or False is needed, not {value!r}.')
        for entry in teacher if isinstance(teacher, (list, tuple)) else [teacher]:
            name = entry.get('name') if isinstance(entry, Mapping) else None
            if name is not None and not isinstance(name, str):
                raise ConfigError(f"teacher: a name is a text such as 'wide', not {name!r}.")
        # The base class makes a preprocessor; the student's own is the one that is used.
        del self._modules['data_preprocessor']
        if peers is not None and not self.takes_peers:
            raise ConfigError(
                f'peers: {type(self).__name__} trains one student beside frozen teachers; mutual '
                'learning and moving teachers are for the classifier path.'
            )
        # The student comes first: what is built after it draws from generators of its own, so
        # that the student starts with the weights that plain training gives it.
        self.student = build_network(model_config(student, 'student'), self.scope, 'student')
        self.seed = seed
        self.iteration = 0
        self.epoch = 0
        self._clock_is_set = False
        self._stepped: bool | None = None  # whether the optimiser has; None: it does not tell
        self._said_no_epochs = False
        factors = {} if scale_student_loss is None else scale_student_loss
        if not isinstance(factors, Mapping) or not all(
            isinstance(factor, (int, float)) for factor in factors.values()
        ):
            raise ConfigError(
                'scale_student_loss: numbers by the names of terms are needed, such as '
                f'dict(loss_cls=0.5), not {factors!r}.'
            )
        self.scale_student_loss = dict(factors)
        self.task_loss = task_loss
        alone = teacher is None and peers is not None
        teachers = {} if alone else build_teachers(teacher, self.scope, seed, trust_checkpoint)
        # Not a submodule: nothing that walks the module tree may meet a teacher.
        self.__dict__['teachers'] = teachers
        # A deep copy shares the teachers, and is not the one that moves them.
        self._mover = id(self)
        self.classes = None if classes is None else tuple(str(name) for name in classes)
        if inherit is not None:
            inherit = as_names(inherit, 'inherit', PATTERNS)
        self.__dict__['_inherited'] = inherited(self.student, teachers, inherit)
        self._inherit()
        training, moving = build_peers(
            peers, self.student, self.scope, teachers, seed, trust_checkpoint
        )
        self.peers = nn.ModuleDict(training)
        teachers.update(moving)
        self.distillers = nn.ModuleDict()
        # A stage may be the task alone, of which a part trains.
        self._build_distillers(distillers, preset, at, may_be_none=trainable is not None)
        self._frozen: tuple[str, ...] = ()
        if trainable is not None:
            if training:
                raise ConfigError(
                    'train: where a part of the student trains, no peers do. Leave out train, or '
                    'peers that have a model.'
                )
            self._freeze_all_but(as_names(trainable, 'train', PATTERNS))
        show_only_student(self)

    # What a toolbox's subclass says -----------------------------------------------------------

    def named_taps(self, model: Any) -> dict[str, Tap]:
        """Returns the named taps of a network."""
        raise NotImplementedError

    def frozen_taps(self, model: nn.Module, taps: dict[str, Tap]) -> frozenset[str]:
        """Returns the names of the taps that no trainable parameter comes before."""
        return frozenset()

    def kind(self, model: nn.Module) -> str:
        """Returns what sort of model it is, for presets."""
        raise NotImplementedError

    def forward_parts(
        self,
        model: nn.Module,
        inputs: Tensor,
        parts: frozenset[str] | None,
        captured: Mapping[str, Any] | None = None,
    ) -> None:
        """Runs the part of a network that holds places in `parts`; None for all of it.

        Args:
            model: The network.
            inputs: Preprocessed images, (N, 3, H, W).
            parts: First parts of the tapped paths.
            captured: What `capture` collected of the student, which a teacher may be run on; None
                while there is no student's step, as when taps are looked for.
        """
        raise NotImplementedError

    def offered(self) -> tuple[str, ...]:
        """Returns the fields of the batch that this wrapper supplies for this student."""
        return ('inputs', 'iteration', 'seed')

    def fields(
        self, inputs: Tensor, data_samples: Any, reading: Taps, captured: dict[str, Any]
    ) -> dict[str, Any]:
        """Returns the fields of the batch, or functions that compute them."""
        return {}

    def extra_taps(self) -> dict[Any, Tap]:
        """Returns taps on the student that the batch needs, beside the distillers' own."""
        return {}

    @contextmanager
    def capture(self) -> Iterator[dict[str, Any]]:
        """Collects what the student computes on its way, for the time of one forward pass."""
        yield {}

    def check_rows(self) -> None:
        """Refuses losses whose rows stand for one thing in the student, another in a teacher."""

    def batch_for(self, distiller: Distiller, batch: Batch, captured: dict[str, Any]) -> Batch:
        """Returns the batch as one distiller is given it."""
        return batch

    def teacher_view(self, teacher: nn.Module, inputs: Tensor, data_samples: Any) -> Tensor:
        """Returns the batch as the teacher was trained to see it."""
        return inputs

    # Building ---------------------------------------------------------------------------------

    def _build_distillers(
        self, cfg: Any, preset: str | None, at: str | None, may_be_none: bool = False
    ) -> None:
        import densekd.methods  # noqa: F401  fills the registries

        models = dict(self._learners)
        models.update({name: teacher.model for name, teacher in self.teachers.items()})
        named, matches = self._named_by_class(models)
        if preset is not None:
            if cfg:
                raise ConfigError('preset and distillers: give one of them, not both.')
            tutors = {name: teacher.model for name, teacher in self.teachers.items()}
            cfg = expand(preset, at, self._learners, tutors, partial(self._anatomy, named=named))
        elif not cfg and not (may_be_none and cfg is not None and self.task_loss):
            raise ConfigError(
                'distillers: there are none. Give a list, or preset=… '
                f'({", ".join(sorted(PRESETS))}).'
            )
        elif at is not None:
            raise ConfigError(
                "'at' chooses where a preset taps; with a list, each distiller says it."
            )
        wires = [
            parse_wire(entry, i, self._learners, self._tutors, named)
            for i, entry in enumerate(check_distillers(cfg))
        ]
        for wire in wires:
            for name in matches.keys() & set(wire.teachers):
                refuse_disjoint(matches[name], [*wire.student, *wire.teacher], wire.where)
        refuse_unread(
            self.peers,
            [teacher.name for teacher in self.moving],
            [name for wire in wires for name in wire.teachers],
            [wire.learner for wire in wires],
        )
        find_places(wires, self._learners, self._tutors, self.forward_parts, self.trace_size)
        places: dict[str, tuple[Place, Place]] = {}
        for i, wire in enumerate(wires):
            with private_rng(self.seed + 1000 + i):
                distiller = wire.build(places)
            self.distillers[distiller.key] = distiller
            places[distiller.key] = wire.places
        self.__dict__['places'] = places
        check_needs(self._distillers, self.offered(), type(self).__name__)
        check_input_grad(self._distillers, self.student, self.teachers)
        self._refuse_clipping_to_nothing()
        self.check_rows()
        # Only now: binding reads margins from norms that are folded away here.
        for name, teacher in self.teachers.items():
            taps = taps_of([d for d in self._distillers if name in d.teachers], 'teacher')
            parts = parts_of(taps)
            height, width = self.trace_size
            teacher.speed_up(
                taps,
                lambda m, x, parts=parts: self.forward_parts(m, x, parts),
                (height // 2, width // 2),
            )

    def _refuse_clipping_to_nothing(self) -> None:
        for distiller in self._distillers:
            if distiller.clip_to_task and not self.task_loss:
                raise ConfigError(
                    f'distiller {distiller.key!r}: clip_to_task clips its gradient to that of the '
                    'task, which task_loss=False leaves out. Leave out one of them; the list of a '
                    'preset is printed by densekd taps CONFIG --preset NAME.'
                )

    def _named_by_class(
        self, models: Mapping[str, nn.Module]
    ) -> tuple[dict[int, dict[str, Tap]], dict[str, ClassMatch | None]]:
        """Returns the named taps of each network, and how each teacher's classes differ."""
        plain = {name: self.named_taps(model) for name, model in models.items()}
        check_count(self.classes, self.student, plain['student'], 'classes')
        matches: dict[str, ClassMatch | None] = {}
        frozen = {n: t for n, t in self.teachers.items() if not isinstance(t, MovingTeacher)}
        for name, teacher in frozen.items():
            theirs = (teacher.manifest.get('dataset_meta') or {}).get('classes')
            check_count(theirs, teacher.model, plain[name], f'teacher {name!r}')
            matches[name] = match = match_classes(self.classes, theirs)
            if match is not None:
                print_log(f'teacher {name!r}: {match.describe()}.', 'current')
        if len(set(matches.values())) > 1:
            raise ConfigError(
                'teacher: the teachers have unlike lists of classes, so that their logits stand '
                'for different things. Train one student by each, or give teachers of one list.'
            )
        # What trains or follows beside the student has the student's classes.
        first = next(iter(matches.values()), None)
        named = {
            id(model): with_columns(
                plain[name], model, first, 'teacher' if name in frozen else 'student'
            )
            for name, model in models.items()
        }
        return named, matches

    def _inherit(self) -> None:
        own = self.student.state_dict()
        for name, value in self._inherited.items():
            own[name].copy_(value)

    def _anatomy(self, learner: nn.Module, tutors: Sequence[nn.Module], named: Any) -> Anatomy:
        """Returns what a preset is told; of several teachers, the taps that all of them have."""
        taps = named[id(learner)]
        theirs = {
            name: tap
            for name, tap in named[id(tutors[0])].items()
            if all(name in named[id(model)] for model in tutors)
        }
        return Anatomy(taps, theirs, self.kind(learner), self.frozen_taps(learner, taps))

    @property
    def _learners(self) -> dict[str, nn.Module]:
        """The networks that train, by name."""
        return {STUDENT: self.student, **self.peers}

    @property
    def _tutors(self) -> dict[str, Teacher | Partner]:
        """The networks that may teach, by name; the student where there is somebody to teach."""
        own = self._learners if self.peers else {}
        partners = {name: Partner(model, name) for name, model in own.items()}
        return {**self.teachers, **partners}

    @property
    def moving(self) -> list[MovingTeacher]:
        """The averages of the student."""
        return [t for t in self.teachers.values() if isinstance(t, MovingTeacher)]

    @property
    def _distillers(self) -> list[Distiller]:
        return list(self.distillers.values())  # type: ignore[arg-type]

    def _freeze_all_but(self, patterns: Sequence[str]) -> None:
        own = dict(self.student.named_parameters())
        added = {f'distillers.{n}': p for n, p in self.distillers.named_parameters()}
        # A list of distillers without parameters may be named all the same.
        names = [*own, *added, *([] if added else ['distillers'])]
        chosen = set(matching(names, patterns, 'train'))
        for name, parameter in {**own, **added}.items():
            if name not in chosen:
                parameter.requires_grad_(False)
        if not any(parameter.requires_grad for parameter in (*own.values(), *added.values())):
            raise ConfigError(
                f'train: nothing of {", ".join(map(repr, patterns))} can be trained: the config '
                'has frozen it (frozen_stages, requires_grad=False), or the distillers add no '
                'parameters. Name what is to train.'
            )
        connectors = {n.removeprefix('distillers.') for n in chosen & added.keys()}
        self._frozen = (
            *(f'student.{name}' for name in resting(self.student, chosen & own.keys())),
            *(f'distillers.{name}' for name in resting(self.distillers, connectors)),
        )

    # Training ---------------------------------------------------------------------------------

    @property
    def data_preprocessor(self) -> Any:
        """The student's own preprocessor."""
        return self.student.data_preprocessor

    def set_clock(self, iteration: int, epoch: int) -> None:
        """Tells the model how far training is; without, it counts its own steps, and no epochs."""
        self.iteration, self.epoch, self._clock_is_set = iteration, epoch, True

    def forward(self, inputs: Any, data_samples: Any = None, mode: str = 'tensor') -> Any:
        """Runs one step (`mode='loss'`), or the bare student in any other mode."""
        if mode == 'loss':
            return self.loss(inputs, data_samples)
        return self.student(inputs, data_samples, mode=mode)

    def val_step(self, data: Any) -> Any:
        """Runs the student's own validation step."""
        return self.student.val_step(data)

    def test_step(self, data: Any) -> Any:
        """Runs the student's own test step."""
        return self.student.test_step(data)

    def loss(self, inputs: Tensor, data_samples: Any) -> dict[str, Any]:
        """Returns the terms of one training step.

        Args:
            inputs: Preprocessed images, (N, 3, H, W).
            data_samples: The toolbox's samples.

        Returns:
            The student's own terms as `student.…`, the peers' as `peer.<name>.…`, the distillers'
            as `distill.loss_…`.
        """
        if self.training and self._mover == id(self):
            for follower in self.moving:
                follower.begin(self.student)
        epoch = self._epochs_begun()
        factors = {d: d.weight(self.iteration, epoch) for d in self._distillers}
        active = [d for d, factor in factors.items() if factor > 0]
        inputs = differentiable(inputs, active)
        taps = {**self.extra_taps(), **self._taps_on(STUDENT, active)}
        size = inputs.shape[-2], inputs.shape[-1]
        with (
            Taps(self.student, taps, student=self.training, size=size) as reading,
            self.capture() as captured,
        ):
            own = self.student(inputs, data_samples, mode='loss')
        losses = self._scaled(own) if self.task_loss else {}
        batch = self._batch(inputs, data_samples, reading, captured)
        readings = {STUDENT: reading}
        for position, name in enumerate(self.peers):
            terms, readings[name] = self._run_peer(name, position, active, inputs, data_samples)
            if self.task_loss:
                losses.update({f'peer.{name}.{term}': value for term, value in terms.items()})
        readings.update(self._run_teachers(active, inputs, data_samples, captured))
        for distiller, factor in factors.items():
            if factor > 0:
                mine = readings[distiller.learner]
                student = distiller.read('student', mine) if distiller.reads_student else None
                values = [distiller.read('teacher', readings[name]) for name in distiller.teachers]
                value = values[0] if len(values) == 1 else values
                own_batch = self.batch_for(distiller, batch, captured)
                student, value = differentiated(distiller, student, value, inputs, own_batch)
                reaches = distiller.reaches_student(self.iteration, epoch)
                loss = distiller(student, value, own_batch, factor, reaches)
            else:
                loss = distiller.silent(inputs.device)
            losses[f'distill.loss_{distiller.key}'] = loss
        losses.update(self._clipped(losses, active, epoch))
        if self.training and not self._clock_is_set:
            self.iteration += 1
        return losses

    def _clipped(
        self, losses: Mapping[str, Any], active: Sequence[Distiller], epoch: int | None
    ) -> dict[str, Tensor]:
        """Returns the terms whose gradient the task's holds down."""
        chosen = [d for d in active if d.clips(self.iteration, epoch)]
        if not chosen:
            return {}
        own = {name: value for name, value in losses.items() if name.startswith('student.')}
        task, _ = self.parse_losses(own)
        terms = {name: losses[name] for name in (f'distill.loss_{d.key}' for d in chosen)}
        return clip_to_task(terms, task, self.student, self.distillers, growing_share(epoch))

    def _epochs_begun(self) -> int | None:
        if self._clock_is_set:
            return self.epoch
        # Iterations can be counted here; where an epoch ends, only whoever holds the data knows.
        if self.training and any(d.schedule.by == 'epoch' for d in self._distillers):
            if not self._said_no_epochs:
                print_log(
                    'schedule: nobody tells the model which epoch it is in, so that schedules in '
                    'epochs are left out. Train with densekd, or call set_clock(iteration, epoch).',
                    'current',
                    logging.WARNING,
                )
            self._said_no_epochs = True
        return None

    def _scaled(self, own: Mapping[str, Any]) -> dict[str, Any]:
        losses = {}
        for name in self.scale_student_loss:
            if name not in own:
                hint = did_you_mean(name, own)
                raise ConfigError(f'scale_student_loss: the student has no term {name!r}. {hint}')
        for name, value in own.items():
            factor = self.scale_student_loss.get(name)
            if factor is not None:
                value = [v * factor for v in value] if isinstance(value, list) else value * factor
            losses[f'student.{name}'] = value
        return losses

    def _batch(self, inputs: Tensor, data_samples: Any, reading: Taps, captured: Any) -> Batch:
        fields = {
            'inputs': inputs,
            'iteration': self.iteration,
            'seed': self.seed * 1_000_003 + self.iteration,
            **self.fields(inputs, data_samples, reading, captured),
        }
        return Batch(fields)

    def _taps_on(self, name: str, active: Sequence[Distiller]) -> dict[Any, Tap]:
        """Returns the taps on a network that trains: where it learns, and where it teaches."""
        return {
            **taps_of([d for d in active if d.learner == name and d.reads_student], 'student'),
            **taps_of([d for d in active if name in d.teachers], 'teacher'),
        }

    def _run_peer(
        self,
        name: str,
        position: int,
        active: Sequence[Distiller],
        inputs: Tensor,
        data_samples: Any,
    ) -> tuple[dict[str, Any], Taps]:
        peer: Any = self.peers[name]
        view = self.teacher_view(peer, inputs, data_samples)
        size = view.shape[-2], view.shape[-1]
        # What it draws, as for dropout, must not shift what the student draws.
        with (
            private_rng((self.seed + position) * 1_000_003 + self.iteration),
            Taps(peer, self._taps_on(name, active), student=self.training, size=size) as reading,
        ):
            terms = peer(view, data_samples, mode='loss')
        return terms, reading

    def _run_teachers(
        self,
        active: Sequence[Distiller],
        inputs: Tensor,
        data_samples: Any,
        captured: Mapping[str, Any],
    ) -> dict[str, Taps]:
        readings = {}
        for name, teacher in self.teachers.items():
            mine = [d for d in active if name in d.teachers]
            if not mine:
                continue
            taps = taps_of(mine, 'teacher')
            parts = parts_of(taps)
            view = teacher.prepared(self.teacher_view(teacher.model, inputs, data_samples))
            run = partial(self.forward_parts, inputs=view, parts=parts, captured=captured)
            size = view.shape[-2], view.shape[-1]
            gradient = any(wants_input_grad(d.head) for d in mine)
            readings[name] = teacher.run(taps, run, size, gradient)
        return readings

    # What a runner touches --------------------------------------------------------------------

    def train_step(self, data: Any, optim_wrapper: Any) -> Any:
        """Runs one iteration; if the optimiser steps in it, averages of the student move."""
        logs = super().train_step(data, optim_wrapper)
        # What was counted is this iteration's, so that it still says whether there was a step.
        if optim_wrapper.should_update():
            self.after_step()
        return logs

    def follow_steps_of(self, optimizer: Optimizer) -> None:
        """Lets an optimiser tell of its steps; without one, `after_step` moves nothing.

        Where gradients are gathered, or are not finite, not each iteration has a step.
        """
        self._stepped = False

        def tell(*_: Any) -> None:
            self._stepped = True

        optimizer.register_step_post_hook(tell)

    def after_step(self) -> None:
        """Moves the averages of the student; to be called once after each optimiser step."""
        if self._stepped is False:
            return
        if self._stepped:
            self._stepped = False
        if self._mover == id(self):
            for teacher in self.moving:
                teacher.follow(self.student)

    def train(self, mode: bool = True) -> DistillModel:
        """Sets the mode; what does not train stays in eval, its running statistics included."""
        super().train(mode)
        for name in self._frozen:
            self.get_submodule(name).training = False
        return self

    def init_weights(self) -> None:
        """Initialises the student as plain training would; teachers and connectors stay."""
        self.student.init_weights()
        self._inherit()

    def named_parameters(
        self, prefix: str = '', recurse: bool = True, remove_duplicate: bool = True
    ) -> Iterator[tuple[str, nn.Parameter]]:
        """Yields parameters under the names of `state_dict`: the student's as it calls them.

        Optimiser constructors that go by names (`startswith('backbone.')`) see the student.
        """
        own = f'{prefix}.student.' if prefix else 'student.'
        start = own.removesuffix('student.')
        for name, parameter in super().named_parameters(prefix, recurse, remove_duplicate):
            yield (start + name.removeprefix(own) if name.startswith(own) else name), parameter

    def _apply(self, function: Any, recurse: bool = True) -> Any:
        if self._mover == id(self):
            for teacher in self.teachers.values():
                teacher.apply(function)
        return super()._apply(function, recurse)

    def __getattr__(self, name: str) -> Any:
        try:
            return super().__getattr__(name)
        except AttributeError:
            student = self.__dict__.get('_modules', {}).get('student')
            if student is None or name.startswith('__'):
                raise
            return getattr(student, name)

    def distillation_state(self) -> dict[str, Any]:
        """Returns all that distillation needs to go on and that is not the student."""
        return {
            'version': STATE_VERSION,
            'iteration': self.iteration,
            'epoch': self.epoch,
            'seed': self.seed,
            'terms': list(self.distillers),
            'distillers': {k: v.detach().cpu() for k, v in self.distillers.state_dict().items()},
            'teachers': {name: dict(t.manifest) for name, t in self.teachers.items()},
            'peers': peers_state(self.peers.items()),
            'moving': {teacher.name: teacher.state() for teacher in self.moving},
        }

    def take_over(self, weights: Mapping[str, Any]) -> None:
        """Starts the distillers, and peers, with weights of others, such as of a stage before.

        Args:
            weights: By the names of `distillers.state_dict()`, without `distillers.`; under
                `BESIDE` all peers and averages, as `distillation_state` returns them.

        Raises:
            CheckpointError: If a weight has no place here, or another shape.
        """
        weights = dict(weights)
        beside = weights.pop(BESIDE, None)
        own = self.distillers.state_dict()
        for name, value in weights.items():
            if name not in own or own[name].shape != value.shape:
                has = f'of shape {tuple(own[name].shape)}' if name in own else 'missing'
                raise CheckpointError(
                    f'hand_over: distillers.{name} {tuple(value.shape)} is handed over, and here '
                    f'it is {has}. The distillers here: {", ".join(self.distillers) or "none"}.'
                )
        for name, value in weights.items():
            own[name].copy_(value)
        if beside is not None:
            load_peers(dict(self.peers.items()), {t.name: t for t in self.moving}, beside)

    def load_distillation_state(self, state: Mapping[str, Any]) -> None:
        """Takes back what `distillation_state` returned.

        Raises:
            CheckpointError: If it is of other distillers or another teacher.
        """
        terms = list(state.get('terms', self.distillers))
        if terms != list(self.distillers):
            raise CheckpointError(
                f'resume: the checkpoint was written with other distillers ({", ".join(terms)}), '
                f'and the config has {", ".join(self.distillers)}. Resume with the config that '
                'wrote it, or start anew with load_from.'
            )
        own = self.distillers.state_dict()
        theirs = dict(state.get('distillers', {}))
        unlike = sorted(set(own) ^ set(theirs)) or [
            k for k in own if own[k].shape != theirs[k].shape
        ]
        if unlike:
            raise CheckpointError(
                f'resume: the checkpoint was written with other distillers: {unlike[0]} does not '
                'fit. Resume with the config that wrote it, or start anew with load_from.'
            )
        saved = dict(state.get('teachers', {}))
        for name in {**saved, **self.teachers}:
            manifest = saved.get(name, {})
            teacher = self.teachers.get(name)
            before = manifest.get('sha256')
            now = teacher.manifest.get('sha256') if teacher else None
            if name not in saved or teacher is None or before != now:
                raise CheckpointError(
                    f'resume: the checkpoint was trained with another teacher {name!r} '
                    f'({manifest.get("checkpoint")}). Give that one back, or start anew.'
                )
        load_peers(dict(self.peers.items()), {t.name: t for t in self.moving}, state)
        self.distillers.load_state_dict(theirs)
        self.iteration, self.epoch = int(state.get('iteration', 0)), int(state.get('epoch', 0))
