"""`densekd methods`: the table, the cards, and the README's copy of the table."""

from __future__ import annotations

import contextlib
import io
import os
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

import pytest

from densekd.cli import options
from densekd.cli.main import main
from densekd.errors import ConfigError
from densekd.methods.catalogue import catalogue
from densekd.registry import HEADS, LOSSES, PRESETS

ROOT = Path(__file__).resolve().parents[2]
BEGIN, END = '<!-- densekd methods --markdown -->', '<!-- end of densekd methods --markdown -->'
OWN = [method for method in catalogue() if method.own]

# A method as somebody would add it, in a file of its own.
OUTSIDE = '''"""Toy: as much of the teacher as fits.

Paper: Nobody, Somebody: A Toy. Journal of Toys 2020.
Reads: the levels of a neck (`neck.pN`).
Stages: two; the toy comes first.
Tasks: detection.
Kind: relation.
"""

from densekd.core.head import DistillationHead, DistillLoss
from densekd.registry import HEADS, LOSSES


def toy_loss(student, teacher):
    """The difference.

        L = S - T
    """
    return (student - teacher).sum()


@LOSSES.register
class ToyLoss(DistillLoss):
    """`toy_loss`."""

    def compute(self, student, teacher, batch):
        return toy_loss(student, teacher)


@HEADS.register
class ToyDistillationHead(DistillationHead):
    """A toy."""

    default_loss = {'type': 'ToyLoss'}
    default_stu_connector = {'type': 'BNConnector'}
'''


class Answer(NamedTuple):
    code: int
    out: str
    err: str


def methods(*argv: str) -> Answer:
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        code = main(['methods', *argv])
    return Answer(code, out.getvalue(), err.getvalue())


def card(name: str) -> str:
    answer = methods(name)
    assert answer.code == 0, answer.err
    return answer.out


@pytest.fixture
def outside(tmp_path, monkeypatch):
    (tmp_path / 'outside_toy.py').write_text(OUTSIDE)
    monkeypatch.syspath_prepend(tmp_path)
    yield 'outside_toy'
    sys.modules.pop('outside_toy', None)
    LOSSES._table.pop('ToyLoss', None)
    HEADS._table.pop('ToyDistillationHead', None)


def test_the_table_holds_every_method() -> None:
    answer = methods()
    assert answer.code == 0, answer.err
    lines = answer.out.splitlines()
    for method in OWN:
        (line,) = (line for line in lines if line.startswith(f'  {method.label}  '))
        assert method.kind in line
        for name in method.presets:
            assert line.rstrip().endswith(name)
    assert lines[-1].startswith('Next: densekd methods ')


def test_the_readme_has_the_table() -> None:
    """What `densekd methods --markdown` prints, letter for letter."""
    text = (ROOT / 'README.md').read_text()
    assert text.count(BEGIN) == text.count(END) == 1
    written = text.split(f'{BEGIN}\n')[1].split(f'\n{END}')[0]
    assert written.strip('\n') == methods('--markdown').out.rstrip('\n')


@pytest.mark.parametrize('method', OWN, ids=lambda method: method.name)
def test_a_card_holds_what_one_needs(method) -> None:
    text = card(method.name)
    assert text.startswith(f'{method.label}: {method.summary}\n')
    for name in (*method.heads, *method.losses, *(f.__name__ for f in method.functions)):
        assert name in text
    for name in method.presets:
        assert f'preset={name!r}, at={PRESETS.get(name, "").at[0]!r}' in text
    assert text.splitlines()[-1].startswith('Next: densekd ')
    # The last line is a command, as long as the path in it.
    assert max(map(len, text.splitlines()[:-1])) < 160


def test_the_card_of_pkd() -> None:
    text = card('PKDLoss')
    for part in (
        'x^ = (x - mean_c x) / (std_c x + 1e-6),   mean and unbiased std over N, H, W',
        'Deviations: a channel that is constant in the teacher',
        '    student: Tensor,  # (N, C, H, W)',
        "head=dict(type='PKDDistillationHead') has",
        "    loss=dict(type='PKDLoss', loss_weight=6.0)",
        "    stu_connector=dict(type='ConvConnector', bias=False, only_if_needed=True)",
        '  loss_weight=1.0        Factor; the authors',
        "preset='pkd', at='neck'",
    ):
        assert part in text
    assert 'Cao, Zhang' in text and 'NeurIPS 2022' in text


def test_configs_are_named_from_the_repository_and_are_there() -> None:
    text = card('ofd')
    assert "preset='ofd', at='backbone' | 'head'" in text
    paths = [line.strip() for line in text.splitlines() if line.startswith('  configs/kd/ofd/')]
    assert len(paths) >= 4
    assert all((ROOT / path).is_file() for path in paths)
    following = text.splitlines()[-1].split()
    assert following[:3] == ['Next:', 'densekd', 'check']
    assert following[3] in paths and '_digits_' in following[3]


def test_without_the_repository_the_card_says_so(monkeypatch) -> None:
    def missing(command: str) -> Path:
        raise ConfigError('no')

    monkeypatch.setattr(options, 'configs_folder', missing)
    text = card('pkd')
    assert 'the folder configs is not here' in ' '.join(text.split())
    assert text.endswith('Next: densekd taps my_config.py --preset pkd\n')


def test_what_has_a_page_and_no_loss_has_its_page_for_a_card() -> None:
    """It is named below the table, and by any spelling of its folder."""
    said = card('KD-EID')
    assert said.startswith('KD-EID\n')
    assert "loss=dict(type='KDSVDLoss', basis='own', k=1)" in said
    assert 'published' not in said  # the results are left to the page
    config = 'configs/kd/kdeid/classification/wrn/kdeid_wrn16_4_100e_cifar100_teacher_wrn40_4'
    assert f'\n  {config}_backbone_mimic.py\n' in said
    check = said.splitlines()[-1].removeprefix('Next: densekd check ').split()
    assert (ROOT / check[0]).is_file() and check[1] == '--without-weights'
    table = methods().out
    assert 'other options: born_again, kdeid, sskd, takd.' in table


@pytest.mark.parametrize('folder', sorted(p.name for p in (ROOT / 'configs/kd').iterdir()))
def test_each_folder_of_configs_has_a_page_and_a_card(folder: str) -> None:
    """Both begin with what it is called."""
    page = (ROOT / 'configs/kd' / folder / 'README.md').read_text()
    assert page.startswith('# ') and '## Use it' in page and '## Run it' in page
    assert f'configs/kd/{folder}/' in card(folder)


def test_a_reader_that_leaves_is_no_traceback() -> None:
    """As `head` does."""
    read, write = os.pipe()
    os.close(read)
    command = [sys.executable, '-m', 'densekd.cli.main', 'methods', '--markdown']
    done = subprocess.run(command, stdout=write, stderr=subprocess.PIPE, cwd=ROOT, text=True)
    os.close(write)
    assert (done.returncode, done.stderr) == (141, '')


def test_an_unknown_name_is_a_sentence() -> None:
    answer = methods('pkdd')
    assert (answer.code, answer.out) == (1, '')
    assert answer.err.startswith("densekd methods: there is no method 'pkdd'. Did you mean 'pkd'")


def test_a_method_from_outside_is_listed_when_imported(outside: str) -> None:
    assert 'Toy' not in methods().out
    answer = methods('--import', outside)
    assert answer.code == 0, answer.err
    (line,) = (line for line in answer.out.splitlines() if line.startswith('  Toy  '))
    for cell in ('Nobody & Somebody, Journal of Toys', 'relation', 'neck.pN', 'two', 'yes'):
        assert f' {cell} ' in line
    text = methods('--import', outside, 'toydistillationhead').out
    assert '      L = S - T\n' in text
    assert 'There is none of this method in configs/kd.' in text
    assert text.endswith('Next: densekd check my_config.py\n')
    # The README's table is the package's own, unless a module is asked for.
    assert '| Toy |' not in methods('--markdown').out
    assert '| Toy |' in methods('--markdown', '--import', outside).out


def test_a_module_that_is_not_there_is_a_sentence() -> None:
    answer = methods('--import', 'no_such_module_of_mine')
    assert answer.code == 1
    assert "--import: 'no_such_module_of_mine' could not be imported" in answer.err
