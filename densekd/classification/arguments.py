"""What numbers in a config have to be, whichever part of a classifier takes them."""

from __future__ import annotations

import math
from typing import Any

from densekd.errors import ConfigError


def is_number(value: Any) -> bool:
    """Whether a value is a finite number; True and False are none."""
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)


def check_whole(what: str, value: Any, least: int) -> None:
    """Refuses what is no whole number, or too small a one.

    Args:
        what: What takes the argument, and its name.
        value: What was given.
        least: The smallest that will do.

    Raises:
        ConfigError: Saying what it is.
    """
    if isinstance(value, bool) or not isinstance(value, int) or value < least:
        raise ConfigError(f'{what} is a whole number from {least} on, not {value!r}.')


def check_factor(who: str, value: Any) -> None:
    """Refuses a factor on channels that is no number above 0.

    Raises:
        ConfigError: Saying what it is.
    """
    if not is_number(value) or value <= 0:
        raise ConfigError(f'{who}: widen_factor is a number above 0, not {value!r}.')
