"""The one reader of configs: finds what packages ship, and never runs pip."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from densekd.engine import load_config
from densekd.errors import ConfigError
from densekd.wrappers.config import package_configs, plain

pytest.importorskip('mmengine')


def refusal(source: Any) -> str:
    with pytest.raises(ConfigError) as caught:
        load_config(source)
    return str(caught.value)


@pytest.fixture
def pip_that_fails(tmp_path: Path) -> tuple[dict[str, str], Path]:
    """An environment in which every way to pip leaves a mark and fails."""
    marker, programs, modules = tmp_path / 'marker', tmp_path / 'bin', tmp_path / 'modules'
    programs.mkdir()
    for name in ('pip', 'pip3', 'mim'):
        program = programs / name
        program.write_text(f'#!/bin/sh\necho "$0 $@" >> {marker}\nexit 1\n')
        program.chmod(0o755)
    (modules / 'pip').mkdir(parents=True)
    body = f"open({str(marker)!r}, 'a').write('python -m pip\\n')\nraise SystemExit(1)\n"
    (modules / 'pip' / '__init__.py').write_text('')
    (modules / 'pip' / '__main__.py').write_text(body)
    root = Path(__file__).parents[2]
    env = dict(
        os.environ,
        PATH=os.pathsep.join([str(programs), os.environ['PATH']]),
        PYTHONPATH=os.pathsep.join([str(modules), str(root)]),
    )
    return env, marker


def run(code: str, env: dict[str, str]) -> str:
    done = subprocess.run(
        [sys.executable, '-c', code], capture_output=True, text=True, check=False, env=env
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def test_configs_of_both_toolboxes_load_where_pip_fails(
    pip_that_fails: tuple[dict[str, str], Path], tmp_path: Path
) -> None:
    pytest.importorskip('mmdet')
    pytest.importorskip('mmseg')
    env, marker = pip_that_fails
    for name, base in (
        ('det', 'mmdet::retinanet/retinanet_r50_fpn_1x_coco.py'),
        ('seg', 'mmseg::deeplabv3plus/deeplabv3plus_r50-d8_4xb2-40k_cityscapes-512x1024.py'),
    ):
        (tmp_path / f'{name}.py').write_text(f"_base_ = ['{base}']\nwork_dir = 'mine'\n")
    code = f"""
from densekd.engine import load_config
folder = {str(tmp_path)!r}
for source in (
    'mmdet::retinanet/retinanet_r50_fpn_1x_coco.py',
    'mmdet::retinanet/retinanet_r50_fpn_1x_coco',
    'mmseg::deeplabv3plus/deeplabv3plus_r50-d8_4xb2-40k_cityscapes-512x1024.py',
    folder + '/det.py',
    folder + '/seg.py',
):
    print(load_config(source).model.type)
try:
    load_config('mmpretrain::resnet/resnet50_8xb32_in1k.py')
except ValueError as error:
    print(error)
"""
    lines = run(code, env).splitlines()
    assert lines[:5] == ['RetinaNet', 'RetinaNet', 'EncoderDecoder', 'RetinaNet', 'EncoderDecoder']
    assert lines[5].startswith(
        'mmpretrain::resnet/resnet50_8xb32_in1k.py: the package mmpretrain is not'
    )
    assert not marker.exists(), marker.read_text()


def test_the_failing_pip_is_the_one_that_is_met(
    pip_that_fails: tuple[dict[str, str], Path],
) -> None:
    env, marker = pip_that_fails
    code = (
        'import subprocess, sys\n'
        'subprocess.call(["pip"])\n'
        'subprocess.call([sys.executable, "-m", "pip"])\n'
    )
    run(code, env)
    assert len(marker.read_text().splitlines()) == 2


# What is read -----------------------------------------------------------------------------------


def test_a_file_a_dict_and_a_config(tmp_path: Path) -> None:
    from mmengine.config import Config

    path = tmp_path / 'a.py'
    path.write_text("model = dict(type='A', depth=18)\n")
    for source in (path, str(path), {'model': {'type': 'A', 'depth': 18}}):
        config = load_config(source)
        assert isinstance(config, Config) and config.model == {'type': 'A', 'depth': 18}
    config = Config({'a': 1})
    assert load_config(config) is config


def test_a_base_is_followed(tmp_path: Path) -> None:
    (tmp_path / 'base.py').write_text("model = dict(type='A', depth=18)\n")
    (tmp_path / 'a.py').write_text("_base_ = ['./base.py']\nmodel = dict(depth=50)\n")
    assert load_config(tmp_path / 'a.py').model == {'type': 'A', 'depth': 50}


# What is not there ------------------------------------------------------------------------------


def test_a_misspelt_file_names_a_near_one(tmp_path: Path) -> None:
    (tmp_path / 'retinanet_r18.py').write_text('')
    written = tmp_path / 'retinanet_r81.py'
    assert refusal(written) == (
        f"{written}: there is no such config. Did you mean 'retinanet_r18.py'? It has: "
        'retinanet_r18.py.'
    )
    assert refusal(tmp_path / 'x' / 'a.py').endswith(f'There is no config in {tmp_path / "x"}.')


def test_a_misspelt_path_of_a_package_names_a_near_one() -> None:
    pytest.importorskip('mmdet')
    message = refusal('mmdet::retinanet/retinanet_r50_fpn_1x_cooc.py')
    assert message.startswith(
        'mmdet::retinanet/retinanet_r50_fpn_1x_cooc.py: mmdet ships no such config. Did you mean '
        "'retinanet_r50_fpn_1x_coco.py'"
    )
    message = refusal('mmdet::retinanett/retinanet_r50_fpn_1x_coco.py')
    assert 'mmdet ships no such config' in message
    assert "Did you mean 'retinanet'" in message


def test_a_missing_package_says_how_to_get_it() -> None:
    assert refusal('mmnothing::a/b.py') == (
        'mmnothing::a/b.py: the package mmnothing is not installed. Run: make env, or pip install '
        '"densekd[onedl,det,seg]".'
    )


def test_a_package_without_configs_says_so() -> None:
    assert 'the installed torch ships no configs' in refusal('torch::a.py')
    with pytest.raises(ConfigError, match='the package  is not installed'):
        package_configs('', '::a.py')


@pytest.mark.parametrize(
    ('text', 'reason'),
    [
        ('model = dict(', "the config can't be read: "),
        ('model = undefined_name', "NameError: name 'undefined_name' is not defined"),
        ("_base_ = ['./gone.py']", 'gone.py'),
        ("_base_ = ['mmnothing::gone.py']", "the config can't be read: "),
        ('depth = 1 / 0', 'ZeroDivisionError: division by zero'),
    ],
)
def test_a_broken_config_says_where_and_why(tmp_path: Path, text: str, reason: str) -> None:
    path = tmp_path / 'a.py'
    path.write_text(text)
    message = refusal(path)
    assert message.startswith(str(path)) and reason in message
    assert '\n' not in message


@pytest.mark.parametrize('source', [None, 3, 1.5, ['a.py']])
def test_what_is_no_config_is_refused(source: Any) -> None:
    assert refusal(source) == (
        f'a config is a path, package::path, a dict or a Config, not {source!r}.'
    )


def test_plain_copies_all_the_way_down() -> None:
    from mmengine.config import Config

    config = Config({'a': {'b': [1, {'c': (2, 3)}]}})
    value = plain(config.a)
    assert type(value) is dict and type(value['b'][1]) is dict
    assert value == {'b': [1, {'c': (2, 3)}]}
    value['b'][1]['c'] = 0
    assert config.a.b[1].c == (2, 3)
