"""`densekd methods [NAME]`: the methods that there are, and the card of one.

Some have a page in configs/kd and no loss of their own: an order of training (SSKD, TAKD), or
another's loss with other options (KD-EID). The page is their card.
"""

from __future__ import annotations

import argparse
import inspect
import textwrap
from collections.abc import Iterable, Iterator, Mapping, Sequence
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

from densekd.cli import options
from densekd.errors import ConfigError

if TYPE_CHECKING:
    from densekd.methods.catalogue import Method

COLUMNS = (
    'method',
    'paper',
    'kind',
    'taps',
    'needs',
    'adds parameters',
    'stages',
    'tasks',
    'preset',
)
WIDTH = 100


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the command's arguments."""
    parser.add_argument(
        'name', nargs='?', help='a method, or one of its presets, heads, losses or functions'
    )
    parser.add_argument(
        '--import',
        dest='imports',
        action='append',
        default=[],
        metavar='MODULE',
        help='a module with methods of your own, as in custom_imports; may be given several times',
    )
    parser.add_argument(
        '--markdown', action='store_true', help="print the table as the README's Markdown"
    )


def run(args: argparse.Namespace) -> int:
    """Prints the table, or the card of the method that is named."""
    from densekd.methods.catalogue import catalogue, find, plain

    for module in args.imports:
        import_methods(module)
    methods = catalogue()
    pages = pages_without_a_loss(methods)
    if args.name:
        page = pages.get(plain(args.name))
        print('\n'.join(card(find(args.name, methods)) if page is None else page_card(page)))
    elif args.markdown:
        print(markdown([method for method in methods if method.own or args.imports]))
    else:
        from densekd.cli.show import table

        table('methods', COLUMNS, [row(method) for method in methods])
        print('all: classification, detection and segmentation.')
        if pages:
            names = ', '.join(page.parent.name for page in pages.values())
            print(f'With a loss of these, in another order or with other options: {names}.')
        print(f'Next: densekd methods {methods[-1].name}')
    return 0


def import_methods(module: str) -> None:
    """Imports a module, which registers what it has.

    Raises:
        ConfigError: If it is not there, or misses something itself.
    """
    try:
        import_module(module)
    except ImportError as error:
        raise ConfigError(
            f'--import: {module!r} could not be imported: {error}. A module is named as in Python, '
            'my_package.my_module, and found in the folders of PYTHONPATH.'
        ) from None


def row(method: Method) -> tuple[str, ...]:
    """Returns the cells of a method's row."""
    from densekd.methods.catalogue import TASKS

    return (
        method.label,
        method.paper,
        method.kind,
        ', '.join(method.taps) or method.reads,
        method.needs,
        method.adds_parameters,
        method.stages.partition(';')[0],
        'all' if method.tasks == TASKS else ', '.join(method.tasks),
        ', '.join(method.presets),
    )


def markdown(methods: Iterable[Method]) -> str:
    """Returns the table in Markdown, names of taps and presets as code."""
    lines = [_markdown_row(COLUMNS), _markdown_row(['---'] * len(COLUMNS))]
    for method in methods:
        cells = list(row(method))
        for i, names in ((COLUMNS.index('taps'), method.taps), (-1, method.presets)):
            cells[i] = ', '.join(f'`{name}`' for name in names) or cells[i]
        lines.append(_markdown_row(cells))
    return '\n'.join(lines)


def _markdown_row(cells: Sequence[str]) -> str:
    return '| ' + ' | '.join(cell.replace('|', r'\|') for cell in cells) + ' |'


def card(method: Method) -> list[str]:
    """Returns the lines of a method's card."""
    lines = [
        f'{method.label}: {method.summary}'.removesuffix(': '),
        *(line for paper in method.papers for line in _wrap(paper, '  ')),
        '',
        *_facts(method),
        '',
    ]
    for part in (_functions, _heads, _losses, _presets):
        lines += part(method)
    found, note = example_configs(method.name, *method.presets)
    lines += ['Configs', *(f'  {path}' for path in found), *_wrap(note, '  '), '']
    return [*lines, f'Next: {_next(method.presets, found)}']


def pages_without_a_loss(methods: Iterable[Method]) -> dict[str, Path]:
    """Returns the pages of configs/kd that belong to no method's module, by their plain names."""
    from densekd.methods.catalogue import plain

    try:
        folder = options.configs_folder('methods') / 'kd'
    except ConfigError:  # installed without the repository
        return {}
    taken = {name for method in methods for name in (method.name, *method.presets)}
    pages = sorted(folder.glob('*/README.md'))
    return {plain(p.parent.name): p for p in pages if p.parent.name not in taken}


def page_card(page: Path) -> list[str]:
    """Returns the lines of a page, up to its results, and the configs beside it."""
    found, _ = example_configs(page.parent.name)
    text = page.read_text(encoding='utf-8').partition('\n## Results')[0].removeprefix('# ')
    lines = [*text.rstrip().splitlines(), '', 'Configs', *(f'  {path}' for path in found), '']
    return [*lines, f'Next: {_next((), found)}']


def example_configs(*names: str) -> tuple[list[str], str]:
    """Returns the configs of these folders, relative to the repository, and why there are none."""
    try:
        folder = options.configs_folder('methods')
    except ConfigError:
        return [], (
            'They are part of the repository, not of the installed package: the folder configs is '
            'not here.'
        )
    folders = (folder / 'kd' / name for name in dict.fromkeys(names))
    paths = sorted(path for place in folders for path in place.rglob('*.py'))
    found = [path.relative_to(folder.parent).as_posix() for path in paths]
    return found, '' if found else 'There is none of this method in configs/kd.'


def _next(presets: Sequence[str], configs: Sequence[str]) -> str:
    if configs:
        # On digits nothing is fetched. The teacher need not be trained for a check of the wiring.
        first = next((path for path in configs if '_digits_' in Path(path).name), configs[0])
        return f'densekd check {first} --without-weights'
    if presets:
        return f'densekd taps my_config.py --preset {presets[0]}'
    return 'densekd check my_config.py'


def _facts(method: Method) -> Iterator[str]:
    facts = {
        'reads': method.reads,
        'kind': method.kind,
        'needs': method.needs,
        'adds parameters': method.adds_parameters,
        'stages': method.stages,
        'tasks': ', '.join(method.tasks),
    }
    for name, text in facts.items():
        yield from _wrap(text or '-', f'  {name:<17}')


def _functions(method: Method) -> Iterator[str]:
    from densekd.methods import catalogue

    for function in method.functions:
        yield from catalogue.signature(function).splitlines()
        yield ''
        yield from _wrap(_first_line(function), '  ')
        yield ''
        yield from textwrap.indent(catalogue.formula(function), ' ' * 6).splitlines()
        yield ''
        text = catalogue.deviations(function)
        if text:
            yield from _wrap(f'Deviations: {text}', '  ')
            yield ''


def _heads(method: Method) -> Iterator[str]:
    from densekd.registry import HEADS

    for name in method.heads:
        head = HEADS.get(name, 'methods')
        yield f'head=dict(type={name!r}) has'
        for part in ('loss', 'stu_connector', 'tea_connector'):
            default = getattr(head, f'default_{part}', None)
            if default is not None:
                yield f'    {part}={_text(default)}'
        yield from _wrap(_first_line(head), '  ')
        yield ''


def _losses(method: Method) -> Iterator[str]:
    from densekd.methods.catalogue import options as described
    from densekd.registry import LOSSES

    for name in method.losses:
        loss = LOSSES.get(name, 'methods')
        said = described(loss)
        yield f'Options of {name}'
        for argument, parameter in inspect.signature(loss).parameters.items():
            default = parameter.default
            value = '' if default is inspect.Parameter.empty else f'={default!r}'
            yield from _wrap(said.get(argument, '-'), f'  {argument + value:<22} ')
        yield ''


def _presets(method: Method) -> Iterator[str]:
    from densekd.registry import PRESETS

    for name in method.presets:
        preset = PRESETS.get(name, 'methods')
        places = ' | '.join(map(repr, getattr(preset, 'at', ())))
        yield f'preset={name!r}' + (f', at={places}' if places else '')
        for paragraph in inspect.cleandoc(preset.__doc__ or '').split('\n\n'):
            yield from _wrap(paragraph, '  ')
        yield ''


def _text(value: Any) -> str:
    if isinstance(value, Mapping):
        return 'dict(' + ', '.join(f'{key}={_text(item)}' for key, item in value.items()) + ')'
    return repr(value)


def _first_line(thing: Any) -> str:
    return ' '.join(inspect.cleandoc(thing.__doc__ or '').partition('\n\n')[0].split())


def _wrap(text: str, opening: str) -> list[str]:
    """Returns a text as lines under an opening, whose width the further ones are indented by."""
    return textwrap.wrap(
        text,
        WIDTH,
        initial_indent=opening,
        subsequent_indent=' ' * len(opening),
        break_long_words=False,
        break_on_hyphens=False,
    )
