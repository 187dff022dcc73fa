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
    with pytest.raises(ConfigError, match=f"preset '{name}': there is no at='neck'"):
        preset(name, classifier(STAGES), 'neck')
