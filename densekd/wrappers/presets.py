"""A preset's name becomes the list of distillers that it stands for."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from torch import nn

from densekd.core.anatomy import Anatomy
from densekd.errors import ConfigError
from densekd.registry import PRESETS
from densekd.wrappers.peers import STUDENT

AnatomyOf = Callable[[nn.Module, Sequence[nn.Module]], Anatomy]


def expand(
    preset: str,
    at: str | None,
    learners: Mapping[str, nn.Module],
    tutors: Mapping[str, nn.Module],
    anatomy_of: AnatomyOf,
) -> list[dict[str, Any]]:
    """Returns the list of distillers that a preset stands for, for these networks.

    Args:
        preset: A registered preset's name.
        at: Where it taps, if it offers a choice.
        learners: The networks that train, by name, the student first.
        tutors: The networks that only teach, by name.
        anatomy_of: Tells a preset about a network that learns and those that teach it.

    Raises:
        ConfigError: If there is no such preset, or it has no use for these networks.
    """
    build = PRESETS.get(preset, 'preset')
    if getattr(build, 'mutual', False):
        return _expand_mutually(preset, at, learners, tutors, anatomy_of)
    # A peer that learns teaches the student, too.
    teaching = {**tutors, **{n: m for n, m in learners.items() if n != STUDENT}}
    if len(teaching) > 1 and not getattr(build, 'several', False):
        fitting = [n for n in sorted(PRESETS) if getattr(PRESETS.get(n, ''), 'several', False)]
        raise ConfigError(
            f'preset {preset!r}: with several teachers, write the list of distillers and say '
            f'which teacher each one compares with. Presets for several: {", ".join(fitting)}.'
        )
    entries = build(anatomy_of(learners[STUDENT], list(teaching.values())), at)
    several = {'teacher': list(teaching)} if len(teaching) > 1 else {}
    return [{**entry, **several} for entry in entries]


def _expand_mutually(
    preset: str,
    at: str | None,
    learners: Mapping[str, nn.Module],
    tutors: Mapping[str, nn.Module],
    anatomy_of: AnatomyOf,
) -> list[dict[str, Any]]:
    """Returns the list of a preset by which each network that trains learns from the others."""
    if len(learners) == 1:
        raise ConfigError(
            f'preset {preset!r}: its networks learn from each other, and a teacher with a '
            "checkpoint learns nothing. Give peers=[dict(name='b', model=…)]."
        )
    if tutors:
        raise ConfigError(
            f'preset {preset!r}: it has no use for {", ".join(tutors)}, which learns '
            'nothing. Leave it out, or write the list of distillers.'
        )
    build = PRESETS.get(preset, 'preset')
    entries = []
    for learner, model in learners.items():
        others = {name: m for name, m in learners.items() if name != learner}
        for entry in build(anatomy_of(model, list(others.values())), at):
            if learner != STUDENT:
                name = f'{entry["head"]["name"]}_{learner}'
                entry = {**entry, 'student': learner, 'head': {**entry['head'], 'name': name}}
            entries.append({**entry, 'teacher': list(others)})
    return entries
