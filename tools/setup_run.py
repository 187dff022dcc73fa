"""Runs commands for tools/setup_env.py: progress while they run, one sentence when they fail."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

# What the output of pip, venv or a compiler says -> the sentence for it.
TROUBLES = (
    (r'No space left on device', 'The disk is full'),
    (
        r'ensurepip is not available',
        "This Python can't make virtual environments: install its venv module (Debian, Ubuntu: "
        "'apt-get install python3-venv')",
    ),
    (
        r'Killed signal terminated program|cc1plus: out of memory',
        "The compiler ran out of memory: try 'make env MAX_JOBS=1'",
    ),
    (
        r'name resolution|Name or service not known|NewConnectionError|Max retries exceeded|'
        r'Network is unreachable|ConnectTimeout|ReadTimeout|ProxyError|nodename nor servname',
        'No network: pip could not reach a package index; connect, or point PIP_INDEX_URL or '
        'PIP_FIND_LINKS at one that can be reached',
    ),
)


class SetupError(Exception):
    """Set-up can't go on; the message is the one sentence that the user reads."""


def say(text: str) -> None:
    """Prints a line at once, also into a pipe."""
    print(text, flush=True)


def run(
    command: list[str],
    log: Path,
    what: str,
    env: dict[str, str] | None = None,
    objects_in: Path | None = None,
) -> None:
    """Runs a command with its output in the log, and shows that it is alive.

    Args:
        command: Program and arguments.
        log: File that the output is added to.
        what: Says what is being done, in the progress line and in the error.
        env: Variables to add to the environment.
        objects_in: Folder in which a compiler works; the progress counts its object files.
    """
    live, began, shown = sys.stdout.isatty(), time.monotonic(), time.monotonic()
    with log.open('ab') as sink:
        sink.write(f'\n$ {" ".join(command)}\n'.encode())
        sink.flush()
        start = sink.tell()
        process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=sink,
            stderr=subprocess.STDOUT,
            env={**os.environ, **(env or {})},
            start_new_session=True,
        )
        try:
            while process.poll() is None:
                time.sleep(0.2)
                if time.monotonic() - shown >= (1 if live else 30):
                    shown = time.monotonic()
                    line = f'  {what}: {clock(shown - began)}{count_objects(objects_in)}'
                    print(f'\r{line}\033[K' if live else line, end='' if live else '\n', flush=True)
        finally:
            if process.poll() is None:
                # The compilers are children of children: pip alone would leave them running.
                os.killpg(process.pid, signal.SIGTERM)
                process.wait()
    print('\r\033[K' if live else '', end='')
    if process.returncode:
        with log.open('rb') as source:
            source.seek(start)
            output = source.read().decode(errors='replace')
        raise SetupError(explain(what, output, log))
    say(f'  {what}: done in {clock(time.monotonic() - began)}')


def clock(seconds: float) -> str:
    """Returns minutes and seconds, as in '3:07'."""
    return f'{int(seconds) // 60}:{int(seconds) % 60:02d}'


def count_objects(folder: Path | None) -> str:
    """Returns how far a compilation is, as in ', 41 of 133 objects'."""
    if folder is None:
        return ''
    done = sum(1 for _ in folder.rglob('*.o'))
    # ninja's own plan says how many there will be; it is there as soon as compiling starts.
    total = sum(
        len(re.findall(r'^build \S+\.o: ', plan.read_text(), re.MULTILINE))
        for plan in folder.rglob('build.ninja')
    )
    return f', {done} of {total} objects' if total else f', {done} objects'


def explain(what: str, output: str, log: Path) -> str:
    """Returns the sentence for a failed command, by what its output says."""
    for pattern, sentence in TROUBLES:
        if re.search(pattern, output):
            return f'{sentence} (while {what}; everything it printed is in {log}).'
    errors = re.findall(r'^.*(?:ERROR|[Ee]rror):? .*$', output, re.MULTILINE)
    last = (errors or output.strip().splitlines() or ['it printed nothing'])[-1].strip()
    return f'{what[0].upper()}{what[1:]} failed: {last} (everything it printed is in {log}).'


def python_version(path: str) -> str:
    """Returns 'major.minor' of an interpreter, or '' if it doesn't run."""
    ask = [path, '-c', 'import sys; print("%d.%d" % sys.version_info[:2])']
    try:
        return subprocess.run(ask, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return ''


def ask_python(python: str | Path, code: str) -> str:
    """Runs a line of Python in the environment and returns what it prints."""
    command = [str(python), '-W', 'ignore', '-c', code]
    # Elsewhere than in the repository, so that densekd is found as it is installed.
    done = subprocess.run(command, capture_output=True, text=True, cwd=Path(python).parent)
    if done.returncode:
        raise SetupError((done.stderr.strip().splitlines() or ['it printed nothing'])[-1])
    return done.stdout.strip()


def prove(python: Path, *modules: str) -> None:
    """Imports modules in the environment; a missing system library gets its own sentence."""
    for module in modules:
        try:
            ask_python(python, f'import {module}')
        except SetupError as error:
            raise SetupError(explain_import(module, str(error))) from None


def explain_import(module: str, message: str) -> str:
    """Returns the sentence for a module that can't be imported."""
    library = re.search(r'(lib\S+\.so[.\d]*): cannot open shared object', message)
    if not library:
        return f"'import {module}' fails after set-up: {message}."
    packages = {'libGL.so.1': 'libgl1', 'libgthread-2.0.so.0': 'libglib2.0-0'}
    package = packages.get(library.group(1), f'the package that has {library.group(1)}')
    return (
        f"'import {module}' needs the system library {library.group(1)}, which this machine lacks: "
        f"install it (Debian, Ubuntu: 'apt-get install {package}') and run 'make env' again."
    )
