"""The teacher is a guest: frozen, in eval all over, shared by copies, run no deeper than asked."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from densekd.core.checkpoint import weights_hash
from densekd.core.taps import Tap
from densekd.core.teacher import Teacher
from densekd.errors import TapError


class Stage(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 3, 3, padding=1)
        self.norm = nn.BatchNorm2d(3)
        self.drop = nn.Dropout(0.5)
        self.calls = 0

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        return self.drop(self.norm(self.conv(x))).relu_()


class Stubborn(nn.Sequential):
    """Like mmdet's ResNet, train() does what it thinks right, and returns None."""

    def train(self, mode: bool = True) -> Any:
        super().train(True)


def network() -> Stubborn:
    torch.manual_seed(0)
    return Stubborn(Stage(), Stage(), Stage(), Stage())


X = torch.ones(1, 3, 6, 6)


def run(teacher: Teacher, *paths: str) -> Any:
    return teacher.run({path: Tap(path) for path in paths}, lambda model: model(X))


def test_every_module_is_in_eval_whatever_train_says() -> None:
    teacher = Teacher(network())
    assert not any(m.training for m in teacher.model.modules())
    teacher.model.train()
    teacher.freeze()
    assert not any(m.training for m in teacher.model.modules())


def test_dropout_is_off() -> None:
    teacher = Teacher(network())
    first = run(teacher, '3')['3']
    assert torch.equal(first, run(teacher, '3')['3'])


def test_no_parameter_can_be_trained() -> None:
    teacher = Teacher(network())
    assert not any(p.requires_grad for p in teacher.model.parameters())
    assert not run(teacher, '1')['1'].requires_grad
    assert torch.is_grad_enabled()


def test_no_graph_is_kept_even_for_an_input_with_a_gradient() -> None:
    teacher, x = Teacher(network()), X.clone().requires_grad_()
    for _ in range(2):
        assert not teacher.run({'a': Tap('1')}, lambda m: m(x * 1))['a'].requires_grad


def test_tapped_tensors_can_be_saved_for_backward() -> None:
    # no_grad and not inference mode, whose tensors autograd refuses to save.
    teacher = Teacher(network())
    student = torch.ones(1, 3, 6, 6, requires_grad=True)
    (student * run(teacher, '1')['1']).sum().backward()
    assert student.grad is not None


def test_running_changes_nothing() -> None:
    teacher = Teacher(network())
    before, state = weights_hash(teacher.model), torch.random.get_rng_state()
    for _ in range(3):
        run(teacher, '1', '3')
    assert weights_hash(teacher.model) == before
    assert torch.equal(torch.random.get_rng_state(), state)


def test_the_second_pass_ends_at_the_deepest_tap() -> None:
    teacher = Teacher(network())
    first = run(teacher, '0', '1')
    assert [stage.calls for stage in teacher.model] == [1, 1, 1, 1]
    second = run(teacher, '0', '1')
    assert [stage.calls for stage in teacher.model] == [2, 2, 1, 1]
    assert all(torch.equal(first[path], second[path]) for path in '01')


def test_each_set_of_taps_is_counted_for_itself() -> None:
    teacher = Teacher(network())
    run(teacher, '0')
    run(teacher, '2')
    run(teacher, '2')
    assert [stage.calls for stage in teacher.model] == [3, 3, 3, 2]
    run(teacher, '0')
    assert [stage.calls for stage in teacher.model] == [4, 3, 3, 2]


def test_a_place_that_never_runs_is_an_error_each_time() -> None:
    model = network()
    model.add_module('unused', nn.ModuleDict({'x': nn.ReLU()}))
    teacher = Teacher(model)
    taps = {'a': Tap('unused.x')}
    for _ in range(2):
        reading = teacher.run(taps, lambda m: m[0](X))
        with pytest.raises(TapError, match='never ran'):
            reading['a']


def test_a_deep_copy_shares_the_teacher() -> None:
    teacher = Teacher(network())
    holder = {'teacher': teacher, 'own': nn.Linear(2, 2)}
    twin = copy.deepcopy(holder)
    assert twin['teacher'] is teacher and twin['teacher'].model is teacher.model
    assert twin['own'] is not holder['own']


def test_it_is_no_module() -> None:
    owner = nn.Module()
    owner.teacher = Teacher(network())
    assert not isinstance(owner.teacher, nn.Module)
    assert list(owner.parameters()) == [] and list(owner.state_dict()) == []


def test_moving_the_model_moves_the_teacher() -> None:
    teacher = Teacher(network())
    teacher.apply(lambda t: t.double() if t.is_floating_point() else t)
    assert {p.dtype for p in teacher.model.parameters()} == {torch.float64}
    assert teacher.model[0].norm.running_mean.dtype == torch.float64


def test_the_manifest_is_a_copy() -> None:
    given = {'checkpoint': 'a.pth', 'sha256': 'f00'}
    teacher = Teacher(network(), 'big', given)
    given['checkpoint'] = 'b.pth'
    assert teacher.name == 'big'
    assert teacher.manifest == {'checkpoint': 'a.pth', 'sha256': 'f00'}
    assert Teacher(network()).manifest == {}


class ReadsMemory(nn.Module):
    """Like a kernel that never asks for strides: wrong on any layout but channels first."""

    def forward(self, x: Tensor) -> Tensor:
        return x.as_strided(x.shape, torch.empty(x.shape).stride()) * 2


@pytest.mark.parametrize('careless', [False, True])
def test_a_layout_that_changes_what_is_read_is_taken_back(careless: bool) -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 3), ReadsMemory() if careless else nn.ReLU())
    plain, teacher = copy.deepcopy(model), Teacher(model)
    teacher.speed_up({'1': Tap('1')}, lambda network, x: network(x), size=(8, 12))
    assert teacher.channels_last is not careless
    x = torch.randn(2, 3, 8, 12)
    read = teacher.run({'1': Tap('1')}, lambda network: network(teacher.prepared(x)))['1']
    torch.testing.assert_close(read, plain(x))
