"""One training step of a student beside its teachers, for whatever toolbox the student is from."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from fnmatch import fnmatchcase
from typing import Any, ClassVar

from mmengine.model import BaseModel
from torch import Tensor, nn

from densekd.core.anatomy import Anatomy
from densekd.core.batch import Batch
from densekd.core.checkpoint import unprefixed
from densekd.core.distiller import Distiller, check_needs, term_key
from densekd.core.head import DistillationHead
from densekd.core.ops import private_rng
from densekd.core.schedule import build_schedule
from densekd.core.taps import Place, Tap, Taps, parse_tap, resolve
from densekd.core.teacher import Teacher
from densekd.core.trace import trace
from densekd.errors import CheckpointError, ConfigError, ShapeError, did_you_mean
from densekd.registry import PRESETS
from densekd.wrappers.build import build_network, build_teachers, check_distillers, model_config

STATE_VERSION = 1


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
        peers: Trainable models beside the student.
        seed: Seed of what distillation draws: connectors' weights, random masks.
        trust_checkpoint: Whether teachers' checkpoints may run code while they are read.

    Raises:
        ConfigError: If the config can't be built.
        CheckpointError: If a teacher's weights are missing or of another model.
        TapError: If a tap names no place, or one that does not run.
        ShapeError: If two places can't be compared.
    """

    scope: ClassVar[str] = 'mmengine'
    kinds: ClassVar[str] = 'model'

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
        seed: int = 0,
        trust_checkpoint: bool = False,
    ) -> None:
        super().__init__()
        # The base class makes a preprocessor; the student's own is the one that is used.
        del self._modules['data_preprocessor']
        if peers is not None:
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
        self.scale_student_loss = dict(scale_student_loss or {})
        self.task_loss = task_loss
        teachers = build_teachers(teacher, self.scope, seed, trust_checkpoint)
        # Not a submodule: nothing that walks the module tree may meet a teacher.
        self.__dict__['teachers'] = teachers
        # A deep copy shares the teachers, and is not the one that moves them.
        self._mover = id(self)
        self.distillers = nn.ModuleDict()
        self._build_distillers(distillers, preset, at)
        self._frozen: tuple[str, ...] = ()
        if trainable is not None:
            self._freeze_all_but(trainable)
        self._register_state_dict_hook(_keep_student)
        self._register_load_state_dict_pre_hook(_to_student, with_module=True)

    # What a toolbox's subclass says -----------------------------------------------------------

    def named_taps(self, model: nn.Module) -> dict[str, Tap]:
        """Returns the named taps of a network."""
        raise NotImplementedError

    def frozen_taps(self, model: nn.Module, taps: dict[str, Tap]) -> frozenset[str]:
        """Returns the names of the taps that no trainable parameter comes before."""
        return frozenset()

    def kind(self, model: nn.Module) -> str:
        """Returns what sort of model it is, for presets."""
        raise NotImplementedError

    def forward_parts(self, model: nn.Module, inputs: Tensor, parts: frozenset[str] | None) -> None:
        """Runs the part of a network that holds places in `parts`; None for all of it."""
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

    def teacher_view(self, teacher: nn.Module, inputs: Tensor, data_samples: Any) -> Tensor:
        """Returns the batch as the teacher was trained to see it."""
        return inputs

    # Building ---------------------------------------------------------------------------------

    def _build_distillers(self, cfg: Any, preset: str | None, at: str | None) -> None:
        import densekd.methods  # noqa: F401  fills the registries

        named = {id(m): self.named_taps(m) for m in [self.student, *self._teacher_models()]}
        if preset is not None:
            if cfg:
                raise ConfigError('preset and distillers: give one of them, not both.')
            cfg = self.expand_preset(preset, at, named)
        elif not cfg:
            raise ConfigError(
                f'distillers: there are none. Give a list, or preset=… ({", ".join(sorted(PRESETS))}).'
            )
        elif at is not None:
            raise ConfigError(
                "'at' chooses where a preset taps; with a list, each distiller says it."
            )
        entries = [self._parse(e, i, named) for i, e in enumerate(check_distillers(cfg))]
        places = self._trace(entries)
        built = []
        for i, entry in enumerate(entries):
            head: DistillationHead = entry['head']
            student = _merge(
                [places['student'][('student', i, j)] for j, _ in enumerate(entry['s'])]
            )
            teacher = _merge(
                [places[entry['teachers'][0]][('teacher', i, j)] for j, _ in enumerate(entry['t'])]
            )
            _check_pairing(student, teacher, entry['where'], head)
            with private_rng(self.seed + 1000 + i):
                head.bind(student, teacher)
            key = term_key(
                entry['s'][0].part, head.name or _term_name(head, entry['s']), self.distillers
            )
            distiller = Distiller(
                head,
                entry['s'] if entry['many'] else entry['s'][0],
                entry['t'] if entry['many'] else entry['t'][0],
                key,
                entry['teachers'],
                entry['schedule'],
            )
            self.distillers[key] = distiller
            built.append(distiller)
        check_needs(built, self.offered(), type(self).__name__)
        # Only now: binding reads margins from norms that are folded away here.
        for name, teacher in self.teachers.items():
            taps = _taps([d for d in built if name in d.teachers], 'teacher')
            parts = _parts(taps)
            teacher.speed_up(taps, lambda m, x, parts=parts: self.forward_parts(m, x, parts))
        self.__dict__['places'] = {
            d.key: (s, t) for d, (s, t) in zip(built, self._pairs(entries, places), strict=True)
        }

    def _pairs(self, entries: list[dict[str, Any]], places: Any) -> list[tuple[Place, Place]]:
        return [
            (
                _merge([places['student'][('student', i, j)] for j, _ in enumerate(e['s'])]),
                _merge([places[e['teachers'][0]][('teacher', i, j)] for j, _ in enumerate(e['t'])]),
            )
            for i, e in enumerate(entries)
        ]

    def expand_preset(self, preset: str, at: str | None, named: Any = None) -> list[dict[str, Any]]:
        """Returns the list of distillers that a preset stands for, for this student and teacher.

        Raises:
            ConfigError: If there is no such preset, or it fits nothing here.
        """
        first = next(iter(self.teachers.values())).model
        student_taps = named[id(self.student)] if named else self.named_taps(self.student)
        teacher_taps = named[id(first)] if named else self.named_taps(first)
        anatomy = Anatomy(
            student_taps,
            teacher_taps,
            self.kind(self.student),
            self.frozen_taps(self.student, student_taps),
        )
        entries = PRESETS.get(preset, 'preset')(anatomy, at)
        if len(self.teachers) > 1:
            raise ConfigError(
                'preset: with several teachers, write the list of distillers and say which teacher '
                'each one compares with.'
            )
        return entries

    def _teacher_models(self) -> list[nn.Module]:
        return [teacher.model for teacher in self.teachers.values()]

    def _parse(self, entry: dict[str, Any], i: int, named: Any) -> dict[str, Any]:
        from densekd import methods

        where = f'distillers[{i}]'
        teachers = self._teachers_of(entry.get('teacher'), where)
        sides = {}
        for side, model, other in (
            ('student', self.student, None),
            ('teacher', self.teachers[teachers[0]].model, entry['student_module']),
        ):
            key = f'{side}_module'
            cfg = entry.get(key, other)
            many = isinstance(cfg, (list, tuple))
            own = named[id(model)]
            taps = [parse_tap(c, own, f'{where}.{key}') for c in (cfg if many else [cfg])]
            if not taps:
                raise ConfigError(f'{where}.{key}: the list is empty.')
            for tap in taps:
                resolve(model, tap, f'{where}.{key}: the {side}', list(own))
            sides[side] = (taps, many)
        head = methods.build(entry['head'], f'{where}.head')
        if len(teachers) > 1 and not head.loss.ensemble:
            raise ConfigError(
                f'{where}.teacher: {type(head.loss).__name__} compares with one teacher, not with '
                f'{len(teachers)} ({", ".join(teachers)}). Write one distiller for each of them.'
            )
        return {
            'where': where,
            's': sides['student'][0],
            't': sides['teacher'][0],
            'many': sides['student'][1] or sides['teacher'][1],
            'head': head,
            'teachers': teachers,
            'schedule': build_schedule(entry.get('schedule'), where),
        }

    def _teachers_of(self, given: Any, where: str) -> tuple[str, ...]:
        if given is None:
            if len(self.teachers) > 1:
                names = ', '.join(self.teachers)
                raise ConfigError(
                    f"{where}: there are several teachers ({names}), so 'teacher' must say which."
                )
            return tuple(self.teachers)
        names = [given] if isinstance(given, str) else list(given)
        for name in names:
            if name not in self.teachers:
                hint = did_you_mean(str(name), self.teachers)
                raise ConfigError(f'{where}.teacher: there is no teacher {name!r}. {hint}')
        return tuple(names)

    def _freeze_all_but(self, patterns: Sequence[str]) -> None:
        own = dict(self.student.named_parameters())
        added = {f'distillers.{n}': p for n, p in self.distillers.named_parameters()}
        # A list of distillers without parameters may be named all the same.
        names = [*own, *added, *([] if added else ['distillers'])]
        chosen = set(matching(names, patterns, 'train'))
        for name, parameter in {**own, **added}.items():
            if name not in chosen:
                parameter.requires_grad_(False)
        self._frozen = tuple(
            name
            for name, module in self.student.named_modules()
            if name and not any(n == name or n.startswith(f'{name}.') for n in chosen)
        )

    def _trace(self, entries: list[dict[str, Any]]) -> dict[str, dict[Any, Place]]:
        wanted: dict[str, dict[Any, Tap]] = {'student': {}}
        for i, entry in enumerate(entries):
            for j, tap in enumerate(entry['s']):
                wanted['student'][('student', i, j)] = tap
            for name in entry['teachers']:
                for j, tap in enumerate(entry['t']):
                    wanted.setdefault(f'teacher {name}', {})[('teacher', i, j)] = tap
        places = {}
        for who, taps in wanted.items():
            name = who.removeprefix('teacher ')
            model = self.student if who == 'student' else self.teachers[name].model
            parts = _parts(taps)
            forward = lambda m, x, parts=parts: self.forward_parts(m, x, parts)  # noqa: E731
            places['student' if who == 'student' else name] = trace(model, taps, forward)
        return places

    # Training ---------------------------------------------------------------------------------

    @property
    def data_preprocessor(self) -> nn.Module:
        """The student's own preprocessor."""
        return self.student.data_preprocessor

    def set_clock(self, iteration: int, epoch: int) -> None:
        """Tells the model how far training is; without, it counts its own training steps."""
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
            The student's own terms as `student.…`, the distillers' as `distill.loss_…`.
        """
        factors = {d: d.weight(self.iteration, self.epoch) for d in self.distillers.values()}
        active = [d for d, factor in factors.items() if factor > 0]
        taps = {**self.extra_taps(), **_taps(active, 'student')}
        with Taps(self.student, taps, student=self.training) as reading, self.capture() as captured:
            own = self.student(inputs, data_samples, mode='loss')
        losses = self._scaled(own) if self.task_loss else {}
        batch = self._batch(inputs, data_samples, reading, captured)
        teachers = self._run_teachers(active, inputs, data_samples)
        for distiller, factor in factors.items():
            if factor > 0:
                student = distiller.read('student', reading)
                values = [distiller.read('teacher', teachers[name]) for name in distiller.teachers]
                value = values[0] if len(values) == 1 else values
                loss = distiller(student, value, batch, factor)
            else:
                loss = distiller.silent(inputs.device)
            losses[f'distill.loss_{distiller.key}'] = loss
        if self.training and not self._clock_is_set:
            self.iteration += 1
        return losses

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

    def _run_teachers(
        self, active: Sequence[Distiller], inputs: Tensor, data_samples: Any
    ) -> dict[str, Taps]:
        readings = {}
        for name, teacher in self.teachers.items():
            mine = [d for d in active if name in d.teachers]
            if not mine:
                continue
            taps = _taps(mine, 'teacher')
            parts = _parts(taps)
            view = teacher.prepared(self.teacher_view(teacher.model, inputs, data_samples))
            forward = lambda m, x=view, parts=parts: self.forward_parts(m, x, parts)  # noqa: E731
            readings[name] = teacher.run(taps, forward)
        return readings

    # What a runner touches --------------------------------------------------------------------

    def train(self, mode: bool = True) -> DistillModel:
        """Sets the mode; what does not train stays in eval, its running statistics included."""
        super().train(mode)
        for name in self._frozen:
            self.student.get_submodule(name).training = False
        return self

    def init_weights(self) -> None:
        """Initialises the student as plain training would; teachers and connectors stay."""
        self.student.init_weights()

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
            'distillers': {k: v.detach().cpu() for k, v in self.distillers.state_dict().items()},
            'teachers': {name: dict(t.manifest) for name, t in self.teachers.items()},
        }

    def load_distillation_state(self, state: Mapping[str, Any]) -> None:
        """Takes back what `distillation_state` returned.

        Raises:
            CheckpointError: If it is of other distillers or another teacher.
        """
        own = self.distillers.state_dict()
        theirs = dict(state.get('distillers', {}))
        unlike = sorted(set(own) ^ set(theirs)) or [
            k for k in own if own[k].shape != theirs[k].shape
        ]
        if unlike:
            raise CheckpointError(
                f'resume: the checkpoint was written with other distillers: {unlike[0]} (and '
                f'{len(unlike) - 1} more) does not fit. Resume with the config that wrote it, or '
                'start anew with load_from.'
            )
        for name, manifest in state.get('teachers', {}).items():
            teacher = self.teachers.get(name)
            before = manifest.get('sha256')
            now = teacher.manifest.get('sha256') if teacher else None
            if teacher is None or (before and now and before != now):
                raise CheckpointError(
                    f'resume: the checkpoint was trained with another teacher {name!r} '
                    f'({manifest.get("checkpoint")}). Give that one back, or start anew.'
                )
        self.distillers.load_state_dict(theirs)
        self.iteration, self.epoch = int(state.get('iteration', 0)), int(state.get('epoch', 0))


def matching(names: Iterable[str], patterns: Iterable[str], where: str) -> list[str]:
    """Returns the names that match any of the patterns, in their own order.

    Args:
        names: Names of parameters.
        patterns: Globs, or the path of a module that stands for all in it.
        where: The place in the config, for messages.

    Raises:
        ConfigError: If a pattern matches nothing.

    Example:
        >>> matching(['backbone.conv.weight', 'neck.weight'], ['backbone'], 'train')
        ['backbone.conv.weight']
    """
    names = list(names)
    found: set[str] = set()
    for pattern in patterns:
        hits = [n for n in names if fnmatchcase(n, pattern) or n.startswith(f'{pattern}.')]
        if not hits:
            roots = {n.split('.')[0] for n in names}
            raise ConfigError(
                f'{where}: {pattern!r} matches nothing. {did_you_mean(pattern, roots)}'
            )
        found.update(hits)
    return [n for n in names if n in found]


def _taps(distillers: Sequence[Distiller], side: str) -> dict[Any, Tap]:
    return {key: tap for d in distillers for key, tap in d.taps(side).items()}


def _parts(taps: Mapping[Any, Tap]) -> frozenset[str]:
    return frozenset(tap.path.split('.', 1)[0] for tap in taps.values())


def _term_name(head: DistillationHead, taps: Sequence[Tap]) -> str:
    method = type(head).__name__.removesuffix('DistillationHead') or type(head.loss).__name__
    method = method.removesuffix('Loss').lower()
    if len(taps) > 1:
        return method
    label = taps[0].label.removeprefix(f'{taps[0].part}.').replace('.', '_')
    return f'{method}_{label}'


def _merge(places: Sequence[Place]) -> Place:
    """Joins the places of a list of taps into one with a tensor each."""
    return replace(
        places[0],
        shapes=tuple(shape for p in places for shape in p.shapes),
        strides=tuple(stride for p in places for stride in p.strides),
    )


def _check_pairing(student: Place, teacher: Place, where: str, head: DistillationHead) -> None:
    if len(student.shapes) != len(teacher.shapes):
        raise ShapeError(
            f'{where}: the student gives {len(student.shapes)} tensors at '
            f'{student.tap.label!r} and the teacher {len(teacher.shapes)} at '
            f'{teacher.tap.label!r}. Tap the same levels on both sides, by name.'
        )
    for s, t in zip(student.strides, teacher.strides, strict=True):
        if s is None or t is None or s == t:
            continue
        ratio = max(max(a / b, b / a) for a, b in zip(s, t, strict=True))
        if ratio > 2.001 or head.loss.align in (None, 'strict'):
            raise ShapeError(
                f"{where}: the student's {student.tap.label!r} has stride {s[0]:g} and the "
                f"teacher's {teacher.tap.label!r} stride {t[0]:g}; "
                f'{type(head.loss).__name__} compares cell by cell. Pair places of equal stride.'
            )


def _keep_student(module: Any, state: dict[str, Any], prefix: str, metadata: Any) -> None:
    """Leaves the student in a state dict, under the keys that it has without this wrapper."""
    for key in [k for k in state if k.startswith(prefix)]:
        rest, value = key[len(prefix) :], state.pop(key)
        if rest.startswith('student.'):
            state[prefix + rest.removeprefix('student.')] = value
    versions = getattr(state, '_metadata', None)
    if versions is None:
        return
    for key in [k for k in versions if k.startswith(prefix)]:
        rest, value = key[len(prefix) :], versions.pop(key)
        if rest == 'student':
            versions[prefix.removesuffix('.')] = value
        elif rest.startswith('student.'):
            versions[prefix + rest.removeprefix('student.')] = value


def _to_student(module: Any, state: dict[str, Any], prefix: str, *unused: Any) -> None:
    """Hands the weights of a plain student's state dict to the student."""
    found = {k[len(prefix) :]: state.pop(k) for k in list(state) if k.startswith(prefix)}
    own = module.student.state_dict()
    found = unprefixed(found, own)
    if not own.keys() & found.keys():
        example = next(iter(found), 'nothing')
        raise CheckpointError(
            f'no weight of the checkpoint fits the student {type(module.student).__name__}: it '
            f'holds {example}, the student {next(iter(own))}.'
        )
    for key, value in found.items():
        state[f'{prefix}student.{key}'] = value
    # Connectors are not in a student's checkpoint; they keep what they have.
    for key, value in module.distillers.state_dict().items():
        state[f'{prefix}distillers.{key}'] = value


def teacher_of(model: DistillModel) -> Teacher:
    """Returns a model's only, or first, teacher."""
    return next(iter(model.teachers.values()))
