"""From the entries of a config's list to distillers: taps, connectors and names settled."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from functools import partial
from typing import Any

from torch import nn

from densekd.core.distiller import Distiller, check_pairing, joined, method_name, term_key
from densekd.core.head import DistillationHead
from densekd.core.schedule import Schedule, build_schedule
from densekd.core.taps import Place, Tap, parse_tap, resolve
from densekd.core.teacher import Teacher
from densekd.core.trace import TRACE_SIZE, trace
from densekd.errors import ConfigError, did_you_mean
from densekd.wrappers.peers import STUDENT, Partner
from densekd.wrappers.regions import check_stages


@dataclass
class Wire:
    """One entry of the list on its way to a distiller.

    Attributes:
        where: Its place in the config, for messages.
        student: The student's taps.
        teacher: The teacher's taps.
        many: Whether the config gave lists, so that the loss is given lists.
        head: The head, built but not bound.
        teachers: Names of the teachers that it reads.
        schedule: How its weight changes.
        learner: Name of the network that it teaches: `'student'`, or a peer's.
        lr_mult: Factor on the learning rate of what it adds.
        clip_to_task: Whether its gradient is clipped to the task's.
        found: The place of each tap, by the network's name, side and position, once traced.
    """

    where: str
    student: list[Tap]
    teacher: list[Tap]
    many: bool
    head: DistillationHead
    teachers: tuple[str, ...]
    schedule: Schedule
    learner: str = 'student'
    lr_mult: float = 1.0
    clip_to_task: bool = False
    found: dict[tuple[str, str, int], Place] = field(default_factory=dict)

    @property
    def places(self) -> tuple[Place, Place]:
        """The student's and the teacher's place; several taps are one place of several tensors.

        So are several teachers.
        """
        student = [self.found[self.learner, 'student', i] for i in range(len(self.student))]
        teacher = [
            self.found[name, 'teacher', i]
            for name in self.teachers
            for i in range(len(self.teacher))
        ]
        return joined(student), joined(teacher)

    def build(self, taken: Mapping[str, Any]) -> Distiller:
        """Binds the head to its places and returns the distiller.

        Args:
            taken: The names that are used already.

        Raises:
            ShapeError: If the places can't be compared.
            ConfigError: If its name is taken.
        """
        student, teacher = self.places
        check_pairing(student, teacher, self.where, self.head)
        self.head.bind(student, teacher)
        name = self.head.name or _default_name(self.head, self.student, self.learner)
        return Distiller(
            self.head,
            self.student if self.many else self.student[0],
            self.teacher if self.many else self.teacher[0],
            term_key(self.student[0].part, name, taken),
            self.teachers,
            self.schedule,
            self.lr_mult,
            self.learner,
            self.clip_to_task,
        )


def parse_wire(
    entry: Mapping[str, Any],
    position: int,
    learners: Mapping[str, nn.Module],
    teachers: Mapping[str, Teacher | Partner],
    named: Mapping[int, Mapping[str, Tap]],
) -> Wire:
    """Reads one entry: its taps, its head, its teachers, its schedule.

    Args:
        entry: The entry, its keys checked.
        position: Its position in the list.
        learners: The networks that train, by name: the student, and peers.
        teachers: The networks that may teach, by name: teachers, and those that train.
        named: The named taps of each network, by the network's id.

    Raises:
        TapError: If a tap names no place.
        ConfigError: If the head, the teacher or the schedule can't be built.
    """
    from densekd import methods

    where = f'distillers[{position}]'
    learner = _learner(entry.get('student', 'student'), learners, where)
    student = learners[learner]
    names = _teachers_of(entry.get('teacher'), teachers, learner, where)
    student_cfg = entry['student_module']
    teacher_cfg = entry.get('teacher_module', student_cfg)
    first = teachers[names[0]].model
    head = methods.build(entry['head'], f'{where}.head')
    if len(names) > 1 and not head.loss.ensemble:
        raise ConfigError(
            f'{where}.teacher: {type(head.loss).__name__} compares with one teacher, not with '
            f'{len(names)} ({", ".join(names)}). Write one distiller for each of them.'
        )
    if len(names) > 1 and isinstance(student_cfg, (list, tuple)):
        raise ConfigError(
            f'{where}.student_module: with several teachers, one place is compared at a time; '
            f'it lists {len(student_cfg)}. Write one distiller for each place.'
        )
    own = _parse_taps(student_cfg, named[id(student)], f'{where}.student_module')
    other = _parse_taps(teacher_cfg, named[id(first)], f'{where}.teacher_module')
    check_stages(student, first, own, other, where)
    _check_places(own, student, named[id(student)], f'{where}.student_module: the student')
    _check_places(other, first, named[id(first)], f'{where}.teacher_module: the teacher')
    return Wire(
        where,
        own,
        other,
        isinstance(student_cfg, (list, tuple)) or isinstance(teacher_cfg, (list, tuple)),
        head,
        names,
        build_schedule(entry.get('schedule'), where),
        learner,
        _lr_mult(entry.get('lr_mult', 1.0), where),
        _clip_to_task(entry.get('clip_to_task', False), learner, where),
    )


def _lr_mult(given: Any, where: str) -> float:
    if isinstance(given, bool) or not isinstance(given, (int, float)) or not 0 < given < math.inf:
        raise ConfigError(
            f'{where}.lr_mult: a number above 0 is needed, which the learning rate of the '
            f"head's connectors is multiplied by, not {given!r}."
        )
    return float(given)


def _clip_to_task(given: Any, learner: str, where: str) -> bool:
    if not isinstance(given, bool):
        raise ConfigError(f'{where}.clip_to_task: True or False is needed, not {given!r}.')
    if given and learner != STUDENT:
        raise ConfigError(
            f"{where}.clip_to_task: it is for what teaches the student; here the peer's "
            f'({learner}) gradient would be clipped. Leave it out.'
        )
    return given


def _parse_taps(cfg: Any, named: Mapping[str, Tap], where: str) -> list[Tap]:
    many = isinstance(cfg, (list, tuple))
    taps = [parse_tap(one, named, where) for one in (cfg if many else [cfg])]
    if not taps:
        raise ConfigError(f'{where}: the list is empty.')
    return taps


def _check_places(
    taps: Sequence[Tap], model: nn.Module, named: Mapping[str, Tap], where: str
) -> None:
    for tap in taps:
        resolve(model, tap, where, list(named))


def _learner(name: Any, learners: Mapping[str, nn.Module], where: str) -> str:
    if name in learners:
        return str(name)
    hint = did_you_mean(str(name), learners)
    raise ConfigError(f'{where}.student: there is no network {name!r} that trains. {hint}')


def _teachers_of(
    given: Any, teachers: Mapping[str, Teacher | Partner], learner: str, where: str
) -> tuple[str, ...]:
    others = [name for name in teachers if name != learner]
    if given is None:
        # Without a word, the student teaches nobody.
        plain = [name for name in others if name != 'student']
        if len(plain) != 1:
            raise ConfigError(
                f"{where}: there are several teachers ({', '.join(others)}), so 'teacher' must "
                'say which.'
            )
        return tuple(plain)
    names = as_names(given, f'{where}.teacher', "names of teachers such as ['teacher']")
    for name in names:
        if name == learner:
            raise ConfigError(
                f"{where}.teacher: {name!r} can't teach itself. Give it a peer: "
                "peers=[dict(name='mean', ema=0.999)] is its own average."
            )
        if name not in teachers:
            hint = did_you_mean(str(name), others)
            raise ConfigError(f'{where}.teacher: there is no teacher {name!r}. {hint}')
    if not names or len(set(names)) < len(names):
        raise ConfigError(f'{where}.teacher: name each teacher once, and one at least.')
    return tuple(names)


def find_places(
    wires: Sequence[Wire],
    learners: Mapping[str, nn.Module],
    teachers: Mapping[str, Teacher | Partner],
    forward: Callable[[nn.Module, Any, frozenset[str]], Any],
    size: tuple[int, int] = TRACE_SIZE,
) -> None:
    """Traces each network once and notes the place of every tap.

    Args:
        wires: The entries.
        learners: The networks that train, by name.
        teachers: The networks that may teach, by name.
        forward: Runs the part of a network that holds places in the given parts, on images.
        size: Height and width of the image.

    Raises:
        TapError: If a place never runs.
    """
    sides: list[tuple[str, str, nn.Module, list[Wire]]] = []
    for name, model in learners.items():
        sides.append((name, 'student', model, [w for w in wires if w.learner == name]))
    for name, teacher in teachers.items():
        sides.append((name, 'teacher', teacher.model, [w for w in wires if name in w.teachers]))
    for name, side, model, mine in sides:
        taps = {
            (number, i): tap
            for number, wire in enumerate(mine)
            for i, tap in enumerate(getattr(wire, side))
        }
        if not taps:
            continue
        parts = parts_of(taps)
        places = trace(model, taps, partial(_run, forward, parts), size)
        for (number, i), place in places.items():
            mine[number].found[name, side, i] = place


def _run(forward: Any, parts: frozenset[str], model: nn.Module, images: Any) -> None:
    forward(model, images, parts)


def taps_of(distillers: Sequence[Distiller], side: str) -> dict[Any, Tap]:
    """Returns the taps of several distillers on one side."""
    return {key: tap for d in distillers for key, tap in d.taps(side).items()}


def parts_of(taps: Mapping[Any, Tap]) -> frozenset[str]:
    """Returns the parts of the network that taps are in: the roots of their paths."""
    return frozenset(tap.path.split('.', 1)[0] for tap in taps.values())


def _default_name(head: DistillationHead, taps: Sequence[Tap], learner: str) -> str:
    method = method_name(head)
    if len(taps) == 1:
        label = taps[0].label.removeprefix(f'{taps[0].part}.').replace('.', '_')
        method = f'{method}_{label}'
    return method if learner == 'student' else f'{method}_{learner}'


def as_names(given: Any, where: str, what: str) -> list[str]:
    """Returns a list of texts as such; a single one is a list of one.

    Args:
        given: What a config gives.
        where: Its place, for messages.
        what: What is meant, with an example.

    Raises:
        ConfigError: If it is anything else.
    """
    names = [given] if isinstance(given, str) else given
    if not isinstance(names, (list, tuple)) or not all(isinstance(name, str) for name in names):
        raise ConfigError(f'{where}: a list of {what} is needed, not {given!r}.')
    return list(names)


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


def resting(model: nn.Module, chosen: Iterable[str]) -> list[str]:
    """Returns the names of the modules that stay in eval mode while the chosen parameters train.

    They are those in which nothing is chosen. A module without parameters of its own, such as
    dropout or a norm without weights, goes with the nearest one around it that has some, and rests
    unless all of that one trains.

    Args:
        model: The network.
        chosen: Names of its parameters that train.

    Example:
        >>> model = nn.Sequential(nn.Linear(1, 1), nn.Sequential(nn.Linear(1, 1), nn.Dropout()))
        >>> resting(model, ['1.0.weight', '1.0.bias']), resting(model, ['1.0.bias'])
        (['0'], ['0', '1.1'])
    """
    held, training = Counter(), Counter()  # type: ignore[var-annotated]
    chosen = set(chosen)
    for name, _ in model.named_parameters():
        parts = name.split('.')
        for i in range(len(parts)):
            path = '.'.join(parts[:i])
            held[path] += 1
            training[path] += name in chosen
    found = []
    for name, _ in model.named_modules():
        around = name
        while around and not held[around]:
            around = around.rpartition('.')[0]
        if name and not (training[around] if around == name else training[around] == held[around]):
            found.append(name)
    return found
