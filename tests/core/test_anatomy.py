"""What a preset may know: the places that both networks have and that can be taught."""

from __future__ import annotations

from densekd.core.anatomy import Anatomy
from densekd.core.taps import Tap


def taps(*names: str) -> dict[str, Tap]:
    return {name: Tap(name, name=name) for name in names}


def test_both_is_what_both_have_in_order_of_depth() -> None:
    student = taps('neck.p10', 'neck.p3', 'backbone.c5', 'backbone.c3', 'head.cls_logits')
    teacher = taps('neck.p3', 'neck.p4', 'neck.p10', 'backbone.c5')
    anatomy = Anatomy(student, teacher, 'one-stage')
    assert anatomy.both('neck.p*') == ['neck.p3', 'neck.p10']
    assert anatomy.both('backbone.c*') == ['backbone.c5']
    assert anatomy.both('head.*') == []
    assert anatomy.both('*') == ['backbone.c5', 'neck.p3', 'neck.p10']


def test_frozen_places_are_left_out() -> None:
    names = taps('backbone.c2', 'backbone.c2.pre_relu', 'backbone.c3', 'backbone.c3.pre_relu')
    anatomy = Anatomy(names, names, 'two-stage', frozenset({'backbone.c2', 'backbone.c2.pre_relu'}))
    assert anatomy.both('backbone.c?.pre_relu') == ['backbone.c3.pre_relu']
    assert anatomy.both('backbone.c?') == ['backbone.c3']


def test_a_glob_is_case_sensitive() -> None:
    names = taps('neck.p3')
    assert Anatomy(names, names, 'one-stage').both('Neck.*') == []
