"""MHGD and LSL against the loops of reference_graph.py: values and slopes."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import pytest
import torch
from hypothesis import strategies as st
from torch import Tensor

from densekd.core.batch import Batch
from densekd.core.taps import Place, Tap
from densekd.methods import (
    MHGDEstimatorLoss,
    MHGDLoss,
    class_likeness,
    layer_likeness,
    lsl_loss,
    mhgd_estimator_loss,
    mhgd_loss,
)
from tests.methods import reference_graph as reference
from tests.methods.test_reference import Shape, check, random, sizes

GRAPHS = st.tuples(st.integers(1, 3), st.integers(2, 4))
VECTORS = st.tuples(st.integers(2, 5), st.integers(2, 4))
LAYERS = [(3, 2, 3), (4, 2, 2), (2, 1, 3)]


@sizes(GRAPHS, (2, 3))
def test_mhgd(shape: Shape, seed: int) -> None:
    heads, n = shape
    s, t = random(heads, n, n, seed=seed), random(heads, n, n, seed=seed + 1)
    check(lambda x: mhgd_loss(x, t), lambda x: reference.mhgd(x.tolist(), t.tolist()), s)


@sizes(VECTORS, (3, 4))
def test_estimator(shape: Shape, seed: int) -> None:
    s, t = random(*shape, seed=seed), random(*shape, seed=seed + 1)
    check(
        lambda x: mhgd_estimator_loss(x, t),
        lambda x: reference.estimator(x.tolist(), t.tolist()),
        s,
    )


def place(layers: list[Shape]) -> Place:
    shapes = tuple((1, *shape) for shape in layers)
    return Place(Tap('x', name='x'), shapes, ((1.0, 1.0),) * len(shapes))


def bound(kind: type, **options: Any) -> Any:
    """Returns a loss whose normalisations do nothing, as they start."""
    torch.manual_seed(0)
    loss = kind(heads=2, **options)
    loss.bind(place(LAYERS), place(LAYERS))
    for module in loss.modules():
        if isinstance(module, torch.nn.BatchNorm1d):
            module.eps = 0.0
    return loss.double().eval()


def of(layer: torch.nn.Sequential) -> list[list[float]]:
    return layer[0].weight.tolist()


@pytest.mark.parametrize('moved', [0, 1, 2])
@pytest.mark.parametrize('kind', [MHGDLoss, MHGDEstimatorLoss])
def test_from_maps_to_the_loss(kind: type, moved: int) -> None:
    loss = bound(kind, **({'untrained': True} if kind is MHGDLoss else {}))
    students = [random(4, *shape, seed=i) for i, shape in enumerate(LAYERS)]
    teachers = [random(4, *shape, seed=50 + i) for i, shape in enumerate(LAYERS)]

    def given(x: Tensor) -> list[Tensor]:
        return [x if i == moved else s for i, s in enumerate(students)]

    def slow(x: Tensor) -> float:
        maps = zip(given(x), teachers, strict=True)
        layers = [reference.main_vectors(s.tolist(), t.tolist()) for s, t in maps]
        total = 0.0
        for i, (earlier, later) in enumerate(pairwise(layers)):
            attention = loss.attention[i]
            weights = of(attention.sender), of(attention.receiver), 2
            own, theirs = (reference.graphs(later[j], earlier[j], *weights) for j in (0, 1))
            if kind is MHGDLoss:
                total += reference.mhgd(own, theirs)
                continue
            estimator = loss.estimators[i]
            out = estimator.out.weight.tolist(), estimator.out.bias.tolist()
            estimate = reference.estimates(earlier[0], own, of(estimator.value), *out)
            total += reference.estimator(estimate, later[1])
        return total

    check(lambda x: loss.compute(given(x), teachers, Batch()), slow, students[moved])


@pytest.mark.parametrize('eps', [1e-5, 0.5])
@sizes(VECTORS, (5, 3))
def test_lsl(shape: Shape, seed: int, eps: float) -> None:
    s, t = random(*shape, seed=seed), random(*shape, seed=seed + 1)
    check(lambda x: lsl_loss(x, t, eps), lambda x: reference.lsl(x.tolist(), t.tolist(), eps), s)


@sizes(VECTORS, (4, 3))
def test_likeness(shape: Shape, seed: int) -> None:
    first, second = random(*shape, seed=seed), random(shape[0], 5, seed=seed + 1)
    check(class_likeness, lambda x: reference.class_likeness(x.tolist()), first)
    check(
        lambda x: layer_likeness(x, second),
        lambda x: reference.layer_likeness(x.tolist(), second.tolist()),
        first,
    )
