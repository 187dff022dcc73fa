"""What a preset may know of the two networks: the places that both have."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from fnmatch import fnmatchcase

from densekd.core.taps import Tap


@dataclass(frozen=True)
class Anatomy:
    """The named taps of a student and its teacher, and what sort of model they are.

    Args:
        student: The student's named taps.
        teacher: The teacher's.
        kind: `'one-stage'`, `'two-stage'`, `'segmentor'` or `'classifier'`.
        frozen: Names of the student's taps that no gradient leaves, as in a frozen stage.

    Example:
        >>> taps = {name: Tap(name) for name in ('neck.p3', 'neck.p10', 'backbone.c5')}
        >>> Anatomy(taps, taps, 'one-stage').both('neck.p*')
        ['neck.p3', 'neck.p10']
    """

    student: Mapping[str, Tap]
    teacher: Mapping[str, Tap]
    kind: str
    frozen: frozenset[str] = field(default_factory=frozenset)

    def both(self, pattern: str) -> list[str]:
        """Returns the names that match, exist on both sides and can be taught, shallowest first.

        Args:
            pattern: A glob, such as `'neck.p*'` or `'backbone.c?.pre_relu'`.
        """
        names = [
            name
            for name in self.student
            if name in self.teacher and name not in self.frozen and fnmatchcase(name, pattern)
        ]
        return sorted(
            names, key=lambda name: [int(p) if p.isdigit() else p for p in re.split(r'(\d+)', name)]
        )
