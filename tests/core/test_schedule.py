"""The factor on a distillation weight, at each point in time."""

from __future__ import annotations

import math

import pytest

from densekd.core.schedule import Schedule, build_schedule
from densekd.errors import ConfigError


def test_without_arguments_nothing_changes() -> None:
    assert {Schedule()(t) for t in (0, 1, 10**9)} == {1.0}


def test_warm_up_in_iterations_begins_at_zero() -> None:
    schedule = Schedule(warmup=4)
    assert [schedule(t) for t in range(6)] == [0.0, 0.25, 0.5, 0.75, 1.0, 1.0]


def test_warm_up_in_epochs_counts_from_one() -> None:
    # As in DKD and ReviewKD: min(epoch / 20, 1) with the first epoch called 1.
    schedule = Schedule(by='epoch', warmup=20)
    assert [schedule(t) for t in (0, 1, 18, 19, 20)] == [0.05, 0.1, 0.95, 1.0, 1.0]


def test_linear_decay() -> None:
    schedule = Schedule(decay='linear', begin=10, end=20)
    assert [schedule(t) for t in (0, 10, 15, 20, 99)] == [1.0, 1.0, 0.5, 0.0, 0.0]


def test_cosine_decay() -> None:
    schedule = Schedule(decay='cosine', begin=0, end=12)
    assert schedule(0) == 1.0 and schedule(12) == pytest.approx(0.0) == schedule(50)
    assert schedule(3) == pytest.approx((1 + math.cos(math.pi / 4)) / 2)
    assert schedule(6) == pytest.approx(0.5)


def test_stop_ends_it_at_once() -> None:
    schedule = Schedule(stop=3)
    assert [schedule(t) for t in range(5)] == [1.0, 1.0, 1.0, 0.0, 0.0]
    # Exactly zero: the teacher is not run when it is.
    assert Schedule(warmup=100, decay='cosine', end=100, stop=3)(3) == 0.0


def test_the_three_are_multiplied() -> None:
    schedule = Schedule(warmup=10, decay='linear', begin=0, end=20, stop=8)
    assert schedule(4) == pytest.approx(0.4 * 0.8)
    assert schedule(8) == 0.0


def test_connectors_first_changes_whom_it_teaches_and_not_the_factor() -> None:
    schedule = Schedule(connectors_first=2)
    assert [schedule.reaches_student(t) for t in range(4)] == [False, False, True, True]
    assert {schedule(t) for t in range(4)} == {1.0}
    assert Schedule().reaches_student(0)


@pytest.mark.parametrize('name', ['warmup', 'connectors_first'])
def test_a_length_is_not_negative(name: str) -> None:
    with pytest.raises(ConfigError, match=f"'{name}' can't be negative, but it is -1"):
        Schedule(**{name: -1})


def test_a_config_is_none_a_dict_or_a_schedule() -> None:
    schedule = Schedule(warmup=3)
    assert build_schedule(None, 'here') == Schedule()
    assert build_schedule(schedule, 'here') is schedule
    assert build_schedule(dict(warmup=3), 'here') == schedule


@pytest.mark.parametrize('end', [None, 5, 4])
def test_a_decay_needs_an_end_after_its_beginning(end: int | None) -> None:
    with pytest.raises(ConfigError, match=r"'end' after 'begin' \(5\), but it is"):
        Schedule(decay='cosine', begin=5, end=end)


@pytest.mark.parametrize('name', ['warmup', 'begin', 'end', 'stop', 'connectors_first'])
@pytest.mark.parametrize('value', ['x', True, [3], float('nan')])
def test_a_time_is_a_number(name: str, value: object) -> None:
    with pytest.raises(ConfigError, match=f"^schedule: '{name}' is a number of iterations or"):
        Schedule(**{name: value})


def test_only_what_may_be_left_open_may_be_none() -> None:
    assert Schedule(end=None, stop=None) == Schedule()
    with pytest.raises(ConfigError, match="'warmup' is a number .*, not None"):
        Schedule(warmup=None)
