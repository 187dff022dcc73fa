"""The optimiser: the student's own groups as plain training makes them, the distillers' apart."""

from __future__ import annotations

import copy
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from mmengine.config import Config
from mmengine.model import BaseModule
from mmengine.optim import build_optim_wrapper
from mmengine.registry import MODELS as REGISTRY
from mmengine.registry import DefaultScope
from mmengine.runner import Runner
from torch import nn

from densekd.core.checkpoint import read_checkpoint
from densekd.engine.optim import build_for_distillation, try_optimisation, with_own_peaks
from densekd.engine.run import train
from densekd.errors import ConfigError
from densekd.wrappers.build import build_network
from densekd.wrappers.detector import DistillDetector
from tests.helpers.detectors import ADAMW, MODELS, distilled, entry, retinanet, unlike
from tests.helpers.runs import digits_config, in_process

LAYER_DECAY = dict(
    type='OptimWrapper',
    optimizer=dict(type='AdamW', lr=2e-3, weight_decay=0.05),
    constructor='LearningRateDecayOptimizerConstructor',
    paramwise_cfg=dict(decay_rate=0.5, decay_type='layer_wise', num_layers=6),
)


@REGISTRY.register_module(force=True)
class TinyConvNeXt(BaseModule):
    """A backbone whose parameters are named as ConvNeXt's, for mmdet's layer-wise decay."""

    def __init__(self, width: int = 4) -> None:
        super().__init__(init_cfg=None)
        widths = [3, *(width * 2**i for i in range(4))]
        self.downsample_layers = nn.ModuleList(
            nn.Conv2d(a, b, 4 if i == 0 else 2, 4 if i == 0 else 2)
            for i, (a, b) in enumerate(pairwise(widths))
        )
        self.stages = nn.ModuleList(
            nn.Sequential(nn.Conv2d(w, w, 3, padding=1), nn.GELU()) for w in widths[1:]
        )

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """Returns the maps of all stages."""
        maps = []
        for down, stage in zip(self.downsample_layers, self.stages, strict=True):
            x = down(x)
            x = x + stage(x)
            maps.append(x)
        return tuple(maps)


def convnext() -> dict[str, Any]:
    """Returns a RetinaNet on that backbone."""
    config = retinanet(classes=10)
    config['backbone'] = dict(type='mmengine.TinyConvNeXt')
    return config


def stock_train(cfg: Config) -> None:
    """Trains with mmengine's own runner, which knows nothing of distillation."""
    Runner.from_cfg(cfg).train()


RUNNERS = {'densekd': lambda cfg: train(cfg, preflight=False), 'stock': stock_train}


def weights(config: Config, how: str) -> dict[str, torch.Tensor]:
    """Trains a config in a process of its own, and returns the weights that it saved."""
    folder = Path(config.work_dir)
    folder.mkdir()
    code = in_process(lambda: RUNNERS[how](config), folder / 'log.txt')
    assert code == 0, (folder / 'log.txt').read_text()[-3000:]
    return read_checkpoint(folder / 'epoch_1.pth')['state_dict']


@pytest.mark.parametrize('how', list(RUNNERS))
@pytest.mark.parametrize('model', list(MODELS))
def test_a_run_at_weight_0_is_plain_training(
    digits: Path, tmp_path: Path, model: str, how: str
) -> None:
    wrapper = copy.deepcopy(ADAMW)
    if how == 'stock':
        # It takes one norm over all gradients, and zeros among them change the order of the sum.
        del wrapper['clip_grad']
    make: Callable[..., Config] = lambda name, **more: digits_config(  # noqa: E731
        digits, tmp_path / name, model=model, epochs=1, optim_wrapper=wrapper, **more
    )
    bare = weights(make('plain', distillers=None), how)
    distilled = weights(make('distilled', weight=0.0), how)
    assert unlike(bare, distilled) == []


@pytest.mark.parametrize('how', list(RUNNERS))
def test_layer_wise_decay_at_weight_0_is_plain_training(
    digits: Path, tmp_path: Path, how: str
) -> None:
    results = []
    for name, distillers in (('plain', None), ('distilled', [entry('neck.p3', 'PKD', 0.0)])):
        config = digits_config(
            digits, tmp_path / name, distillers, epochs=1, optim_wrapper=copy.deepcopy(LAYER_DECAY)
        )
        student = config.model if distillers is None else config.model.student
        student.backbone = convnext()['backbone']
        results.append(weights(config, how))
    assert unlike(*results) == []


def test_layer_wise_decay_gives_the_student_its_plain_groups() -> None:
    network = build_network(convnext(), 'mmdet', 'student')
    model = DistillDetector(
        convnext(), dict(model=retinanet(8, 24), untrained=True), [entry('neck.p3', 'PKD')]
    )
    with DefaultScope.overwrite_default_scope('mmdet'):  # as a runner has it
        bare = build_optim_wrapper(network, copy.deepcopy(LAYER_DECAY))
        wrapper = build_for_distillation(model, LAYER_DECAY)
    groups = bare.optimizer.param_groups
    assert len({group['lr'] for group in groups}) > 3, 'otherwise nothing decays'
    for one, two in zip(groups, wrapper.optimizer.param_groups, strict=False):
        assert one['param_names'] == two['param_names']
        assert (one['lr'], one['weight_decay']) == (two['lr'], two['weight_decay'])
    last = wrapper.optimizer.param_groups[-1]
    assert len(wrapper.optimizer.param_groups) == len(groups) + 1
    assert [id(p) for p in last['params']] == [id(p) for p in model.distillers.parameters()]


def test_the_distillers_group_has_factors_of_its_own() -> None:
    model = distilled()
    config = dict(ADAMW, distillers=dict(lr_mult=10.0, decay_mult=0.0))
    groups = build_for_distillation(model, config).optimizer.param_groups
    assert [g['lr'] for g in groups] == [2e-3, 2e-2]
    assert [g['weight_decay'] for g in groups] == [0.05, 0.0]
    assert 'distillers' in config, 'the config is not changed'
    with pytest.raises(ConfigError, match="optim_wrapper.distillers: .*'lr_mul'.*lr_mult"):
        build_for_distillation(model, dict(ADAMW, distillers=dict(lr_mul=10.0)))


THREE = [
    dict(entry('backbone.c3.pre_relu', 'OFD'), lr_mult=10.0),
    entry('backbone.c4.pre_relu', 'OFD'),
    dict(entry('backbone.c5.pre_relu', 'OFD'), lr_mult=10.0),
]


def test_a_distiller_has_a_learning_rate_of_its_own() -> None:
    model = distilled(distillers=THREE)
    config = dict(copy.deepcopy(ADAMW), distillers=dict(lr_mult=0.5))
    groups = build_for_distillation(model, config).optimizer.param_groups
    assert [g['lr'] for g in groups] == pytest.approx([2e-3, 1e-2, 1e-3])
    held = [id(p) for g in groups for p in g['params']]
    assert len(held) == len(set(held))
    assert set(held) == {id(p) for p in model.parameters()}
    first, second, third = (list(d.parameters()) for d in model.distillers.values())
    assert [id(p) for p in groups[1]['params']] == [id(p) for p in first + third]
    assert [id(p) for p in groups[2]['params']] == [id(p) for p in second]


def test_no_decay_draws_a_variance() -> None:
    model = distilled(distillers=[entry('backbone.c4', 'VID')])
    groups = build_for_distillation(model, ADAMW).optimizer.param_groups
    assert sorted(g['weight_decay'] for g in groups) == [0.0, 0.05, 0.05]
    ((variance,),) = (g['params'] for g in groups if not g['weight_decay'])
    (distiller,) = model.distillers.values()
    assert variance is distiller.head.loss.raw_variance
    held = [p for g in groups for p in g['params'] if p is variance]
    assert len(held) == 1


def test_gradients_of_all_distillers_are_clipped_as_one() -> None:
    model = distilled(distillers=THREE)
    wrapper = build_for_distillation(model, ADAMW)
    student, added = list(model.student.parameters()), list(model.distillers.parameters())
    for parameters, value in ((student, 1e-4), (added, 100.0)):
        for parameter in parameters:
            parameter.grad = torch.full_like(parameter, value)
    wrapper._clip_grad()
    assert all((p.grad == 1e-4).all() for p in student)
    norm = torch.stack([p.grad.norm() for p in added]).norm().item()
    assert norm == pytest.approx(1.0, rel=1e-3)
    assert len(wrapper.optimizer.param_groups) == 3


SCHEDULERS = {
    'multi step': dict(type='MultiStepLR', milestones=[2, 4], gamma=0.1),
    'poly': dict(type='PolyLR', eta_min=0.0, power=0.9, begin=0, end=6),
    'warm-up': dict(type='LinearLR', start_factor=0.1, begin=0, end=4),
    'one cycle': dict(type='OneCycleLR', eta_max=0.05, total_steps=6),
}


@pytest.mark.parametrize('name', list(SCHEDULERS))
def test_the_factor_stays_through_schedulers(name: str) -> None:
    from mmengine.registry import PARAM_SCHEDULERS

    model = distilled(distillers=THREE)
    wrapper = build_for_distillation(model, ADAMW)
    plain = build_optim_wrapper(
        build_network(retinanet(), 'mmdet', 'student'), copy.deepcopy(ADAMW)
    )
    for parameter in [*model.parameters(), *(p for g in plain.param_groups for p in g['params'])]:
        parameter.grad = torch.zeros_like(parameter)
    cfg = dict(SCHEDULERS[name], by_epoch=False)
    schedulers = []
    for one in (wrapper, plain):
        (config,) = with_own_peaks([cfg], one)
        schedulers.append(PARAM_SCHEDULERS.build(dict(config, optimizer=one)))
    rates = []
    for _ in range(5):
        own, high, low = (g['lr'] for g in wrapper.param_groups)
        assert (high, low) == pytest.approx((10 * own, own))
        assert own == pytest.approx(plain.param_groups[0]['lr'])
        rates.append(own)
        for one, scheduler in zip((wrapper, plain), schedulers, strict=True):
            one.step()
            scheduler.step()
    assert len(set(rates)) > 1


def test_a_runner_keeps_the_factor_through_one_cycle(digits: Path, tmp_path: Path) -> None:
    cfg = digits_config(
        digits, tmp_path, THREE, epochs=1,
        param_scheduler=[dict(type='OneCycleLR', eta_max=0.02, total_steps=9, by_epoch=False)],
    )  # fmt: skip
    groups = read_checkpoint(train(cfg, preflight=False))['optimizer']['param_groups']
    assert [g['lr'] / groups[0]['lr'] for g in groups] == pytest.approx([1, 10, 1])
    assert groups[0]['lr'] < 0.02 < groups[1]['lr']


@pytest.mark.parametrize('lr_mult', [0, -1.0, '10', True, float('nan')])
def test_a_factor_that_is_none_is_refused(lr_mult: Any) -> None:
    with pytest.raises(ConfigError, match=r'^distillers\[0\].lr_mult: a number above 0'):
        distilled(distillers=[dict(entry('backbone.c3.pre_relu', 'OFD'), lr_mult=lr_mult)])


def test_without_parameters_no_group_is_added() -> None:
    model = distilled(
        distillers=[entry('neck.p3', 'PKD')], teacher=dict(model=retinanet(8), untrained=True)
    )
    assert not list(model.distillers.parameters())
    assert len(build_for_distillation(model, ADAMW).optimizer.param_groups) == 1


def test_a_large_gradient_of_a_connector_does_not_shrink_the_students_step() -> None:
    model = distilled()
    wrapper = build_for_distillation(model, ADAMW)
    student, added = list(model.student.parameters()), list(model.distillers.parameters())
    for parameter in student:
        parameter.grad = torch.full_like(parameter, 1e-4)
    for parameter in added:
        parameter.grad = torch.full_like(parameter, 100.0)
    wrapper._clip_grad()
    assert all((p.grad == 1e-4).all() for p in student)
    norm = torch.stack([p.grad.norm() for p in added]).norm().item()
    assert norm == pytest.approx(1.0, rel=1e-3)
    assert len(wrapper.optimizer.param_groups) == 2


def test_several_optimisers_are_refused_where_parameters_are_added() -> None:
    from mmengine.optim import OptimWrapper, OptimWrapperDict
    from mmengine.registry import OPTIM_WRAPPER_CONSTRUCTORS

    @OPTIM_WRAPPER_CONSTRUCTORS.register_module(force=True)
    class TwoOptimisers:
        def __init__(self, optim_wrapper_cfg: Any, paramwise_cfg: Any = None) -> None:
            pass

        def __call__(self, model: nn.Module) -> OptimWrapperDict:
            make = lambda m: OptimWrapper(torch.optim.SGD(m.parameters(), 0.1))  # noqa: E731
            return OptimWrapperDict(a=make(model.backbone), b=make(model.neck))

    with pytest.raises(ConfigError, match='several optimisers'):
        build_for_distillation(distilled(), dict(ADAMW, constructor='TwoOptimisers'))


def test_distillers_alone_train_where_the_student_is_frozen() -> None:
    """With options by the names of parameters too, of which none trains."""
    by_name = dict(
        copy.deepcopy(ADAMW),
        paramwise_cfg=dict(norm_decay_mult=0.0),
        distillers=dict(lr_mult=0.5),
        clip_grad=dict(max_norm=1.0),
    )
    for config in (by_name, {k: v for k, v in by_name.items() if k != 'paramwise_cfg'}):
        model = distilled(distillers=THREE, trainable=['distillers'])
        wrapper = build_for_distillation(model, config)
        groups = wrapper.optimizer.param_groups
        assert [g['lr'] for g in groups] == pytest.approx([1e-2, 1e-3])
        held = [id(p) for g in groups for p in g['params']]
        assert sorted(held) == sorted(id(p) for p in model.distillers.parameters())
        added = list(model.distillers.parameters())
        for parameter in added:
            parameter.grad = torch.full_like(parameter, 100.0)
        wrapper.step()
        norm = torch.stack([p.grad.norm() for p in added]).norm().item()
        assert norm == pytest.approx(1.0, rel=1e-3)
    with pytest.raises(ConfigError, match='nothing of the student trains, and what distillers'):
        build_for_distillation(model, dict(type='OptimWrapper', constructor='Mine'))


UNFIT: dict[str, tuple[dict[str, Any], str]] = {
    'a text for a rate': (
        dict(optim_wrapper=dict(optimizer=dict(type='SGD', lr='fast'))),
        "^optim_wrapper.optimizer: it can't be built: ",
    ),
    'a negative rate': (
        dict(optim_wrapper=dict(optimizer=dict(type='AdamW', lr=-1.0))),
        "^optim_wrapper.optimizer: it can't be built: Invalid learning rate",
    ),
    'a number for a list': (
        dict(param_scheduler=[dict(type='LinearLR'), dict(type='MultiStepLR', milestones=5)]),
        r"^param_scheduler\[1\]: it can't be built: ",
    ),
    'an end before its beginning': (
        dict(param_scheduler=dict(type='PolyLR', begin=5, end=3)),
        r"^param_scheduler\[0\]: it can't be built: ",
    ),
}


@pytest.mark.parametrize('case', list(UNFIT))
def test_optimisers_and_schedulers_are_tried(case: str) -> None:
    given, sentence = UNFIT[case]
    with pytest.raises(ConfigError, match=sentence) as caught:
        try_optimisation(Config(given))
    assert '\n' not in str(caught.value)


def test_what_fits_or_can_not_be_tried_is_let_be() -> None:
    class Mine(torch.optim.SGD):
        def __init__(self, params: Any, needed: Any) -> None:
            raise AssertionError

    for optimizer in (None, dict(type=Mine), dict(type='SDG', lr=1), dict(type='AdamW', lr=1e-3)):
        for scheduler in (*SCHEDULERS.values(), dict(type='Cosine'), None):
            try_optimisation(
                Config(
                    dict(
                        default_scope='mmdet',
                        optim_wrapper=dict(type='OptimWrapper', optimizer=optimizer),
                        param_scheduler=scheduler,
                        train_cfg=dict(max_epochs=3),
                    )
                )
            )
    try_optimisation(Config({}))
    late = dict(type='CosineAnnealingLR', by_epoch=True, begin=1, convert_to_iter_based=True)
    try_optimisation(Config(dict(param_scheduler=[late], train_cfg=dict(max_epochs=3))))
