"""The selective state space block of Mamba (Gu and Dao 2023) in plain PyTorch: no compiled kernel needed.

Each of E channels carries a state of S numbers along the sequence,

    h_t = exp(Δ_t·A)·h_{t-1} + Δ_t·B_t·x_t        y_t = C_t·h_t

where Δ, B and C are functions of the input: what to keep, what to write and what to read is selected
by the behaviour itself. (Writing Δ·B for the discretised B is Mamba's own simplification.) Tensors here
have the position first, (N, B, ...), so that one position of all sequences lies together in memory.
"""

from __future__ import annotations

import math

import torch
from torch import nn
from torch.nn import functional as F


def selective_scan(
    values: torch.Tensor, delta: torch.Tensor, rate: torch.Tensor, write: torch.Tensor, read: torch.Tensor
) -> torch.Tensor:
    """The recurrence above, one position after the other.

    This loop is also the fast form on a CPU: what one position needs stays in the cache. Forward and
    backward at N = 200, B = 16, E = 128, S = 32, one core of an EPYC, as multiples of this loop: 1.3 with
    a backward pass of our own, 4 with all decays and inputs prepared before the loop, 55 as a
    log-depth scan (November 2026).

    values: (N, B, E) x   delta: (N, B, E) Δ > 0   rate: (E, S) A < 0   write, read: (N, B, S) B, C
    -> (N, B, E) y
    """
    state = values.new_zeros(*values.shape[1:], rate.shape[1])  # (B, E, S)
    outputs = []
    for x, step, b, c in zip(values, delta, write, read, strict=True):
        decay = torch.exp(step[:, :, None] * rate)
        state = decay * state + (step * x)[:, :, None] * b[:, None, :]
        outputs.append((state * c[:, None, :]).sum(dim=-1))
    return torch.stack(outputs)


class SelectiveStateSpace(nn.Module):
    """The Mamba block: expand, short convolution, selective scan, gate, project back.

    dim: D   state_dim: S   kernel_size: of the convolution   expansion: E / D
    """

    def __init__(self, dim: int, *, state_dim: int, kernel_size: int, expansion: int) -> None:
        super().__init__()
        inner = expansion * dim
        delta_rank = math.ceil(dim / 16)
        self.split_sizes = (delta_rank, state_dim, state_dim)
        self.of_input = nn.Linear(dim, 2 * inner, bias=False)
        self.kernel = nn.Parameter(torch.empty(kernel_size, inner).uniform_(-1, 1) / math.sqrt(kernel_size))
        self.kernel_bias = nn.Parameter(torch.zeros(inner))
        self.of_selection = nn.Linear(inner, sum(self.split_sizes), bias=False)
        self.of_delta = nn.Linear(delta_rank, inner)
        self.log_rate = nn.Parameter(torch.log(torch.arange(1.0, state_dim + 1)).repeat(inner, 1))
        self.skip = nn.Parameter(torch.ones(inner))
        self.of_output = nn.Linear(inner, dim, bias=False)
        with torch.no_grad():  # as Mamba does: Δ between 0.001 and 0.1 at first, evenly in its logarithm
            first = torch.exp(torch.empty(inner).uniform_(math.log(0.001), math.log(0.1)))
            self.of_delta.bias.copy_(first + torch.log(-torch.expm1(-first)))  # softplus⁻¹
            self.of_delta.weight.uniform_(-(delta_rank**-0.5), delta_rank**-0.5)

    def forward(self, sequence: torch.Tensor) -> torch.Tensor:
        """Position j reads behaviours up to j only.   (B, N, D) -> (B, N, D)"""
        values, gate = self.of_input(sequence.transpose(0, 1)).chunk(2, dim=-1)  # (N, B, E)
        values = F.silu(self._convolve(values))
        delta, write, read = self.of_selection(values).split(self.split_sizes, dim=-1)
        delta = F.softplus(self.of_delta(delta))
        output = selective_scan(values, delta, -self.log_rate.exp(), write, read) + self.skip * values
        return self.of_output(output * F.silu(gate)).transpose(0, 1)

    def _convolve(self, values: torch.Tensor) -> torch.Tensor:
        """Each channel by itself, over the position and those before it.   (N, B, E) -> (N, B, E)"""
        length, size = len(values), len(self.kernel)
        padded = F.pad(values, (0, 0, 0, 0, size - 1, 0))
        return sum(
            (padded[offset : offset + length] * self.kernel[offset] for offset in range(size)),
            self.kernel_bias,
        )
