"""Teach fxprune an op of your own in five lines: a rule says how axes flow through it.

Without a rule the op is not understood: all that it touches stays whole, and the analysis says so.
"""

import torch
from torch import Tensor, nn

import fxprune
from fxprune import DEFAULT_RULES, Flow


@torch.library.custom_op("example::soft_gate", mutates_args=())
def soft_gate(x: Tensor, gate: Tensor) -> Tensor:
    """x times the sigmoid of a gate of the same shape: to PyTorch's tracers a black box."""
    return x * torch.sigmoid(gate)


@soft_gate.register_fake
def _(x: Tensor, gate: Tensor) -> Tensor:
    return torch.empty_like(x)


# The five lines: element by element, so that the result has the axes of x, and the gate has the same.
def soft_gate_axes(x, gate):
    """b n c, b n c -> b n c"""
    return Flow(x.axes, same=list(zip(x.axes, gate.axes, strict=True)))


RULES = DEFAULT_RULES.extended({"example.soft_gate": soft_gate_axes})


class GatedMlp(nn.Module):
    """Tokens [batch, tokens, 32] to classes [batch, 10], through 128 gated hidden channels."""

    def __init__(self) -> None:
        super().__init__()
        self.value, self.gate = nn.Linear(32, 128), nn.Linear(32, 128)
        self.out = nn.Linear(128, 10)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(soft_gate(self.value(x), self.gate(x)).mean(dim=1))


def main() -> None:
    model, tokens = GatedMlp().eval(), torch.randn(2, 16, 32)

    print(fxprune.analyze(model, example_inputs=tokens), end="\n\n")
    print(fxprune.analyze(model, example_inputs=tokens, rules=RULES), end="\n\n")

    pruned = fxprune.prune(model, 0.5, example_inputs=tokens, rules=RULES)
    certificate = fxprune.verify(model, pruned, rules=RULES)
    print(f"{model.gate.weight.shape[0]} -> {pruned.gate.weight.shape[0]} hidden channels, ", end="")
    print(f"certified to {float(certificate):.1e}")


if __name__ == "__main__":
    main()
