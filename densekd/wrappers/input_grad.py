"""Gradients with respect to the input, for the losses that compare them, and for no others."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor, nn

from densekd.core.batch import Batch
from densekd.core.distiller import Distiller
from densekd.core.input_grad import InputGradientLoss, input_gradient, wants_input_grad
from densekd.core.teacher import Teacher
from densekd.errors import ConfigError

STUDENT = 'student'


def differentiable(inputs: Tensor, active: Sequence[Distiller]) -> Tensor:
    """Returns the images, or a leaf beside them where one of the distillers differentiates."""
    if not any(wants_input_grad(d.head) for d in active):
        return inputs
    return inputs.detach().requires_grad_()


def differentiated(
    distiller: Distiller, student: Any, teacher: Any, inputs: Tensor, batch: Batch
) -> tuple[Any, Any]:
    """Returns what a distiller compares: what was read, or the gradients of what was read."""
    if not wants_input_grad(distiller.head):
        return student, teacher
    loss: Any = distiller.head.loss
    return (
        input_gradient(loss, student, inputs, batch, create_graph=True),
        input_gradient(loss, teacher, inputs, batch, create_graph=False),
    )


def check_input_grad(
    distillers: Sequence[Distiller], student: nn.Module, teachers: Mapping[str, Teacher]
) -> None:
    """Refuses what can't be differentiated with respect to the input, or not twice.

    Raises:
        ConfigError: Naming the distiller and why.
    """
    for distiller in distillers:
        if not wants_input_grad(distiller.head):
            continue
        where = f'distiller {distiller.key!r}: {type(distiller.head.loss).__name__}'
        if not isinstance(distiller.head.loss, InputGradientLoss):
            raise ConfigError(
                f'{where} needs input_grad and does not say what is differentiated. Derive it from '
                'densekd.core.input_grad.InputGradientLoss.'
            )
        for side in ('stu_connector', 'tea_connector'):
            if getattr(distiller.head, side) is not None:
                raise ConfigError(
                    f'{where} compares gradients with respect to the images, which are alike on '
                    f'both sides: there is nothing for {side} to do. Leave it out.'
                )
        if distiller.learner != STUDENT or not set(distiller.teachers) <= set(teachers):
            raise ConfigError(
                f'{where} differentiates the student and a frozen or moving teacher; a peer that '
                'trains can be neither. Take a loss of its outputs, such as DMLLoss.'
            )
        models = {STUDENT: student, **{n: teachers[n].model for n in distiller.teachers}}
        for name, model in models.items():
            path = next((p for p, m in model.named_modules() if getattr(m, 'with_cp', False)), None)
            if path is not None:
                raise ConfigError(
                    f'{where} differentiates {name!r} with respect to its input, which activation '
                    f'checkpointing (with_cp) at {path!r} prevents. Switch it off.'
                )
        for name in distiller.teachers:
            if teachers[name].precision != 'fp32':
                raise ConfigError(
                    f'{where}: teacher {name!r} runs in {teachers[name].precision}, and a gradient '
                    "with respect to the input needs precision='fp32'."
                )
