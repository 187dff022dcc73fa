"""Terms whose gradient is clipped to the task's, parameter by parameter.

Papers: Lee, Kim, Song: Self-supervised Knowledge Distillation Using Singular Value Decomposition.
    ECCV 2018. https://arxiv.org/abs/1807.06819; Lee, Song: Graph-based Knowledge Distillation by
    Multi-head Attention Network. BMVC 2019. https://arxiv.org/abs/1907.02226, both as in their
    code.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

# A gradient that is shorter has no direction to speak of, and is not divided by.
SHORTEST = 1e-30


def clip_to_task(
    terms: Mapping[str, Tensor],
    task: Tensor,
    learner: nn.Module,
    added: nn.Module | None = None,
    share: float = 1.0,
) -> dict[str, Tensor]:
    """Returns terms of the same values, each of whose gradients is no longer than the task's.

        g <- g min(1, share ||t|| / ||g||)    for each parameter of the student,
                                              of which t is the task's gradient and g the term's

    So a term can't hold up a task that has not begun to be learnt. Each costs a backward pass of
    its own, and the task one more. The gradients are those of this process and this batch, before
    any scaling of the loss: in float16, small ones are lost here.

    Args:
        terms: Losses, by name; on the student's graph.
        task: The student's own loss, whose graph may still be used.
        learner: The student.
        added: What the terms train beside the student, connectors, whose gradients are not clipped.
        share: How long a gradient may be, where the task's is 1.

    Deviations: none that we know of. In the authors' code the share grows: see `growing_share`.

    Example:
        >>> student = nn.Linear(1, 1, bias=False)
        >>> value = student(torch.ones(1, 1)).sum()
        >>> clipped = clip_to_task({'a': 5 * value, 'b': value / 4}, value / 2, student)
        >>> sum(clipped.values()).backward()
        >>> student.weight.grad  # 5 was clipped to 0.5, and 0.25 stayed
        tensor([[0.7500]])
    """
    own = [p for p in learner.parameters() if p.requires_grad]
    others = [p for p in added.parameters() if p.requires_grad] if added is not None else []
    limits = [share * torch.linalg.vector_norm(g) for g in _gradients(task, own)]
    clipped = {}
    for name, term in terms.items():
        found = _gradients(term, [*own, *others])
        short = [_shortened(g, limit) for g, limit in zip(found, limits, strict=False)]
        clipped[name] = _Given.apply(term, [*short, *found[len(own) :]], *own, *others)
    return clipped


def growing_share(epoch: int | None) -> float:
    """Returns the authors' share after some epochs: half in the first, soon nearly all.

    Args:
        epoch: Epochs begun before this one; None where nobody counts them, which is the end.

    Example:
        >>> growing_share(0), round(growing_share(2), 2), growing_share(None)
        (0.5, 0.88, 1.0)
    """
    return 1.0 if epoch is None else 1 / (1 + math.exp(-epoch))


def _gradients(loss: Tensor, parameters: Sequence[Tensor]) -> list[Tensor]:
    """Returns the gradients, zeros where there are none: DDP waits for each parameter's."""
    if not loss.requires_grad:
        return [torch.zeros_like(p) for p in parameters]
    return list(
        torch.autograd.grad(
            loss, parameters, retain_graph=True, allow_unused=True, materialize_grads=True
        )
    )


def _shortened(gradient: Tensor, limit: Tensor) -> Tensor:
    length = torch.linalg.vector_norm(gradient).clamp(min=SHORTEST)
    return gradient * (limit / length).clamp(max=1.0)


class _Given(torch.autograd.Function):
    """A value with gradients that were computed before."""

    @staticmethod
    def forward(ctx: Any, value: Tensor, gradients: list[Tensor], *parameters: Tensor) -> Tensor:
        ctx.gradients = gradients
        return value.detach()

    @staticmethod
    def backward(ctx: Any, *slopes: Any) -> Any:
        return None, None, *(g * slopes[0] for g in ctx.gradients)
