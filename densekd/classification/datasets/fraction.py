"""A part of a training set that has the same share of every class."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from densekd.errors import ConfigError, DataError


def check_fraction(fraction: Any, seed: Any, where: str) -> None:
    """Refuses what is no fraction, and what is no seed.

    Raises:
        ConfigError: Saying what it is.
    """
    number = isinstance(fraction, (int, float)) and not isinstance(fraction, bool)
    if not number or not 0 < fraction <= 1:
        raise ConfigError(f'{where}: fraction is a number above 0 and up to 1, not {fraction!r}.')
    if isinstance(seed, bool) or not isinstance(seed, int) or seed < 0:
        raise ConfigError(f'{where}: fraction_seed is a whole number from 0 on, not {seed!r}.')


def stratified(
    labels: Sequence[int] | np.ndarray,
    fraction: float,
    seed: int = 0,
    names: Sequence[str] = (),
    where: str = 'fraction',
) -> np.ndarray:
    """Returns which images make a fraction of each class, in their own order.

    It depends on the labels, the fraction and the seed alone, and a smaller fraction is a part of a
    larger one.

    Args:
        labels: The class of each image.
        fraction: The share of each class, above 0 and up to 1.
        seed: Of the choice.
        names: The classes' names, for the message.
        where: What the message opens with.

    Raises:
        ConfigError: If the fraction is no such number, or the seed is none.
        DataError: If nothing is left of a class.

    Example:
        >>> stratified([0, 1, 0, 0, 1, 0], 0.5).tolist()
        [0, 1, 3]
    """
    check_fraction(fraction, seed, where)
    labels = np.asarray(labels)
    chosen = []
    for label in np.unique(labels):
        mine = np.flatnonzero(labels == label)
        count = int(len(mine) * fraction + 0.5)
        if not count:
            name = repr(names[label]) if label < len(names) else str(label)
            raise DataError(
                f'{where}: a fraction of {fraction} leaves no image of class {name}, which has '
                f'{len(mine)}. Take a larger fraction.'
            )
        chosen.append(np.random.default_rng((seed, int(label))).permutation(mine)[:count])
    return np.sort(np.concatenate(chosen)) if chosen else np.zeros(0, int)
