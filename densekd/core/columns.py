"""Class columns of a head's output, picked where two networks have unlike lists of classes."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from densekd.errors import ShapeError

FORMS = ('dense', 'rows', 'deltas')


@dataclass(frozen=True)
class Columns:
    """Picks class columns, in another order or fewer of them.

    Attributes:
        form: `'dense'` for maps (N, A*K, H, W), `'rows'` for logits (R, K), `'deltas'` for four
            columns a class, (R, 4*K).
        count: Classes K that the tensor has, background left out.
        picked: The columns to take, in the order in which they are compared; None stands for a
            class that the tensor has not, and is only for deltas: it is infinite there, the box of
            a network that has no idea of it.
        background: Whether a column of the background follows the classes. It is kept last.

    Example:
        >>> Columns('rows', 3, (2, 0), background=True)(torch.tensor([[1.0, 2.0, 3.0, 9.0]]))
        tensor([[3., 1., 9.]])
        >>> Columns('deltas', 1, (None, 0))(torch.tensor([[1.0, 2.0, 3.0, 4.0]]))
        tensor([[inf, inf, inf, inf, 1., 2., 3., 4.]])
    """

    form: str
    count: int
    picked: tuple[int | None, ...]
    background: bool = False

    def __call__(self, x: Tensor) -> Tensor:
        """Returns the picked columns.

        Raises:
            ShapeError: If the tensor has not as many columns as the classes need.
        """
        each = self.count + self.background
        if self.form == 'deltas':
            return self._deltas(x)
        if x.dim() < 2 or not each or x.shape[1] % each or (self.form == 'rows' and x.dim() != 2):
            raise ShapeError(
                f'a head with {self.count} classes gives {tuple(x.shape)}, whose columns are not '
                'those of its classes.'
            )
        last = [self.count] if self.background else []
        index = torch.tensor([*(i for i in self.picked if i is not None), *last], device=x.device)
        grouped = x.reshape(x.shape[0], -1, each, *x.shape[2:])  # columns of an anchor are adjacent
        return grouped.index_select(2, index).flatten(1, 2)

    def places(self, labels: Tensor) -> Tensor:
        """Returns where the class of each label stands among what is picked; -1 if it does not.

        Example:
            >>> Columns('rows', 3, (2, 0), background=True).places(torch.tensor([0, 1, 2, 3, 255]))
            tensor([ 1, -1,  0,  2, -1])
        """
        picked = [*self.picked, *([self.count] if self.background else [])]
        every = range(self.count + self.background)
        table = torch.tensor([picked.index(k) if k in picked else -1 for k in every])
        inside = (labels >= 0) & (labels < len(table))
        return torch.where(inside, table.to(labels.device)[labels.clamp(0, len(table) - 1)], -1)

    def _deltas(self, x: Tensor) -> Tensor:
        if x.dim() != 2 or x.shape[1] not in (4, 4 * self.count):
            raise ShapeError(
                f'a head with {self.count} classes gives deltas {tuple(x.shape)}; they must be '
                '(R, 4) or (R, 4*K).'
            )
        if x.shape[1] == 4 and self.count != 1:
            return x  # one box for all classes
        each = x.reshape(len(x), self.count, 4)
        none = torch.full_like(each[:, 0], torch.inf)
        return torch.cat([none if i is None else each[:, i] for i in self.picked], 1)
