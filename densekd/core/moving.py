"""A teacher that follows its student: the moving average of the student's weights.

Paper: Tarvainen, Valpola: Mean teachers are better role models. NeurIPS 2017.
    https://arxiv.org/abs/1703.01780
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from densekd.core.teacher import Teacher
from densekd.errors import CheckpointError, ConfigError


class MovingTeacher(Teacher):
    """A copy of the student whose weights are the average of the student's so far.

        w <- a w + (1 - a) w_student,   a = min(1 - 1/(t + 1), decay) after step t = 1, 2, …

    So it is the plain mean of the first weights, and moves slowly later. Running statistics are
    averaged likewise; counters are copied. Unlike the authors', whose teacher normalises by its
    batch, it is in eval mode as every teacher is. It stays outside of the module tree.

    Args:
        student: The network that it follows.
        name: What distillers call it.
        decay: The share of the old weights that a step keeps.

    Raises:
        ConfigError: If the decay is no share.

    Example:
        >>> student = nn.Linear(1, 1)
        >>> teacher = MovingTeacher(student, 'mean', 0.9)
        >>> _ = nn.init.constant_(student.weight, 2.0)
        >>> teacher.begin(student)
        >>> _ = nn.init.constant_(student.weight, 4.0)
        >>> teacher.follow(student)
        >>> teacher.model.weight.item(), teacher.model.weight.requires_grad
        (3.0, False)
    """

    def __init__(self, student: nn.Module, name: str, decay: float) -> None:
        if isinstance(decay, bool) or not isinstance(decay, (int, float)) or not 0 <= decay < 1:
            raise ConfigError(
                f'peer {name!r}: ema is the share of the old weights that a step keeps, from 0 to '
                f'below 1, such as 0.999, not {decay!r}.'
            )
        # Not fused: a norm that is folded away could not follow.
        super().__init__(copy.deepcopy(student), name, {'moving': True}, fuse=False)
        self.decay = float(decay)
        self.steps = 0
        self.begun = False

    def begin(self, student: nn.Module) -> None:
        """Takes the weights that the student starts with, once: they may be loaded after it."""
        if not self.begun:
            self._mix(student, 0.0)
            self.begun = True

    def follow(self, student: nn.Module) -> None:
        """Moves towards the student; to be called after each of its steps."""
        self.steps += 1
        self._mix(student, min(1 - 1 / (self.steps + 1), self.decay))

    @torch.no_grad()
    def _mix(self, student: nn.Module, keep: float) -> None:
        own, theirs = _tensors(self.model), _tensors(student)
        for name, tensor in own.items():
            new = theirs[name]
            if keep == 0.0 or not tensor.is_floating_point():
                tensor.copy_(new)
            else:
                tensor.lerp_(new.to(tensor), 1 - keep)

    def state(self) -> dict[str, Any]:
        """Returns what it needs to go on."""
        weights = {k: v.detach().cpu().clone() for k, v in _tensors(self.model).items()}
        return {'weights': weights, 'steps': self.steps, 'begun': self.begun}

    @torch.no_grad()
    def load_state(self, state: Mapping[str, Any]) -> None:
        """Takes back what `state` returned.

        Raises:
            CheckpointError: If it is of another network.
        """
        own, weights = _tensors(self.model), dict(state['weights'])
        for name in {**own, **weights}:
            same = name in own and name in weights and own[name].shape == weights[name].shape
            if not same:
                raise CheckpointError(
                    f'resume: the moving teacher {self.name!r} was saved for another student: '
                    f'{name} does not fit. Resume with the config that wrote it.'
                )
        for name, tensor in own.items():
            tensor.copy_(weights[name])
        self.steps, self.begun = int(state['steps']), bool(state['begun'])


def _tensors(model: nn.Module) -> dict[str, Tensor]:
    """Returns parameters and buffers, those too that no state dict holds."""
    return {**dict(model.named_parameters()), **dict(model.named_buffers())}
