"""AdamW on one flat vector.

The first optimiser of ``torch.optim`` in a process imports torch's compiler, about 2 s. A deployed
node starts a process for every message, so that would be a third of its cost.
"""

import math
from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import Parameter


class FlatAdamW:
    """AdamW (Loshchilov and Hutter 2019, arXiv 1711.05101) as in ``torch.optim.AdamW``.

    Parameters and gradients become views of two flat vectors, so that a step is a handful of
    operations whatever the number of arrays.

    Parameters
    ----------
    parameters : sequence of Parameter
        Of one dtype and device. A parameter without a gradient counts as one with gradient 0.
    learning_rate, weight_decay : float
        Weight decay is decoupled.

    Attributes
    ----------
    values, gradient : Tensor, shape (values,)
        Of all parameters, in their order.
    """

    def __init__(
        self,
        parameters: Sequence[Parameter],
        learning_rate: float,
        weight_decay: float,
        betas: tuple[float, float] = (0.9, 0.999),
        epsilon: float = 1e-8,
    ) -> None:
        self.learning_rate = learning_rate
        self.weight_decay = weight_decay
        self.betas = betas
        self.epsilon = epsilon
        self.steps = 0
        self.values = torch.cat([p.detach().reshape(-1) for p in parameters])
        self.gradient = torch.zeros_like(self.values)
        self._mean = torch.zeros_like(self.values)
        self._square = torch.zeros_like(self.values)
        self._root = torch.empty_like(self.values)
        sizes = [p.numel() for p in parameters]
        parts = zip(torch.split(self.values, sizes), torch.split(self.gradient, sizes), strict=True)
        for parameter, (values, gradient) in zip(parameters, parts, strict=True):
            parameter.data = values.view_as(parameter)
            parameter.grad = gradient.view_as(parameter)

    def clip(self, largest: float) -> None:
        """Scale the gradient down to an L2 norm of at most ``largest``."""
        norm = torch.linalg.vector_norm(self.gradient)
        self.gradient.mul_((largest / (norm + 1e-6)).clamp(max=1.0))

    @torch.no_grad()
    def step(self) -> Tensor:
        """Update the parameters and set the gradient to zero; return `values` itself, (values,)."""
        self.steps += 1
        first, second = self.betas
        self._mean.lerp_(self.gradient, 1 - first)
        self._square.mul_(second).addcmul_(self.gradient, self.gradient, value=1 - second)
        # A smaller root is nothing beside epsilon; denormal numbers take ten times as long.
        root = torch.clamp(self._square, min=1e-36, out=self._root).sqrt_()
        root.div_(math.sqrt(1 - second**self.steps)).add_(self.epsilon)
        self.values.mul_(1 - self.learning_rate * self.weight_decay)
        rate = self.learning_rate / (1 - first**self.steps)
        self.values.addcdiv_(self._mean, root, value=-rate)
        self.gradient.zero_()
        return self.values
