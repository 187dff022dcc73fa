"""What the presets of relations stand for, and where they can't be used."""

from __future__ import annotations

import pytest

from densekd.errors import ConfigError
from tests.methods.test_presets import STAGES, anatomy, classifier, detector, preset, table

VECTORS = {'rkd': 25.0, 'pkt': 3e4, 'cc': 100.0, 'fe': 1.5}


@pytest.mark.parametrize('stages', [STAGES, STAGES[:3]], ids=['ImageNet', 'CIFAR'])
def test_they_stand_before_the_classifier(stages: list[str]) -> None:
    for name, weight in VECTORS.items():
        assert table(preset(name, classifier(stages))) == {name: ('embedding', weight)}
    assert table(preset('sp', classifier(stages))) == {'sp': (stages[-1], 3000.0)}


@pytest.mark.parametrize('name', [*VECTORS, 'sp'])
def test_a_dense_task_has_no_place_for_them(name: str) -> None:
    with pytest.raises(ConfigError, match=f"preset '{name}': it needs a"):
        preset(name, detector())
    with pytest.raises(ConfigError, match=f"preset '{name}': it needs a"):
        preset(name, anatomy('segmentor', [*STAGES, 'decode.logits']))
    with pytest.raises(ConfigError, match=f"preset '{name}': there is no at='head'"):
        preset(name, classifier(STAGES), 'head')


def test_nst_is_at_the_end_of_the_backbone() -> None:
    for of in (classifier(STAGES), detector()):
        assert table(preset('nst', of)) == {'nst': ('backbone.c5', 50.0)}
    assert table(preset('nst', classifier(STAGES[:3]))) == {'nst': ('backbone.c4', 50.0)}


def test_fsp_is_between_each_stage_and_the_next() -> None:
    c2, c3, c4, c5 = STAGES
    assert table(preset('fsp', classifier(STAGES[:3]))) == {
        'fsp_c2_c3': ([c2, c3], 1.0),
        'fsp_c3_c4': ([c3, c4], 1.0),
    }
    # The first stage is frozen.
    assert list(table(preset('fsp', detector()))) == ['fsp_c3_c4', 'fsp_c4_c5']
    with pytest.raises(ConfigError, match=r"preset 'fsp': it needs two taps .*\['backbone.c5'\]"):
        preset('fsp', classifier([c5]))


def test_kdsvd_is_one_distiller_over_all_stages_of_a_classifier() -> None:
    for stages in (STAGES, STAGES[:3]):
        assert table(preset('kdsvd', classifier(stages))) == {'kdsvd': (stages, 1.0)}
    with pytest.raises(ConfigError, match=r"preset 'kdsvd': it needs two taps"):
        preset('kdsvd', classifier(STAGES[:1]))
    with pytest.raises(ConfigError, match=r"preset 'kdsvd': it needs a classifier"):
        preset('kdsvd', detector())


def test_vid_is_at_the_end_of_each_stage() -> None:
    assert table(preset('vid', detector())) == {
        f'vid_c{i}': (f'backbone.c{i}', 1.0) for i in (3, 4, 5)
    }
    stages = classifier(STAGES[:3])
    assert list(table(preset('vid', stages))) == ['vid_c2', 'vid_c3', 'vid_c4']
