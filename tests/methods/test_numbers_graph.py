"""MHGD: numbers that are known beforehand, what is trained when, and what is refused."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from densekd.core.batch import Batch
from densekd.core.taps import Place, Tap
from densekd.errors import CheckpointError, ConfigError, ShapeError, TapError
from densekd.methods import (
    GraphAttention,
    GraphEstimator,
    MHGDDistillationHead,
    MHGDEstimatorDistillationHead,
    MHGDEstimatorLoss,
    MHGDLoss,
    mhgd_estimator_loss,
    mhgd_loss,
)


def layers(seed: int = 0, images: int = 6, channels: tuple[int, ...] = (3, 5)) -> list[Tensor]:
    numbers = torch.Generator().manual_seed(seed)
    return [torch.randn(images, c, 4 - i, 4 - i, generator=numbers) for i, c in enumerate(channels)]


def places(*maps: Tensor) -> Place:
    shapes = tuple((1, *x.shape[1:]) for x in maps)
    return Place(Tap('x', name='x'), shapes, ((8.0, 8.0),) * len(shapes))


def head(**options: Any) -> MHGDDistillationHead:
    torch.manual_seed(0)
    return MHGDDistillationHead(loss={'untrained': True, **options})


# Numbers


def test_mhgd_by_hand() -> None:
    """Of (1, -1) after tanh the shares are e^2 to 1, against halves."""
    share = math.exp(2) / (math.exp(2) + 1)
    expected = share * math.log(2 * share) + (1 - share) * math.log(2 * (1 - share))
    far = torch.tensor([[[50.0, -50.0]], [[3.0, 3.0]]])  # a head that agrees halves the mean
    assert mhgd_loss(far, torch.zeros(2, 1, 2)).item() == pytest.approx(expected / 2)
    # The student's is the first: the other way round it is another number.
    assert mhgd_loss(torch.zeros(2, 1, 2), far).item() != pytest.approx(expected / 2, rel=0.05)


def test_an_estimate_is_judged_by_its_direction() -> None:
    e = torch.tensor([[2.0, 0.0], [0.0, 3.0], [-1.0, 0.0]])
    v = torch.tensor([[1.0, 0.0], [1.0, 0.0], [1.0, 0.0]])
    assert mhgd_estimator_loss(e, v).item() == pytest.approx((0 + 1 + 2) / 3)


def test_the_width_and_the_heads_are_the_papers() -> None:
    attention = GraphAttention(6, 10)
    assert attention.sender[0].weight.shape == (8 * 8, 10)
    assert attention.receiver[0].weight.shape == (8 * 8, 6)
    assert GraphEstimator(6, 10).out.weight.shape == (10, 8 * 8)
    graphs = attention(torch.randn(5, 6), torch.randn(5, 10))
    assert graphs.shape == (8, 5, 5)
    torch.testing.assert_close(graphs.softmax(2).sum(2), torch.ones(8, 5))


def test_equal_maps_have_no_divergence_and_a_students_scale_does_not_count() -> None:
    maps, other = layers(), layers(1)
    of = head()
    assert of(maps, maps).item() < 1e-7
    torch.testing.assert_close(of([7 * x for x in other], maps), of(other, maps))
    torch.testing.assert_close(of(other, [0.1 * x for x in maps]), of(other, maps))
    assert of(other, maps).item() > 1e-4


def test_a_turned_vector_is_another() -> None:
    """So that a sign must not be left to the decomposition."""
    maps = layers()
    of = head()
    assert of([-maps[0], maps[1]], maps).item() > 1e-4
    # Both of a teacher's vectors turn with its maps, and the loss sets their sign itself.
    permuted = [x[:, :, torch.randperm(x.shape[2])] for x in maps]
    assert of(maps, maps).item() < 1e-7 and of(permuted, permuted).item() < 1e-7


# The two stages


def trained(steps: int = 60) -> tuple[MHGDEstimatorDistillationHead, list[float]]:
    torch.manual_seed(0)
    first = MHGDEstimatorDistillationHead()
    # The later layer follows from the earlier one, image by image.
    maps = layers(images=16)
    maps[1] = torch.cat([maps[0], maps[0][:, :2].flip(1)], 1)
    first(None, maps)
    optimizer = torch.optim.Adam(first.parameters(), lr=0.01)
    values = []
    for i in range(steps):
        optimizer.zero_grad()
        value = first(None, maps, Batch({'seed': i}))
        value.backward()
        optimizer.step()
        values.append(value.item())
    return first, values


def test_the_first_stage_learns_to_estimate_without_a_student() -> None:
    first, values = trained()
    assert sum(values[-5:]) < 0.5 * sum(values[:5])
    assert not first.reads_student and first.loss.trained
    before = {k: v.clone() for k, v in first.state_dict().items()}
    maps = layers(3)
    first.eval()
    first(None, maps)
    assert all(torch.equal(v, before[k]) for k, v in first.state_dict().items())


def test_which_heads_are_seen_is_drawn_from_the_seed_of_the_step() -> None:
    torch.manual_seed(0)
    first = MHGDEstimatorDistillationHead()
    maps = layers()
    values = [first(None, maps, Batch({'seed': seed})).item() for seed in (0, 1, 0)]
    assert values[0] == values[2] != values[1]
    first.eval()
    values = [first(None, maps, Batch({'seed': seed})).item() for seed in (0, 1)]
    assert values[0] == values[1]


def test_what_is_handed_over_is_what_the_second_stage_holds() -> None:
    first, _ = trained(3)
    second = MHGDDistillationHead()
    maps = layers()
    second.bind(places(*maps), places(*maps))
    handed = {
        name: value
        for name, value in first.state_dict().items()
        if '.attention.' in name or name.endswith('.trained')
    }
    assert handed.keys() == second.state_dict().keys()
    second.load_state_dict(handed)
    attention = {k: v.clone() for k, v in second.loss.attention.state_dict().items()}
    student = [x.requires_grad_() for x in layers(1)]
    second.train()
    second(student, maps).backward()
    assert all(x.grad is not None and x.grad.any() for x in student)
    assert not any(p.requires_grad for p in second.parameters())
    assert not any(m.training for m in second.loss.attention.modules())
    assert all(torch.equal(v, attention[k]) for k, v in second.loss.attention.state_dict().items())


def test_a_file_of_the_first_stage_is_read(tmp_path: Path) -> None:
    first, _ = trained(3)
    torch.save(first.loss.state_dict(), tmp_path / 'attention.pth')
    second = MHGDDistillationHead(loss={'checkpoint': str(tmp_path / 'attention.pth')})
    maps, other = layers(), layers(1)
    value = second(other, maps)
    own = first.loss.attention.state_dict()
    assert all(torch.equal(v, own[k]) for k, v in second.loss.attention.state_dict().items())
    assert value.item() > 0
    wider = MHGDDistillationHead(loss={'checkpoint': str(tmp_path / 'attention.pth')})
    with pytest.raises(CheckpointError, match='attention'):
        wider(layers(channels=(3, 9)), layers(channels=(3, 9)))


def test_an_untrained_attention_is_refused() -> None:
    with pytest.raises(ConfigError, match='MHGDLoss: no weights are given'):
        MHGDDistillationHead()(layers(), layers())


# Traps


def test_maps_of_zeros_and_few_images_harm_nothing() -> None:
    of = head()
    for student, teacher in ((0, 1), (1, 0), (0, 0)):
        maps = [(x * student).requires_grad_() for x in layers(1)]
        of(maps, [x * teacher for x in layers()]).backward()
        assert all(x.grad is not None and x.grad.isfinite().all() for x in maps)
    one = [x[:1].clone().requires_grad_() for x in layers()]
    first = MHGDEstimatorDistillationHead()
    first(None, layers())
    value = first(None, one)  # a normalisation by the batch can't take a batch of one
    value.backward()
    assert value.item() == 0 and all(p.grad is not None for p in first.parameters())


def test_unlike_channels_are_converted_and_large_maps_averaged() -> None:
    of = head(size=2)
    student, teacher = layers(channels=(4, 5)), layers(1)
    of.bind(places(*student), places(*teacher))
    assert sum(p.numel() for p in of.stu_connector.parameters()) > 0
    small = [torch.nn.functional.adaptive_avg_pool2d(x, 2) for x in teacher]
    of.eval()
    own = [c(x) for c, x in zip(of.stu_connector, student, strict=True)]
    pooled = [torch.nn.functional.adaptive_avg_pool2d(x, 2) for x in own]
    torch.testing.assert_close(of(student, teacher), of.loss(pooled, small))


def test_what_does_not_follow_is_refused() -> None:
    x = torch.randn(2, 3, 2, 2)
    with pytest.raises(TapError, match=r"MHGDLoss: tap 'x' gives .* list of places"):
        MHGDLoss().bind(places(x), places(x))
    with pytest.raises(ShapeError, match='the student gives 2 maps, and the attention is one of 1'):
        MHGDEstimatorLoss()([x, x], [x, x])
    for options in ({'heads': 0}, {'size': 0}):
        with pytest.raises(ConfigError, match='are numbers, 1 at least'):
            MHGDLoss(**options)
    with pytest.raises(ShapeError, match='mhgd_loss: the student'):
        mhgd_loss(torch.zeros(1, 2, 2), torch.zeros(2, 2, 2))


def test_each_layer_has_heads_of_its_own_to_drop() -> None:
    maps = [torch.randn(4, c, 3, 3) for c in (2, 5, 5)]
    head = MHGDEstimatorDistillationHead().train()
    head(None, maps)
    states = []
    for estimator in head.loss.estimators:
        estimator.register_forward_pre_hook(lambda _, args: states.append(args[2].get_state()))
    head(None, maps, Batch({'seed': 3}))
    head(None, maps, Batch({'seed': 3}))
    assert len(states) == 4 and not torch.equal(states[0], states[1])
    assert torch.equal(states[0], states[2]) and torch.equal(states[1], states[3])
