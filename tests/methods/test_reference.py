"""Each function against the loops of reference.py: value, and slope along every coordinate.

Sizes and numbers are hypothesis' choice, the same in every run, beside a few fixed ones.
"""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from torch import Tensor

from densekd import methods
from densekd.methods import (
    ab_loss,
    at_loss,
    attention_map,
    binary_kl_loss,
    bounded_regression_loss,
    cwd_loss,
    dist_loss,
    dkd_loss,
    ensemble_kd_loss,
    hint_loss,
    ifvd_loss,
    imitation_loss,
    imitation_mask,
    kd_loss,
    kd_qfl_loss,
    margin_from_bn,
    mgd_loss,
    ofd_loss,
    pkd_loss,
    skd_pairwise_loss,
    skd_pixelwise_loss,
    weighted_soft_label_loss,
    weighted_soft_objectness_loss,
)
from tests.methods import reference
from tests.methods.samples import grid

Shape = tuple[int, ...]
SHAPES = [(2, 3, 2, 4), (1, 2, 3, 1), (3, 1, 2, 2)]
MAPS = st.tuples(*(st.integers(1, most) for most in (3, 3, 3, 4)))
SMALL_MAPS = st.tuples(*(st.integers(1, most) for most in (2, 2, 2, 3)))
ROWS = st.tuples(st.integers(1, 6), st.integers(2, 5))
quick = settings(derandomize=True, deadline=None, max_examples=12)


def sizes(shapes: st.SearchStrategy[Shape], *fixed: Shape) -> Callable[[Any], Any]:
    """Calls a test with `shape` and `seed` of random inputs, and with fixed shapes."""

    def decorate(test: Any) -> Any:
        for shape in fixed:
            test = example(shape=shape, seed=0)(test)
        return quick(given(shape=shapes, seed=st.integers(0, 1000))(test))

    return decorate


def random(*shape: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(shape, generator=generator, dtype=torch.float64)


def check(fast: Callable[[Tensor], Tensor], slow: Callable[[Tensor], float], at: Tensor) -> None:
    """The two agree at `at`, and so do the gradient and the differences of the slow one."""
    x = at.clone().requires_grad_()
    value = fast(x)
    assert value.dtype == torch.float64
    assert value.item() == pytest.approx(slow(at), rel=1e-10, abs=1e-12)
    (gradient,) = torch.autograd.grad(value, x)
    step = 1e-6
    slopes = torch.zeros_like(at).flatten()
    for i in range(at.numel()):
        ahead, behind = at.clone(), at.clone()
        ahead.view(-1)[i] += step
        behind.view(-1)[i] -= step
        slopes[i] = (slow(ahead) - slow(behind)) / (2 * step)
    torch.testing.assert_close(gradient.flatten(), slopes, rtol=1e-5, atol=1e-7)


@sizes(MAPS, *SHAPES)
def test_hint(shape: Shape, seed: int) -> None:
    s, t = random(*shape, seed=seed), random(*shape, seed=seed + 1)
    check(lambda x: hint_loss(x, t), lambda x: reference.hint(x.tolist(), t.tolist()), s)


@sizes(MAPS, *SHAPES)
def test_ofd(shape: Shape, seed: int) -> None:
    s, t = random(*shape, seed=seed), random(*shape, seed=seed + 1)
    margin = -random(shape[1], seed=seed + 2).abs()
    check(
        lambda x: ofd_loss(x, t, margin),
        lambda x: reference.ofd(x.tolist(), t.tolist(), margin.tolist()),
        s,
    )


@quick
@example(gamma=[1.0, -2.0, 0.5, 0.0, 0.0, 1.0, 1e-3], beta=[0.0, 1.0, -3.0, -0.5, 0.5, 4.0, -1e-3])
@given(
    gamma=st.lists(st.floats(0.1, 3), min_size=3, max_size=3),
    beta=st.lists(st.floats(-3, 3), min_size=3, max_size=3),
)
def test_margins(gamma: list[float], beta: list[float]) -> None:
    expected = [reference.margin(g, b) for g, b in zip(gamma, beta, strict=True)]
    fast = margin_from_bn(torch.tensor(gamma).double(), torch.tensor(beta).double())
    torch.testing.assert_close(fast, torch.tensor(expected).double(), rtol=1e-6, atol=1e-9)


@sizes(MAPS.filter(lambda shape: shape[0] * shape[2] * shape[3] > 1), *SHAPES)
def test_pkd(shape: Shape, seed: int) -> None:
    s, t = random(*shape, seed=seed), random(*shape, seed=seed + 1)
    check(lambda x: pkd_loss(x, t), lambda x: reference.pkd(x.tolist(), t.tolist()), s)


@pytest.mark.parametrize('kind', ['sum', 'max'])
@pytest.mark.parametrize('p', [1, 1.5, 2, 3, 4.0])
@pytest.mark.parametrize('norm', ['code', 'paper'])
@sizes(MAPS, (2, 3, 2, 4))
def test_at(norm: str, p: float, kind: str, shape: Shape, seed: int) -> None:
    n, _, h, w = shape
    s, t = random(*shape, seed=seed), random(n, 5, h, w, seed=seed + 1)
    slow = torch.tensor(reference.attention(s.tolist(), p, kind)).double()
    torch.testing.assert_close(attention_map(s, p, kind), slow, rtol=1e-6, atol=1e-9)
    check(
        lambda x: at_loss(x, t, p, kind, norm),
        lambda x: reference.at(x.tolist(), t.tolist(), p, kind, norm),
        s,
    )


@pytest.mark.parametrize('margin', [0.5, 1.0, 2.0])
@sizes(MAPS, *SHAPES)
def test_ab(shape: Shape, seed: int, margin: float) -> None:
    s, t = random(*shape, seed=seed), random(*shape, seed=seed + 1)
    check(
        lambda x: ab_loss(x, t, margin), lambda x: reference.ab(x.tolist(), t.tolist(), margin), s
    )


@pytest.mark.parametrize('tau', [0.5, 1.0, 4.0])
@pytest.mark.parametrize('masked', [False, True])
@sizes(MAPS, *SHAPES)
def test_cwd(shape: Shape, seed: int, tau: float, masked: bool) -> None:
    s, t = random(*shape, seed=seed), random(*shape, seed=seed + 1)
    valid = random(shape[0], *shape[2:], seed=seed + 2) > -0.5 if masked else None
    listed = valid.tolist() if masked else None
    check(
        lambda x: cwd_loss(x, t, tau, valid),
        lambda x: reference.cwd(x.tolist(), t.tolist(), tau, listed),
        s,
    )


@pytest.mark.parametrize('kind', ['position', 'channel'])
@sizes(SMALL_MAPS, *SHAPES)
def test_mgd(shape: Shape, seed: int, kind: str) -> None:
    n, c, h, w = shape
    s, t = random(*shape, seed=seed), random(*shape, seed=seed + 1)
    mask = random(*((n, 1, h, w) if kind == 'position' else (n, c, 1, 1)), seed=seed + 2) > -0.3
    layers = [torch.nn.Conv2d(c, c, 3, padding=1).double() for _ in range(2)]
    block = torch.nn.Sequential(layers[0], torch.nn.ReLU(), layers[1])
    listed = [(layer.weight.tolist(), layer.bias.tolist()) for layer in layers]
    check(
        lambda x: mgd_loss(x, t, block, mask),
        lambda x: reference.mgd(x.tolist(), t.tolist(), mask.tolist(), *listed),
        s,
    )


@pytest.mark.parametrize('policy', ['global', 'assigned', 'per_level'])
@pytest.mark.parametrize('psi', [0.0, 0.3, 0.5, 0.9])
@pytest.mark.parametrize('with_valid', [False, True])
def test_masks(policy: str, psi: float, with_valid: bool) -> None:
    anchors = [
        grid(6, 9, 16, [(32, 32), (48, 24)]).double(),
        grid(3, 5, 32, [(64, 64), (90, 45)]).double(),
        grid(2, 3, 64, [(128, 128), (180, 90)]).double(),
    ]
    generator = torch.Generator().manual_seed(3)
    corner = torch.rand(7, 2, generator=generator) * torch.tensor([140.0, 90.0])
    size = 12 + 180 * torch.rand(7, 2, generator=generator)
    boxes = torch.cat([corner, corner + size], 1).double()
    valid = None
    if with_valid:
        valid = [torch.rand(a.shape[:3], generator=generator) > 0.3 for a in anchors]
    fast = imitation_mask(anchors, boxes, psi, policy, valid)
    slow = reference.masks(
        [a.tolist() for a in anchors],
        boxes.tolist(),
        psi,
        policy,
        None if valid is None else [v.tolist() for v in valid],
    )
    assert [m.tolist() for m in fast] == slow
    assert any(m.any() for m in fast)
    assert psi == 0 or not all(m.all() for m in fast)


@settings(quick, max_examples=40)
@given(
    levels=st.lists(st.tuples(st.integers(1, 4), st.integers(1, 4)), min_size=1, max_size=3),
    boxes=st.integers(0, 3),
    psi=st.sampled_from([0.0, 0.3, 0.5, 0.9]),
    policy=st.sampled_from(['global', 'assigned', 'per_level']),
    seed=st.integers(0, 1000),
)
def test_masks_of_any_size(
    levels: list[Shape], boxes: int, psi: float, policy: str, seed: int
) -> None:
    generator = torch.Generator().manual_seed(seed)
    anchors = [
        grid(h, w, 16 << i, [(32 << i, 32 << i), (48 << i, 24 << i)]).double()
        for i, (h, w) in enumerate(levels)
    ]
    corner = 60 * torch.rand(boxes, 2, generator=generator)
    size = 8 + 90 * torch.rand(boxes, 2, generator=generator)
    drawn = torch.cat([corner, corner + size], 1).double()
    valid = [torch.rand(a.shape[:3], generator=generator) > 0.3 for a in anchors]
    fast = imitation_mask(anchors, drawn, psi, policy, valid)
    slow = reference.masks(
        [a.tolist() for a in anchors], drawn.tolist(), psi, policy, [v.tolist() for v in valid]
    )
    assert [m.tolist() for m in fast] == slow


@sizes(MAPS, (2, 3, 2, 3))
def test_imitation(shape: Shape, seed: int) -> None:
    n, c, h, w = shape
    coarse = (n, c, (h + 1) // 2, (w + 1) // 2)
    first, second = random(*shape, seed=seed), random(*coarse, seed=seed + 1)
    teachers = [random(*shape, seed=seed + 2), random(*coarse, seed=seed + 3)]
    marks = [random(n, h, w, seed=seed + 4) > 0, random(n, *coarse[2:], seed=seed + 5) > -1]
    listed = [t.tolist() for t in teachers], [m.tolist() for m in marks]
    check(
        lambda x: imitation_loss([x, second], teachers, marks),
        lambda x: reference.imitation([x.tolist(), second.tolist()], *listed),
        first,
    )


@pytest.mark.parametrize('weighted', [False, True])
@pytest.mark.parametrize('avg_factor', [None, 2.5])
@pytest.mark.parametrize('option', [0.5, 1.0, 2.0])
@sizes(ROWS, (5, 3), (2, 1))
def test_sigmoid_losses(
    weighted: bool, avg_factor: float | None, option: float, shape: Shape, seed: int
) -> None:
    s, t = 2 * random(*shape, seed=seed), 2 * random(*shape, seed=seed + 1)
    weight = random(shape[0], seed=seed + 2).abs() if weighted else None
    listed = weight.tolist() if weighted else None
    for fast, slow in ((kd_qfl_loss, reference.kd_qfl), (binary_kl_loss, reference.binary_kl)):
        check(
            lambda x, f=fast: f(x, t, option, weight, avg_factor),
            lambda x, f=slow: f(x.tolist(), t.tolist(), option, listed, avg_factor),
            s,
        )


@pytest.mark.parametrize('tau', [0.7, 1.0, 4.0])
@pytest.mark.parametrize('masked', [False, True])
@sizes(st.one_of(ROWS, MAPS), (4, 3), (2, 3, 2, 4), (3, 2, 1, 2))
def test_kd(shape: Shape, seed: int, tau: float, masked: bool) -> None:
    s, t = 2 * random(*shape, seed=seed), 2 * random(*shape, seed=seed + 1)
    valid = random(shape[0], *shape[2:], seed=seed + 2) > 0
    valid.view(-1)[0] = True  # the mean of nothing is no number to the loops
    check(
        lambda x: kd_loss(x, t, tau, valid if masked else None),
        lambda x: reference.kd(
            x.tolist(), [t.tolist()], tau, valid=valid.flatten().tolist() if masked else None
        ),
        s,
    )


def test_kd_of_valid_pixels() -> None:
    s, t = random(2, 3, 3, 2), random(2, 3, 3, 2, seed=1)
    valid = random(2, 3, 2, seed=2) > 0
    assert 0 < int(valid[0].sum()) != int(valid[1].sum())  # pooled is not the mean of means
    listed = valid.flatten().tolist()
    check(
        lambda x: kd_loss(x, t, 2.0, valid),
        lambda x: reference.kd(x.tolist(), [t.tolist()], 2.0, valid=listed),
        s,
    )


@pytest.mark.parametrize('mode', ['mean_prob', 'mean_logit'])
@pytest.mark.parametrize('count', [1, 2, 3])
@sizes(st.one_of(ROWS, SMALL_MAPS), (4, 3), (2, 3, 2, 2))
def test_ensembles(shape: Shape, seed: int, mode: str, count: int) -> None:
    s = random(*shape, seed=seed)
    teachers = [3 * random(*shape, seed=seed + i + 1) for i in range(count)]
    listed = [t.tolist() for t in teachers]
    check(
        lambda x: ensemble_kd_loss(x, teachers, 2.0, mode),
        lambda x: reference.kd(x.tolist(), listed, 2.0, mode),
        s,
    )


@pytest.mark.parametrize('factors', [(1.0, 8.0, 4.0), (1.0, 0.0, 1.0), (0.0, 0.5, 0.7)])
@sizes(st.one_of(ROWS, MAPS.filter(lambda shape: shape[1] > 1)), (6, 3), (2, 3, 2, 4), (2, 2))
def test_dkd(shape: Shape, seed: int, factors: tuple[float, float, float]) -> None:
    s, t = 2 * random(*shape, seed=seed), 2 * random(*shape, seed=seed + 1)
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(-1, shape[1], (shape[0], *shape[2:]), generator=generator)
    labels = labels.masked_fill(random(*labels.shape, seed=seed + 2) > 1, 255)
    labels.view(-1)[0] = 0  # the mean of nothing is no number to the loops
    listed = labels.flatten().tolist()
    check(
        lambda x: dkd_loss(x, t, labels, *factors),
        lambda x: reference.dkd(x.tolist(), t.tolist(), listed, *factors),
        s,
    )


@pytest.mark.parametrize('factors', [(1.0, 1.0, 1.0), (2.0, 0.0, 4.0), (0.0, 0.5, 0.7)])
@pytest.mark.parametrize('masked', [False, True])
@sizes(st.one_of(ROWS, MAPS), (6, 3), (2, 3, 2, 4), (1, 4), (3, 2, 1, 2))
def test_dist(shape: Shape, seed: int, factors: tuple[float, float, float], masked: bool) -> None:
    s, t = 2 * random(*shape, seed=seed), 2 * random(*shape, seed=seed + 1)
    valid = random(shape[0], *shape[2:], seed=seed + 2) > -0.5
    valid.view(-1)[0] = True
    listed = valid.flatten().tolist() if masked else None
    check(
        lambda x: dist_loss(x, t, *factors, valid if masked else None),
        lambda x: reference.dist(x.tolist(), t.tolist(), *factors, listed),
        s,
    )


@pytest.mark.parametrize('bg_weight', [0.0, 1.0, 1.5])
@pytest.mark.parametrize('tau', [1.0, 3.0])
@sizes(ROWS, (5, 4))
def test_weighted_soft_labels(bg_weight: float, tau: float, shape: Shape, seed: int) -> None:
    s, t = 2 * random(*shape, seed=seed), 2 * random(*shape, seed=seed + 1)
    check(
        lambda x: weighted_soft_label_loss(x, t, bg_weight, tau),
        lambda x: reference.weighted_soft_label(x.tolist(), t.tolist(), bg_weight, tau),
        s,
    )


@pytest.mark.parametrize('bg_weight', [0.0, 1.0, 1.5])
@sizes(st.tuples(st.integers(1, 9)), (7,))
def test_weighted_soft_objectness(bg_weight: float, shape: Shape, seed: int) -> None:
    s, t = 2 * random(*shape, seed=seed), 2 * random(*shape, seed=seed + 1)
    check(
        lambda x: weighted_soft_objectness_loss(x, t, bg_weight),
        lambda x: reference.weighted_soft_objectness(x.tolist(), t.tolist(), bg_weight),
        s,
    )


@pytest.mark.parametrize('margin', [0.0, 2.0])
@pytest.mark.parametrize('avg_factor', [None, 2.5])
@sizes(st.tuples(st.integers(1, 6), st.just(4)), (9, 4))
def test_bounded_regression(
    margin: float, avg_factor: float | None, shape: Shape, seed: int
) -> None:
    s, t, y = (random(*shape, seed=seed + i) for i in range(3))
    check(
        lambda x: bounded_regression_loss(x, t, y, margin, avg_factor),
        lambda x: reference.bounded_regression(
            x.tolist(), t.tolist(), y.tolist(), margin, avg_factor
        ),
        s,
    )
    worse = (s - y).square().sum(1) + margin > (t - y).square().sum(1)
    assert len(s) < 9 or (bool(worse.any()) and not bool(worse.all()))


@pytest.mark.parametrize('scale', [0.5, 0.25, 0.4])
@pytest.mark.parametrize('masked', [False, True])
@sizes(MAPS, *SHAPES, (1, 2, 5, 4))
def test_skd_pairwise(scale: float, masked: bool, shape: Shape, seed: int) -> None:
    n, _, h, w = shape
    s, t = random(*shape, seed=seed), random(n, 5, h, w, seed=seed + 1)
    valid = random(n, h, w, seed=seed + 2) > -0.5 if masked else None
    listed = valid.tolist() if masked else None
    args = t.tolist(), scale, listed
    value = skd_pairwise_loss(s, t, scale, valid).item()
    assert value == pytest.approx(reference.skd_pairwise(s.tolist(), *args), abs=1e-12)
    check(  # the lengths are constants to the gradient
        lambda x: skd_pairwise_loss(x, t, scale, valid),
        lambda x: reference.skd_pairwise(x.tolist(), *args, held=s.tolist()),
        s,
    )


@pytest.mark.parametrize('masked', [False, True])
@sizes(MAPS, *SHAPES)
def test_skd_pixelwise(masked: bool, shape: Shape, seed: int) -> None:
    s, t = 2 * random(*shape, seed=seed), 2 * random(*shape, seed=seed + 1)
    valid = random(shape[0], *shape[2:], seed=seed + 2) > -0.5 if masked else None
    check(
        lambda x: skd_pixelwise_loss(x, t, valid),
        lambda x: reference.skd_pixelwise(
            x.tolist(), t.tolist(), valid.tolist() if masked else None
        ),
        s,
    )


@pytest.mark.parametrize('enlarged', [1, 4])
@pytest.mark.parametrize('ignored', [255, 2])
@sizes(MAPS.filter(lambda shape: shape[1] > 1), (2, 3, 2, 4), (1, 2, 3, 1), (2, 4, 4, 5))
def test_ifvd(enlarged: int, ignored: int, shape: Shape, seed: int) -> None:
    n, _, h, w = shape
    s, t = random(*shape, seed=seed), random(n, 5, h, w, seed=seed + 1)
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(4, (n, enlarged * h, enlarged * w), generator=generator)
    check(
        lambda x: ifvd_loss(x, t, labels, ignored),
        lambda x: reference.ifvd(x.tolist(), t.tolist(), labels.tolist(), ignored),
        s,
    )


def test_every_function_is_compared() -> None:
    # A method's own file of tests compares it by `check`, too.
    folder = Path(__file__).parent
    names = (p.relative_to(folder).with_suffix('').parts for p in folder.rglob('test_*.py'))
    files = [importlib.import_module('.'.join(('tests.methods', *parts))) for parts in names]
    compared = {k: v for f in files if hasattr(f, 'check') for k, v in vars(f).items()}
    for name in methods.__all__:
        function = getattr(methods, name)
        # Those of a method's own file, densekd.methods.feature.ab.
        if inspect.isfunction(function) and function.__module__.count('.') == 3:
            assert compared.get(name) is function, f'{name} has no loops to be compared with'
