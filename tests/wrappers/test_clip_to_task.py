"""`clip_to_task=True` in a config's distiller."""

from __future__ import annotations

from typing import Any

import pytest
import torch

import densekd.methods  # noqa: F401  fills the registries
from densekd import DistillClassifier
from densekd.errors import ConfigError
from densekd.registry import PRESETS
from tests.helpers.classifiers import batch, classifier

PLACES = [f'backbone.c{i}' for i in (2, 3, 4)]


def wrapped(clip: Any = True, **more: Any) -> DistillClassifier:
    entry = dict(
        student_module=PLACES,
        head=dict(type='KDSVDDistillationHead', loss=dict(type='KDSVDLoss', loss_weight=100.0)),
        clip_to_task=clip,
    )
    parts: dict[str, Any] = dict(
        student=classifier(),
        teacher=dict(model=classifier(base_channels=8), untrained=True),
        distillers=[entry],
    )
    torch.manual_seed(0)
    return DistillClassifier(**{**parts, **more}).train()


def gradients(model: DistillClassifier, loss: torch.Tensor) -> dict[str, torch.Tensor]:
    named = dict(model.student.named_parameters())
    found = torch.autograd.grad(
        loss, list(named.values()), retain_graph=True, materialize_grads=True, allow_unused=True
    )
    return dict(zip(named, found, strict=True))


@pytest.mark.parametrize(('epoch', 'share'), [(None, 1.0), (0, 0.5), (3, 0.9525741)])
def test_the_task_holds_the_term_down(epoch: int | None, share: float) -> None:
    """A term that is much longer is as long as the share of the task's, and points as before."""
    terms = {}
    for clip in (False, True):
        model = wrapped(clip)
        if epoch is not None:
            model.set_clock(0, epoch)
        losses = model(**model.data_preprocessor(batch(), True), mode='loss')
        terms[clip] = losses['distill.loss_backbone_kdsvd']
        found = gradients(model, terms[clip])
        if not clip:
            free = found
    torch.testing.assert_close(terms[True], terms[False])
    own = gradients(model, losses['student.loss_cls'])
    cut = 0
    for name, gradient in found.items():
        length, limit = free[name].norm(), share * own[name].norm()
        torch.testing.assert_close(
            gradient, free[name] * min(1.0, float(limit / length.clamp(min=1e-20))),
            rtol=1e-4, atol=1e-7,
        )  # fmt: skip
        cut += int(length > limit > 0)
    assert cut > 10
    assert set(losses) == {'student.loss_cls', 'distill.loss_backbone_kdsvd'}


def test_connectors_learn_as_without() -> None:
    found = {}
    for clip in (False, True):
        model = wrapped(clip)
        losses = model(**model.data_preprocessor(batch(), True), mode='loss')
        sum(losses.values()).backward()
        found[clip] = [p.grad for p in model.distillers.parameters()]
    assert found[True]
    for clipped, free in zip(found[True], found[False], strict=True):
        torch.testing.assert_close(clipped, free)


def test_nothing_is_clipped_where_nothing_is_trained() -> None:
    model = wrapped()
    with torch.no_grad():
        losses = model(**model.data_preprocessor(batch(), True), mode='loss')
    assert losses['distill.loss_backbone_kdsvd'] > 0


@pytest.mark.parametrize('preset', sorted(PRESETS))
def test_kdsvd_alone_of_the_presets_asks_for_it(preset: str) -> None:
    """As the authors do."""
    try:
        model = wrapped(distillers=None, preset=preset)
    except ConfigError:
        return  # for detectors or segmentors, or for peers
    clipped = {d.clip_to_task for d in model._distillers}
    assert clipped == {preset == 'kdsvd'}


@pytest.mark.parametrize(
    ('more', 'said'),
    [
        (dict(clip=1.0), r'^distillers\[0\].clip_to_task: True or False is needed, not 1.0\.$'),
        (dict(task_loss=False), 'clip_to_task clips its gradient .* task_loss=False leaves out'),
    ],
)
def test_what_can_not_be_is_a_sentence(more: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        wrapped(**more)


def test_a_peer_is_not_clipped() -> None:
    entry = dict(
        student='b', teacher='student', student_module='logits', clip_to_task=True,
        head=dict(type='DMLDistillationHead'),
    )  # fmt: skip
    mutual = [{**entry, 'student': 'student', 'teacher': 'b', 'clip_to_task': False}, entry]
    with pytest.raises(ConfigError, match=r"clip_to_task: .* the peer's \(b\) gradient"):
        DistillClassifier(
            student=classifier(), peers=[dict(name='b', model=classifier())], distillers=mutual
        )
