"""What there is to distil with, read off the code itself: the name tables, docstrings and heads.

A method is a file with one paper. Its docstring opens with `Name: what it does.`, and has the
fields

    Paper:   authors, title, venue, year; `Papers:` with a semicolon between several
    Reads:   where it is tapped, the named taps in backticks
    Stages:  one, two, or one or two; after a semicolon, when
    Tasks:   classification, detection, segmentation, those that it is for
    Kind:    only outside this package, where no folder says it

A file outside of this package counts as soon as it is imported and has registered a head, a loss
or a preset; what its docstring does not say is left empty.
"""

from __future__ import annotations

import ast
import inspect
import re
import sys
import textwrap
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from types import ModuleType
from typing import Any

import torch
from torch import nn

from densekd.core.taps import Place, Tap
from densekd.errors import ConfigError, DenseKDError, did_you_mean
from densekd.methods import DistillationHead, build
from densekd.registry import HEADS, LOSSES, PRESETS

KINDS = ('response', 'feature', 'relation', 'gradient')
STAGES = ('one', 'two', 'one or two')
TASKS = ('classification', 'detection', 'segmentation')

# What a field of the batch is made from, beside the images: true labels, true boxes.
LABELS = ('labels', 'roi_labels', 'input_grad')
BOXES = (
    'gt_boxes', 'dense_weights', 'dense_avg_factor', 'dense_positive', 'dense_box_targets',
    'rpn_weights', 'rpn_avg_factor', 'rpn_positive', 'rpn_box_targets',
    'rois', 'roi_labels', 'roi_positive', 'roi_box_targets',
)  # fmt: skip

NO, UNLIKE, YES = 'no', 'where channels differ', 'yes'

# Authors, up to the first colon; a venue that ends in a year, between two full stops.
_VENUE = re.compile(r'\. ([A-Z][^.]*? ((?:19|20)\d\d))\.(?: |$)')
_TAP = re.compile(r'`([a-z]+(?:\.\w+)*)`')


@dataclass(frozen=True)
class Method:
    """A file with a paper's functions, losses, heads and presets.

    Attributes:
        name: The file's name.
        module: The module's name.
        label: What the method is called in prose.
        summary: What it does.
        papers: The papers, as cited.
        reads: Where it is tapped.
        stages: In how many stages it trains, and when.
        tasks: What it is for.
        kind: What it compares, one of `KINDS`.
        functions: The public functions that have a formula.
        heads: Names of the registered heads.
        losses: Names of the registered losses.
        presets: Names of the presets.
    """

    name: str
    module: str
    label: str
    summary: str
    papers: tuple[str, ...]
    reads: str
    stages: str
    tasks: tuple[str, ...]
    kind: str
    functions: tuple[Callable[..., Any], ...]
    heads: tuple[str, ...]
    losses: tuple[str, ...]
    presets: tuple[str, ...]

    @property
    def own(self) -> bool:
        """Whether the method is a part of this package."""
        return self.module.startswith(f'{__package__}.')

    @property
    def year(self) -> int:
        """Year of the newest paper, 0 if none is cited."""
        return max((year for _, year in map(shorten, self.papers)), default=0)

    @property
    def paper(self) -> str:
        """The newest paper, as authors, venue and year."""
        return max(map(shorten, self.papers), key=lambda paper: paper[1], default=('', 0))[0]

    @property
    def taps(self) -> tuple[str, ...]:
        """The named taps that it reads, with N for a stage or a level."""
        return tuple(dict.fromkeys(_TAP.findall(self.reads)))

    @property
    def needs(self) -> str:
        """What the losses need of the ground truth: labels, boxes, both or nothing."""
        fields = {field for name in self.losses for field in getattr(_loss(name), 'needs', ())}
        words = [
            word for word, of in (('labels', LABELS), ('boxes', BOXES)) if fields.intersection(of)
        ]
        return ', '.join(words) or 'nothing'

    @property
    def adds_parameters(self) -> str:
        """Whether the default heads train parameters of their own: the most that one of them adds.

        Empty if no head can be bound outside of a model.
        """
        found = {adds_parameters(name) for name in self.heads}
        return next((answer for answer in (YES, UNLIKE, NO) if answer in found), '')


def catalogue() -> list[Method]:
    """Returns the methods that are imported, by kind, then year.

    Example:
        >>> [method.name for method in catalogue() if 'PKDLoss' in method.losses]
        ['pkd']
    """
    modules: dict[str, dict[str, list[str]]] = {}
    for kind, table in (('heads', HEADS), ('losses', LOSSES), ('presets', PRESETS)):
        for name in table:
            module = table.get(name, 'catalogue').__module__
            if module != DistillationHead.__module__:
                modules.setdefault(module, {}).setdefault(kind, []).append(name)
    methods = [
        _method(module, **{kind: tuple(names) for kind, names in found.items()})
        for module, found in modules.items()
    ]
    kinds = (*KINDS, '')
    return sorted(methods, key=lambda m: (not m.own, kinds.index(m.kind), m.year, m.name))


def find(name: str, methods: Iterable[Method] | None = None) -> Method:
    """Returns the method that a file, a preset, a head, a loss or a function belongs to.

    Args:
        name: Any of these names; case and punctuation do not matter.
        methods: Where to look; None is everywhere.

    Raises:
        ConfigError: If there is no such name.

    Example:
        >>> find('FitNets').name, find('kd-qfl').name, find('OFDLOSS').name
        ('fitnet', 'kd_qfl', 'ofd')
        >>> find('fitnet2')
        Traceback (most recent call last):
        densekd.errors.ConfigError: there is no method 'fitnet2'. Did you mean 'fitnet'...
    """
    methods = catalogue() if methods is None else list(methods)
    parts = {
        key: method
        for method in reversed(methods)  # the first that has a name keeps it
        for key in (
            *(function.__name__ for function in method.functions),
            *method.losses, *method.heads, *method.presets, method.module, method.label,
            method.name,
        )
    }  # fmt: skip
    known = {plain(key): method for key, method in parts.items()}
    key = plain(name.removeprefix('densekd.'))
    if key in known:
        return known[key]
    hint = did_you_mean(name.lower(), [method.name for method in methods])
    if not hint.startswith('Did'):
        longer = did_you_mean(name, parts)
        hint = longer if longer.startswith('Did') else hint
    raise ConfigError(f'there is no method {name!r}. {hint}')


def shorten(paper: str) -> tuple[str, int]:
    """Returns a citation as first authors and venue, and its year.

    Example:
        >>> shorten('Zagoruyko, Komodakis: Paying More Attention. ICLR 2017. https://arxiv.org')
        ('Zagoruyko & Komodakis, ICLR 2017', 2017)
    """
    authors = paper.partition(':')[0].split(', ')
    names = ' & '.join(authors) if len(authors) < 3 else f'{authors[0]} et al.'
    venue = _VENUE.search(paper)
    return (f'{names}, {venue[1]}', int(venue[2])) if venue else (names, 0)


def adds_parameters(head: str) -> str:
    """Returns whether a head with its defaults trains parameters of its own.

    It is bound to two toy places, of equal and of unlike channels, and its parameters are counted.

    Returns:
        `NO`, `UNLIKE` or `YES`; empty if it can't be bound outside of a model.

    Example:
        >>> adds_parameters('PKDDistillationHead'), adds_parameters('OFDDistillationHead')
        ('where channels differ', 'yes')
    """
    equal, unlike = _count(head, 4, 4), _count(head, 4, 6)
    if equal is None and unlike is None:
        return ''
    # What refuses unlike channels has nothing to bring them together with.
    return YES if equal else UNLIKE if unlike else NO


def formula(thing: Any) -> str:
    """Returns the formula in a docstring: its first indented block, outside of any section.

    Example:
        >>> from densekd.methods import hint_loss
        >>> formula(hint_loss)
        'L = mean_{n,c,h,w} (S - T)^2'
    """
    for block in _blocks(thing):
        if re.match(r'[A-Z]\w*:\n', block):
            break
        if all(line.startswith('    ') for line in block.splitlines()):
            return textwrap.dedent(block)
    return ''


def deviations(thing: Any) -> str:
    """Returns what a docstring says of deviations from the authors' code, as one line."""
    for block in _blocks(thing):
        if block.startswith('Deviations:'):
            return ' '.join(block.removeprefix('Deviations:').split())
    return ''


def options(thing: Any) -> dict[str, str]:
    """Returns what a docstring says of each argument, as one line each.

    Example:
        >>> from densekd.methods import BinaryKLLoss
        >>> options(BinaryKLLoss)
        {'loss_weight': 'Factor.', 'tau': 'Temperature.'}
    """
    found: dict[str, str] = {}
    for block in _blocks(thing):
        if block.startswith('Args:\n'):
            for entry in re.split(r'\n {4}(?=\w)', block.removeprefix('Args:')):
                name, _, text = entry.partition(':')
                if text:
                    found[name.strip()] = ' '.join(text.split())
    return found


def signature(function: Callable[..., Any]) -> str:
    """Returns a function's signature as it is written, with the shapes beside its arguments."""
    try:
        source = textwrap.dedent(inspect.getsource(function))
        node = ast.parse(source).body[0]
    except (OSError, TypeError, SyntaxError):  # typed in by hand, or compiled
        node = None
    if not isinstance(node, ast.FunctionDef):
        return f'{function.__name__}{inspect.signature(function)}'
    lines = source.splitlines()[node.lineno - 1 : node.body[0].lineno - 1]
    return '\n'.join(lines).removeprefix('def ').rstrip().removesuffix(':')


def _method(
    module: str,
    heads: tuple[str, ...] = (),
    losses: tuple[str, ...] = (),
    presets: tuple[str, ...] = (),
) -> Method:
    code = sys.modules.get(module) or ModuleType(module)
    title, fields = _fields(inspect.cleandoc(code.__doc__ or ''))
    label, _, summary = title.partition(': ')
    folder = module.split('.')[-2:-1]
    kind = folder[0] if folder and folder[0] in KINDS else fields.get('Kind', '').rstrip('.')
    papers = fields.get('Papers', fields.get('Paper', ''))
    tasks = fields.get('Tasks', '').rstrip('.').split(', ')
    builders = [PRESETS.get(name, 'catalogue') for name in presets]
    name = module.rpartition('.')[2]
    return Method(
        name=name,
        module=module,
        label=label or name,
        summary=summary,
        papers=tuple(paper for paper in papers.split('; ') if paper),
        reads=fields.get('Reads', ''),
        stages=fields.get('Stages', '').rstrip('.'),
        tasks=tuple(task for task in TASKS if task in tasks),
        kind=kind if kind in KINDS else '',
        functions=tuple(
            value
            for key, value in vars(code).items()
            if inspect.isfunction(value)
            and value.__module__ == module
            and value not in builders
            and not key.startswith('_')
            and formula(value)  # helpers that other files share have none
        ),
        heads=heads,
        losses=losses,
        presets=presets,
    )


def _fields(doc: str) -> tuple[str, dict[str, str]]:
    """Returns the title of a module's docstring, and its fields, each as one line."""
    title, _, rest = doc.partition('\n\n')
    entries = re.split(r'\n(?=\S)', rest)
    pairs = (entry.partition(':') for entry in entries)
    fields = {name: ' '.join(text.split()) for name, colon, text in pairs if colon}
    return ' '.join(title.split()), fields


def _blocks(thing: Any) -> list[str]:
    # With a mark at its end, the line of the closing quotes says the margin where no other does.
    doc = inspect.cleandoc(f'{thing.__doc__ or ""}.').removesuffix('.')
    return [block.strip('\n') for block in re.split(r'\n\s*\n', doc)]


def plain(name: str) -> str:
    """Returns a name without case and punctuation, as it is looked up."""
    return ''.join(letter for letter in name.lower() if letter.isalnum())


def _loss(name: str) -> Callable[..., Any]:
    return LOSSES.get(name, 'catalogue')


def _count(head: str, student: int, teacher: int) -> int | None:
    """Returns the parameters of a head that is bound to so many channels, or None if it can't."""
    for place in (_toy_maps, _toy_vectors):
        try:
            with torch.random.fork_rng(devices=[]):  # to list methods must not shift a training
                module = build(head)
                count = 1 if module.loss.pairs else 2  # what takes a list may need one
                module.bind(*(place(channels, count) for channels in (student, teacher)))
        except DenseKDError:
            continue
        return sum(parameter.numel() for parameter in module.parameters())
    return None


def _toy_maps(channels: int, count: int) -> Place:
    norm = nn.BatchNorm2d(channels)
    return Place(Tap('toy'), ((2, channels, 8, 8),) * count, ((8.0, 8.0),) * count, norm)


def _toy_vectors(channels: int, count: int) -> Place:
    return Place(Tap('toy'), ((2, channels),) * count, (None,) * count)
