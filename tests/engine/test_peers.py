"""Runs with peers and averages: scored, saved apart, resumed to the bit, exported."""

from __future__ import annotations

import json
import math
import socket
from pathlib import Path
from typing import Any

import pytest
import torch
from mmengine.config import Config

from densekd.core.checkpoint import read_checkpoint
from densekd.engine.peers import export_peer
from densekd.engine.preflight import check_before_training
from densekd.engine.run import evaluate, prepare, train
from densekd.engine.runner import latest_checkpoint
from densekd.engine.stages import train_stages
from densekd.errors import CheckpointError, ConfigError, DataError
from densekd.wrappers.build import build_network
from tests.engine.test_resume import go
from tests.helpers.classifier_runs import labels_config
from tests.helpers.classifiers import classifier
from tests.helpers.detectors import entry
from tests.helpers.runs import differences, in_process

WIDE = classifier(classes=10, base_channels=6)


def model(weight: float = 1.0, peers: bool = True) -> dict[str, Any]:
    """Returns a student that learns from a peer and from its own average, as the peer does."""
    if not peers:
        return classifier(classes=10)
    return dict(
        type='densekd.DistillClassifier',
        student=classifier(classes=10),
        peers=[dict(name='wide', model=WIDE), dict(name='mean', ema=0.9)],
        distillers=[
            entry('logits', 'DML', weight, teacher='wide'),
            entry('backbone.c4', 'FitNet', weight, teacher='mean'),
            entry('logits', 'DML', weight, teacher=['student', 'mean'], student='wide'),
        ],
    )


def config(data: Path, work_dir: Path, **more: Any) -> Config:
    clipped = dict(
        type='OptimWrapper',
        optimizer=dict(type='SGD', lr=0.05, momentum=0.9, weight_decay=5e-4),
        clip_grad=dict(max_norm=1.0),
    )
    return labels_config(data, work_dir, **{'model': model(), 'optim_wrapper': clipped, **more})


@pytest.fixture(scope='module')
def finished(digits: Path, tmp_path_factory: pytest.TempPathFactory) -> Config:
    """The config of a finished run."""
    made = config(digits, tmp_path_factory.mktemp('run') / 'whole')
    go(made)
    return made


def test_killed_and_resumed_equals_uninterrupted(
    digits: Path, finished: Config, tmp_path: Path
) -> None:
    whole = latest_checkpoint(finished.work_dir)
    assert whole is not None
    steps = read_checkpoint(whole)['meta']['iter'] // 2
    go(config(digits, tmp_path / 'killed'), kill_at=steps + 1)
    assert latest_checkpoint(tmp_path / 'killed').name == 'epoch_1.pth'
    go(config(digits, tmp_path / 'killed'), resume=True)
    assert differences(whole, tmp_path / 'killed' / whole.name) == []
    scores = [json.loads((Path(f) / 'scores.json').read_text())
              for f in (finished.work_dir, tmp_path / 'killed')]  # fmt: skip
    assert scores[0] == scores[1]


def test_at_weight_0_the_student_trains_as_if_alone(digits: Path, tmp_path: Path) -> None:
    states = []
    for name, network in {'plain': model(peers=False), 'zero': model(0.0)}.items():
        go(config(digits, tmp_path / name, model=network))
        states.append(read_checkpoint(tmp_path / name / 'epoch_2.pth')['state_dict'])
    plain, zero = states
    assert list(plain) == list(zero)
    assert [k for k in plain if not torch.equal(plain[k], zero[k])] == []


def test_the_file_is_the_student_and_the_others_are_apart(finished: Config) -> None:
    saved = read_checkpoint(latest_checkpoint(finished.work_dir))
    student = build_network(classifier(classes=10), 'mmengine', 'student')
    assert list(saved['state_dict']) == list(student.state_dict())
    assert set(saved['densekd']['peers']) == {'wide'}
    moving = saved['densekd']['moving']['mean']
    assert moving['steps'] == saved['meta']['iter'] and moving['begun']
    # It has followed the student, and is neither where that began nor where it ended.
    own, mean = saved['state_dict']['head.fc.weight'], moving['weights']['head.fc.weight']
    assert own.shape == mean.shape and not torch.equal(own, mean)
    assert (own - mean).abs().max() < own.abs().max()


def test_each_is_scored_and_exported(finished: Config, tmp_path: Path) -> None:
    scores = json.loads((Path(finished.work_dir) / 'scores.json').read_text())
    last = latest_checkpoint(finished.work_dir)
    assert last is not None and len(scores['all']) == 2
    for name, network in {'wide': WIDE, 'mean': classifier(classes=10)}.items():
        target = export_peer(last, name, tmp_path / f'{name}.pth')
        plain = build_network(network, 'mmengine', 'peer')
        assert plain.load_state_dict(read_checkpoint(target)['state_dict'], strict=True)
        cfg = finished.copy()
        cfg.model = network
        for key in ('accuracy/top1', 'accuracy/top5'):
            assert evaluate(cfg, target)[key] == pytest.approx(scores['last'][f'{name}/{key}'])
    assert evaluate(finished, last)['accuracy/top1'] == scores['last']['accuracy/top1']
    before = target.read_bytes()
    with pytest.raises(DataError, match='.pth: the file is there already. Give another'):
        export_peer(last, 'mean', target)
    assert target.read_bytes() == before and not list(tmp_path.glob('.*'))
    with pytest.raises(CheckpointError, match="it holds no peer 'wid'. Did you mean 'wide'"):
        export_peer(last, 'wid', tmp_path / 'x.pth')


def test_the_check_tries_every_term_on_the_network_that_it_teaches(
    digits: Path, tmp_path: Path
) -> None:
    report = check_before_training(config(digits, tmp_path / 'run'))
    assert report is not None
    told = {term.key: (term.student, term.teacher) for term in report.terms}
    assert told == {
        'head_dml_logits': ('logits', 'wide: logits'),
        'backbone_fitnet_c4': ('backbone.c4', 'mean: backbone.c4'),
        'head_dml_logits_wide': ('wide: logits', 'student, mean: logits'),
    }
    assert all(term.gradient > 0 for term in report.terms)


def test_a_resumed_run_of_other_peers_is_refused(digits: Path, finished: Config) -> None:
    last = latest_checkpoint(finished.work_dir)
    changed = model()
    changed['peers'][0]['model'] = classifier(classes=10, base_channels=8)
    from densekd.engine.runner import DistillRunner

    cfg = config(digits, Path(finished.work_dir).parent / 'other', model=changed)
    runner = DistillRunner.from_cfg(cfg)
    runner._resume = True
    with pytest.raises(CheckpointError, match="with another peer 'wide'"):
        runner.load_checkpoint(str(last))


def test_a_hook_that_would_lose_the_peers_is_refused(digits: Path, tmp_path: Path) -> None:
    cfg = config(digits, tmp_path / 'run', custom_hooks=[dict(type='EMAHook')])
    with pytest.raises(
        ConfigError, match='custom_hooks: EMAHook averages the student, and'
    ) as found:
        train(cfg, preflight=False)
    assert '\n' not in str(found.value)


def group_of_one(monkeypatch: pytest.MonkeyPatch) -> None:
    """Gives a launcher the address of a group of this process alone."""
    address = dict(RANK='0', WORLD_SIZE='1', LOCAL_RANK='0', MASTER_ADDR='localhost')
    for key, value in address.items():
        monkeypatch.setenv(key, value)
    with socket.socket() as free:
        free.bind(('localhost', 0))
        monkeypatch.setenv('MASTER_PORT', str(free.getsockname()[1]))


def test_a_distributed_wrapper_makes_the_same_steps(
    digits: Path, finished: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It steps by itself, after which a hook moves the average; every parameter has a gradient."""
    group_of_one(monkeypatch)

    def distributed() -> None:
        train(prepare(config(digits, tmp_path / 'run'), launcher='pytorch'), preflight=False)

    assert in_process(distributed, tmp_path / 'log.txt') == 0, (tmp_path / 'log.txt').read_text()
    alone = read_checkpoint(latest_checkpoint(finished.work_dir))
    wrapped = read_checkpoint(latest_checkpoint(tmp_path / 'run'))
    moving = wrapped['densekd']['moving']['mean']
    assert moving['steps'] == wrapped['meta']['iter'] > 0
    pairs = [(alone['state_dict'], wrapped['state_dict'])]
    pairs.append((alone['densekd']['moving']['mean']['weights'], moving['weights']))
    pairs.append((alone['densekd']['peers']['wide'], wrapped['densekd']['peers']['wide']))
    for first, second in pairs:
        for key, value in first.items():
            torch.testing.assert_close(second[key], value, rtol=1e-4, atol=1e-5)


def test_stages_hand_over_peers_and_averages(digits: Path, tmp_path: Path) -> None:
    """Whole, also where of the student a part is handed over."""
    still = dict(optimizer=dict(lr=0.0, weight_decay=0.0))
    stages = [
        dict(name='a', train_cfg=dict(max_epochs=1), hand_over=['backbone']),
        dict(name='b', train_cfg=dict(max_epochs=1), optim_wrapper=still),
    ]
    cfg = config(digits, tmp_path, stages=stages)
    assert in_process(lambda: train_stages(cfg), tmp_path / 'log.txt') == 0, (
        tmp_path / 'log.txt'
    ).read_text()[-3000:]
    a, b = (read_checkpoint(latest_checkpoint(tmp_path / name)) for name in 'ab')
    first, second = (saved['densekd']['peers']['wide'] for saved in (a, b))
    network = build_network(WIDE, 'mmengine', 'peer')
    for name, _ in network.named_parameters():
        assert torch.equal(first[name], second[name])
    moving = [saved['densekd']['moving']['mean'] for saved in (a, b)]
    assert [m['steps'] for m in moving] == [a['meta']['iter'], a['meta']['iter'] * 2]
    # The head was not handed over, and the average still remembers that of the first stage.
    key = 'head.fc.weight'
    assert not torch.equal(a['state_dict'][key], b['state_dict'][key])
    steps = range(a['meta']['iter'] + 1, 2 * a['meta']['iter'] + 1)
    keep = math.prod(min(1 - 1 / (t + 1), 0.9) for t in steps)
    expected = keep * moving[0]['weights'][key] + (1 - keep) * b['state_dict'][key]
    torch.testing.assert_close(moving[1]['weights'][key], expected)


@pytest.mark.parametrize('launcher', ['none', 'pytorch'])
def test_an_average_follows_the_steps_of_a_run_that_gathers(
    launcher: str, digits: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With a distributed wrapper too, which makes the steps by itself."""
    group_of_one(monkeypatch)

    def go_on() -> None:
        cfg = config(digits, tmp_path / 'run', train_cfg=dict(by_epoch=True, max_epochs=1))
        cfg.optim_wrapper.accumulative_counts = 2
        train(prepare(cfg, launcher=launcher), preflight=False)

    assert in_process(go_on, tmp_path / 'log.txt') == 0, (tmp_path / 'log.txt').read_text()[-3000:]
    saved = read_checkpoint(latest_checkpoint(tmp_path / 'run'))
    assert saved['densekd']['moving']['mean']['steps'] == math.ceil(saved['meta']['iter'] / 2)
