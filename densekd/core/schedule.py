"""How a distillation term changes over training: warm-up, decay, stop, and whom it teaches."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from densekd.errors import ConfigError, did_you_mean
from densekd.registry import check_arguments

DECAYS = ('linear', 'cosine')


@dataclass(frozen=True)
class Schedule:
    """A factor on a loss weight, `warmup(t) * decay(t) * [t < stop]`, and whom the term teaches.

    Args:
        by: What `t` counts: `'iter'` (iterations begun, 0 at the first) or `'epoch'` (epochs
            begun, 0 in the first; the warm-up counts them from 1, as DKD and ReviewKD do).
        warmup: Length of the linear warm-up; 0 for none. In iterations the factor is
            `t / warmup`; in epochs `(t + 1) / warmup`; never above 1.
        decay: `'linear'` or `'cosine'` from 1 at `begin` to 0 at `end`, or None.
        begin: Where the decay begins.
        end: Where the decay ends, in the unit of `by`; needed with `decay`.
        stop: From here on the factor is 0, and the teacher is not run.
        connectors_first: For as long, in the unit of `by`, the term teaches its connectors alone:
            no gradient of it goes on to the student. The factor is what it is.

    Raises:
        ConfigError: If a value is no number, or the values contradict each other.

    Example:
        >>> Schedule(warmup=4, stop=10)(2)
        0.5
        >>> Schedule(by='epoch', warmup=20)(0)
        0.05
        >>> Schedule(decay='linear', end=10)(5)
        0.5
    """

    by: str = 'iter'
    warmup: int = 0
    decay: str | None = None
    begin: int = 0
    end: int | None = None
    stop: int | None = None
    connectors_first: int = 0

    def __post_init__(self) -> None:
        if self.by not in ('iter', 'epoch'):
            raise ConfigError(f"schedule: 'by' is 'iter' or 'epoch', not {self.by!r}.")
        if self.decay is not None and self.decay not in DECAYS:
            hint = did_you_mean(self.decay, DECAYS)
            raise ConfigError(f'schedule: there is no decay {self.decay!r}. {hint}')
        for name in ('warmup', 'begin', 'end', 'stop', 'connectors_first'):
            value = getattr(self, name)
            if value is None and name in ('end', 'stop'):
                continue
            if isinstance(value, bool) or not isinstance(value, (int, float)) or value != value:
                raise ConfigError(
                    f'schedule: {name!r} is a number of iterations or epochs, not {value!r}.'
                )
        if self.decay is not None and (self.end is None or self.end <= self.begin):
            raise ConfigError(
                f"schedule: a {self.decay} decay needs 'end' after 'begin' ({self.begin}), "
                f'but it is {self.end}.'
            )
        for name in ('warmup', 'connectors_first'):
            if (value := getattr(self, name)) < 0:
                raise ConfigError(f"schedule: {name!r} can't be negative, but it is {value}.")

    def __call__(self, t: int) -> float:
        """Returns the factor at time `t`."""
        if self.stop is not None and t >= self.stop:
            return 0.0
        factor = 1.0
        if self.warmup:
            begun = t + 1 if self.by == 'epoch' else t
            factor = min(begun / self.warmup, 1.0)
        if self.decay is not None and self.end is not None:
            done = min(max((t - self.begin) / (self.end - self.begin), 0.0), 1.0)
            factor *= 1.0 - done if self.decay == 'linear' else (1 + math.cos(math.pi * done)) / 2
        return factor

    def reaches_student(self, t: int) -> bool:
        """Returns whether the term sends its gradient to the student at time `t`."""
        return t >= self.connectors_first


def build_schedule(cfg: Any, where: str) -> Schedule:
    """Returns the schedule of a config: None, a dict of its arguments, or a schedule.

    Raises:
        ConfigError: If a key is unknown or the values contradict each other.
    """
    if cfg is None:
        return Schedule()
    if isinstance(cfg, Schedule):
        return cfg
    if not isinstance(cfg, Mapping):
        raise ConfigError(f'{where}.schedule: a dict such as dict(warmup=500), not {cfg!r}.')
    check_arguments(Schedule, cfg, f'{where}.schedule')
    return Schedule(**cfg)
