"""Methods of a student's heads that are noted for the time of one step."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from densekd.wrappers.targets import recorded
from tests.helpers.detectors import distilled, losses_of


class Head:
    """A head of a user."""

    def get_targets(self, count: int, *, factor: int = 1) -> int:
        return count * factor


def test_a_call_is_noted_with_what_it_was_given_and_gave() -> None:
    head, captured = Head(), {}
    with recorded(head, 'get_targets', captured, 'key'):
        assert head.get_targets(2, factor=3) == 6
    assert captured == {'key': ((2,), {'factor': 3}, 6)}
    assert head.get_targets(1) == 1 and captured['key'].result == 6
    assert 'get_targets' not in vars(head)


@pytest.mark.parametrize('fails', [False, True])
def test_what_a_user_has_patched_before_is_called_and_stays(fails: bool) -> None:
    head, captured = Head(), {}
    head.get_targets = lambda count: count + 100  # type: ignore[method-assign]
    mine = head.get_targets
    try:
        with recorded(head, 'get_targets', captured, 'key'):
            assert head.get_targets(1) == 101
            if fails:
                raise RuntimeError
    except RuntimeError:
        assert fails
    assert captured['key'].result == 101
    assert vars(head)['get_targets'] is mine


def watched(head: Any, method: str, calls: list[str]) -> Callable[..., Any]:
    whole = getattr(head, method)

    def function(*args: Any, **more: Any) -> Any:
        calls.append(method)
        return whole(*args, **more)

    return function


@pytest.mark.parametrize('name', ['faster_rcnn', 'gfl'])
def test_a_users_own_patches_of_the_heads_outlive_a_step(name: str) -> None:
    model, calls = distilled(name), []
    if name == 'gfl':
        places = [(model.student.bbox_head, 'get_targets')]
    else:
        places = [
            (model.student.rpn_head, 'get_targets'),
            (model.student.roi_head.bbox_head, 'loss_and_target'),
        ]
    for head, method in places:
        setattr(head, method, watched(head, method, calls))
    for _ in range(3):
        losses_of(model)
    assert sorted(calls) == sorted(3 * [method for _, method in places])
