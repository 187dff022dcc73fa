"""Makes the environment that densekd runs in; `make env` is its command.

The order is: look for what would fail late (Python, compiler), create the virtual environment,
install torch, install the pinned rest without resolving dependencies, compile mmcv against that
torch or take the wheel of an earlier compilation, import everything once, write the stamp. When
the stamp of an earlier run still holds, nothing is done. Standard library only.
"""

from __future__ import annotations

import argparse
import fcntl
import hashlib
import json
import os
import re
import shutil
import signal
import sys
from pathlib import Path

from setup_run import SetupError, ask_python, prove, python_version, run, say
from setup_wheel import cache_root, check_compiler, install_mmcv, wheel_key

ROOT = Path(__file__).resolve().parent.parent
PYTHONS = ('3.10', '3.11', '3.12')

# Import name -> distribution. The families share the import names, so one environment holds one.
FAMILIES = {
    'onedl': {
        'mmengine': 'onedl-mmengine',
        'mmcv': 'onedl-mmcv',
        'mmdet': 'onedl-mmdetection',
        'mmseg': 'onedl-mmsegmentation',
    },
    'openmmlab': {
        'mmengine': 'mmengine',
        'mmcv': 'mmcv',
        'mmdet': 'mmdet',
        'mmseg': 'mmsegmentation',
    },
}


def check_python(version: str, where: str) -> None:
    """Refuses a Python that torch or a family has no packages for, and names those found."""
    if version in PYTHONS:
        return
    found = []
    for minor in PYTHONS:
        # A launcher on the PATH may stand for nothing (pyenv's do), so each is tried.
        path = shutil.which(f'python{minor}')
        if path and python_version(path) == minor:
            found.append(f'python{minor}')
    hint = 'none of them was found here; install one and name it with PYTHON=...'
    if found:
        hint = f"found here: {', '.join(found)}; run 'make env PYTHON={found[-1]}'"
    raise SetupError(f'densekd needs Python 3.10, 3.11 or 3.12, and {where} is {version}: {hint}.')


def installed(venv: Path) -> dict[str, str]:
    """Returns distribution -> version of an environment, without starting its Python."""
    found = {}
    for path in venv.glob('lib/python3*/site-packages/*.dist-info'):
        name, _, version = path.name[: -len('.dist-info')].partition('-')
        found[name.lower().replace('_', '-')] = version
    return found


def check_families(venv: Path, family: str) -> None:
    """Refuses an environment with the other family in it: the last one installed would win."""
    there = installed(venv)
    for other, packages in FAMILIES.items():
        foreign = [name for name in packages.values() if name in there]
        if other != family and foreign:
            own = [name for name in FAMILIES[family].values() if name in there]
            both = f', beside {", ".join(own)} under the same import names' if own else ''
            raise SetupError(
                f'{venv} has packages of the family {other!r} ({", ".join(foreign)}){both}, and '
                f"{family!r} was asked for: remove the environment ('make clean-env "
                f"FAMILY={family}') and run 'make env FAMILY={family}' again."
            )


def pinned(name: str, family: str) -> str:
    """Returns the version that requirements/ pins a distribution of a family to."""
    text = (ROOT / 'requirements' / f'{family}.txt').read_text()
    found = re.search(rf'^{re.escape(name)}==(\S+)', text, re.MULTILINE)
    if not found:
        raise SetupError(f'requirements/{family}.txt does not pin {name}.')
    return found.group(1)


def default_torch() -> str:
    """Returns the requirement of requirements/torch.txt."""
    lines = (ROOT / 'requirements' / 'torch.txt').read_text().splitlines()
    return next(line for line in lines if line.startswith('torch'))


def fingerprint(family: str, torch: str, python: str) -> str:
    """Returns a hash of everything that decides what the environment holds."""
    files = [*ROOT.glob('requirements/*.txt'), *ROOT.glob('tools/setup_*.py'), ROOT / 'setup.py']
    parts = [family, torch, python, *(path.read_text() for path in sorted(files))]
    return hashlib.sha256('\0'.join(parts).encode()).hexdigest()


def read_stamp(venv: Path) -> dict:
    """Returns what the last complete set-up wrote, or nothing."""
    try:
        return dict(json.loads((venv / 'densekd-stamp.json').read_text()))
    except (OSError, ValueError):
        return {}


def is_ready(venv: Path, key: str) -> bool:
    """Says whether the stamp is of this set-up and what it lists is still installed."""
    stamp = read_stamp(venv)
    if stamp.get('key') != key:
        return False
    return stamp.get('installed', {}).items() <= installed(venv).items()


def set_up(venv: Path, family: str, torch: str, index: str) -> None:
    """Brings an environment, new or there already, to the pinned state.

    Args:
        venv: Folder of the environment.
        family: Key of FAMILIES.
        torch: Requirement, as in 'torch==2.13.0'.
        index: Where pip looks for it, beside its usual places; may be empty.
    """
    log, python = venv / 'setup.log', venv / 'bin' / 'python'
    name = FAMILIES[family]['mmcv']
    version = pinned(name, family)
    mmcv = f'{name}=={version}'
    if not any(cache_root().glob(f'wheels/{mmcv.replace("==", "-")}-*/*.whl')):
        check_compiler(sys.executable)  # before the downloads rather than after them
    if not python_version(str(python)):
        create(venv, log)

    pip = [str(python), '-m', 'pip', 'install', '--disable-pip-version-check']
    limits = []
    if torch == default_torch():  # another may want other versions of what it depends on
        limits = files('-c', 'base', 'build')
    where = ['--extra-index-url', index] if index else []
    run([*pip, torch, *limits, *where], log, f'installing {torch}')
    pip += ['--no-deps', '--no-build-isolation']
    run([*pip, *files('-r', 'build')], log, 'installing what builds packages')
    run([*pip, *files('-r', 'base', 'dev')], log, 'installing the pinned packages')
    lines = (ROOT / 'requirements' / f'{family}.txt').read_text().splitlines()
    others = [line for line in lines if re.match(r'[\w.-]+==', line) and line != mmcv]
    run([*pip, *others], log, f'installing the family {family}')
    prove(python, 'cv2', 'mmengine')

    ask = 'import torch; print(torch.__version__, torch.cuda.is_available())'
    built_for, gpu = ask_python(python, ask).split()
    ops = 'cuda' if gpu == 'True' and shutil.which('nvcc') else 'cpu'
    if gpu == 'True' and ops == 'cpu':
        say('There is a GPU but no nvcc: the operators of mmcv are compiled for the CPU alone.')
    key = wheel_key(mmcv, python_version(str(python)), built_for, ops)
    known = read_mark(venv) if installed(venv).get(name) == version else ''
    install_mmcv(python, mmcv, key, known, log)
    (venv / 'densekd-mmcv.txt').write_text(key)
    run([*pip, '-e', str(ROOT)], log, 'installing densekd')
    prove(python, 'mmcv.ops', 'mmdet', 'mmseg', 'densekd')


def create(venv: Path, log: Path) -> None:
    """Creates the environment; what a broken one left is removed, but not its log."""
    for name in ('bin', 'include', 'lib'):
        shutil.rmtree(venv / name, ignore_errors=True)
    run([sys.executable, '-m', 'venv', str(venv)], log, f'creating {venv.name}')


def files(option: str, *names: str) -> list[str]:
    """Returns an option of pip once for each file of requirements/."""
    return [word for name in names for word in (option, f'{ROOT}/requirements/{name}.txt')]


def read_mark(venv: Path) -> str:
    """Returns the key of the mmcv wheel that this tool installed last, or nothing."""
    mark = venv / 'densekd-mmcv.txt'
    return mark.read_text() if mark.exists() else ''


def write_stamp(venv: Path, stamp: dict) -> None:
    """Writes the stamp in one step, so that a half-made environment never has one."""
    aside = venv / 'densekd-stamp.json.new'
    aside.write_text(json.dumps(stamp, indent=1))
    os.replace(aside, venv / 'densekd-stamp.json')


def main(arguments: list[str] | None = None) -> int:
    """Runs the command; returns its exit status."""
    parser = argparse.ArgumentParser(description='Makes the environment that densekd runs in.')
    parser.add_argument('--family', default='onedl')
    parser.add_argument('--venv', type=Path, default=Path('.venv'))
    parser.add_argument('--torch', default='', help='another torch, as in torch==2.12.0')
    parser.add_argument('--torch-index', default='', help='where pip finds it')
    args = parser.parse_args(arguments)
    try:
        if args.family not in FAMILIES:
            raise SetupError(f'FAMILY: there is no {args.family!r}. It has: {", ".join(FAMILIES)}.')
        venv, torch = ROOT / args.venv, args.torch or default_torch()
        python, where = python_version(str(venv / 'bin' / 'python')), f'that of {args.venv}'
        if not python:
            python, where = f'{sys.version_info[0]}.{sys.version_info[1]}', sys.executable
        check_python(python, where)
        check_families(venv, args.family)
        key = fingerprint(args.family, torch, python)
        if is_ready(venv, key):
            return 0
        venv.mkdir(exist_ok=True)
        with (venv / 'setup.lock').open('w') as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                say(f'Another set-up of {args.venv} is running; waiting for it.')
                fcntl.flock(lock, fcntl.LOCK_EX)
            if is_ready(venv, key):
                return 0
            say(f'Setting up {args.venv} ({args.family}, {torch}), log in {args.venv}/setup.log')
            set_up(venv, args.family, torch, args.torch_index)
            write_stamp(venv, {'key': key, 'installed': installed(venv)})
        say(f'{args.venv} is ready.')
        return 0
    except SetupError as error:
        print(f'make env: {error}', file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print('make env: interrupted; run it again to go on.', file=sys.stderr)
        return 130


if __name__ == '__main__':
    # Stopped by a timeout or by Ctrl-C alike, it ends its compilers and removes what is half made.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    sys.exit(main())
