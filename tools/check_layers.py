"""Holds the imports of densekd to one direction: `python tools/check_layers.py [folder]`.

    errors <- registry <- core <- methods <- classification, wrappers <- engine <- cli

A layer imports itself and what stands before it; classification and wrappers not each other;
datasets needs errors alone. What stands up to methods imports torch alone when it is imported, and
nothing of OpenMMLab at all; the networks and heads of classifiers are as light, but may build a
toolbox's network inside a function. mmdet and mmseg are imported inside functions only, so that a
program for one of them runs without the other.
"""

from __future__ import annotations

import ast
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

BEFORE = {
    'errors': (),
    'registry': ('errors',),
    'core': ('errors', 'registry'),
    'methods': ('errors', 'registry', 'core'),
    'datasets': ('errors',),
    'classification': ('errors', 'registry', 'core', 'methods', 'datasets'),
    'wrappers': ('errors', 'registry', 'core', 'methods', 'datasets'),
}
BEFORE['engine'] = (*BEFORE['wrappers'], 'classification', 'wrappers')
BEFORE['cli'] = (*BEFORE['engine'], 'engine')

TORCH_ONLY = ('densekd', 'errors', 'registry', 'core', 'methods')
# Parts of a layer that are no heavier.
LIGHT = ('classification.networks', 'classification.heads')
OPENMMLAB = ('mmengine', 'mmcv', 'mmdet', 'mmseg', 'mmpretrain', 'mmcls', 'mmrazor')
MAY_USE_OPENMMLAB = ('classification', 'wrappers', 'engine', 'cli')
TOOLBOXES = ('mmdet', 'mmseg')

# The two lazy doors, both inside a __getattr__: mmengine looks for densekd.registry.MODELS, and
# configs for densekd.DistillDetector.
DOORS = {'registry': ('engine',), 'densekd': ('wrappers', 'engine')}


@dataclass(frozen=True)
class Import:
    """One imported module."""

    module: str
    line: int
    deferred: bool  # inside a function


def imports(tree: ast.AST, package: str, deferred: bool = False) -> Iterator[Import]:
    """Yields what a module imports, absolute names, also by import_module('name')."""
    for node in ast.iter_child_nodes(tree):
        inside = deferred or isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield Import(alias.name, node.lineno, deferred)
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ''
            if node.level:
                parents = package.split('.')[: len(package.split('.')) - node.level + 1]
                base = '.'.join([*parents, *([base] if base else [])])
            # 'from densekd import core' names a module by what follows the import.
            names = (
                [f'densekd.{alias.name}' for alias in node.names] if base == 'densekd' else [base]
            )
            for name in names:
                yield Import(name, node.lineno, deferred)
        elif isinstance(node, ast.Call) and node.args:
            called = getattr(node.func, 'attr', getattr(node.func, 'id', ''))
            first = getattr(node.args[0], 'value', None)
            if called in ('import_module', '__import__') and isinstance(first, str):
                yield Import(first, node.lineno, deferred)
        yield from imports(node, package, inside)


def complaint(layer: str, found: Import, part: str = '') -> str:
    """Returns what is wrong with an import in a layer, or in a part of one, or ''."""
    top, *rest = found.module.split('.')
    if top == 'densekd':
        target = rest[0] if rest and rest[0] in BEFORE else 'densekd'
        allowed = BEFORE.get(layer, ())
        if target in ('densekd', layer, *allowed):
            return ''
        if found.deferred and target in DOORS.get(layer, ()):
            return ''
        names = ', '.join(allowed) or 'nothing else of densekd'
        return f'{layer} imports {found.module}, but it may import only: {names}.'
    if top in OPENMMLAB and layer not in MAY_USE_OPENMMLAB:
        return f'{layer} imports {found.module}; only {", ".join(MAY_USE_OPENMMLAB)} may.'
    if top in TOOLBOXES and not found.deferred:
        return (
            f'{found.module} is imported at the top; import it in the function that builds with it.'
        )
    foreign = top not in sys.stdlib_module_names and top not in ('torch', '__future__')
    if layer in TORCH_ONLY and foreign and not found.deferred:
        return f'{layer} imports {found.module} at the top; up to methods it is torch alone.'
    if part in LIGHT and foreign and not found.deferred:
        return f'{part} imports {found.module} at the top; it is torch alone.'
    return ''


def check(root: Path) -> list[str]:
    """Returns a sentence for every import in the package at `root` that goes the wrong way."""
    sentences = []
    for path in sorted(root.rglob('*.py')):
        parts = path.relative_to(root).with_suffix('').parts
        # 'python -m densekd' is the command line, under another name.
        layer = {'__init__': 'densekd', '__main__': 'cli'}.get(parts[0], parts[0])
        where = path.relative_to(root.parent)
        if layer not in BEFORE and layer != 'densekd':
            sentences.append(f'{where}: {layer} is no layer. It has: {", ".join(BEFORE)}.')
            continue
        package = '.'.join(('densekd', *parts[:-1]))
        for found in imports(ast.parse(path.read_text(), str(path)), package):
            wrong = complaint(layer, found, '.'.join(parts[:2]))
            if wrong:
                sentences.append(f'{where}:{found.line}: {wrong}')
    return sentences


def main(arguments: list[str]) -> int:
    """Prints the sentences; returns 1 if there are any."""
    root = Path(arguments[0]) if arguments else Path(__file__).resolve().parent.parent / 'densekd'
    sentences = check(root)
    print(
        '\n'.join(sentences) or f'import layers: {sum(1 for _ in root.rglob("*.py"))} files, fine'
    )
    return 1 if sentences else 0


if __name__ == '__main__':
    sys.exit(main(sys.argv[1:]))
