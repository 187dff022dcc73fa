"""Two processes on CPUs train one student, as torchrun starts them."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from densekd.engine.run import train
from tests.helpers.runs import in_process
from tests.helpers.shipped import SHIPPED, shipped, without_chance

ROOT = Path(__file__).parents[2]
# Packages are about that install a folder named tests, which would be found before this one.
LAUNCHER = f"""
import sys, types
from pathlib import Path
sys.modules['tests'] = types.ModuleType('tests')
sys.modules['tests'].__path__ = [{str(ROOT / 'tests')!r}]
from tests.helpers.distributed import main
main(Path(sys.argv[1]))
"""


@pytest.fixture(scope='module')
def found(digits: Path) -> list[dict[str, Any]]:
    """What each process found; see tests/helpers/distributed.py."""
    root = digits.parent
    (root / 'launcher.py').write_text(LAUNCHER)
    command = [sys.executable, '-m', 'torch.distributed.run', '--nproc_per_node', '2']
    command += ['--master_port', '0', '--rdzv_backend', 'c10d', '--rdzv_endpoint', 'localhost:0']
    result = subprocess.run(
        [*command, str(root / 'launcher.py'), str(root)],
        capture_output=True,
        text=True,
        check=False,
        cwd=ROOT,
        env={**os.environ, 'PYTHONPATH': str(ROOT), 'OMP_NUM_THREADS': '1'},
        timeout=300,
    )
    assert result.returncode == 0, result.stdout[-3000:] + result.stderr[-6000:]
    return [json.loads((root / f'found{rank}.json').read_text()) for rank in (0, 1)]


SHIPPED_RUNS = [f'{name}-{kind}' for name in SHIPPED for kind in ('shipped', 'same')]


@pytest.mark.parametrize('name', ['stopping', 'empty', 'two-stage', *SHIPPED_RUNS])
def test_every_parameter_gets_its_gradient_on_both(found: list[dict[str, Any]], name: str) -> None:
    # Without find_unused_parameters, the second step fails if one is left out of the first.
    for one in found:
        run = one[name]
        assert run['wrapped'] == 'MMDistributedDataParallel'
        assert run['unused'] is False and run['broadcasts'] is False
        assert run['alike'] and run['finite']
        assert 'epoch_1.pth' in run['files'] and not [f for f in run['files'] if 'partial' in f]


def test_two_halves_teach_what_the_whole_does(found: list[dict[str, Any]]) -> None:
    for one in found:
        compared = one['gradients']
        assert compared['mean'] == pytest.approx(compared['expected'], rel=1e-4)
        assert all(value > 0 for value in compared['expected'])
        assert compared['far'] == []


def test_a_checkpoint_between_steps_keeps_the_mean_of_what_processes_gathered(
    found: list[dict[str, Any]],
) -> None:
    for one in found:  # 2 and 4; nothing, which counts as 0, and 6
        assert one['kept'] == {'all': 3.0, 'one': 3.0}


# The first step of configs of the repository ------------------------------------------------------


@pytest.fixture(scope='module')
def single(digits: Path) -> dict[str, dict[str, Any]]:
    """The first step of one process, by the config's name."""
    steps = {}
    for name in SHIPPED:
        path, log = digits.parent / f'{name}-single.json', digits.parent / f'{name}-single.txt'
        hooks = [dict(type='mmengine.FirstStepHook', path=str(path))]
        cfg = shipped(name, digits, digits.parent / f'{name}-single', custom_hooks=hooks)
        cfg = without_chance(cfg)

        with pytest.MonkeyPatch.context() as patch:  # see conftest.py
            patch.setattr('yapf.yapflib.yapf_api.FormatCode', lambda text, **_: (text, True))
            code = in_process(lambda cfg=cfg: train(cfg, preflight=False), log)
        assert code == 0, log.read_text()[-3000:]
        steps[name] = json.loads(path.read_text())
    return steps


def divisor(term: str) -> str | None:
    """Returns the count that a term is divided by, which is a process' own; None for a shared one.

    As in plain training: sampled anchors in an RPN, sampled regions in a box head, positive
    anchors in RetinaNet's head. FGFI divides by the mean count of all processes.
    """
    if 'fgfi' in term:
        return None
    return 'rpn' if 'rpn' in term else 'roi'


@pytest.mark.parametrize('name', list(SHIPPED))
def test_the_first_losses_of_two_processes_are_those_of_one_on_the_same_batch(
    found: list[dict[str, Any]], single: dict[str, dict[str, Any]], name: str
) -> None:
    halves, whole = [one[f'{name}-same'] for one in found], single[name]
    assert sorted(halves[0]['images'] + halves[1]['images']) == sorted(whole['images'])
    assert len(set(whole['images'])) == 4
    for key in whole['counts']:
        assert sum(half['counts'][key] for half in halves) == whole['counts'][key] > 0
    assert len(whole['logged']) == {'chen2017': 8, 'fgfi': 3}[name]
    for term, expected in whole['logged'].items():
        count = divisor(term)
        if 'roi' in whole['counts'] or count is None:
            weights = [1.0 if count is None else half['counts'][count] for half in halves]
        else:
            weights = [half['counts']['dense'] for half in halves]
        parts = [w * half['logged'][term] for w, half in zip(weights, halves, strict=True)]
        assert sum(parts) / sum(weights) == pytest.approx(expected, rel=2e-4), term
        assert expected > 0, term


@pytest.mark.parametrize('name', list(SHIPPED))
def test_a_process_computes_on_its_half_what_it_would_alone(
    found: list[dict[str, Any]], name: str
) -> None:
    # With the configs as they are: samplers that draw, statistics of the batch.
    for one in found:
        step = one[f'{name}-shipped']
        shared = [term for term in step['logged'] if divisor(term) is None]
        assert len(shared) == (name == 'fgfi')
        for term in step['logged'].keys() - set(shared):
            assert step['logged'][term] == pytest.approx(step['alone'][term], rel=1e-5), term
        assert step['total'] == pytest.approx(sum(step['logged'].values()), rel=1e-5)
    first, second = (one[f'{name}-shipped'] for one in found)
    assert set(first['images']).isdisjoint(second['images']) and first['total'] != second['total']
