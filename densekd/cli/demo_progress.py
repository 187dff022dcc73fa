"""What the demo's user sees while it trains: bars on a terminal, a line an epoch elsewhere."""

from __future__ import annotations

import contextlib
import sys
import time
import warnings
from collections.abc import Iterator
from contextvars import ContextVar
from pathlib import Path
from typing import Any, Protocol

from mmengine.hooks import Hook

from densekd.engine.registry import HOOKS


class Listener(Protocol):
    """What is told how far a training is."""

    def step(self, done: int, total: int, epoch: int, epochs: int, loss: float) -> None:
        """Is called after each iteration."""

    def epoch_saved(self) -> None:
        """Is called when an epoch's checkpoint is on the disk."""


LISTENER: ContextVar[Listener | None] = ContextVar('LISTENER', default=None)


@HOOKS.register_module()
class ProgressHook(Hook):
    """Tells the listener of the moment how far training is. A config can't hold the listener."""

    priority = 'VERY_LOW'  # after the checkpoint is written

    def after_train_iter(
        self, runner: Any, batch_idx: int, data_batch: Any = None, outputs: Any = None
    ) -> None:
        """Reports an iteration."""
        listener = LISTENER.get()
        if listener is not None:
            loss = outputs['loss'].item() if outputs and 'loss' in outputs else float('nan')
            done, epochs = runner.iter + 1, runner.max_epochs
            listener.step(done, runner.max_iters, runner.epoch + 1, epochs, loss)

    def after_train_epoch(self, runner: Any) -> None:
        """Reports that an epoch can be resumed from."""
        listener = LISTENER.get()
        if listener is not None:
            listener.epoch_saved()


class Reporter:
    """Plain lines, for an output that is no terminal."""

    def __init__(self, output: Any) -> None:
        self.output = output
        self._name = ''
        self._epoch = 0
        self._begun = 0.0

    def say(self, text: str) -> None:
        """Prints a line."""
        print(text, file=self.output, flush=True)

    def begin(self, name: str) -> None:
        """Opens a run."""
        self._name, self._epoch, self._begun = name, 0, time.monotonic()
        self.say(f'{name}: training')

    def step(self, done: int, total: int, epoch: int, epochs: int, loss: float) -> None:
        """Says once an epoch how far the run is."""
        if epoch > self._epoch and done * epochs >= epoch * total:
            self._epoch = epoch
            seconds = time.monotonic() - self._begun
            self.say(f'{self._name}: epoch {epoch}/{epochs}, loss {loss:.3f}, {seconds:.0f} s')

    def end(self, text: str) -> None:
        """Closes a run with its result."""
        self.say(f'{self._name}: {text}')


class BarReporter(Reporter):
    """Progress bars on a terminal."""

    def __init__(self, output: Any) -> None:
        super().__init__(output)
        from rich.console import Console
        from rich.progress import (
            BarColumn,
            MofNCompleteColumn,
            Progress,
            TextColumn,
            TimeElapsedColumn,
            TimeRemainingColumn,
        )

        self.progress = Progress(
            TextColumn('{task.description:>18}'),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
            TextColumn('{task.fields[note]}'),
            console=Console(file=output),
            # The demo redirects them itself, to a file.
            redirect_stdout=False,
            redirect_stderr=False,
        )
        self._task: Any = None

    def say(self, text: str) -> None:
        """Prints a line above the bars."""
        self.progress.console.print(text, highlight=False, markup=False)

    def begin(self, name: str) -> None:
        """Opens a bar."""
        self._task = self.progress.add_task(name, total=None, note='')

    def step(self, done: int, total: int, epoch: int, epochs: int, loss: float) -> None:
        """Moves the bar."""
        self.progress.update(
            self._task, completed=done, total=total, note=f'epoch {epoch}/{epochs}  loss {loss:.3f}'
        )

    def end(self, text: str) -> None:
        """Fills the bar and leaves the result beside it."""
        task = self.progress.tasks[self._task]
        total = task.total or 1
        self.progress.update(self._task, completed=total, total=total, note=text)
        self.progress.stop_task(self._task)


@contextlib.contextmanager
def reporter() -> Iterator[Reporter]:
    """Gives what suits the standard output."""
    output = sys.stdout
    if not output.isatty():
        yield Reporter(output)
        return
    shown = BarReporter(output)
    with shown.progress:
        yield shown


@contextlib.contextmanager
def quiet(log: Path) -> Iterator[None]:
    """Sends what the toolboxes print and warn of to a file.

    The file stays open after this: loggers that were made meanwhile keep writing to it.
    """
    file = open(log, 'a', buffering=1)  # noqa: SIM115
    with (
        contextlib.redirect_stdout(file),
        contextlib.redirect_stderr(file),
        warnings.catch_warnings(),
    ):
        yield
