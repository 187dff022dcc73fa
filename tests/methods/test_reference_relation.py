"""Relations of images and maps against the loops of reference_relation.py: values and slopes."""

from __future__ import annotations

import pytest
import torch
from hypothesis import strategies as st
from torch import Tensor

from densekd.methods import (
    cc_loss,
    fsp_loss,
    fsp_matrix,
    ft_loss,
    kdsvd_loss,
    lp_loss,
    nst_loss,
    paraphraser_loss,
    pkt_loss,
    rkd_angle_loss,
    rkd_distance_loss,
    sp_loss,
    vid_loss,
)
from densekd.methods.relation import rkd
from tests.methods import reference as plain
from tests.methods import reference_relation as reference
from tests.methods.test_reference import MAPS, SMALL_MAPS, Shape, check, random, sizes

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


@pytest.mark.parametrize('reduction', ['mean', 'rows'])
@pytest.mark.parametrize('exclude_self', [False, True])
@sizes(WIDE, (5, 3), (2, 2))
def test_pkt(exclude_self: bool, reduction: str, shape: Shape, seed: int) -> None:
    options = exclude_self, reduction
    s, t = random(*shape, seed=seed), random(shape[0], 6, seed=seed + 1)
    check(
        lambda x: pkt_loss(x, t, *options),
        lambda x: reference.pkt(x.tolist(), t.tolist(), *options),
        s,
    )


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


@pytest.mark.parametrize('channels', [1, 6])  # fewer, and more products than cells have
@pytest.mark.parametrize(
    ('kernel', 'sigma2'), [('linear', None), ('poly', None), ('gaussian', 0.7), ('gaussian', None)]
)
@sizes(SMALL_MAPS, (2, 3, 2, 2), (1, 2, 3, 1))
def test_nst(shape: Shape, seed: int, channels: int, kernel: str, sigma2: float | None) -> None:
    n, _, h, w = shape
    s, t = random(*shape, seed=seed), random(n, channels, h, w, seed=seed + 1)
    if kernel == 'gaussian' and sigma2 is None:
        # The width is a constant to the gradient, which the loops can't say.
        value = nst_loss(s, t, kernel).item()
        assert value == pytest.approx(
            reference.nst(s.tolist(), t.tolist(), kernel, None), abs=1e-12
        )
        return
    check(
        lambda x: nst_loss(x, t, kernel, sigma2),
        lambda x: reference.nst(x.tolist(), t.tolist(), kernel, sigma2),
        s,
    )


@pytest.mark.parametrize('size', [(1, 1), (2, 3), (5, 2)])
@sizes(SMALL_MAPS, (2, 3, 4, 3), (1, 2, 3, 1))
def test_fsp(shape: Shape, seed: int, size: tuple[int, int]) -> None:
    n, c, h, w = shape
    s, t = random(*shape, seed=seed), random(n, c, 2 * h, w, seed=seed + 1)
    second, other = random(n, 2, *size, seed=seed + 2), random(n, 2, 3, 3, seed=seed + 3)
    slow = reference.fsp_matrix(s.tolist(), second.tolist())
    torch.testing.assert_close(
        fsp_matrix(s, second), torch.tensor(slow).double(), rtol=1e-6, atol=0
    )
    theirs = (t, other)
    for pair in (lambda x: (x, second), lambda x: (second, x)):
        given = theirs if pair(s)[0] is s else theirs[::-1]
        check(
            lambda x, pair=pair, given=given: fsp_loss(pair(x), given),
            lambda x, pair=pair, given=given: reference.fsp(
                [y.tolist() for y in pair(x)], [y.tolist() for y in given]
            ),
            s,
        )


@pytest.mark.parametrize('cells', [(1, 2), (2, 1)])
def test_fsp_of_more_channels_than_cells(cells: tuple[int, int]) -> None:
    s, second = random(2, 5, *cells, seed=0), random(2, 4, 1, 2, seed=1)
    theirs = random(2, 5, 2, 1, seed=2), random(2, 4, 1, 1, seed=3)
    check(
        lambda x: fsp_loss((x, second), theirs),
        lambda x: reference.fsp([x.tolist(), second.tolist()], [y.tolist() for y in theirs]),
        s,
    )


# Channels, height and width of each layer: more cells than channels, fewer, and of each kind.
LAYERS = [
    [(3, 2, 3), (4, 2, 2)],
    [(5, 1, 2), (4, 1, 3)],
    [(2, 3, 3), (3, 2, 2), (6, 1, 2)],
]


@pytest.mark.parametrize('layers', LAYERS, ids=str)
@pytest.mark.parametrize('basis', ['teacher', 'own'])
@pytest.mark.parametrize('k', [1, 2, 4])
def test_kdsvd(layers: list[Shape], basis: str, k: int) -> None:
    students = [random(2, *shape, seed=i) for i, shape in enumerate(layers)]
    teachers = [random(2, *shape, seed=50 + i) for i, shape in enumerate(layers)]
    for moved in range(len(layers)):

        def given(x: Tensor, moved: int = moved) -> list[Tensor]:
            return [x if i == moved else s for i, s in enumerate(students)]

        check(
            lambda x, given=given: kdsvd_loss(given(x), teachers, basis, k),
            lambda x, given=given: reference.kdsvd(
                [y.tolist() for y in given(x)], [y.tolist() for y in teachers], basis, k
            ),
            students[moved],
        )


@pytest.mark.parametrize('eps', [1e-5, 0.5])
@sizes(MAPS, (2, 3, 2, 4))
def test_vid(shape: Shape, seed: int, eps: float) -> None:
    s, t = random(*shape, seed=seed), random(*shape, seed=seed + 1)
    raw = 2 * random(shape[1], seed=seed + 2)

    def slow(x: Tensor, a: Tensor) -> float:
        return reference.vid(x.tolist(), t.tolist(), a.tolist(), eps)

    check(lambda x: vid_loss(x, t, raw, eps), lambda x: slow(x, raw), s)
    check(lambda a: vid_loss(s, t, a, eps), lambda a: slow(s, a), raw)


@pytest.mark.parametrize('p', [1, 2])
@sizes(MAPS.filter(lambda shape: shape[1] * shape[2] * shape[3] > 1), (2, 3, 2, 4))
def test_ft(shape: Shape, seed: int, p: int) -> None:
    s, t = random(*shape, seed=seed), random(*shape, seed=seed + 1)
    check(lambda x: ft_loss(x, t, p), lambda x: reference.ft(x.tolist(), t.tolist(), p), s)


@sizes(MAPS, (2, 3, 2, 4))
def test_paraphraser(shape: Shape, seed: int) -> None:
    s, t = random(*shape, seed=seed), random(*shape, seed=seed + 1)
    check(lambda x: paraphraser_loss(x, t), lambda x: plain.hint(x.tolist(), t.tolist()), s)
