"""`make test-all` is long: it goes on where it stopped, and says how it ended.

Outcomes are kept by the state of the tree, so that a changed file starts the run anew. A run that
reaches its end writes tests/RESULTS.md.
"""

from __future__ import annotations

import hashlib
import json
import subprocess
from datetime import date
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[2]
RESULTS = ROOT / 'tests' / 'RESULTS.md'


def tree_state() -> str:
    """Returns a hash of the commit and of what is not committed, the results themselves apart."""
    commands = (
        ['git', 'rev-parse', 'HEAD'],
        ['git', 'diff', 'HEAD', '--', '.', ':!tests/RESULTS.md'],
        ['git', 'ls-files', '--others', '--exclude-standard'],
    )
    digest = hashlib.sha256()
    for command in commands:
        result = subprocess.run(command, cwd=ROOT, capture_output=True, check=False)
        digest.update(result.stdout)
    return digest.hexdigest()[:16]


class Resumable:
    """A pytest plugin: leaves out what has passed on this very tree, and writes the outcome."""

    def __init__(self, folder: Path) -> None:
        self.path = folder / f'{tree_state()}.jsonl'
        self.outcomes: dict[str, str] = {}
        if self.path.is_file():
            for line in self.path.read_text().splitlines():
                entry = json.loads(line)
                self.outcomes[entry['test']] = entry['outcome']
        self.failed_now: set[str] = set()

    def pytest_collection_modifyitems(
        self, config: pytest.Config, items: list[pytest.Item]
    ) -> None:
        """Deselects what has passed or was skipped in an earlier, interrupted run."""
        done = {test for test, outcome in self.outcomes.items() if outcome != 'failed'}
        again = [item for item in items if item.nodeid in done]
        if again:
            items[:] = [item for item in items if item.nodeid not in done]
            config.hook.pytest_deselected(items=again)

    def pytest_runtest_logreport(self, report: Any) -> None:
        """Keeps each outcome as it comes."""
        decisive = report.when == 'call' or report.outcome != 'passed'
        if not decisive or report.nodeid in self.failed_now:
            return
        if report.outcome == 'failed':
            self.failed_now.add(report.nodeid)
        self.outcomes[report.nodeid] = report.outcome
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with open(self.path, 'a') as file:
            file.write(json.dumps({'test': report.nodeid, 'outcome': report.outcome}) + '\n')

    def pytest_sessionfinish(self, session: pytest.Session, exitstatus: int) -> None:
        """Writes tests/RESULTS.md when the run came to its end over the whole suite."""
        whole = exitstatus in (0, 1) and not session.config.option.keyword
        if not whole or session.config.args_source == pytest.Config.ArgsSource.ARGS:
            return
        counts = {
            name: sum(outcome == name for outcome in self.outcomes.values())
            for name in ('passed', 'failed', 'skipped')
        }
        commit = subprocess.run(
            ['git', 'rev-parse', '--short=12', 'HEAD'], cwd=ROOT, capture_output=True, text=True
        ).stdout.strip()
        failed = [test for test, outcome in self.outcomes.items() if outcome == 'failed']
        lines = [
            '# The last full run',
            '',
            f'`make test-all` on {date.today().isoformat()}, commit {commit}: '
            + ', '.join(f'{count} {name}' for name, count in counts.items())
            + '.',
            *([''] if failed else []),
            *[f'- failed: `{test}`' for test in failed],
        ]
        RESULTS.write_text('\n'.join(lines) + '\n')


def register(config: pytest.Config) -> None:
    """Registers the plugin: on every worker to leave out, on the controller to keep outcomes."""
    plugin = Resumable(ROOT / '.pytest_cache' / 'test-all')
    if hasattr(config, 'workerinput'):
        plugin.pytest_runtest_logreport = lambda report: None  # type: ignore[method-assign]
        plugin.pytest_sessionfinish = lambda session, exitstatus: None  # type: ignore[method-assign]
    config.pluginmanager.register(plugin, 'resumable')
