"""Named taps of real detectors: the place that each name stands for."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from densekd.core.taps import Tap, Taps, tensors
from densekd.core.trace import trace
from densekd.wrappers.build import build_network

pytest.importorskip('mmdet')

from densekd.wrappers.named_taps import (
    backbone_taps,
    describe,
    detector_forward,
    detector_taps,
    frozen_taps,
    stage_names,
)
from tests.helpers.detectors import faster_rcnn, retinanet


def built(config: dict[str, Any]) -> nn.Module:
    return build_network(config, 'mmdet', 'student')


@pytest.fixture(scope='module')
def one_stage() -> nn.Module:
    return built(retinanet())


@pytest.fixture(scope='module')
def two_stage() -> nn.Module:
    return built(faster_rcnn())


BACKBONE = [f'backbone.c{i}{end}' for i in range(2, 6) for end in ('', '.pre_relu')]


def test_the_names_of_a_one_stage_detector(one_stage: nn.Module) -> None:
    assert list(detector_taps(one_stage)) == [
        *BACKBONE,
        *(f'neck.p{i}' for i in range(2, 6)),
        'head.cls_logits',
        'head.bbox_deltas',
    ]


def test_the_names_of_a_two_stage_detector(two_stage: nn.Module) -> None:
    assert list(detector_taps(two_stage))[:13] == [*BACKBONE, *(f'neck.p{i}' for i in range(2, 7))]
    assert {'rpn.objectness', 'rpn.deltas'} <= set(detector_taps(two_stage))
    assert 'head.cls_logits' not in detector_taps(two_stage)


def test_a_name_is_its_taps_name_and_level(two_stage: nn.Module) -> None:
    for name, tap in detector_taps(two_stage).items():
        assert tap.name == name
        level = name.split('.')[0]
        assert tap.level == {'rpn': 'head', 'roi': 'head'}.get(level, level)


@pytest.mark.parametrize('make', [retinanet, faster_rcnn])
def test_p_k_has_stride_two_to_the_k_and_c_k_too(make: Any) -> None:
    model = built(make())
    taps = {n: t for n, t in detector_taps(model).items() if not n.startswith('roi')}
    places = trace(model, taps, detector_forward)
    for name, place in places.items():
        if name.startswith(('neck.p', 'backbone.c')):
            stride = 2 ** int(name.removesuffix('.pre_relu')[-1])
            assert place.strides == ((stride, stride),), name


def test_c2_is_the_first_stage_whatever_its_stride() -> None:
    model = built(retinanet(strides=(1, 2, 1, 1), dilations=(1, 1, 2, 4)))
    places = trace(model, backbone_taps(model), lambda m, x: m.backbone(x))
    strides = [places[f'backbone.c{i}'].strides[0][0] for i in range(2, 6)]
    assert strides == [4, 8, 8, 8]


def test_a_name_gives_what_the_network_computes(one_stage: nn.Module) -> None:
    one_stage.eval()
    x = torch.randn(1, 3, 64, 96)
    with torch.no_grad(), Taps(one_stage, detector_taps(one_stage)) as taps:
        features = one_stage.extract_feat(x)
        scores, deltas = one_stage.bbox_head(features)
        stages = one_stage.backbone(x)
    for i in range(4):
        assert torch.equal(taps[f'backbone.c{i + 2}'], stages[i])
        assert torch.equal(taps[f'neck.p{i + 2}'], features[i])
        assert torch.equal(taps[f'backbone.c{i + 2}.pre_relu'].clamp(min=0), stages[i])
        assert (taps[f'backbone.c{i + 2}.pre_relu'] < 0).any()
    for name, wanted in (('cls_logits', scores), ('bbox_deltas', deltas)):
        value = tensors(taps[f'head.{name}'])
        assert len(value) == 4
        assert all(torch.equal(a, b) for a, b in zip(value, wanted, strict=True))


def test_the_rpn_is_named(two_stage: nn.Module) -> None:
    two_stage.eval()
    with torch.no_grad(), Taps(two_stage, detector_taps(two_stage)) as taps:
        objectness, deltas = two_stage.rpn_head(two_stage.extract_feat(torch.randn(1, 3, 64, 64)))
    for name, wanted in (('objectness', objectness), ('deltas', deltas)):
        assert all(
            torch.equal(a, b) for a, b in zip(tensors(taps[f'rpn.{name}']), wanted, strict=True)
        )


@pytest.mark.parametrize(('depth', 'norm'), [(18, 'bn2'), (50, 'bn3')])
def test_the_norm_before_the_sum_is_found(depth: int, norm: str) -> None:
    from mmdet.models.backbones import ResNet

    model = nn.Module()
    model.backbone = ResNet(depth, base_channels=4)
    taps = backbone_taps(model)
    places = trace(model, taps, lambda m, x: m.backbone(x))
    for number in range(2, 6):
        last = getattr(model.backbone, f'layer{number - 1}')[-1]
        assert places[f'backbone.c{number}.pre_relu'].norm is getattr(last, norm)
        assert taps[f'backbone.c{number}'].rectified
        assert not taps[f'backbone.c{number}.pre_relu'].rectified


def test_fewer_stages_have_fewer_names() -> None:
    from mmdet.models.backbones import ResNet

    model = nn.Module()
    model.backbone = ResNet(
        18, base_channels=4, num_stages=2, out_indices=(0, 1), strides=(1, 2), dilations=(1, 1)
    )
    assert list(backbone_taps(model)) == BACKBONE[:4]
    assert stage_names(model.backbone) == ['layer1', 'layer2']


def test_a_backbone_without_residual_stages_is_named_by_its_outputs() -> None:
    class Backbone(nn.Module):
        out_indices = (1, 3)

        def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, ...]:
            return x[..., ::8, ::8], x[..., ::32, ::32]

    model = nn.Module()
    model.backbone = Backbone()
    taps = backbone_taps(model)
    assert list(taps) == ['backbone.c3', 'backbone.c5']
    places = trace(model, taps, lambda m, x: m.backbone(x))
    assert [p.strides[0] for p in places.values()] == [(8.0, 8.0), (32.0, 32.0)]


@pytest.mark.parametrize(
    ('strides', 'names'),
    [
        ((4, 8, 16, 32), ['c2', 'c3', 'c4', 'c5']),
        ((8, 16, 32), ['c3', 'c4', 'c5']),
        ((16, 16, 16, 16), ['c2', 'c3', 'c4', 'c5']),
        ((16,), ['c4']),
    ],
)
def test_outputs_are_named_by_stride_and_by_order_where_it_stays(
    strides: tuple[int, ...], names: list[str]
) -> None:
    class Backbone(nn.Module):
        out_indices = (2, 3, 4, 5)[: len(strides)]  # of what, each backbone has its own idea

        def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, ...]:
            return tuple(x[..., ::s, ::s] for s in strides)

    model = nn.Module()
    model.backbone = Backbone()
    taps = backbone_taps(model)
    assert list(taps) == [f'backbone.{name}' for name in names]
    assert [tap.index for tap in taps.values()] == list(range(len(strides)))


def test_a_backbone_that_hands_out_no_tensors_has_no_names() -> None:
    class Backbone(nn.Module):
        def forward(self, x: torch.Tensor) -> str:
            return 'nothing'

    model = nn.Module()
    model.backbone = Backbone()
    assert backbone_taps(model) == {}


def test_a_head_that_predicts_a_distribution_is_named_by_it() -> None:
    from mmdet.models.dense_heads import GFLHead

    head = GFLHead(
        3,
        8,
        feat_channels=8,
        stacked_convs=1,
        norm_cfg=dict(type='BN'),
        anchor_generator=dict(
            type='AnchorGenerator',
            ratios=[1.0],
            octave_base_scale=8,
            scales_per_octave=1,
            strides=[8, 16, 32, 64, 128],
        ),
    )
    model = built(retinanet())
    model.bbox_head = head
    names = [name for name in detector_taps(model) if name.startswith('head')]
    assert names[:2] == ['head.cls_logits', 'head.bbox_dist']


def test_a_head_with_centerness_has_that_name() -> None:
    from mmdet.models.dense_heads import FCOSHead

    model = built(retinanet())
    model.bbox_head = FCOSHead(
        3, 16, feat_channels=8, stacked_convs=1, strides=(4, 8, 16, 32), norm_cfg=dict(type='BN')
    )
    taps = detector_taps(model)
    assert 'head.centerness' in taps
    model.eval()
    with torch.no_grad(), Taps(model, {'a': taps['head.centerness']}) as reading:
        *_, wanted = model.bbox_head(model.extract_feat(torch.randn(1, 3, 64, 64)))
    assert all(torch.equal(a, b) for a, b in zip(tensors(reading['a']), wanted, strict=True))


@pytest.mark.parametrize(
    ('stages', 'frozen'),
    [
        (-1, []),
        (0, []),
        (1, ['backbone.c2', 'backbone.c2.pre_relu']),
        (2, BACKBONE[:4]),
        (4, BACKBONE),
    ],
)
def test_frozen_stages_are_found(stages: int, frozen: list[str]) -> None:
    model = built(retinanet(frozen_stages=stages))
    assert frozen_taps(model, detector_taps(model)) == frozenset(frozen)


def test_naming_leaves_the_network_as_it_was() -> None:
    model = built(faster_rcnn()).train()
    state = {k: v.clone() for k, v in model.state_dict().items()}
    generator = torch.random.get_rng_state()
    detector_taps(model)
    assert all(torch.equal(v, state[k]) for k, v in model.state_dict().items())
    assert torch.equal(torch.random.get_rng_state(), generator)
    assert all(m.training for m in model.modules())


@pytest.mark.parametrize(
    ('parts', 'ran'),
    [
        ({'backbone'}, {'backbone'}),
        ({'neck'}, {'backbone', 'neck'}),
        ({'backbone', 'neck'}, {'backbone', 'neck'}),
        ({'bbox_head'}, {'backbone', 'neck', 'bbox_head'}),
        (None, {'backbone', 'neck', 'bbox_head'}),
    ],
)
def test_no_more_runs_than_is_tapped(one_stage: nn.Module, parts: Any, ran: set[str]) -> None:
    seen = {name: Tap(name, name=name, copy=False) for name in ('backbone', 'neck', 'bbox_head')}
    with torch.no_grad(), Taps(one_stage, seen) as taps:
        wanted = None if parts is None else frozenset(parts)
        detector_forward(one_stage, torch.randn(1, 3, 64, 64), wanted)
    assert {name for name, count in taps.calls.items() if count} == ran


def test_a_place_is_described_by_shape_and_stride(one_stage: nn.Module) -> None:
    taps = detector_taps(one_stage)
    places = trace(one_stage, taps, detector_forward)
    assert describe(places['neck.p3']) == ('16x32x48', '8')
    shapes, strides = describe(places['head.bbox_deltas'])
    assert shapes.split(', ')[0] == '8x64x96' and strides == '4, 8, 16, 32'
