"""The average of a student: its weights by hand, its modes, its state."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from densekd.core.moving import MovingTeacher
from densekd.errors import CheckpointError, ConfigError


def network() -> nn.Module:
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Dropout())


def moved(student: nn.Module) -> None:
    """Does what a step does: new weights, new running statistics, a count."""
    with torch.no_grad():
        for parameter in student.parameters():
            parameter.add_(torch.randn_like(parameter))
    student(torch.randn(2, 3, 5, 5))


def test_the_weights_are_the_mean_and_then_move_slowly() -> None:
    torch.manual_seed(0)
    student = network()
    teacher = MovingTeacher(student, 'mean', 0.75)
    moved(student)  # as when weights are loaded after it was made
    teacher.begin(student)
    expected = {k: v.clone().double() for k, v in student.state_dict().items()}
    # The first steps make the mean of all weights so far: shares of the old 1/2, 2/3, 3/4.
    for keep in (1 / 2, 2 / 3, 0.75, 0.75):
        moved(student)
        teacher.begin(student)  # once is enough: it must not start over
        teacher.follow(student)
        for name, value in student.state_dict().items():
            expected[name] = keep * expected[name] + (1 - keep) * value.double()
    found = teacher.model.state_dict()
    for name in ('0.weight', '0.bias', '1.weight', '1.running_mean', '1.running_var'):
        torch.testing.assert_close(found[name].double(), expected[name], rtol=1e-5, atol=1e-6)
    assert found['1.num_batches_tracked'] == student[1].num_batches_tracked == 5
    assert teacher.steps == 4


def test_it_is_frozen_in_eval_mode_and_shares_nothing() -> None:
    student = network().train()
    teacher = MovingTeacher(student, 'mean', 0.9)
    teacher.begin(student)
    teacher.follow(student)
    assert not any(m.training for m in teacher.model.modules()) and student[2].training
    assert not any(p.requires_grad for p in teacher.model.parameters())
    assert all(p.requires_grad for p in student.parameters())
    tensors = {t.data_ptr() for t in teacher.model.state_dict().values()}
    assert not tensors & {t.data_ptr() for t in student.state_dict().values()}
    assert copy.deepcopy(teacher) is teacher


def test_it_goes_on_from_its_state_to_the_bit() -> None:
    torch.manual_seed(0)
    student = network()
    first, second = (MovingTeacher(student, 'mean', 0.9) for _ in range(2))
    first.begin(student)
    moved(student)
    first.follow(student)
    second.load_state(first.state())
    kept = first.state()
    moved(student)
    for teacher in (first, second):
        teacher.begin(student)
        teacher.follow(student)
    for name, value in first.model.state_dict().items():
        assert torch.equal(value, second.model.state_dict()[name]), name
    assert first.steps == second.steps == 2
    assert kept['steps'] == 1  # a state is a copy, and does not move


def test_a_state_of_another_network_is_a_sentence() -> None:
    teacher = MovingTeacher(network(), 'mean', 0.9)
    other = MovingTeacher(nn.Sequential(nn.Conv2d(3, 5, 3)), 'mean', 0.9).state()
    with pytest.raises(CheckpointError, match=r"the moving teacher 'mean' .*0.weight does not fit"):
        teacher.load_state(other)


@pytest.mark.parametrize('decay', [1.0, -0.1, True, 'half', None])
def test_a_decay_that_is_no_share_is_a_sentence(decay: object) -> None:
    with pytest.raises(ConfigError, match=r"peer 'mean': ema is the share .* such as 0.999, not"):
        MovingTeacher(network(), 'mean', decay)
