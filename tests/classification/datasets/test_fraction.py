"""A stratified part of a training set."""

from __future__ import annotations

import numpy as np
import pytest

from densekd.classification.datasets.fraction import stratified
from densekd.errors import ConfigError, DataError

LABELS = np.random.default_rng(1).permutation(np.repeat(np.arange(4), [400, 200, 100, 20]))


@pytest.mark.parametrize('fraction', [1.0, 0.5, 0.25, 0.1])
def test_every_class_keeps_its_share(fraction: float) -> None:
    chosen = stratified(LABELS, fraction)
    counts = np.bincount(LABELS[chosen])
    assert counts.tolist() == [round(n * fraction) for n in (400, 200, 100, 20)]
    assert np.array_equal(chosen, np.unique(chosen))


def test_it_is_the_same_each_time_and_smaller_ones_are_parts_of_larger() -> None:
    half, quarter, tenth = (stratified(LABELS, f) for f in (0.5, 0.25, 0.1))
    assert np.array_equal(half, stratified(LABELS, 0.5))
    assert set(tenth) < set(quarter) < set(half)
    other = stratified(LABELS, 0.5, seed=1)
    assert len(other) == len(half) and not np.array_equal(other, half)
    # Not the first of each class: files are often sorted by something.
    first = np.sort(np.concatenate([np.flatnonzero(k == LABELS)[: n // 2] for k, n in
                                    enumerate((400, 200, 100, 20))]))  # fmt: skip
    assert not np.array_equal(half, first)


def test_a_class_that_is_left_empty_is_a_sentence() -> None:
    with pytest.raises(DataError) as caught:
        stratified([0, 0, 0, 1], 0.25, names=('cat', 'dog'), where='data/own')
    assert str(caught.value) == (
        "data/own: a fraction of 0.25 leaves no image of class 'dog', which has 1. Take a larger "
        'fraction.'
    )


@pytest.mark.parametrize('fraction', [0, -0.5, 1.5, '0.5', True, None])
def test_what_is_no_fraction_is_a_sentence(fraction: object) -> None:
    with pytest.raises(ConfigError, match='fraction is a number above 0 and up to 1'):
        stratified(LABELS, fraction)  # type: ignore[arg-type]


@pytest.mark.parametrize('seed', [-1, 1.5, '0', True, None])
def test_what_is_no_seed_is_a_sentence(seed: object) -> None:
    with pytest.raises(ConfigError, match='fraction_seed is a whole number from 0 on, not '):
        stratified(LABELS, 0.5, seed)  # type: ignore[arg-type]
