"""A transformer teaches a convolutional student: places, strides, tokens, and the step."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch

from densekd.core.taps import Tap, Taps
from densekd.core.trace import trace
from densekd.errors import ShapeError, TapError
from densekd.wrappers.build import build_network
from densekd.wrappers.segmentor import DistillSegmentor
from densekd.wrappers.segmentor_taps import segmentor_forward, segmentor_taps
from tests.helpers.detectors import entry, losses_of, state, train_on, unlike
from tests.helpers.segmentors import batch, deeplabv3plus, segformer, upernet_swin

TEACHERS = {'segformer': segformer, 'swin': upernet_swin}
# Where a module in the midst of each hands out tokens of stride 16.
TOKENS: dict[str, dict[str, Any]] = {
    'segformer': dict(path='backbone.layers.2.1.0'),
    'swin': dict(path='backbone.stages.2', index=2),
}
every = pytest.mark.parametrize('name', list(TEACHERS))


def distilled(name: str, distillers: Any = None, **more: Any) -> DistillSegmentor:
    teacher = dict(model=TEACHERS[name](), untrained=True)
    return DistillSegmentor(deeplabv3plus(), teacher, distillers, **more)


def pair(student: str, teacher: Any, head: str, **more: Any) -> dict[str, Any]:
    found = entry(student, head)
    return dict(found, teacher_module=teacher, head=dict(found['head'], **more))


def all_terms(name: str) -> list[dict[str, Any]]:
    """Returns a term on logits, decoders, stages of unlike stride, and tokens."""
    return [
        entry('decode.logits', 'CWD'),
        entry('decode.logits', 'KD'),
        pair('decode.feature', 'decode.feature', 'OFD'),
        pair('backbone.c5', 'backbone.c4', 'CWD', align='pool_larger'),
        pair('backbone.c4', dict(TOKENS[name], tokens=True), 'MGD'),
        pair('backbone.c3', 'backbone.c3', 'FitNet'),
    ]


@every
def test_places_of_a_transformer_are_named_by_stride(name: str) -> None:
    model = build_network(TEACHERS[name](), 'mmseg', 'teacher')
    places = trace(model, segmentor_taps(model), segmentor_forward)
    strides = {n: p.strides[0][0] for n, p in places.items()}
    assert strides == {
        **{f'backbone.c{k}': 2**k for k in range(2, 6)},
        'decode.feature': 4,
        'decode.logits': 4,
    }


@every
def test_a_tokens_place_is_the_map_that_follows(name: str) -> None:
    """The last layer's tokens, normalised by what comes after, are the stage's own output."""
    model = build_network(TEACHERS[name](), 'mmseg', 'teacher').eval()
    taps = segmentor_taps(model)
    norm = 'backbone.norm2' if name == 'swin' else 'backbone.layers.2.2'
    both = {'tokens': Tap(norm, tokens=True), 'map': taps['backbone.c4']}
    images = torch.randn(2, 3, 80, 112)
    with torch.no_grad(), Taps(model, both, size=(80, 112)) as reading:
        segmentor_forward(model, images)
    assert torch.equal(reading['tokens'], reading['map'])
    assert reading['map'].shape[2:] == (5, 7)


@every
def test_every_pair_trains_and_the_teacher_stays(name: str) -> None:
    model = distilled(name, all_terms(name))
    shapes = {key: (s.shapes[0][1:], t.shapes[0][1:]) for key, (s, t) in model.places.items()}
    assert shapes['head_cwd_decode_logits'] == ((4, 64, 96), (4, 64, 96))
    places = list(shapes.values())
    assert [(s[1], t[1]) for s, t in places[2:]] == [(64, 64), (32, 16), (32, 16), (32, 32)]
    before = state(model.teachers['teacher'].model)
    connectors = {k: v.detach().clone() for k, v in model.distillers.named_parameters()}
    found = {k: v for k, v in losses_of(model, batch()).items() if k.startswith('distill.')}
    assert len(found) == 6
    student = list(model.student.parameters())
    for term, value in found.items():
        gradients = torch.autograd.grad(value, student, retain_graph=True, allow_unused=True)
        assert value > 0, term
        assert any(g is not None and bool(g.any()) for g in gradients), term
    # Images whose sides are no multiples of the coarsest stride, and of another size each step.
    train_on(model, [batch(0, (64, 96)), batch(1, (48, 80))])
    assert not unlike(before, state(model.teachers['teacher'].model))
    assert not [k for k, v in model.distillers.named_parameters() if torch.equal(v, connectors[k])]
    assert all(torch.isfinite(p).all() for p in model.parameters())


@every
def test_weight_0_is_plain_training(name: str) -> None:
    torch.manual_seed(0)
    alone = build_network(deeplabv3plus(), 'mmseg', 'student')
    torch.manual_seed(0)
    terms = all_terms(name)
    for term in terms:
        kind = term['head']['type'].removesuffix('DistillationHead')
        term['head']['loss'] = dict(type=f'{kind}Loss', loss_weight=0.0)
    beside = distilled(name, terms)
    data = [batch(seed) for seed in range(2)]
    for model in (alone, beside):
        train_on(model, copy.deepcopy(data))
    assert not unlike(state(alone), state(beside.student))


@every
def test_the_teacher_stops_after_its_tokens(name: str) -> None:
    model = distilled(name, [pair('backbone.c4', dict(TOKENS[name], tokens=True), 'FitNet')])
    calls: list[str] = []
    teacher = model.teachers['teacher'].model
    last = 'backbone.stages.3' if name == 'swin' else 'backbone.layers.3.1.0'
    for path in (last, 'decode_head.conv_seg'):
        teacher.get_submodule(path).register_forward_hook(lambda *_, path=path: calls.append(path))
    losses_of(model, batch()), calls.clear(), losses_of(model, batch())
    assert calls == []


@every
def test_a_student_may_be_the_transformer(name: str) -> None:
    model = DistillSegmentor(
        TEACHERS[name](),
        dict(model=deeplabv3plus(), untrained=True),
        [pair('backbone.c4', 'backbone.c5', 'CWD'), entry('decode.logits', 'CWD')],
    )
    train_on(model, [batch()])


@every
def test_tokens_are_refused_where_a_map_is_needed(name: str) -> None:
    with pytest.raises(
        ShapeError,
        match=r"^distillers\[0\]: the teacher's 'backbone\..*': it gives 384x\d+ an image, tokens "
        r"by channels, where a map is needed. Write dict\(path='backbone\..*', tokens=True\)",
    ):
        distilled(name, [pair('backbone.c4', dict(TOKENS[name]), 'FitNet')])


def test_tokens_on_both_sides_need_the_same() -> None:
    tokens = TOKENS['segformer']['path']
    with pytest.raises(TapError, match=f"tap '{tokens}': it gives 384x40 .*tokens=True"):
        DistillSegmentor(
            segformer(),
            dict(model=segformer(16), untrained=True),
            [pair(tokens, tokens, 'CWD')],
        )


@every
def test_strides_that_are_far_apart_are_refused(name: str) -> None:
    with pytest.raises(ShapeError, match="'backbone.c5' has stride 8 and the .* stride 32"):
        distilled(name, [pair('backbone.c5', 'backbone.c5', 'CWD')])


@every
@pytest.mark.parametrize('preset', ['cwd', 'kd'])
def test_presets_on_logits_train(name: str, preset: str) -> None:
    train_on(distilled(name, preset=preset), [batch()])
