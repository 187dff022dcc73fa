"""What always holds: plain training at weight 0, and a teacher that leaves no trace."""

from __future__ import annotations

import copy
import random
from collections.abc import Callable

import numpy as np
import pytest
import torch
from mmengine.model import ExponentialMovingAverage
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from densekd.core.checkpoint import weights_hash
from densekd.wrappers.build import build_network
from densekd.wrappers.detector import DistillDetector
from tests.helpers.detectors import (
    ADAMW,
    MODELS,
    SGD,
    batch,
    distilled,
    entry,
    every_method,
    losses_of,
    optimiser,
    plain,
    retinanet,
    state,
    train,
    unlike,
)

# Two-stage, one-stage with deltas, one-stage with distributions: between them RoI, RPN and dense
# heads are read, and FGFI and OFD are on in each.
three = pytest.mark.parametrize('name', [*MODELS, 'gfl'])
LEVELS = ['neck.p2', 'neck.p3', 'neck.p4', 'neck.p5']


def drawn() -> tuple[float, float, float]:
    """Draws one number from each global generator."""
    return torch.rand(()).item(), np.random.rand(), random.random()


def teacher_of(model: DistillDetector) -> nn.Module:
    return model.teachers['teacher'].model


# Weight 0 is plain training ---------------------------------------------------------------------


def start(name: str, weight: float | None) -> nn.Module:
    """Returns a plain student (weight None) or a distilled one, from the same generator state."""
    torch.manual_seed(7)
    np.random.seed(7)
    random.seed(7)
    model = plain(name) if weight is None else distilled(name, weights=weight)
    model.init_weights()
    return model


@three
@pytest.mark.parametrize('config', [ADAMW, SGD], ids=['adamw', 'sgd'])
def test_twenty_steps_at_weight_0_are_plain_training(name: str, config: dict) -> None:
    bare = start(name, None)
    after_building = drawn()
    train(bare, 20, config)
    after_training = drawn()
    model = start(name, 0.0)
    assert drawn() == after_building
    train(model, 20, config)
    # The student's sampler draws random numbers: had anything else drawn too, they would differ.
    assert drawn() == after_training
    assert unlike(state(bare), state(model)) == []


@three
def test_a_weight_is_not_plain_training(name: str) -> None:
    bare, model = start(name, None), start(name, 1.0)
    train(bare, 1)
    train(model, 1)
    assert unlike(state(bare), state(model))


def test_weight_0_of_one_distiller_leaves_another_as_it_is() -> None:
    def trained(distillers: list) -> dict:
        torch.manual_seed(7)
        model = distilled(distillers=distillers)
        train(model, 3)
        return state(model)

    one = [entry('neck.p3', 'PKD', 6.0)]
    assert unlike(trained(one), trained([*one, entry('backbone.c3', 'FitNet', 0.0)])) == []


def test_a_step_draws_nothing() -> None:
    model = distilled()
    losses_of(model)
    torch.manual_seed(3)
    losses_of(model)
    first = torch.rand(3)
    torch.manual_seed(3)
    assert torch.equal(torch.rand(3), first)


def test_the_student_starts_from_the_weights_of_plain_training_whatever_is_added() -> None:
    torch.manual_seed(1)
    bare = plain()
    torch.manual_seed(1)
    assert unlike(state(bare), state(distilled(seed=5))) == []


def test_connectors_depend_on_the_seed_alone() -> None:
    def connectors(drawn_before: int, **more: int) -> dict:
        torch.manual_seed(drawn_before)
        return state(distilled(**more).distillers)

    assert unlike(connectors(1), connectors(2)) == []
    assert unlike(connectors(1), connectors(1, seed=1))


def test_building_leaves_the_running_statistics_of_both_alone() -> None:
    model = distilled()
    for network in (model.student, teacher_of(model)):
        assert all((b == 0).all() for n, b in network.named_buffers() if n.endswith('running_mean'))
    assert all(module.training for module in model.student.modules())


# The teacher leaves no trace --------------------------------------------------------------------


@three
def test_the_teacher_never_changes(name: str) -> None:
    model = distilled(name)
    before = weights_hash(teacher_of(model))
    model.init_weights()
    train(model, 3)
    model.train()
    model.eval()
    model.train()
    assert weights_hash(teacher_of(model)) == before
    assert [n for n, m in teacher_of(model).named_modules() if m.training] == []
    assert all(p.grad is None and not p.requires_grad for p in teacher_of(model).parameters())


def test_the_hash_would_notice_a_changed_tensor() -> None:
    model = distilled()
    before = weights_hash(teacher_of(model))
    for tensor in teacher_of(model).state_dict().values():
        tensor[(0,) * tensor.dim()] += 1
        changed = weights_hash(teacher_of(model))
        assert changed != before
        before = changed


@three
def test_nothing_that_walks_the_model_meets_the_teacher(name: str) -> None:
    model = distilled(name)
    wrapper = optimiser(model, ADAMW)
    theirs = {id(m) for m in teacher_of(model).modules()}
    tensors = {t.data_ptr() for t in teacher_of(model).state_dict().values() if t.numel()}
    assert not theirs & {id(m) for m in model.modules()}
    assert not tensors & {t.data_ptr() for t in model.state_dict().values()}
    assert not tensors & {t.data_ptr() for t in [*model.parameters(), *model.buffers()]}
    groups = wrapper.optimizer.param_groups
    assert not tensors & {p.data_ptr() for group in groups for p in group['params']}
    assert not any('teacher' in key for key, _ in model.named_parameters())


def test_a_moving_average_shares_the_teacher_and_does_not_move_it() -> None:
    model = distilled()
    average = ExponentialMovingAverage(model)
    assert average.module is not model
    assert average.module.teachers['teacher'] is model.teachers['teacher']
    tensors = {t.data_ptr() for t in teacher_of(model).state_dict().values() if t.numel()}
    assert not tensors & {t.data_ptr() for t in [*average.parameters(), *average.buffers()]}
    # EMAHook(device=…) moves its copy elsewhere; the model that trains keeps its teacher.
    average.double()
    assert next(teacher_of(model).parameters()).dtype == torch.float32
    train(model, 1)


def test_a_distributed_wrapper_does_not_meet_the_teacher() -> None:
    from torch.distributed import HashStore, destroy_process_group, init_process_group

    init_process_group('gloo', store=HashStore(), rank=0, world_size=1)
    try:
        model = distilled()
        wrapped = DistributedDataParallel(model)
        tensors = {t.data_ptr() for t in teacher_of(model).state_dict().values() if t.numel()}
        assert not tensors & {p.data_ptr() for p in wrapped._module_parameters}
        assert not tensors & {b.data_ptr() for b in wrapped.modules_buffers}
    finally:
        destroy_process_group()


def test_the_teacher_moves_with_the_model() -> None:
    model = distilled()
    for move, kind in ((model.double, torch.float64), (model.float, torch.float32)):
        move()
        assert {p.dtype for p in teacher_of(model).parameters()} == {kind}
    model.to(torch.float64)
    assert {b.dtype for b in teacher_of(model).buffers() if b.is_floating_point()} == {
        torch.float64
    }
    model.to('meta')
    assert {p.device.type for p in teacher_of(model).parameters()} == {'meta'}


def test_a_teacher_with_dropout_is_deterministic() -> None:
    network = build_network(retinanet(8, 24), 'mmdet', 'teacher')
    network.backbone.layer1.append(nn.Dropout2d(0.5))
    model = distilled(distillers=[entry('neck.p3', 'PKD')], teacher=dict(model=network))
    model.train()
    model.student.eval()
    values = []
    for seed in (0, 1):
        torch.manual_seed(seed)
        values.append(losses_of(model)['distill.loss_neck_pkd_p3'])
    assert torch.equal(*values)
    network.backbone.layer1[-1].train()  # and it would show
    assert not torch.equal(losses_of(model)['distill.loss_neck_pkd_p3'], values[0])


class Calls:
    """Counts the calls of every module of a network."""

    def __init__(self, network: nn.Module) -> None:
        self.counts = dict.fromkeys((name for name, _ in network.named_modules()), 0)
        for name, module in network.named_modules():
            module.register_forward_hook(self._hook(name))

    def _hook(self, name: str) -> Callable[..., None]:
        def hook(*unused: object) -> None:
            self.counts[name] += 1

        return hook

    def under(self, *paths: str) -> int:
        return sum(n for k, n in self.counts.items() if k.startswith(tuple(paths)))


@three
def test_a_teacher_tapped_in_its_backbone_runs_no_further(name: str) -> None:
    model = distilled(name, [entry('backbone.c3', 'FitNet'), entry('backbone.c4.pre_relu', 'OFD')])
    calls = Calls(teacher_of(model))
    losses_of(model)
    assert calls.under('neck', 'bbox_head', 'rpn_head', 'roi_head') == 0
    deeper = calls.under('backbone.layer4')
    # The first pass counts how often each place runs; from then on nothing beyond it does.
    for seed in (1, 2):
        losses_of(model, batch(seed))
    assert calls.under('neck', 'bbox_head', 'rpn_head', 'roi_head') == 0
    assert calls.under('backbone.layer4') == deeper
    assert calls.under('backbone.layer3.0.conv1') == 3


@three
def test_a_teacher_tapped_in_its_neck_runs_no_head(name: str) -> None:
    model = distilled(name, [entry(LEVELS, 'FGFI')])
    calls = Calls(teacher_of(model))
    losses_of(model)
    assert calls.under('neck.') > 0
    assert calls.under('bbox_head', 'rpn_head', 'roi_head') == 0


@three
def test_an_early_end_gives_what_a_whole_pass_gives(name: str) -> None:
    model = distilled(name, [entry('backbone.c3', 'FitNet'), entry('neck.p3', 'PKD')])
    model.eval()
    first = losses_of(model)
    again = losses_of(model)
    for key in first:
        if key.startswith('distill.'):
            assert torch.equal(first[key], again[key])


@three
def test_the_teachers_loss_path_is_never_called(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model = distilled(name)

    def refuse(*unused: object, **more: object) -> None:
        raise AssertionError('the teacher was asked for losses')

    for part in (teacher_of(model), *teacher_of(model).children()):
        for method in ('loss', 'predict', 'get_targets', 'loss_and_predict', 'forward_train'):
            if hasattr(part, method):
                monkeypatch.setattr(part, method, refuse)
    monkeypatch.setattr(teacher_of(model), 'forward', refuse)
    losses_of(model)


# What distillers add ----------------------------------------------------------------------------


@three
@pytest.mark.parametrize('config', [ADAMW, SGD], ids=['adamw', 'sgd'])
def test_each_added_parameter_is_in_one_group_and_moves(name: str, config: dict) -> None:
    distillers = every_method(name)
    # psi = 0 marks cells on every level: a level without one rightly teaches its connector nothing.
    fgfi = next(d['head'] for d in distillers if d['head']['type'].startswith('FGFI'))
    fgfi['loss'] = dict(type='FGFILoss', psi=0.0)
    model = distilled(name, distillers)
    added = dict(model.distillers.named_parameters())
    assert added
    before = {k: p.detach().clone() for k, p in added.items()}
    wrapper = train(model, 1, config)
    groups = [[id(p) for p in group['params']] for group in wrapper.optimizer.param_groups]
    for key, parameter in added.items():
        assert sum(group.count(id(parameter)) for group in groups) == 1, key
        assert not torch.equal(parameter, before[key]), key


def test_names_of_parameters_are_those_of_the_student() -> None:
    # Constructors of layer-wise decay ask whether a name starts with 'backbone.', also where a
    # runner that knows nothing of distillation hands them the whole model.
    model = distilled()
    names = [name for name, _ in model.named_parameters()]
    own = [name for name, _ in plain().named_parameters()]
    assert names[: len(own)] == own
    assert all(name.startswith('distillers.') for name in names[len(own) :])
    assert [id(p) for p in model.parameters()] == [id(p) for _, p in model.named_parameters()]


# Copies and checkpoints -------------------------------------------------------------------------


@three
def test_the_state_dict_is_the_plain_students(name: str) -> None:
    model = distilled(name)
    train(model, 1)
    saved = model.state_dict()
    bare = plain(name)
    assert list(saved) == list(bare.state_dict())
    assert bare.load_state_dict(saved, strict=True)
    assert unlike(state(model.student), state(bare)) == []
    # Versions decide how torch reads a norm; they must be the student's under the student's names.
    assert saved._metadata == bare.state_dict()._metadata


def test_a_plain_students_state_goes_back_in() -> None:
    bare, model = plain(), distilled()
    train(bare, 1)
    before = state(model.distillers)
    assert model.load_state_dict(bare.state_dict(), strict=True)
    assert unlike(state(bare), state(model.student)) == []
    assert unlike(before, state(model.distillers)) == []


def test_a_moving_average_is_saved_as_plain_training_saves_it() -> None:
    keys = [list(ExponentialMovingAverage(m).state_dict()) for m in (plain(), distilled())]
    assert keys[0] == keys[1]
    assert 'steps' in keys[0] and all(k == 'steps' or k.startswith('module.') for k in keys[0])


def test_a_copy_computes_what_the_model_does_and_shares_nothing_that_trains() -> None:
    model = distilled()
    losses_of(model)
    twin = copy.deepcopy(model)
    model.eval(), twin.eval()
    first, second = losses_of(model), losses_of(twin)
    for key, value in first.items():
        assert torch.equal(torch.as_tensor(sum_of(value)), torch.as_tensor(sum_of(second[key])))
    before = state(model)
    train(twin, 1)
    assert unlike(before, state(model)) == []


def sum_of(value: object) -> torch.Tensor:
    return sum(v.sum() for v in value) if isinstance(value, list) else value.sum()
