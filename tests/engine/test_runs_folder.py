"""Which run a folder holds: what is compared, what is never written over, what a dump trains."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import pytest
from mmengine.config import Config

from densekd.engine.run import claim, fingerprint, mark, prepare, train
from densekd.engine.runner import DistillRunner, latest_checkpoint
from densekd.errors import DataError
from tests.helpers.classifier_runs import labels_config
from tests.helpers.classifiers import classifier
from tests.helpers.detectors import entry

STAGES = [dict(name='hint', distillers=[entry('logits', 'KD')]), dict(name='train')]


def changed(cfg: Any, **more: Any) -> Any:
    """Returns a config with other keys at its top."""
    cfg = copy.deepcopy(cfg)
    for key, value in more.items():
        cfg[key] = value
    return cfg


@pytest.fixture
def cfg(digits: Path, tmp_path: Path) -> Any:
    """A config whose folder holds nothing yet."""
    return labels_config(digits, tmp_path / 'run', [entry('logits', 'KD')])


def begun(cfg: Any, *files: str) -> Any:
    """Makes a run's folder hold what a run of the config leaves."""
    mark(cfg)
    for name in files:
        path = Path(cfg.work_dir) / name
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(b'')
    return cfg


# What is compared -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ('key', 'value'),
    [
        ('custom_hooks', [dict(type='EMAHook')]),
        ('custom_hooks', [dict(type='densekd.BestAndLastHook'), dict(type='EMAHook')]),
        ('load_from', 'other.pth'),
        ('auto_scale_lr', dict(enable=True, base_batch_size=4)),
        ('stages', tuple(STAGES)),
    ],
)
def test_what_decides_a_run_may_not_change(cfg: Any, key: str, value: Any) -> None:
    begun(cfg, 'epoch_1.pth')
    with pytest.raises(DataError, match=f'another run: its {key} differs'):
        claim(changed(cfg, **{key: value}), resume=True)
    # And the other way round, as a run that had it.
    begun(changed(cfg, **{key: value}))
    with pytest.raises(DataError, match=f'another run: its {key} differs'):
        claim(cfg, resume=True)


@pytest.mark.parametrize(
    'more',
    [
        dict(load_from=None, auto_scale_lr=None),
        dict(auto_scale_lr=dict(enable=False, base_batch_size=4)),
        dict(custom_hooks=None),
        dict(custom_hooks=[dict(type='densekd.StepSeedHook'), dict(type='densekd.ProgressHook')]),
    ],
)
def test_what_decides_nothing_may_change(cfg: Any, more: dict[str, Any]) -> None:
    begun(cfg, 'epoch_1.pth')
    claim(changed(cfg, **more), resume=True)
    assert fingerprint(changed(cfg, **more)) == fingerprint(cfg)


def test_a_tuple_is_what_a_list_is(cfg: Any) -> None:
    one, two = (fingerprint(changed(cfg, stages=kind(STAGES))) for kind in (list, tuple))
    assert one == two and 'stages' in one


def test_a_hook_that_is_built_already_is_the_same_in_each_process(cfg: Any) -> None:
    from mmengine.hooks import EMAHook

    one, two = (fingerprint(changed(cfg, custom_hooks=[EMAHook()])) for _ in range(2))
    assert one == two != fingerprint(cfg)


def test_a_run_of_an_older_version_goes_on(cfg: Any) -> None:
    """Its mark has none of the keys that are compared since."""
    begun(cfg, 'epoch_1.pth')
    path = Path(cfg.work_dir) / 'run.json'
    held = json.loads(path.read_text())
    assert not held['parts'].keys() & {'custom_hooks', 'load_from', 'auto_scale_lr'}
    claim(changed(cfg, load_from=None), resume=True)


# Where its checkpoints are ----------------------------------------------------------------------


def test_checkpoints_that_are_written_elsewhere_are_seen(cfg: Any, tmp_path: Path) -> None:
    """As `default_hooks.checkpoint.out_dir` has them."""
    elsewhere = tmp_path / 'out' / 'run' / 'epoch_1.pth'
    elsewhere.parent.mkdir(parents=True)
    elsewhere.write_bytes(b'')
    begun(cfg, 'last_checkpoint')
    (tmp_path / 'run' / 'last_checkpoint').write_text(str(elsewhere))
    claim(cfg, resume=True)
    with pytest.raises(DataError, match='a run of this config already'):
        claim(cfg, resume=False)
    with pytest.raises(DataError, match='another run: its randomness differs'):
        claim(changed(cfg, randomness=dict(seed=5)), resume=True)


@pytest.mark.parametrize(
    'more',
    [
        dict(stages=[dict(STAGES[0], name='first'), STAGES[1]]),
        dict(stages=None),
        dict(stages=None, rounds=[dict(name='a')]),
    ],
    ids=['renamed', 'plain', 'rounds'],
)
def test_a_stage_of_another_name_holds_its_run(cfg: Any, more: dict[str, Any]) -> None:
    begun(changed(cfg, stages=STAGES), 'hint/epoch_1.pth')
    for resume in (False, True):
        with pytest.raises(DataError, match='another run: its (stages|rounds) differs'):
            claim(changed(cfg, **more), resume)


def test_other_folders_in_a_folder_without_a_mark_are_no_run_of_it(cfg: Any) -> None:
    folder = Path(cfg.work_dir) / 'another'
    folder.mkdir(parents=True)
    (folder / 'epoch_1.pth').write_bytes(b'')
    claim(cfg, resume=False)
    assert [path.name for path in folder.parent.rglob('*')] == ['another', 'epoch_1.pth']


# The copy of its config ---------------------------------------------------------------------------


def written(cfg: Any, path: Path) -> Path:
    """Writes a config as a file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    cfg.dump(str(path))
    return path


@pytest.mark.parametrize(
    ('config', 'work_dir', 'more'),
    [
        ('here/my.py', 'here', {}),
        ('here/my.py', 'link', {}),
        ('link/my.py', 'here/../here', {}),
        ('here/hint/my.py', 'here', dict(stages=STAGES)),
    ],
)
def test_a_config_is_not_written_over(
    cfg: Any, tmp_path: Path, config: str, work_dir: str, more: dict[str, Any]
) -> None:
    (tmp_path / 'here').mkdir()
    (tmp_path / 'link').symlink_to(tmp_path / 'here')
    path = written(changed(cfg, **more), tmp_path / config)
    before = path.read_text(), sorted(tmp_path.rglob('*'))
    with pytest.raises(DataError, match='my.py: .* over this very file. Give another --work-dir'):
        claim(prepare(path, tmp_path / work_dir), resume=False)
    assert (path.read_text(), sorted(tmp_path.rglob('*'))) == before


def test_a_config_beside_the_folders_of_its_stages_is_safe(cfg: Any, tmp_path: Path) -> None:
    path = written(changed(cfg, stages=STAGES), tmp_path / 'my.py')
    before = path.read_text()
    claim(prepare(path, tmp_path), resume=False)
    assert path.read_text() == before


def test_a_dump_trains_with_the_hooks_that_the_run_had(cfg: Any, tmp_path: Path) -> None:
    path = written(cfg, tmp_path / 'my.py')
    cfg = prepare(path, tmp_path / 'run')
    first = DistillRunner.from_cfg(cfg)
    dumped = tmp_path / 'run' / 'my.py'
    again = prepare(dumped, tmp_path / 'again')
    assert fingerprint(again) == fingerprint(cfg)
    second = DistillRunner.from_cfg(again)
    names = [[type(hook).__name__ for hook in runner.hooks] for runner in (first, second)]
    assert names[0] == names[1] and len({*names[1]}) == len(names[1])


def test_a_run_goes_on_from_its_dump_and_leaves_it(cfg: Any, tmp_path: Path) -> None:
    cfg.train_cfg.max_epochs = 1
    path = written(cfg, tmp_path / 'my.py')
    train(prepare(path, tmp_path / 'run'), preflight=False)
    dumped = tmp_path / 'run' / 'my.py'
    before = dumped.read_text()
    train(prepare(dumped), resume=True, preflight=False)
    assert dumped.read_text() == before and len(before) > 100


# Weights that it begins from ----------------------------------------------------------------------


def test_a_run_is_marked_as_it_was_given(
    digits: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A resumed one begins without the weights, and is to be resumed once more."""
    monkeypatch.setattr('densekd.engine.run.run', lambda cfg, *_: Path(cfg.work_dir))
    cfg = labels_config(digits, tmp_path / 'run', epochs=1)
    weights = dict(type='Pretrained', checkpoint=str(tmp_path / 'weights.pth'))
    cfg.model = classifier(classes=10, init_cfg=weights)
    begun(cfg, 'epoch_1.pth')
    for _ in range(2):
        train(cfg, resume=True, preflight=False)
    assert latest_checkpoint(cfg.work_dir) is not None
    assert isinstance(cfg, Config) and cfg.model.backbone.init_cfg == weights
