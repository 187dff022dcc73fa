"""Relations against the loops of reference_relation.py: value, and slope along every coordinate."""

from __future__ import annotations

import pytest
from hypothesis import strategies as st

from densekd.methods import (
    cc_loss,
    lp_loss,
    pkt_loss,
    rkd_angle_loss,
    rkd_distance_loss,
    sp_loss,
)
from densekd.methods.relation import rkd
from tests.methods import reference_relation as reference
from tests.methods.test_reference import Shape, check, random, sizes

VECTORS = st.tuples(st.integers(2, 5), st.integers(1, 4))
WIDE = st.tuples(st.integers(2, 5), st.integers(2, 4))


@sizes(VECTORS, (5, 3), (3, 2))
def test_rkd_distance(shape: Shape, seed: int) -> None:
    s, t = random(*shape, seed=seed), random(shape[0], 6, seed=seed + 1)
    check(
        lambda x: rkd_distance_loss(x, t),
        lambda x: reference.rkd_distance(x.tolist(), t.tolist()),
        s,
    )


@pytest.mark.parametrize('budget', [1, 40, 2**22])
@sizes(WIDE, (5, 3), (3, 2))
def test_rkd_angle(shape: Shape, seed: int, budget: int) -> None:
    """All images at once, one by one, and a few at a time."""
    s, t = random(*shape, seed=seed), random(shape[0], 6, seed=seed + 1)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(rkd, 'BUDGET', budget)
        check(
            lambda x: rkd_angle_loss(x, t),
            lambda x: reference.rkd_angle(x.tolist(), t.tolist()),
            s,
        )


@sizes(WIDE, (5, 3), (2, 2))
def test_pkt(shape: Shape, seed: int) -> None:
    s, t = random(*shape, seed=seed), random(shape[0], 6, seed=seed + 1)
    check(lambda x: pkt_loss(x, t), lambda x: reference.pkt(x.tolist(), t.tolist()), s)


@sizes(st.tuples(*(st.integers(low, 3) for low in (2, 1, 1, 1))), (4, 2, 1, 2), (3, 2, 2, 1))
def test_sp(shape: Shape, seed: int) -> None:
    s, t = random(*shape, seed=seed), random(shape[0], 5, 2, 2, seed=seed + 1)
    check(lambda x: sp_loss(x, t), lambda x: reference.sp(x.tolist(), t.tolist()), s)


@pytest.mark.parametrize('gamma', [0.4, 1.5])
@sizes(WIDE, (5, 3), (2, 2))
def test_cc(shape: Shape, seed: int, gamma: float) -> None:
    s, t = random(*shape, seed=seed), random(shape[0], 6, seed=seed + 1)
    check(lambda x: cc_loss(x, t, gamma), lambda x: reference.cc(x.tolist(), t.tolist(), gamma), s)


@pytest.mark.parametrize('k', [1, 2, 5])
@sizes(VECTORS, (5, 3), (2, 2))
def test_lp(shape: Shape, seed: int, k: int) -> None:
    s, t = random(*shape, seed=seed), random(shape[0], 6, seed=seed + 1)
    check(lambda x: lp_loss(x, t, k), lambda x: reference.locality(x.tolist(), t.tolist(), k), s)
