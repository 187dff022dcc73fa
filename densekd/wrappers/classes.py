"""Lists of classes, compared by name: what a student and a teacher can tell each other."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from torch import nn

from densekd.core.columns import Columns
from densekd.core.taps import Tap
from densekd.errors import ConfigError


@dataclass(frozen=True)
class ClassMatch:
    """Two lists of classes and what they share.

    Attributes:
        student: The student's names.
        teacher: The teacher's.
        shared: The names that both have, in the student's order.
    """

    student: tuple[str, ...]
    teacher: tuple[str, ...]
    shared: tuple[str, ...]

    @property
    def same(self) -> bool:
        """Whether both have the same names, in whatever order."""
        return len(self.shared) == len(self.student) == len(self.teacher)

    def describe(self) -> str:
        """Returns what is compared, for people."""
        if not self.shared:
            return 'student and teacher have no class in common'
        if self.same:
            return "the teacher's classes stand in another order; they are paired by name"
        return (
            f'logits are compared on the {len(self.shared)} classes that both have '
            f'({_some(self.shared)}), of {len(self.student)} of the student and '
            f'{len(self.teacher)} of the teacher'
        )


def match_classes(
    student: Sequence[str] | None, teacher: Sequence[str] | None
) -> ClassMatch | None:
    """Returns how two lists of classes differ; None if they don't, or one of them is not known.

    Case, spaces and underscores do not tell names apart.

    Example:
        >>> match_classes(['cat', 'dog'], ['Dog', 'cat']).describe()
        "the teacher's classes stand in another order; they are paired by name"
        >>> match_classes(['cat', 'traffic_light'], ['Cat', 'traffic light']) is None
        True
    """
    if student is None or teacher is None:
        return None
    own, other = [_bare(n) for n in student], [_bare(n) for n in teacher]
    if own == other:
        return None
    shared = tuple(name for name in student if _bare(name) in other)
    return ClassMatch(tuple(student), tuple(teacher), shared)


def _bare(name: str) -> str:
    return ''.join(c for c in str(name).lower() if c not in ' _-')


def _some(names: Sequence[str], most: int = 6) -> str:
    rest = f' and {len(names) - most} more' if len(names) > most else ''
    return ', '.join(names[:most]) + rest


def check_count(
    names: Sequence[str] | None, model: nn.Module, taps: Mapping[str, Tap], who: str
) -> None:
    """Refuses a list of names that is not as long as the heads' number of classes.

    Raises:
        ConfigError: With both numbers.
    """
    if names is None:
        return
    advice = ", in the data's metainfo or as model.classes" if who == 'classes' else ''
    for tap in taps.values():
        head = _class_head(model, tap)
        if head is not None and head.num_classes != len(names):
            raise ConfigError(
                f'{who}: its head has {head.num_classes} classes, and the list of their names has '
                f'{len(names)} ({_some(names)}). Set num_classes to {len(names)}, or name the '
                f'{head.num_classes} classes{advice}.'
            )


def with_columns(
    taps: Mapping[str, Tap], model: nn.Module, match: ClassMatch | None, side: str
) -> dict[str, Tap]:
    """Returns named taps that give the shared classes, in the student's order.

    Args:
        taps: The named taps of a network.
        model: The network.
        match: How the lists differ.
        side: `'student'` or `'teacher'`.
    """
    if match is None or (side == 'student' and match.same):
        return dict(taps)
    own = [_bare(n) for n in (match.student if side == 'student' else match.teacher)]
    shared = tuple(own.index(_bare(n)) for n in match.shared)
    result = {}
    for name, tap in taps.items():
        head = _class_head(model, tap)
        if head is not None and name.endswith('logits'):
            regions = tap.path.startswith('roi_head')
            columns = getattr(head, 'cls_out_channels', None)
            background = regions or columns == head.num_classes + 1
            form = 'rows' if regions or name == 'logits' else 'dense'
            tap = replace(tap, columns=Columns(form, head.num_classes, shared, background))
        elif head is not None and side == 'teacher':
            # Deltas of the true class are looked up by the student's labels.
            places = tuple(own.index(_bare(n)) if _bare(n) in own else None for n in match.student)
            tap = replace(tap, columns=Columns('deltas', head.num_classes, places))
        result[name] = tap
    return result


def _class_head(model: nn.Module, tap: Tap) -> Any:
    """Returns the head whose classes a named tap has columns of, or None."""
    part, _, what = tap.name.partition('.')
    if part in ('decode', 'aux') and what == 'logits':
        head: Any = model.get_submodule(tap.path.removesuffix('.conv_seg'))
        # One logit for two classes is a sigmoid's.
        return head if head.out_channels == head.num_classes else None
    named = part in ('head', 'roi') and what.endswith('cls_logits')
    logits = named or tap.name == 'logits'
    deltas = part == 'roi' and what.endswith('bbox_deltas')
    if not logits and not deltas:
        return None
    head = model.get_submodule(tap.path)
    return head if hasattr(head, 'num_classes') else None


def refuse_disjoint(match: ClassMatch | None, taps: Sequence[Tap], where: str) -> None:
    """Refuses to compare logits of networks that share no class.

    Raises:
        ConfigError: With what can be compared instead.
    """
    if match is None or match.shared:
        return
    for tap in taps:
        if tap.columns is not None:
            raise ConfigError(
                f'{where}: {tap.label!r} has no class of the teacher in it: the student knows '
                f'{_some(match.student)}, the teacher {_some(match.teacher)}. Compare features '
                "instead, which need no classes, as presets 'pkd', 'fgfi', 'cwd' and 'mgd' do."
            )
