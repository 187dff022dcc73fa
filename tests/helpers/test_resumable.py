"""The full run goes on where it stopped."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace

from tests.helpers.resumable import Resumable


def item(name: str) -> SimpleNamespace:
    return SimpleNamespace(nodeid=name)


def config() -> SimpleNamespace:
    gone: list[object] = []
    hook = SimpleNamespace(pytest_deselected=lambda items: gone.extend(items))
    return SimpleNamespace(hook=hook, gone=gone)


def test_what_has_passed_is_left_out_and_what_failed_runs_again(tmp_path: Path) -> None:
    first = Resumable(tmp_path)
    for name, outcome in (('a', 'passed'), ('b', 'failed'), ('c', 'skipped')):
        report = SimpleNamespace(nodeid=name, when='call', outcome=outcome)
        first.pytest_runtest_logreport(report)
    items, cfg = [item(n) for n in 'abcd'], config()
    Resumable(tmp_path).pytest_collection_modifyitems(cfg, items)  # type: ignore[arg-type]
    assert [i.nodeid for i in items] == ['b', 'd']
    assert [i.nodeid for i in cfg.gone] == ['a', 'c']
    again = Resumable(tmp_path)
    again.pytest_runtest_logreport(SimpleNamespace(nodeid='b', when='call', outcome='passed'))
    assert Resumable(tmp_path).outcomes['b'] == 'passed'


def test_a_setup_that_passes_is_no_outcome_and_a_teardown_that_fails_is(tmp_path: Path) -> None:
    run = Resumable(tmp_path)
    run.pytest_runtest_logreport(SimpleNamespace(nodeid='a', when='setup', outcome='passed'))
    assert run.outcomes == {}
    run.pytest_runtest_logreport(SimpleNamespace(nodeid='a', when='call', outcome='passed'))
    run.pytest_runtest_logreport(SimpleNamespace(nodeid='a', when='teardown', outcome='failed'))
    assert run.outcomes == {'a': 'failed'}
    assert [json.loads(line)['outcome'] for line in run.path.read_text().splitlines()] == [
        'passed',
        'failed',
    ]
