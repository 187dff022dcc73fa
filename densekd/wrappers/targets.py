"""What a student's own heads were trained on in this step, read and never computed again.

A head is known by the functions that make its targets and its loss: a head of another name that
inherits them is read as they are, one that overrides them is not.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor


class Call(NamedTuple):
    """A call of a method that was noted."""

    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    result: Any


@contextmanager
def recorded(owner: Any, method: str, captured: dict[str, Any], key: str) -> Iterator[None]:
    """Notes the last call of a method of one object, while the body runs."""
    original = getattr(owner, method)

    def noting(*args: Any, **kwargs: Any) -> Any:
        result = original(*args, **kwargs)
        captured[key] = Call(args, kwargs, result)
        return result

    # On this one instance, for this one call: a patch that stayed would be copied by EMA together
    # with its reference to this head. One of the user's own is put back.
    before = {method: owner.__dict__[method]} if method in owner.__dict__ else {}
    owner.__dict__[method] = noting
    try:
        yield
    finally:
        del owner.__dict__[method]
        owner.__dict__.update(before)


@contextmanager
def recorded_targets(head: Any, captured: dict[str, Any], key: str) -> Iterator[None]:
    """Notes what a dense head is trained on, and what its classification loss is divided by."""
    with ExitStack() as stack:
        stack.enter_context(recorded(head, 'get_targets', captured, key))
        if reader_of(head) is not _of_anchor_head:
            stack.enter_context(recorded(head.loss_cls, 'forward', captured, f'{key}loss'))
        yield


@dataclass(frozen=True)
class Targets:
    """Targets of a dense head, one for every anchor or point.

    Attributes:
        labels: The class of each, the number of classes for background, L of (N, H*W*A).
        weights: The weight of each in the classification loss, likewise.
        avg_factor: What the student divides its classification loss by.
        boxes: What it regresses, L of (N, H*W*A, 4).
    """

    labels: list[Tensor]
    weights: list[Tensor]
    avg_factor: Any
    boxes: list[Tensor]


def reader_of(head: Any) -> Callable[[Call, Call | None], Targets] | None:
    """Returns the function that reads a dense head's targets; None for a head that is not known.

    It takes the call of `get_targets` and the last one of the classification loss.
    """
    from mmdet.models.dense_heads import AnchorHead, ATSSHead, FCOSHead, GFLHead

    if isinstance(head, AnchorHead):
        if type(head).get_targets is AnchorHead.get_targets:
            return _of_anchor_head
        if type(head).get_targets in (ATSSHead.get_targets, GFLHead.get_targets):
            return _of_one_anchor_a_cell
    if (
        isinstance(head, FCOSHead)
        and type(head).get_targets is FCOSHead.get_targets
        and type(head).loss_by_feat is FCOSHead.loss_by_feat
    ):
        return _of_points
    return None


def read_targets(head: Any, captured: Mapping[str, Any], key: str) -> Targets:
    """Returns what `recorded_targets` has noted of a head."""
    reader = reader_of(head)
    assert reader is not None  # only such heads are noted
    return reader(captured[key], captured.get(f'{key}loss'))


def _of_anchor_head(call: Call, loss: Call | None) -> Targets:
    labels, weights, boxes, _, avg_factor = call.result
    return Targets(labels, weights, avg_factor, boxes)


def _of_one_anchor_a_cell(call: Call, loss: Call | None) -> Targets:
    _, labels, weights, boxes, _, _ = call.result
    # Its own factor is not yet the mean over processes, which is what the loss divides by.
    return Targets(labels, weights, _divisor(loss), boxes)


def _of_points(call: Call, loss: Call | None) -> Targets:
    labels, boxes = call.result
    counts = [len(points) for points in call.args[0]]
    # Every point counts, those in padding too, and images follow each other.
    labels = [x.reshape(-1, count) for x, count in zip(labels, counts, strict=True)]
    boxes = [x.reshape(-1, count, 4) for x, count in zip(boxes, counts, strict=True)]
    weights = [torch.ones_like(x, dtype=torch.float32) for x in labels]
    return Targets(labels, weights, _divisor(loss), boxes)


def _divisor(loss: Call | None) -> Any:
    return None if loss is None else loss.kwargs.get('avg_factor')


def gives_deltas(head: Any) -> bool:
    """Whether a head regresses four numbers a box that are the same in training and evaluation.

    One with `reg_max` gives a distribution of each; with `norm_on_bbox` they are in strides while
    a student trains and in pixels from a teacher.
    """
    return not hasattr(head, 'reg_max') and not getattr(head, 'norm_on_bbox', False)


def encoded(head: Any, origins: Tensor, boxes: Tensor, positive: Tensor) -> Tensor:
    """Returns boxes as deltas; heads with a loss on boxes keep their targets decoded."""
    flat = boxes.reshape(-1, 4)
    # Where nothing is matched the target is 0, a box without a logarithm: the origin stands in.
    flat = torch.where(positive.reshape(-1, 1), flat, origins)
    return head.bbox_coder.encode(origins, flat).reshape(boxes.shape)
