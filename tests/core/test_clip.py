"""A term's gradient, held down to the task's."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import nn

from densekd import Distiller, Distillers
from densekd.core.clip import clip_to_task, growing_share
from densekd.errors import ConfigError
from densekd.methods import FitNetDistillationHead

SHARE = 0.7


def networks() -> tuple[nn.Module, nn.Module, torch.Tensor]:
    """Returns a student with a part that the task does not read, a connector, and images."""
    torch.manual_seed(0)
    student = nn.ModuleDict(
        {
            'stem': nn.Linear(3, 4),
            'task': nn.Linear(4, 2),
            'unread': nn.Linear(4, 5),
            'frozen': nn.Linear(4, 4).requires_grad_(False),
        }
    )
    return student, nn.Linear(4, 6), torch.randn(8, 3)


def losses(student: Any, connector: nn.Module, x: torch.Tensor) -> tuple[torch.Tensor, Any]:
    stem = student['stem'](x)
    task = student['task'](student['frozen'](stem)).square().mean()
    terms = {
        'long': 50 * connector(stem).square().mean(),
        'short': 1e-3 * stem.square().mean() + 1e-3 * student['unread'](stem).square().mean(),
    }
    return task, terms


def gradients(loss: torch.Tensor, modules: list[nn.Module]) -> dict[str, torch.Tensor]:
    named = {f'{i}.{n}': p for i, m in enumerate(modules) for n, p in m.named_parameters()}
    named = {n: p for n, p in named.items() if p.requires_grad}
    found = torch.autograd.grad(loss, list(named.values()), retain_graph=True, allow_unused=True)
    return {
        n: torch.zeros_like(p) if g is None else g
        for (n, p), g in zip(named.items(), found, strict=True)
    }


def test_it_is_the_definition_for_each_parameter() -> None:
    student, connector, x = networks()
    task, terms = losses(student, connector, x)
    modules = [student, connector]
    own = gradients(task, modules)
    clipped = clip_to_task(terms, task, student, connector, SHARE)
    assert {k: v.item() for k, v in clipped.items()} == {k: v.item() for k, v in terms.items()}
    cut = 0
    for name, term in terms.items():
        now = gradients(clipped[name], modules)
        for at, gradient in gradients(term, modules).items():
            length, limit = gradient.norm().item(), SHARE * own[at].norm().item()
            if at.startswith('0.') and length > limit:
                gradient = gradient * (limit / length)
                cut += 1
            torch.testing.assert_close(now[at], gradient)
    assert cut == 4  # the stem's two of the long term, and what the task does not read


def test_all_are_sent_backward_together() -> None:
    """As a runner does, which divides the sum where it gathers gradients."""
    student, connector, x = networks()
    task, terms = losses(student, connector, x)
    clipped = clip_to_task(terms, task, student, connector, SHARE)
    parts = [gradients(loss, [student, connector]) for loss in (task, *clipped.values())]
    ((task + sum(clipped.values())) / 4).backward()
    for i, module in enumerate((student, connector)):
        for name, parameter in module.named_parameters():
            if parameter.requires_grad:
                expected = sum(part[f'{i}.{name}'] for part in parts) / 4
                torch.testing.assert_close(parameter.grad, expected)
            else:
                assert parameter.grad is None


@pytest.mark.parametrize('factor', [0.0, 1e-30])
def test_a_task_or_a_term_at_rest_is_a_number(factor: float) -> None:
    student, connector, x = networks()
    task, terms = losses(student, connector, x)
    for t, d in ((task * factor, terms['long']), (task, terms['long'] * factor)):
        clipped = clip_to_task({'a': d}, t, student)['a']
        found = gradients(clipped, [student])
        assert all(bool(g.isfinite().all()) for g in found.values())
        assert all(g.norm() <= 1e-20 for g in found.values())


def test_a_task_without_a_gradient_leaves_none() -> None:
    student, connector, x = networks()
    _, terms = losses(student, connector, x)
    clipped = clip_to_task(terms, torch.zeros(()), student, connector)
    found = gradients(clipped['long'], [student, connector])
    assert all(g.any() == name.startswith('1.') for name, g in found.items())


def test_the_share_grows() -> None:
    assert [growing_share(t) for t in range(3)] == [
        pytest.approx(1 / (1 + math.exp(-t))) for t in range(3)
    ]


def loop() -> tuple[nn.Module, Distillers, torch.Tensor]:
    torch.manual_seed(0)
    student = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Flatten(), nn.Linear(16, 2))
    teacher = nn.Sequential(nn.Conv2d(3, 6, 3), nn.Flatten(), nn.Linear(24, 2))
    images = torch.randn(5, 3, 4, 4)
    hint = Distiller(FitNetDistillationHead(), '0', '0', clip_to_task=True)
    return student, Distillers(student, teacher, [hint], images), images


def test_in_a_loop_of_ones_own() -> None:
    student, distillers, images = loop()
    distillers.epoch = 0
    with distillers:
        task = student(images).square().mean()
    own = gradients(task, [student])
    (term,) = distillers.losses(images, task=task).values()
    for name, gradient in gradients(term, [student]).items():
        assert gradient.norm() <= 0.5 * own[name].norm() * (1 + 1e-5)
        assert bool(gradient.any()) == name.startswith('0.0.')
    assert all(g.any() for g in gradients(term, [distillers]).values())


def test_a_loop_says_what_it_needs() -> None:
    student, distillers, images = loop()
    with distillers:
        student(images)
    with pytest.raises(ConfigError, match=r"'fitnet_0' is clipped to .*losses\(…, task=loss\)"):
        distillers.losses(images)
