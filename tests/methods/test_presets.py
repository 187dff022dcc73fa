"""What a preset stands for, where it can't be used, and how a head is built from a config."""

from __future__ import annotations

from typing import Any

import pytest

from densekd.core.anatomy import Anatomy
from densekd.core.taps import Tap
from densekd.errors import ConfigError
from densekd.methods import DistillationHead, PKDLoss, build
from densekd.registry import HEADS, LOSSES, PRESETS

STAGES = ['backbone.c2', 'backbone.c3', 'backbone.c4', 'backbone.c5']


def anatomy(
    kind: str, names: list[str], frozen: tuple[str, ...] = (), norm: bool = True
) -> Anatomy:
    taps = {}
    for name in names:
        stage = name in STAGES
        fed = 'bn3' if norm and name.endswith('.pre_relu') else None
        taps[name] = Tap(name, name=name, norm=fed, rectified=stage)
    return Anatomy(taps, taps, kind, frozenset(frozen))


def detector(kind: str = 'one-stage') -> Anatomy:
    pre = [f'{name}.pre_relu' for name in STAGES]
    neck = [f'neck.p{i}' for i in (3, 4, 5, 6, 7)]
    frozen = ('backbone.c2', 'backbone.c2.pre_relu')
    return anatomy(kind, [*STAGES, *pre, *neck, 'head.cls_logits'], frozen)


def classifier(stages: list[str]) -> Anatomy:
    pre = [f'{name}.pre_relu' for name in stages]
    return anatomy('classifier', [*stages, *pre, 'embedding', 'logits'])


def preset(name: str, of: Anatomy, at: str | None = None) -> list[dict[str, Any]]:
    return PRESETS.get(name, 'test')(of, at)


def table(distillers: list[dict[str, Any]]) -> dict[str, tuple[str, float]]:
    heads = [build(d['head']) for d in distillers]
    return {
        d['head']['name']: (d['student_module'], head.loss.loss_weight)
        for d, head in zip(distillers, heads, strict=True)
    }


def test_ofd_on_a_detector() -> None:
    assert table(preset('ofd', detector())) == {
        'ofd_c3': ('backbone.c3.pre_relu', 2.5e-6),
        'ofd_c4': ('backbone.c4.pre_relu', 5e-6),
        'ofd_c5': ('backbone.c5.pre_relu', 1e-5),
    }


def test_ofd_on_classifiers_and_segmentors() -> None:
    weights = [weight for _, weight in table(preset('ofd', classifier(STAGES[:3]))).values()]
    assert weights == [2.5e-4, 5e-4, 1e-3]
    pre = [f'{name}.pre_relu' for name in STAGES]
    segmentor = anatomy('segmentor', [*pre, 'decode.aspp', 'decode.feature', 'decode.logits'])
    weights = [weight for _, weight in table(preset('ofd', segmentor)).values()]
    assert weights == [1.25e-6, 2.5e-6, 5e-6, 1e-5]
    assert table(preset('ofd', segmentor, 'head')) == {
        'ofd_aspp': ('decode.aspp', 1e-5),
        'ofd_feature': ('decode.feature', 6.25e-7),
    }


@pytest.mark.parametrize('at', ['backbone', 'head'])
def test_ofd_lets_the_connectors_of_segmentors_go_first_and_faster(at: str) -> None:
    places = ['backbone.c5.pre_relu', 'decode.aspp', 'decode.feature']
    for entry in preset('ofd', anatomy('segmentor', places), at):
        assert entry['lr_mult'] == 10
        assert entry['schedule'] == {'by': 'epoch', 'connectors_first': 1}
    for of in (detector(), classifier(STAGES)):
        assert all(entry.keys().isdisjoint({'lr_mult', 'schedule'}) for entry in preset('ofd', of))


def test_ofd_without_norms_counts_its_margins() -> None:
    bare = anatomy('classifier', ['backbone.c3.pre_relu'], norm=False)
    assert preset('ofd', bare)[0]['head']['loss']['margin'] == 'empirical'
    assert 'margin' not in preset('ofd', classifier(STAGES))[0]['head']['loss']


def test_pkd_takes_the_first_four_levels() -> None:
    names = table(preset('pkd', detector()))
    assert names == {f'pkd_p{i}': (f'neck.p{i}', 10.0) for i in (3, 4, 5, 6)}
    assert {w for _, w in table(preset('pkd', detector('two-stage'))).values()} == {6.0}


def test_fgfi_is_one_distiller_over_all_levels() -> None:
    (distiller,) = preset('fgfi', detector('two-stage'))
    assert distiller['student_module'] == [f'neck.p{i}' for i in (3, 4, 5, 6, 7)]
    assert distiller['teacher_module'] == distiller['student_module']
    assert build(distiller['head']).loss.loss_weight == 0.01


def test_fitnet() -> None:
    assert list(table(preset('fitnet', detector()))) == [f'fitnet_p{i}' for i in (3, 4, 5, 6, 7)]
    backbone = preset('fitnet', detector(), 'backbone')
    assert list(table(backbone)) == ['fitnet_c3', 'fitnet_c4', 'fitnet_c5']
    # Behind a ReLU the regressor has one too; on a neck it must not.
    assert backbone[0]['head']['stu_connector']['act'] == 'relu'
    assert build(preset('fitnet', detector())[0]['head']).stu_connector.act is None
    for stages in (STAGES, STAGES[:3]):
        assert table(preset('fitnet', classifier(stages))) == {'fitnet_c3': ('backbone.c3', 100.0)}


def test_at() -> None:
    distillers = preset('at', detector())
    assert table(distillers) == {f'at_c{i}': (f'backbone.c{i}', 1000.0) for i in (3, 4, 5)}
    assert [d['head']['loss']['reference'] for d in distillers] == [784, 196, 49]
    plain = preset('at', classifier(STAGES[:3]))
    assert [d['head']['loss'] for d in plain] == [{'type': 'ATLoss', 'loss_weight': 1000.0}] * 3


def test_ab() -> None:
    assert table(preset('ab', classifier(STAGES[:3]))) == {
        'ab_c2': ('backbone.c2.pre_relu', 7.5e-4),
        'ab_c3': ('backbone.c3.pre_relu', 1.5e-3),
        'ab_c4': ('backbone.c4.pre_relu', 3e-3),
    }
    dense = preset('ab', detector())
    assert [d['head']['loss']['loss_weight'] for d in dense] == [7.5e-6, 1.5e-5, 3e-5]
    assert [d['head']['loss']['reference'] for d in dense] == [784, 196, 49]


def test_cwd() -> None:
    for kind in ('one-stage', 'two-stage'):
        levels = {f'cwd_p{i}': (f'neck.p{i}', 10.0) for i in (3, 4, 5, 6, 7)}
        assert table(preset('cwd', detector(kind))) == levels
    segmentor = anatomy('segmentor', ['neck.p3', 'decode.logits'])
    (logits,) = preset('cwd', segmentor)
    assert table([logits]) == {'cwd_logits': ('decode.logits', 3.0)}
    assert build(logits['head']).loss.tau == 4.0
    (level,) = preset('cwd', segmentor, 'neck')
    assert build(level['head']).loss.tau == 1.0
    with pytest.raises(ConfigError, match="preset 'cwd': it needs a tap decode.logits"):
        preset('cwd', detector(), 'head')


@pytest.mark.parametrize(
    ('of', 'expected'),
    [
        (detector(), ['neck.p3', 'neck.p4', 'neck.p5', 'neck.p6', 'neck.p7', 2e-5, 0.65]),
        (
            detector('two-stage'),
            ['neck.p3', 'neck.p4', 'neck.p5', 'neck.p6', 'neck.p7', 5e-7, 0.45],
        ),
        (anatomy('segmentor', [*STAGES, 'decode.logits']), ['backbone.c5', 2e-5, 0.75]),
        (classifier(STAGES[:3]), ['backbone.c4', 7e-5, 0.15]),
    ],
    ids=lambda x: getattr(x, 'kind', ''),
)
def test_mgd(of: Anatomy, expected: list[Any]) -> None:
    distillers = preset('mgd', of)
    loss = build(distillers[0]['head']).loss
    assert [*(d['student_module'] for d in distillers), loss.loss_weight, loss.masked] == expected
    assert loss.mask_kind == ('channel' if of.kind == 'classifier' else 'position')


@pytest.mark.parametrize('name', ['kd_qfl', 'binary_kl'])
def test_dense_logits(name: str) -> None:
    assert table(preset(name, detector())) == {name: ('head.cls_logits', 1.0)}


def test_kd_stands_on_logits_of_a_softmax() -> None:
    segmentor = anatomy('segmentor', ['backbone.c5', 'decode.logits', 'aux.logits'])
    assert table(preset('kd', segmentor)) == {'kd': ('decode.logits', 0.9)}
    assert table(preset('kd', classifier(STAGES), 'head')) == {'kd': ('logits', 0.9)}
    assert build(preset('kd', segmentor)[0]['head']).loss.tau == 4.0


def test_dkd_and_dist_stand_there_too_with_the_weights_of_each_task() -> None:
    segmentor = anatomy('segmentor', ['backbone.c5', 'decode.logits', 'aux.logits'])
    regions = anatomy('two-stage', ['neck.p3', 'rpn.objectness', 'roi.cls_logits'])
    places = {'logits': classifier(STAGES), 'decode.logits': segmentor, 'roi.cls_logits': regions}
    for place, of in places.items():
        (distiller,) = preset('dist', of)
        assert table([distiller]) == {'dist': (place, 2.0 if place == 'logits' else 1.0)}
        assert distiller['teacher_module'] == place and 'schedule' not in distiller
        (distiller,) = preset('dkd', of)
        assert table([distiller]) == {'dkd': (place, 1.0)}
        loss = build(distiller['head']).loss
        factors = (loss.alpha, loss.beta, loss.tau)
        assert factors == ((1.0, 0.25, 1.0) if of is regions else (1.0, 8.0, 4.0))
    warmups = [preset('dkd', of)[0].get('schedule') for of in places.values()]
    assert warmups == [{'by': 'epoch', 'warmup': 20}, {'by': 'iter', 'warmup': 1000}, None]


@pytest.mark.parametrize('name', ['kd', 'dkd', 'dist'])
def test_softmax_losses_of_a_dense_detector_are_refused_with_what_fits(name: str) -> None:
    with pytest.raises(ConfigError, match=f"preset '{name}': .*Take kd_qfl or binary_kl"):
        preset(name, detector())
    needed = f"preset '{name}': it needs a tap decode.logits or roi.cls_logits or logits"
    with pytest.raises(ConfigError, match=needed):
        preset(name, anatomy('two-stage', ['neck.p3']))
    with pytest.raises(ConfigError, match=f"preset '{name}': there is no at='neck'"):
        preset(name, detector(), 'neck')


OURS = ['ab', 'at', 'binary_kl', 'cwd', 'fgfi', 'fitnet', 'kd_qfl', 'mgd', 'ofd', 'pkd']


@pytest.mark.parametrize('name', OURS)
def test_every_preset_says_where_it_stands_and_names_its_heads_apart(name: str) -> None:
    for at in PRESETS.get(name, 'test').at:
        if (name, at) in (('ofd', 'head'), ('cwd', 'head')):
            continue  # segmentors
        heads = [d['head']['name'] for d in preset(name, detector(), at)]
        assert len(set(heads)) == len(heads)
        assert all(head == head.lower() and 'loss' not in head for head in heads)


@pytest.mark.parametrize('name', OURS)
def test_an_unknown_level_is_refused(name: str) -> None:
    with pytest.raises(ConfigError, match=f"preset '{name}': there is no at='nekc'"):
        preset(name, detector(), 'nekc')


@pytest.mark.parametrize('name', OURS)
def test_models_without_the_taps_are_refused_with_those_they_have(name: str) -> None:
    with pytest.raises(ConfigError, match=f"preset '{name}': it needs .* embedding, logits"):
        preset(name, anatomy('one-stage', ['logits', 'embedding']))


def test_fgfi_needs_a_detector() -> None:
    with pytest.raises(ConfigError, match='a segmentor has none'):
        preset('fgfi', anatomy('segmentor', ['neck.p3']))


def test_build_refuses_what_is_no_head() -> None:
    with pytest.raises(ConfigError, match="'PKDLoss' is a loss.*dict\\(type='DistillationHead'"):
        build({'type': 'densekd.PKDLoss', 'loss_weight': 3.0}, 'distillers[0].head')
    with pytest.raises(ConfigError, match="Did you mean 'PKDDistillationHead'"):
        build('PKDDistilationHead')
    with pytest.raises(ConfigError, match='not 3'):
        build(3)
    with pytest.raises(ConfigError, match='not PKDLoss'):
        build(PKDLoss())


def test_build_takes_names_dicts_and_heads() -> None:
    head = build('densekd.OFDDistillationHead')
    assert build(head) is head
    assert build({'type': 'DistillationHead', 'loss': 'PKDLoss', 'name': 'x'}).name == 'x'


@pytest.mark.parametrize('name', sorted(set(HEADS) - {'DistillationHead'}))
def test_every_head_is_complete_without_arguments(name: str) -> None:
    head = build(name)
    assert isinstance(head, DistillationHead)
    assert head.default_loss['type'] in LOSSES
