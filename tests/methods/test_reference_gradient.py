"""Losses of gradients against the loops of reference_gradient.py: values and slopes."""

from __future__ import annotations

import pytest

from densekd.methods import gradient_attention_loss, jacobian_loss
from tests.methods import reference_gradient as reference
from tests.methods.test_reference import MAPS, Shape, check, random, sizes

WIDE = MAPS.filter(lambda shape: shape[1] * shape[2] * shape[3] > 1)


@sizes(WIDE, (2, 3, 2, 4))
def test_jacobian(shape: Shape, seed: int) -> None:
    s, t = random(*shape, seed=seed), random(*shape, seed=seed + 1)
    check(lambda x: jacobian_loss(x, t), lambda x: reference.jacobian(x.tolist(), t.tolist()), s)


@pytest.mark.parametrize('normalise', [True, False])
@sizes(WIDE, (2, 3, 2, 4))
def test_gradient_attention(shape: Shape, seed: int, normalise: bool) -> None:
    s, t = random(*shape, seed=seed), random(*shape, seed=seed + 1)
    check(
        lambda x: gradient_attention_loss(x, t, normalise),
        lambda x: reference.gradient_attention(x.tolist(), t.tolist(), normalise),
        s,
    )
