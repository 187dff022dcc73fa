"""FEED against loops; its translators; by one teacher it is factor transfer."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from densekd.core.anatomy import Anatomy
from densekd.core.taps import Tap
from densekd.errors import ConfigError, ShapeError
from densekd.methods import FEEDDistillationHead, FEEDLoss, TranslatorsConnector, feed_loss, ft_loss
from densekd.registry import PRESETS
from tests.methods import reference_relation
from tests.methods.test_reference import MAPS, SHAPES, Shape, check, random, sizes


@pytest.mark.parametrize('count', [1, 2, 3])
@sizes(MAPS, *SHAPES)
def test_loops(shape: Shape, seed: int, count: int) -> None:
    n, c, h, w = shape
    teachers = [random(n, c + i, h, w, seed=seed + i + 1) for i in range(count)]
    channels = [c + i for i in range(count)]
    s = random(n, sum(channels), h, w, seed=seed)

    def slow(x: Tensor) -> float:
        parts = zip(x.split(channels, 1), teachers, strict=True)
        return sum(reference_relation.ft(a.tolist(), b.tolist(), 1) for a, b in parts) / count

    check(lambda x: feed_loss(x.split(channels, 1), teachers), slow, s)
    loss = FEEDLoss()
    value = loss(s, teachers if count > 1 else teachers[0])
    assert value.item() == pytest.approx(slow(s), rel=1e-9)


def test_copies_of_one_teacher_and_tied_translators_are_factor_transfer() -> None:
    s, t = random(2, 3, 4, 4), random(2, 3, 4, 4, seed=1)
    expected = ft_loss(s, t)
    assert torch.allclose(feed_loss([s, s, s], [t, t, t]), expected)
    assert torch.allclose(FEEDLoss()(s, [t, t, t]), expected)  # without translators
    assert torch.allclose(FEEDLoss()(torch.cat([s, s], 1), [t, t]), expected)
    assert torch.equal(FEEDLoss()(s, t), expected)


def test_each_teacher_has_a_translator_of_its_own_channels_that_learns() -> None:
    torch.manual_seed(0)
    head = FEEDDistillationHead()
    student = torch.randn(4, 3, 6, 6, requires_grad=True)
    teachers = [torch.randn(4, c, 6, 6) for c in (5, 2)]
    head(student, teachers).backward()
    connector = head.stu_connector
    assert isinstance(connector, TranslatorsConnector)
    assert [t(student).shape[1] for t in connector.translators] == [5, 2]
    grads = [[p.grad for p in t.parameters()] for t in connector.translators]
    assert all(g is not None and g.any() for one in grads for g in one)
    first, second = (t.state_dict()['0.weight'] for t in connector.translators)
    assert not torch.equal(first, second)


def test_what_can_not_be_compared() -> None:
    with pytest.raises(ShapeError, match='there are 1, and 2 teachers'):
        feed_loss([random(1, 2, 2, 2)], [random(1, 2, 2, 2)] * 2)
    with pytest.raises(ShapeError, match='0 teachers'):
        feed_loss([], [])
    with pytest.raises(ConfigError, match='TranslatorsConnector: the teachers are not known yet'):
        TranslatorsConnector()(random(1, 2, 2, 2))


def test_the_preset_is_at_the_last_stage_of_a_classifier() -> None:
    taps = {name: Tap(name, name=name) for name in ('backbone.c2', 'backbone.c4', 'logits')}
    (entry,) = PRESETS.get('feed', 'preset')(Anatomy(taps, taps, 'classifier'), None)
    assert entry['student_module'] == entry['teacher_module'] == 'backbone.c4'
    with pytest.raises(ConfigError, match="preset 'feed': it needs a classifier"):
        PRESETS.get('feed', 'preset')(Anatomy(taps, taps, 'one-stage'), None)
