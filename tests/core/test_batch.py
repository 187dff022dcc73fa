"""What a loss may know of the batch, computed when it is asked for."""

from __future__ import annotations

import copy
from dataclasses import FrozenInstanceError

import pytest
import torch

from densekd.core.batch import FIELDS, Batch
from densekd.errors import ConfigError


def test_a_field_is_computed_when_asked_for_and_once() -> None:
    calls = []

    def labels() -> list[int]:
        calls.append(1)
        return [1, 2]

    batch = Batch({'labels': labels})
    assert calls == []
    assert batch.labels == [1, 2] and batch.labels is batch.labels
    assert calls == [1]


def test_a_value_is_given_as_it_is() -> None:
    inputs = torch.zeros(1, 3, 4, 4)
    batch = Batch({'inputs': inputs, 'iteration': 0, 'valid': None})
    assert batch.inputs is inputs and batch.iteration == 0 and batch.valid is None


def test_has_asks_without_computing() -> None:
    def boom() -> None:
        raise AssertionError

    batch = Batch({'labels': boom})
    assert batch.has('labels') and not batch.has('gt_boxes')


def test_batches_share_nothing() -> None:
    first, second = Batch({'seed': 1}), Batch({'seed': 2})
    assert (first.seed, second.seed) == (1, 2)
    assert Batch().values == {}


def test_a_field_that_does_not_exist_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="no field 'labells'; it has: inputs, labels"):
        _ = Batch({'labels': 1}).labells


def test_a_field_that_nothing_supplies_is_never_none() -> None:
    with pytest.raises(ConfigError, match="a loss asks for 'anchors' \\(anchors of the student"):
        _ = Batch({'labels': 1}).anchors


def test_a_batch_can_be_copied_and_not_changed() -> None:
    batch = Batch({'labels': [1]})
    assert copy.deepcopy(batch).labels == [1]
    with pytest.raises(FrozenInstanceError):
        batch.values = {}  # type: ignore[misc]


def test_every_field_is_described() -> None:
    assert all(text and not text.endswith('.') for text in FIELDS.values())
    assert {'inputs', 'labels', 'gt_boxes', 'anchors', 'valid'} <= set(FIELDS)
