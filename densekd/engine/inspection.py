"""What can be tapped in a config's networks, and which presets fit them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

from densekd.core.anatomy import Anatomy
from densekd.core.ops import private_rng
from densekd.core.taps import Place, Tap, Taps, tensors
from densekd.core.trace import trace, undisturbed
from densekd.engine.run import is_distillation, prepare, student_config
from densekd.errors import ConfigError, DenseKDError
from densekd.registry import PRESETS
from densekd.wrappers.build import build_network, model_config, without_pretrained
from densekd.wrappers.classifier import DistillClassifier
from densekd.wrappers.classifier_taps import classifier_forward, classifier_taps
from densekd.wrappers.config import plain
from densekd.wrappers.detector import DistillDetector
from densekd.wrappers.model import DistillModel
from densekd.wrappers.named_taps import describe, detector_forward, detector_taps, frozen_taps
from densekd.wrappers.segmentor import DistillSegmentor
from densekd.wrappers.segmentor_taps import segmentor_forward, segmentor_taps


@dataclass(frozen=True)
class Anatomist:
    """How the networks of a scope are looked into."""

    taps: Callable[[Any], dict[str, Tap]]
    forward: Callable[..., None]
    wrapper: type[DistillModel]


ANATOMISTS = {
    'mmdet': Anatomist(detector_taps, detector_forward, DistillDetector),
    'mmseg': Anatomist(segmentor_taps, segmentor_forward, DistillSegmentor),
    'mmengine': Anatomist(classifier_taps, classifier_forward, DistillClassifier),
}


@dataclass(frozen=True)
class Row:
    """A named tap with its place."""

    name: str
    place: Place

    def cells(self, frozen: bool) -> tuple[str, ...]:
        """Returns the cells of a table row."""
        tap = self.place.tap
        where = tap.path + (f' [{tap.index}]' if tap.index is not None else '')
        where += ' (input)' if tap.side == 'in' else ''
        shape, stride = describe(self.place)
        return self.name, where, shape, stride, tap.norm or '', 'frozen' if frozen else ''


@dataclass
class Inspection:
    """The networks of a config, and their named taps."""

    models: dict[str, nn.Module]
    named: dict[str, list[Row]] = field(default_factory=dict)
    frozen: frozenset[str] = frozenset()
    kind: str = ''
    scope: str = 'mmdet'

    def anatomy(self) -> Anatomy:
        """Returns what presets are given; a config without a teacher is its own."""
        sides = [{row.name: row.place.tap for row in rows} for rows in self.named.values()]
        return Anatomy(sides[0], sides[-1], self.kind, self.frozen)

    def every_module(self, who: str) -> list[tuple[str, ...]]:
        """Returns a row for each module that hands out tensors in a forward pass."""
        model, looked = self.models[who], ANATOMISTS[self.scope]
        size = looked.wrapper.trace_size
        names = [name for name, module in model.named_modules() if name]
        taps = {name: Tap(name, call='all') for name in names}
        image = torch.zeros(1, 3, *size)
        rows: list[tuple[str, ...]] = []
        with (
            undisturbed(model),
            Taps(model, {n: t for n, t in taps.items() if _gives(model, n)}) as seen,
        ):
            looked.forward(model, image)
        for name in seen.taps:
            if not seen.calls[name]:
                continue
            found = tensors(seen[name])
            first = found[0]
            stride = f'{size[0] / first.shape[-2]:g}' if first.dim() == 4 else '-'
            rows.append(
                (
                    name,
                    type(model.get_submodule(name)).__name__,
                    str(seen.calls[name]),
                    'x'.join(map(str, first.shape[1:])),
                    stride,
                )
            )
        return rows


def _gives(model: nn.Module, name: str) -> bool:
    kind = type(model.get_submodule(name)).__name__
    return 'Loss' not in kind and 'Preprocessor' not in kind


def inspect(config: Any, options: Mapping[str, Any] | None = None) -> Inspection:
    """Builds the student of a config, and its first teacher, without weights, and finds their taps.

    Raises:
        ConfigError: If the config can't be built.
    """
    cfg = prepare(config, options=options)
    scope = student_config(cfg).get('default_scope') or 'mmdet'
    looked = ANATOMISTS.get(scope)
    if looked is None:
        raise ConfigError(
            f'taps: {scope} models have no named taps. Those of {", ".join(ANATOMISTS)} have.'
        )
    configs = {'student': plain(student_config(cfg).model)}
    if is_distillation(cfg) and cfg.model.get('teacher'):
        teacher = cfg.model.teacher
        teacher = teacher[0] if isinstance(teacher, (list, tuple)) else teacher
        if isinstance(teacher, Mapping) and teacher.get('logits'):
            raise ConfigError(
                "taps: the teacher is a file of logits, which has no other tap than 'logits'."
            )
        configs['teacher'] = model_config(teacher.get('model', teacher), 'teacher.model')
    found = Inspection({}, scope=scope)
    with private_rng(0):
        for who, one in configs.items():
            model = build_network(without_pretrained(plain(one)), scope, who)
            taps = looked.taps(model)
            places = trace(model, taps, looked.forward, looked.wrapper.trace_size)
            found.models[who] = model
            found.named[who] = [Row(name, places[name]) for name in taps]
    student = found.models['student']
    found.frozen = frozen_taps(student, {r.name: r.place.tap for r in found.named['student']})
    found.kind = looked.wrapper.kind(None, student)  # type: ignore[arg-type]
    return found


def fitting_presets(found: Inspection) -> list[tuple[str, str, str]]:
    """Returns name, level and taps of each preset that fits both networks."""
    import densekd.methods  # noqa: F401  fills the registry

    rows = []
    for name in sorted(PRESETS):
        preset = PRESETS.get(name, 'preset')
        for at in getattr(preset, 'at', (None,)):
            try:
                entries = preset(found.anatomy(), at)
            except DenseKDError:
                continue
            names = [e['student_module'] for e in entries]
            flat = [n for one in names for n in (one if isinstance(one, list) else [one])]
            rows.append((name, at or '', ', '.join(flat)))
    return rows


def preset_text(found: Inspection, name: str, at: str | None) -> str:
    """Returns the list of distillers that a preset stands for, as it would stand in a config.

    Raises:
        ConfigError: If there is no such preset, or it does not fit.
    """
    import densekd.methods  # noqa: F401  fills the registry

    entries = PRESETS.get(name, '--preset')(found.anatomy(), at)
    lines = ['distillers=[']
    for entry in entries:
        lines.append('    dict(')
        lines += [f'        {key}={_text(value)},' for key, value in entry.items()]
        lines.append('    ),')
    return '\n'.join([*lines, ']'])


def _text(value: Any) -> str:
    if isinstance(value, Mapping):
        return 'dict(' + ', '.join(f'{k}={_text(v)}' for k, v in value.items()) + ')'
    return repr(value)
