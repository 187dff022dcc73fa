"""The gradient shares by which the benchmark's weights are chosen."""

from __future__ import annotations

import doctest
import json
from pathlib import Path

import pytest

pytest.importorskip('mmdet')

import projects.digits_benchmark.arms as arms
import projects.digits_benchmark.shares as shares
from densekd.cli.demo_steps import data_options, find_recipe, taught_by
from densekd.datasets import make_digits


@pytest.fixture
def runs(tmp_path, monkeypatch):
    """Returns the data, and the folder of a teacher and of a plain student, both untrained."""
    monkeypatch.syspath_prepend(str(Path(shares.__file__).parent))
    recipe = find_recipe('retinanet', 'pkd')
    data = make_digits(tmp_path / 'digits', train=24, val=1, test=1, progress=False)
    for name, config in (('teacher', recipe.teacher), ('plain', recipe.plain)):
        (tmp_path / name).mkdir()
        held = arms.untrained(config, tmp_path / name, 0)
        (tmp_path / name / 'result.json').write_text(json.dumps({'checkpoint': held.name}))
    return recipe, data, tmp_path


def test_twice_the_weight_is_twice_the_share(runs):
    recipe, data, folder = runs
    teacher = folder / 'teacher' / 'untrained_s0.pth'
    options = {**data_options(data), **taught_by(teacher, 0)}
    found = []
    for weight in (2.0, 4.0):
        config = folder / f'weight_{weight:g}.py'
        text = recipe.distilled.read_text().replace('loss_weight=2.0', f'loss_weight={weight}')
        text = text.replace('{{ fileDirname }}', str(recipe.distilled.parent))
        config.write_text(text.replace("'../../../../", f"'{recipe.distilled.parents[5]}/configs/"))
        found.append(shares.shares(config, options, None, 2))
    assert found[0] > 0 and found[1] == pytest.approx(2 * found[0], rel=1e-4)


def test_each_method_has_a_row_with_both_ends(runs, capsys):
    _, data, folder = runs
    given = ['--plain', folder / 'plain', '--teacher', folder / 'teacher', '--data', data]
    given += ['--results', folder / 'out', '--methods', 'pkd', '--batches', '1']
    assert shares.main([*map(str, given)]) == 0
    written = (folder / 'out' / 'retinanet_shares.md').read_text()
    cells = [cell.strip() for cell in written.splitlines()[2].split('|')[1:-1]]
    assert cells[0] == 'pkd' and all(float(cell) > 0 for cell in cells[1:])
    assert written.splitlines()[2] in capsys.readouterr().out
    assert doctest.testmod(shares).attempted and not doctest.testmod(shares).failed
