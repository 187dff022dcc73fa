"""Rounds: each learns from the one before; they resume to the bit; what is wrong is told first."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import pytest
from mmengine.config import Config

from densekd.cli.demo_progress import Reporter
from densekd.cli.demo_steps import train_and_score
from densekd.cli.main import main
from densekd.core.checkpoint import file_hash, read_checkpoint
from densekd.engine import sequences
from densekd.engine.run import train
from densekd.engine.runner import latest_checkpoint
from densekd.engine.sequences import parse_rounds, round_config, train_config, train_rounds
from densekd.errors import CheckpointError, ConfigError, DataError, DenseKDError
from tests.helpers.classifier_runs import labels_config
from tests.helpers.classifiers import classifier
from tests.helpers.commands import write_config
from tests.helpers.detectors import entry
from tests.helpers.runs import KILLED, differences, in_process

WIDE = classifier(classes=10, base_channels=6)
# A first round alone, one by a wider network, and the small student by that one.
ROUNDS: list[dict[str, Any]] = [
    dict(name='first', plain=True, train_cfg=dict(max_epochs=1)),
    dict(name='wide', student=WIDE, train_cfg=dict(max_epochs=1)),
    dict(name='last'),
]


def config(data: Path, work_dir: Path, rounds: Any = ROUNDS, teacher: Any = None) -> Any:
    model: dict[str, Any] = dict(
        type='densekd.DistillClassifier',
        student=classifier(classes=10),
        distillers=[entry('logits', 'KD'), entry('backbone.c4', 'FitNet')],
    )
    if teacher:
        model['teacher'] = teacher
    return labels_config(data, work_dir, model=model, rounds=rounds)


def go(cfg: Config, kill: tuple[str, int] | None = None, **more: Any) -> None:
    """Runs all rounds in a process of their own, which is killed in a round before an iteration."""
    folder = Path(cfg.work_dir)
    folder.mkdir(exist_ok=True)
    if kill is not None:
        cfg = cfg.copy()
        # Not among the custom hooks, which decide whether it is the same run.
        killing = dict(type='mmengine.KillInHook', folder=kill[0], at=kill[1])
        cfg['default_hooks'] = {**cfg.default_hooks, 'killing': killing}
    more = {'preflight': False, **more}
    code = in_process(lambda: train_rounds(cfg, **more), folder / 'log.txt')
    expected = 0 if kill is None else KILLED
    assert code == expected, f'{code}\n{(folder / "log.txt").read_text()[-3000:]}'


def register_killing() -> None:
    import os

    from mmengine.hooks import Hook
    from mmengine.registry import HOOKS

    @HOOKS.register_module(force=True)
    class KillInHook(Hook):
        """Kills its own process before an iteration of the run in a folder."""

        priority = 'LOWEST'

        def __init__(self, folder: str, at: int) -> None:
            self.folder, self.at = folder, at

        def before_train_iter(self, runner: Any, batch_idx: int, data_batch: Any = None) -> None:
            if runner.iter == self.at and Path(runner.work_dir).name == self.folder:
                os.kill(os.getpid(), 9)


register_killing()


@pytest.fixture(scope='module')
def finished(digits: Path, tmp_path_factory: pytest.TempPathFactory) -> Config:
    """The config of finished rounds."""
    made = config(digits, tmp_path_factory.mktemp('rounds') / 'whole')
    go(made)
    return made


def test_each_round_learns_from_the_last_checkpoint_of_the_one_before(finished: Config) -> None:
    root = Path(finished.work_dir)
    done = json.loads((root / 'rounds.json').read_text())
    assert done == {
        'first': 'first/epoch_1.pth', 'wide': 'wide/epoch_1.pth', 'last': 'last/epoch_2.pth',
    }  # fmt: skip
    saved = {name: read_checkpoint(root / path) for name, path in done.items()}
    assert 'densekd' not in saved['first']
    for name, before in (('wide', 'first'), ('last', 'wide')):
        manifest = saved[name]['densekd']['teachers']['teacher']
        assert manifest['sha256'] == file_hash(root / done[before])
    key = 'backbone.conv1.weight'
    channels = {n: s['state_dict'][key].shape[0] for n, s in saved.items()}
    assert channels == {'first': 4, 'wide': 6, 'last': 4}


def test_a_round_is_what_its_two_configs_would_be(finished: Config, tmp_path: Path) -> None:
    """A chain of one link is distillation as it always was."""
    cfg = finished.copy()
    cfg.pop('rounds')
    cfg.work_dir = str(tmp_path / 'alone')
    last = Path(finished.work_dir) / 'wide' / 'epoch_1.pth'
    cfg.model.teacher = dict(model=WIDE, checkpoint=str(last))
    code = in_process(lambda: train(cfg, preflight=False), tmp_path / 'log.txt')
    assert code == 0, (tmp_path / 'log.txt').read_text()[-2000:]
    whole = Path(finished.work_dir) / 'last' / 'epoch_2.pth'
    found = differences(whole, tmp_path / 'alone' / 'epoch_2.pth')
    assert found == []


@pytest.mark.parametrize('kill', [('first', 1), ('wide', 1), ('last', 'second epoch')])
def test_killed_and_started_again_equals_uninterrupted(
    kill: Any, digits: Path, finished: Config, tmp_path: Path
) -> None:
    root, last = tmp_path / 'killed', Path(finished.work_dir) / 'last/epoch_2.pth'
    if kill[1] == 'second epoch':
        kill = ('last', read_checkpoint(last)['meta']['iter'] // 2 + 1)
    # Of teachers a run knows the path as well, which must be that of the folder it is in.
    go(config(digits, root), kill=kill)
    names = [r['name'] for r in ROUNDS]
    ended = names[: names.index(kill[0])]
    written = root / 'rounds.json'
    assert (list(json.loads(written.read_text())) if written.exists() else []) == ended
    before = {n: file_hash(latest_checkpoint(root / n)) for n in ended}
    go(config(digits, root))  # the same command
    assert {n: file_hash(latest_checkpoint(root / n)) for n in ended} == before
    found = differences(last, root / 'last/epoch_2.pth')
    # The teacher's file is another one, with the same weights and another clock in it.
    assert [k for k in found if '/teachers/' not in k] == []
    with pytest.raises(DataError, match='holds a run of this config already'):
        train_rounds(config(digits, root), preflight=False)


def test_the_best_may_be_taken(digits: Path, tmp_path: Path) -> None:
    rounds = [dict(name='first', plain=True, take='best'), dict(name='second')]
    made = config(digits, tmp_path / 'best', rounds)
    go(made)
    done = json.loads((tmp_path / 'best' / 'rounds.json').read_text())
    assert done['first'].startswith('first/best_accuracy_top1_epoch_')
    assert done['second'] == 'second/epoch_2.pth'


def test_the_first_round_has_the_teacher_of_the_config(digits: Path, tmp_path: Path) -> None:
    teacher = dict(model=WIDE, untrained=True)
    cfg = config(digits, tmp_path / 'run', [dict(name='a'), dict(name='b')], teacher)
    first, second = parse_rounds(cfg)
    assert round_config(cfg, first, None).model.teacher.model.backbone.base_channels == 6
    before = dict(model=classifier(classes=10), checkpoint='x.pth')
    assert round_config(cfg, second, before).model.teacher.checkpoint == 'x.pth'


def test_what_a_round_says_wins(digits: Path, tmp_path: Path) -> None:
    rounds = [
        dict(name='a', plain=True, randomness=dict(seed=3), optim_wrapper=dict(clip_grad=None)),
        dict(name='b', preset='feed', param_scheduler=[], train_cfg=dict(max_epochs=7)),
    ]
    cfg = config(digits, tmp_path / 'run', rounds)
    first = round_config(cfg, rounds[0], None)
    assert first.model.type == 'densekd.ImageClassifier' and first.randomness.seed == 3
    assert first.optim_wrapper.optimizer.type == 'SGD' and 'rounds' not in first
    second = round_config(cfg, rounds[1], dict(model=WIDE, checkpoint='x.pth'))
    assert second.model.preset == 'feed' and 'distillers' not in second.model
    assert second.param_scheduler == [] and second.train_cfg.max_epochs == 7
    assert second.train_cfg.type == 'EpochBasedTrainLoop'
    assert second.work_dir == str(tmp_path / 'run' / 'b')


@pytest.mark.parametrize(
    ('rounds', 'sentence'),
    [
        ('twice', 'rounds: a list of dicts is needed'),
        ([], 'rounds: a list of dicts is needed'),
        ([3], r'rounds\[0\]: a dict is needed'),
        ([dict(plain=True)], r"rounds\[0\]: a round needs a 'name'"),
        ([dict(name='a')], r'rounds\[0\]: there is no teacher yet. Give plain=True'),
        ([dict(name='a', plain=True), dict(name='a')], "the name 'a' is used twice"),
        ([dict(name='a', plaim=True)], "no key 'plaim'. Did you mean 'plain'"),
        ([dict(name='a', plain=True, take='bets')], "there is no 'bets'. Did you mean 'best'"),
        ([dict(name='a', plain=True, preset='kd', distillers=[])], 'preset or distillers'),
        ([dict(name='a', plain='yes')], r"rounds\[0\].plain: True or False, not 'yes'."),
        ([dict(name='rounds.json', plain=True)], "a round can't be called 'rounds.json'"),
        ([dict(name='../a', plain=True)], "a round needs a 'name'"),
        (
            [dict(name='a', plain=True), dict(name='b', train_cfg=dict(max_epochs=0))],
            "^round 'b': train_cfg.max_epochs: a whole number above 0 is needed, not 0.$",
        ),
        ([dict(name='a', plain=True, train_cfg=3)], r'rounds\[0\].train_cfg: a dict is needed'),
        (
            [dict(name='a', plain=True), dict(name='b', optim_wrapper=dict(optimizer='SGD'))],
            "^round 'b': optim_wrapper.optimizer: a dict such as .* is needed, not 'SGD'.$",
        ),
    ],
)
def test_what_is_wrong_is_a_sentence(
    rounds: Any, sentence: str, digits: Path, tmp_path: Path
) -> None:
    with pytest.raises(ConfigError, match=sentence) as caught:
        train_rounds(config(digits, tmp_path / 'run', rounds))
    assert '\n' not in str(caught.value) and not (tmp_path / 'run').exists()


def test_a_later_round_is_looked_at_before_the_first_trains(digits: Path, tmp_path: Path) -> None:
    rounds = [dict(name='a', plain=True), dict(name='b', preset='dml')]
    with pytest.raises(ConfigError, match=r"round 'b': preset 'dml': its networks learn from each"):
        train_rounds(config(digits, tmp_path / 'run', rounds))
    assert not list((tmp_path / 'run').rglob('*.pth'))
    rounds = [dict(name='a', plain=True), dict(name='b', take='best')]
    cfg = config(digits, tmp_path / 'run', rounds)
    cfg.default_hooks.checkpoint.pop('save_best')
    with pytest.raises(ConfigError, match=r"round 'b': take='best' needs default_hooks"):
        train_rounds(cfg, preflight=False)


AHEAD: dict[str, tuple[dict[str, Any], str]] = {
    'a file to load from': (dict(load_from='gone.pth'), "^round 'b': load_from: gone.pth: "),
    "the student's first weights": (
        dict(
            student={
                **WIDE,
                'init_cfg': dict(type='Pretrained', checkpoint='gone.pth'),
            }
        ),
        "^round 'b': .*the student's initial weights can't be had: gone.pth",
    ),
    'an optimiser': (
        dict(optim_wrapper=dict(_delete_=True, type='OptimWrapper')),
        "^round 'b': optim_wrapper.optimizer: there is none",
    ),
    'a rate': (
        dict(optim_wrapper=dict(optimizer=dict(lr='fast'))),
        "^round 'b': optim_wrapper.optimizer: it can't be built",
    ),
}


@pytest.mark.parametrize('case', list(AHEAD))
def test_what_a_later_round_lacks_is_missed_before_the_first_trains(
    case: str, digits: Path, tmp_path: Path
) -> None:
    given, sentence = AHEAD[case]
    rounds = [dict(name='a', plain=True), dict(name='b', **given)]
    with pytest.raises(DenseKDError, match=sentence) as caught:
        train_rounds(config(digits, tmp_path / 'run', rounds), preflight=False)
    assert '\n' not in str(caught.value) and not (tmp_path / 'run').exists()


def staged_file(digits: Path, tmp_path: Path, **more: Any) -> str:
    made = config(digits, tmp_path / 'own', None, dict(model=WIDE, untrained=True))
    made.stages = [
        dict(name='hint', train=['backbone', 'distillers'], task_loss=False),
        dict(name='train', train_cfg=dict(max_epochs=1)),
    ]
    made.train_cfg.max_epochs = 1
    content = {**made._cfg_dict.to_dict(), **more}
    return str(write_config({k: v for k, v in content.items() if v is not None}, tmp_path / 'o.py'))


def test_the_stages_of_a_rounds_own_config_are_trained(digits: Path, tmp_path: Path) -> None:
    rounds = [
        dict(name='first', config=staged_file(digits, tmp_path)),
        dict(name='last', train_cfg=dict(max_epochs=1)),
    ]
    root = tmp_path / 'run'
    go(config(digits, root, rounds), kill=('last', 1), preflight=True)
    done = json.loads((root / 'rounds.json').read_text())
    assert done == {'first': 'first/train/epoch_1.pth'}
    (root / 'rounds.json').unlink()  # killed just before it was written
    before = file_hash(root / done['first'])
    go(config(digits, root, rounds))
    done = json.loads((root / 'rounds.json').read_text())
    assert done == {'first': 'first/train/epoch_1.pth', 'last': 'last/epoch_1.pth'}
    assert list(json.loads((root / 'first' / 'stages.json').read_text())) == ['hint', 'train']
    manifest = read_checkpoint(root / done['last'])['densekd']['teachers']['teacher']
    assert manifest['sha256'] == file_hash(root / done['first']) == before


def test_what_is_wrong_with_a_rounds_own_config_is_a_sentence(digits: Path, tmp_path: Path) -> None:
    rounds = [dict(name='a', config=staged_file(digits, tmp_path, stages=None, rounds=ROUNDS))]
    with pytest.raises(ConfigError, match="round 'a': its config has rounds of its own"):
        train_rounds(config(digits, tmp_path / 'run', rounds))
    stages = [dict(name='x', preset='kd', train=['nek'])]
    rounds = [
        dict(name='a', plain=True),
        dict(name='b', config=staged_file(digits, tmp_path, stages=stages)),
    ]
    cfg = config(digits, tmp_path / 'run', rounds)
    with pytest.raises(ConfigError, match="^round 'b': stage 'x': train: 'nek' matches nothing"):
        train_rounds(cfg)
    assert not (tmp_path / 'run').exists()


def test_a_round_replaces_a_dict_with_delete(digits: Path, tmp_path: Path) -> None:
    loop = dict(_delete_=True, type='IterBasedTrainLoop', max_iters=3)
    rounds = [dict(name='a', plain=True, train_cfg=loop, randomness=dict(deterministic=True))]
    cfg = config(digits, tmp_path, rounds)
    one = round_config(cfg, rounds[0], None)
    assert one.train_cfg == dict(type='IterBasedTrainLoop', max_iters=3)
    assert one.randomness == dict(seed=0, deterministic=True)


def test_other_rounds_and_a_damaged_file_are_refused(finished: Config, digits: Path) -> None:
    root = Path(finished.work_dir)
    changed = config(digits, root, [*ROUNDS, dict(name='more')])
    with pytest.raises(DataError, match='another run: its rounds differs'):
        train_rounds(changed, resume=True, preflight=False)
    kept = (root / 'rounds.json').read_text()
    try:
        (root / 'rounds.json').write_text(kept[:9])
        with pytest.raises(CheckpointError, match='which rounds have ended, and is damaged'):
            train_rounds(config(digits, root), resume=True, preflight=False)
    finally:
        (root / 'rounds.json').write_text(kept)


@pytest.mark.parametrize(
    ('given', 'by'),
    [
        ({}, 'train_stages'),
        ({'rounds': None}, 'train_stages'),
        ({'stages': [dict(name='a')]}, 'train_stages'),
        ({'rounds': ROUNDS}, 'train_rounds'),
        ({'rounds': []}, 'train_rounds'),  # which says what is wrong with it
    ],
)
def test_a_config_says_itself_how_it_is_trained(
    given: dict[str, Any], by: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    met: list[Any] = []
    for name in ('train_rounds', 'train_stages'):
        said = f'{name}.pth'
        monkeypatch.setattr(
            sequences, name, lambda *all_given, said=said: met.append(all_given) or Path(said)
        )
    cfg = Config(given)
    assert train_config(cfg, resume=True, preflight=False, trust=True) == Path(f'{by}.pth')
    assert train_config(cfg) == Path(f'{by}.pth')
    assert met == [(cfg, True, False, True), (cfg, False, True, False)]


def test_the_commands_leave_the_choice_to_one_function(
    digits: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Reached(Exception):
        pass

    def reach(cfg: Any, **_: Any) -> None:
        raise Reached([one['name'] for one in cfg.rounds])

    monkeypatch.setattr(sequences, 'train_config', reach)
    path = write_config(config(digits, tmp_path / 'run')._cfg_dict.to_dict(), tmp_path / 'c.py')
    with pytest.raises(Reached, match='first'):
        main(['train', str(path), '--no-check'])
    quiet = Reporter(io.StringIO())
    with pytest.raises(Reached, match='first'):
        train_and_score('run', path, tmp_path / 'demo', 0, quiet)
