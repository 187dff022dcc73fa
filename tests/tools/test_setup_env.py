"""The set-up: what it refuses and in which words, what it keeps, what it does not do twice."""

from __future__ import annotations

import fcntl
import os
import sys
import threading
import time
from pathlib import Path

import pytest
import setup_env
import setup_run
import setup_wheel
from setup_run import SetupError

KEY = 'mmcv-2.1.0-py3.11-torch2.13.0+cpu-cpu-linux-x86_64'


def make_venv(folder: Path, *packages: str) -> Path:
    """An environment as far as its list of packages goes."""
    for package in packages:
        info = folder / 'lib/python3.11/site-packages' / f'{package}.dist-info'
        info.mkdir(parents=True)
    return folder


class Pip:
    """Stands for the commands of a set-up: keeps them, and makes the wheel that pip would.

    Args:
        fail_at: Fails when this is in the command.
    """

    def __init__(self, fail_at: str | None = None) -> None:
        self.commands: list[list[str]] = []
        self.env: dict[str, str] = {}
        self.fail_at = fail_at

    def __call__(self, command, log, what, env=None, objects_in=None):
        self.commands.append(command)
        if 'wheel' in command:
            self.env = env
            folder = Path(command[command.index('--wheel-dir') + 1])
            folder.mkdir()
            (folder / 'mmcv-2.1.0-cp311.whl').write_text('compiled')
        if self.fail_at and any(self.fail_at in word for word in command):
            raise SetupError('it failed')

    def count(self, word: str) -> int:
        return sum(word in command for command in self.commands)


@pytest.fixture
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv('DENSEKD_CACHE', str(tmp_path / 'cache'))
    return tmp_path / 'cache' / 'wheels'


@pytest.fixture
def pip(monkeypatch):
    fake = Pip()
    for module in (setup_env, setup_wheel):
        monkeypatch.setattr(module, 'run', fake)
    monkeypatch.setattr(setup_wheel, 'check_compiler', lambda python: None)
    monkeypatch.setattr(setup_wheel, 'prove', lambda python, *modules: None)
    return fake


def install(known: str = '') -> None:
    python = Path('venv/bin/python')
    setup_wheel.install_mmcv(python, 'mmcv==2.1.0', KEY, known, Path('log'))


# Refusals


def test_a_wrong_python_names_those_that_are_there(monkeypatch):
    there = {'python3.10': '/shims/python3.10', 'python3.12': '/usr/bin/python3.12'}
    monkeypatch.setattr(setup_env.shutil, 'which', there.get)
    # The first is a launcher that starts nothing.
    monkeypatch.setattr(setup_env, 'python_version', lambda path: '3.12' if '3.12' in path else '')
    with pytest.raises(SetupError) as error:
        setup_env.check_python('3.13', '/usr/bin/python3')
    assert str(error.value) == (
        'densekd needs Python 3.10, 3.11 or 3.12, and /usr/bin/python3 is 3.13: '
        "found here: python3.12; run 'make env PYTHON=python3.12'."
    )


def test_a_wrong_python_and_no_other(monkeypatch):
    monkeypatch.setattr(setup_env.shutil, 'which', lambda name: None)
    with pytest.raises(SetupError, match='is 3.9: none of them was found here; install one'):
        setup_env.check_python('3.9', 'python3')


@pytest.mark.parametrize('version', ['3.10', '3.11', '3.12'])
def test_the_supported_pythons_pass(version):
    assert setup_env.check_python(version, 'python3') is None


def test_the_version_of_a_real_interpreter_and_of_none():
    major, minor = sys.version_info[:2]
    assert setup_run.python_version(sys.executable) == f'{major}.{minor}'
    assert setup_run.python_version('/no/such/python') == ''


def test_no_compiler(monkeypatch):
    monkeypatch.delenv('CXX', raising=False)
    monkeypatch.setattr(setup_wheel.shutil, 'which', lambda name: None)
    with pytest.raises(SetupError) as error:
        setup_wheel.check_compiler(sys.executable)
    assert str(error.value) == (
        'No C++ compiler was found (c++, g++, clang++), and mmcv has to be compiled once: install '
        "one (Debian, Ubuntu: 'apt-get install g++'; macOS: 'xcode-select --install')."
    )


def test_no_headers(monkeypatch, tmp_path):
    monkeypatch.setattr(setup_wheel.shutil, 'which', lambda name: '/usr/bin/c++')
    monkeypatch.setattr(setup_wheel, 'ask_python', lambda python, code: str(tmp_path))
    with pytest.raises(SetupError, match=r"headers are missing \(.*Python.h\).*python3-dev'\)\.$"):
        setup_wheel.check_compiler(sys.executable)
    (tmp_path / 'Python.h').touch()
    assert setup_wheel.check_compiler(sys.executable) is None


@pytest.mark.parametrize(
    ('output', 'sentence'),
    [
        ("NewConnectionError('[Errno -3] Temporary failure in name resolution')", 'No network: '),
        ('Max retries exceeded with url: /simple/torch', 'No network: '),
        ('OSError: [Errno 28] No space left on device', 'The disk is full'),
        ('The virtual environment was not created: ensurepip is not available', 'python3-venv'),
        ('c++: fatal error: Killed signal terminated program cc1plus', "'make env MAX_JOBS=1'"),
        (
            'Collecting x\nERROR: No matching x\nnote: bye',
            'Installing x failed: ERROR: No matching x',
        ),
        ('', 'Installing x failed: it printed nothing'),
    ],
)
def test_a_failed_command_is_explained_in_one_sentence(output, sentence):
    said = setup_run.explain('installing x', output, Path('.venv/setup.log'))
    assert sentence in said
    assert '\n' not in said
    assert said.endswith('everything it printed is in .venv/setup.log).')


def test_both_families_in_one_environment(tmp_path):
    venv = make_venv(tmp_path, 'mmdet-3.3.0', 'onedl_mmdetection-3.5.1', 'onedl_mmcv-2.3.6')
    with pytest.raises(SetupError) as error:
        setup_env.check_families(venv, 'onedl')
    assert str(error.value) == (
        f"{venv} has packages of the family 'openmmlab' (mmdet), beside onedl-mmcv, "
        "onedl-mmdetection under the same import names, and 'onedl' was asked for: remove the "
        "environment ('make clean-env FAMILY=onedl') and run 'make env FAMILY=onedl' again."
    )


def test_one_family_is_fine_and_the_other_alone_is_not(tmp_path):
    venv = make_venv(tmp_path, 'onedl_mmdetection-3.5.1', 'numpy-2.2.6')
    assert setup_env.check_families(venv, 'onedl') is None
    with pytest.raises(SetupError, match=r"'onedl' \(onedl-mmdetection\), and 'openmmlab' was"):
        setup_env.check_families(venv, 'openmmlab')


def test_a_missing_system_library():
    message = 'ImportError: libGL.so.1: cannot open shared object file: No such file or directory'
    assert setup_run.explain_import('cv2', message) == (
        "'import cv2' needs the system library libGL.so.1, which this machine lacks: install it "
        "(Debian, Ubuntu: 'apt-get install libgl1') and run 'make env' again."
    )
    other = setup_run.explain_import('cv2', 'ImportError: bad magic')
    assert other == "'import cv2' fails after set-up: ImportError: bad magic."


def test_an_import_is_proved_in_the_environment():
    assert setup_run.prove(Path(sys.executable), 'json') is None
    with pytest.raises(SetupError, match="'import no_such_thing' fails after set-up: .*No module"):
        setup_run.prove(Path(sys.executable), 'no_such_thing')


def test_a_family_that_is_none(capsys):
    assert setup_env.main(['--family', 'onedel']) == 1
    said = capsys.readouterr().err
    assert said == "make env: FAMILY: there is no 'onedel'. It has: onedl, openmmlab.\n"


# Commands


def test_a_command_leaves_its_output_in_the_log_and_its_failure_in_a_sentence(tmp_path):
    log = tmp_path / 'log'
    code = 'import sys; print("ERROR: out of luck"); sys.exit(3)'
    setup_run.run([sys.executable, '-c', 'print(41 + 1)'], log, 'counting')
    with pytest.raises(SetupError, match=f'^Trying failed: ERROR: out of luck .*{log}'):
        setup_run.run([sys.executable, '-c', code], log, 'trying')
    assert '42' in log.read_text()


def test_an_earlier_commands_output_is_not_taken_for_the_reason(tmp_path):
    log = tmp_path / 'log'
    log.write_text('No space left on device')
    with pytest.raises(SetupError, match='^Trying failed: it printed nothing'):
        setup_run.run([sys.executable, '-c', 'raise SystemExit(1)'], log, 'trying')


# A compiler that a command starts: it holds a lock for as long as it lives.
GRANDCHILD = """
import fcntl, sys, time
lock = open(sys.argv[1], 'w')
fcntl.flock(lock, fcntl.LOCK_EX)
open(sys.argv[1] + '.held', 'w').close()
time.sleep(60)
"""


def test_an_interruption_ends_the_children_of_the_command_too(tmp_path, monkeypatch):
    lock = tmp_path / 'lock'
    child = f'import subprocess; subprocess.run({[sys.executable, "-c", GRANDCHILD, str(lock)]!r})'

    def interrupt(seconds):
        if (tmp_path / 'lock.held').exists():
            raise KeyboardInterrupt

    monkeypatch.setattr(setup_run.time, 'sleep', interrupt)
    with pytest.raises(KeyboardInterrupt):
        setup_run.run([sys.executable, '-c', child], tmp_path / 'log', 'sleeping')
    monkeypatch.undo()
    with lock.open('w') as file:
        for _ in range(30):
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                return
            except BlockingIOError:
                time.sleep(0.1)
    raise AssertionError('the grandchild lives on')


def test_the_progress_counts_objects(tmp_path):
    (tmp_path / 'a/b').mkdir(parents=True)
    (tmp_path / 'a/b/one.o').touch()
    assert setup_run.count_objects(tmp_path) == ', 1 objects'
    (tmp_path / 'a/build.ninja').write_text('rule c\nbuild /x/one.o: c x\nbuild /x/two.o: c y\n')
    assert setup_run.count_objects(tmp_path) == ', 1 of 2 objects'
    assert setup_run.count_objects(None) == ''
    assert setup_run.clock(187.9) == '3:07'


# The cache of wheels


def test_the_key_changes_with_all_that_the_code_depends_on():
    arguments = ('onedl-mmcv==2.3.6', '3.11', '2.13.0+cpu', 'cpu')
    others = ('mmcv==2.3.6', '3.12', '2.13.0+cu128', 'cuda')
    keys = {setup_wheel.wheel_key(*arguments)}
    for position, other in enumerate(others):
        changed = list(arguments)
        changed[position] = other
        keys.add(setup_wheel.wheel_key(*changed))
    assert len(keys) == 5
    assert not any('/' in key for key in keys)


def test_the_cache_is_where_the_environment_says(monkeypatch):
    monkeypatch.delenv('DENSEKD_CACHE', raising=False)
    monkeypatch.setenv('XDG_CACHE_HOME', '/x')
    assert setup_wheel.cache_root() == Path('/x/densekd')
    monkeypatch.delenv('XDG_CACHE_HOME')
    assert setup_wheel.cache_root() == Path.home() / '.cache/densekd'
    monkeypatch.setenv('DENSEKD_CACHE', '~/mine')
    assert setup_wheel.cache_root() == Path.home() / 'mine'


def test_compiling_says_so_and_uses_no_cache_that_ignores_torch(pip, cache, capsys):
    install()
    assert [path.name for path in (cache / KEY).iterdir()] == ['mmcv-2.1.0-cp311.whl']
    assert 'Compiling mmcv==2.1.0' in capsys.readouterr().out
    assert {'--no-cache-dir', '--no-deps', '--no-build-isolation'} <= set(pip.commands[0])
    assert pip.env['MMCV_WITH_OPS'] == '1'
    assert pip.env['FORCE_CUDA'] == '0'
    assert pip.env['PATH'].startswith('venv/bin')  # where ninja is


def test_a_second_environment_takes_the_wheel_of_the_first(pip, cache):
    install()
    install()
    assert pip.count('wheel') == 1
    assert pip.count('install') == 2


def test_what_is_installed_for_this_key_stays(pip, cache):
    install(known=KEY)
    assert pip.commands == []


def test_an_mmcv_for_another_torch_is_replaced(pip, cache):
    install(known=KEY.replace('2.13.0', '2.12.0'))
    assert pip.count('wheel') == 1


def test_a_failed_compilation_leaves_nothing_in_the_cache(pip, cache):
    pip.fail_at = '--wheel-dir'
    with pytest.raises(SetupError):
        install()
    assert list(cache.iterdir()) == []


def test_a_wheel_that_does_not_load_is_compiled_anew_once(pip, cache, monkeypatch, capsys):
    (cache / KEY).mkdir(parents=True)
    (cache / KEY / 'foreign.whl').write_text('for another torch')

    def prove(python, *modules):
        if not any((cache / KEY).glob('mmcv*.whl')):
            raise SetupError('undefined symbol')

    monkeypatch.setattr(setup_wheel, 'prove', prove)
    install()
    assert [path.name for path in (cache / KEY).iterdir()] == ['mmcv-2.1.0-cp311.whl']
    assert 'does not work here and is compiled anew. undefined symbol' in capsys.readouterr().out


def test_a_compilation_that_does_not_load_either_is_an_error_not_a_loop(pip, cache, monkeypatch):
    def prove(python, *modules):
        raise SetupError('undefined symbol')

    monkeypatch.setattr(setup_wheel, 'prove', prove)
    with pytest.raises(SetupError, match='undefined symbol'):
        install()
    assert pip.count('wheel') == 1


# The whole run


@pytest.fixture
def whole(pip, cache, monkeypatch, tmp_path):
    """A set-up in which all commands succeed at once."""

    def answer(python, code):
        return '2.13.0+cpu False' if 'torch' in code else str(tmp_path)

    for name, value in {
        'check_compiler': lambda python: None,
        'prove': lambda python, *modules: None,
        'ask_python': answer,
        'python_version': lambda path: '3.11',
    }.items():
        monkeypatch.setattr(setup_env, name, value)
    venv = make_venv(tmp_path / '.venv', 'torch-2.13.0+cpu', 'onedl_mmcv-2.3.6')
    return lambda *more: setup_env.main(['--venv', str(venv), *more])


def test_nothing_that_could_pull_torch_resolves_dependencies(whole, pip):
    assert whole() == 0
    for command in pip.commands:
        if 'install' in command and 'torch==2.13.0' not in command:
            assert '--no-deps' in command
    with_mmcv = [word for command in pip.commands for word in command if '-mmcv==' in word]
    assert with_mmcv == ['onedl-mmcv==2.3.6']  # compiled apart, never with the rest of the family


def test_a_second_run_starts_no_command(whole, pip, capsys):
    whole()
    done = len(pip.commands)
    capsys.readouterr()
    assert whole() == 0
    assert len(pip.commands) == done
    assert capsys.readouterr().out == ''


def test_what_was_removed_or_changed_since_is_put_right(whole, pip, tmp_path):
    whole()
    done = len(pip.commands)
    site = tmp_path / '.venv/lib/python3.11/site-packages'
    (site / 'torch-2.13.0+cpu.dist-info').rename(site / 'torch-2.14.0.dist-info')
    assert whole() == 0
    assert len(pip.commands) > done


def test_another_torch_is_another_set_up(whole, pip):
    whole()
    done = len(pip.commands)
    assert whole('--torch', 'torch==2.12.0', '--torch-index', 'https://example.org') == 0
    command = next(words for words in pip.commands[done:] if 'torch==2.12.0' in words)
    assert command[-2:] == ['--extra-index-url', 'https://example.org']
    assert '-c' not in command


def test_a_failed_set_up_has_no_stamp(whole, pip, tmp_path, capsys):
    pip.fail_at = '-e'
    assert whole() == 1
    assert capsys.readouterr().err == 'make env: it failed\n'
    assert not (tmp_path / '.venv/densekd-stamp.json').exists()


def test_two_at_once_wait_for_each_other(whole, pip, tmp_path, capsys):
    with (tmp_path / '.venv/setup.lock').open('w') as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        second = threading.Thread(target=whole)
        second.start()
        second.join(0.3)
        assert second.is_alive()
        assert pip.commands == []
    second.join(5)
    assert not second.is_alive()
    assert 'is running; waiting for it.' in capsys.readouterr().out


def test_the_hash_follows_family_torch_python_and_the_files(tmp_path, monkeypatch):
    before = setup_env.fingerprint('onedl', 'torch==2.13.0', '3.11')
    assert before == setup_env.fingerprint('onedl', 'torch==2.13.0', '3.11')
    assert before != setup_env.fingerprint('openmmlab', 'torch==2.13.0', '3.11')
    assert before != setup_env.fingerprint('onedl', 'torch==2.12.0', '3.11')
    assert before != setup_env.fingerprint('onedl', 'torch==2.13.0', '3.12')
    (tmp_path / 'requirements').mkdir()
    (tmp_path / 'setup.py').touch()
    monkeypatch.setattr(setup_env, 'ROOT', tmp_path)
    empty = setup_env.fingerprint('onedl', 'torch==2.13.0', '3.11')
    (tmp_path / 'requirements/base.txt').write_text('numpy==2.2.6')
    assert setup_env.fingerprint('onedl', 'torch==2.13.0', '3.11') != empty


# The repository's own files


def test_every_requirement_is_pinned():
    for path in (setup_env.ROOT / 'requirements').glob('*.txt'):
        for line in path.read_text().splitlines():
            if line and not line.startswith(('#', '-c ')):
                assert '==' in line, f'{path.name}: {line}'


def test_each_family_pins_its_four_packages():
    for family, packages in setup_env.FAMILIES.items():
        for name in packages.values():
            assert setup_env.pinned(name, family)


def test_setup_py_pins_neither_torch_nor_mmcv():
    words = (setup_env.ROOT / 'setup.py').read_text().replace("'", ' ').split()
    for name in ('torch', 'onedl-mmcv', 'mmcv'):
        assert name in words or f'{name},' in words
    assert not [word for word in words if word.startswith(('torch=', 'torch>', 'torch<', 'mmcv='))]


def test_ci_runs_the_command_of_the_readme():
    script = setup_env.ROOT / '.ci/run'
    assert os.access(script, os.X_OK)
    assert 'make test' in script.read_text()
