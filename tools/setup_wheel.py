"""Compiles mmcv once for each torch, for tools/setup_env.py, and keeps the wheel in a cache."""

from __future__ import annotations

import os
import shutil
import sysconfig
import tempfile
from pathlib import Path

from setup_run import SetupError, ask_python, prove, run, say

# torch first: the compiled part finds torch's libraries only once torch has loaded them.
PROOF = 'torch, mmcv._ext'


def check_compiler(python: str | Path) -> None:
    """Refuses a machine on which mmcv can't be compiled for this interpreter."""
    compilers = [os.environ.get('CXX', ''), 'c++', 'g++', 'clang++']
    if not any(shutil.which(name) for name in compilers if name):
        raise SetupError(
            'No C++ compiler was found (c++, g++, clang++), and mmcv has to be compiled once: '
            "install one (Debian, Ubuntu: 'apt-get install g++'; macOS: 'xcode-select --install')."
        )
    include = ask_python(python, 'import sysconfig; print(sysconfig.get_path("include"))')
    if not Path(include, 'Python.h').exists():
        raise SetupError(
            f"Python's headers are missing ({include}/Python.h), and mmcv has to be compiled once: "
            "install them (Debian, Ubuntu: 'apt-get install python3-dev')."
        )


def cache_root() -> Path:
    """Returns the folder that compiled wheels are kept in."""
    cache = os.environ.get('XDG_CACHE_HOME') or '~/.cache'
    return Path(os.environ.get('DENSEKD_CACHE') or Path(cache) / 'densekd').expanduser()


def wheel_key(requirement: str, python: str, torch: str, ops: str) -> str:
    """Returns the name of a wheel's folder: all that the compiled code depends on.

    Example:
        >>> wheel_key('mmcv==2.1.0', '3.11', '2.13.0+cpu', 'cpu').split('-linux')[0]
        'mmcv-2.1.0-py3.11-torch2.13.0+cpu-cpu'
    """
    name = requirement.replace('==', '-')
    return f'{name}-py{python}-torch{torch}-{ops}-{sysconfig.get_platform()}'


def build_wheel(python: Path, requirement: str, target: Path, log: Path) -> None:
    """Compiles a wheel aside and moves its folder into the cache in one step."""
    target.parent.mkdir(parents=True, exist_ok=True)
    jobs = os.environ.get('MAX_JOBS') or str(default_jobs())
    say(
        f'Compiling {requirement} with {jobs} {"job" if jobs == "1" else "jobs"}. This takes about '
        f'20 minutes of one core, and is done once: the wheel is kept in {target}'
    )
    cuda = '-cuda-' in target.name
    aside = Path(tempfile.mkdtemp(prefix='.building-', dir=target.parent))
    env = {
        'MMCV_WITH_OPS': '1',
        'FORCE_CUDA': '1' if cuda else '0',
        'MAX_JOBS': jobs,
        # torch looks for ninja on the PATH, and the environment is not activated.
        'PATH': f'{python.parent}{os.pathsep}{os.environ.get("PATH", "")}',
        # pip unpacks and compiles here, so that objects can be counted and nothing is left behind.
        'TMPDIR': str(aside),
    }
    if not cuda:
        # mmcv compiles for CUDA wherever torch sees a GPU; without nvcc that must not happen.
        env['CUDA_VISIBLE_DEVICES'] = ''
    try:
        name = requirement.split('==')[0]
        # pip has a cache of the wheels it built, which does not know about torch: not that one.
        flags = ['--no-cache-dir', '--no-deps', '--no-build-isolation', '--no-binary', name]
        pip = [str(python), '-m', 'pip', 'wheel', *flags, '--wheel-dir', str(aside / 'wheel')]
        run([*pip, requirement], log, f'compiling {requirement}', env, objects_in=aside)
        if target.exists():
            shutil.rmtree(target)
        os.replace(aside / 'wheel', target)
    finally:
        shutil.rmtree(aside, ignore_errors=True)


def default_jobs() -> int:
    """Returns how many compilers to run: one a core, and 2 GB of memory for each."""
    gigabytes = os.sysconf('SC_PAGE_SIZE') * os.sysconf('SC_PHYS_PAGES') / 2**30
    return max(1, min(os.cpu_count() or 1, int(gigabytes // 2)))


def install_mmcv(python: Path, requirement: str, key: str, known: str, log: Path) -> None:
    """Installs mmcv from the cache, or compiles it; a wheel that doesn't load is compiled anew.

    Args:
        python: The environment's interpreter.
        requirement: Name and version.
        key: Name of the wheel's folder in the cache.
        known: Key of the wheel that is installed, if this tool did it: a mmcv that somebody
            else installed loads with another torch than it was compiled for, and crashes later.
        log: File that the output is added to.
    """
    folder = cache_root() / 'wheels' / key
    try:
        if known == key:
            prove(python, PROOF)
            return
    except SetupError:
        pass  # removed or overwritten since; the cache has it
    if any(folder.glob('*.whl')):
        try:
            install_wheel(python, folder, log)
            return
        except SetupError as error:
            say(f'The wheel in {folder} does not work here and is compiled anew. {error}')
    check_compiler(python)
    build_wheel(python, requirement, folder, log)
    install_wheel(python, folder, log)


def install_wheel(python: Path, folder: Path, log: Path) -> None:
    """Installs the wheel of a cache folder and proves that its compiled part loads."""
    wheel = str(next(folder.glob('*.whl')))
    pip = [str(python), '-m', 'pip', 'install', '--no-deps', '--no-index', '--force-reinstall']
    run([*pip, wheel], log, f'installing {Path(wheel).name}')
    prove(python, PROOF)
