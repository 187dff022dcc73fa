"""DML against loops, its peers held constant, and what two networks say of each other."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from densekd.core.anatomy import Anatomy
from densekd.core.taps import Tap
from densekd.errors import ConfigError, ShapeError
from densekd.methods import DMLLoss, dml_loss, ensemble_kd_loss, kd_loss
from densekd.registry import PRESETS
from tests.methods import reference
from tests.methods.test_reference import ROWS, Shape, check, random, sizes


@pytest.mark.parametrize('count', [1, 2, 3])
@pytest.mark.parametrize('tau', [1.0, 2.0])
@sizes(ROWS, (4, 3), (1, 2))
def test_loops(shape: Shape, seed: int, count: int, tau: float) -> None:
    s = random(*shape, seed=seed)
    peers = [3 * random(*shape, seed=seed + i + 1) for i in range(count)]

    def slow(x: Tensor) -> float:
        terms = [reference.kd(x.tolist(), [p.tolist()], tau) for p in peers]
        return sum(terms) / count

    check(lambda x: dml_loss(x, peers, tau), slow, s)


def test_of_two_networks_it_is_kd_at_temperature_1() -> None:
    a, b = random(5, 4), random(5, 4, seed=1)
    assert torch.equal(dml_loss(a, [b]), kd_loss(a, b, tau=1.0))
    assert dml_loss(a, [b]) != dml_loss(b, [a])  # swapping the networks swaps their losses
    assert dml_loss(a, [a, a]).item() == pytest.approx(0.0, abs=1e-12)


def test_the_mean_of_divergences_is_more_than_the_divergence_of_the_mean() -> None:
    a, b, c = (3 * random(5, 4, seed=i) for i in range(3))
    assert dml_loss(a, [b, c]) > ensemble_kd_loss(a, [b, c], tau=1.0) + 0.1


def test_no_peer_learns_from_another() -> None:
    a, b, c = (random(5, 4, seed=i).requires_grad_() for i in range(3))
    dml_loss(a, [b, c]).backward()
    assert a.grad is not None and a.grad.any() and b.grad is None and c.grad is None


@pytest.mark.parametrize('tau', [0.0, -1.0])
def test_a_temperature_that_is_none(tau: float) -> None:
    with pytest.raises(ConfigError, match='DMLLoss: tau is a temperature above 0'):
        DMLLoss(tau=tau)


def test_what_can_not_be_compared() -> None:
    with pytest.raises(ShapeError, match='dml_loss: it needs at least one peer'):
        dml_loss(random(2, 3), [])
    with pytest.raises(ShapeError, match='the student has 3 classes and the teacher 4'):
        dml_loss(random(2, 3), [random(2, 3), random(2, 4)])


def test_the_preset_is_for_classifiers() -> None:
    taps = {'logits': Tap('head', name='logits'), 'decode.logits': Tap('x', name='decode.logits')}
    (entry,) = PRESETS.get('dml', 'preset')(Anatomy(taps, taps, 'classifier'), None)
    assert entry['student_module'] == entry['teacher_module'] == 'logits'
    with pytest.raises(ConfigError, match="preset 'dml': it needs a classifier"):
        PRESETS.get('dml', 'preset')(Anatomy(taps, taps, 'segmentor'), None)
