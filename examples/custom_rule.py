"""Teach fxprune ops of your own: a rule says how axes flow, `masked` what a norm is over kept channels.

Without a rule the op is not understood: all that it touches is frozen, and the analysis says so.
"""

import torch
from torch import Tensor, nn

import fxprune
from fxprune import DEFAULT_RULES, Flow, Op


@torch.library.custom_op("example::soft_gate", mutates_args=())
def soft_gate(x: Tensor, gate: Tensor) -> Tensor:
    """Multiply x by the sigmoid of a gate of the same shape: to PyTorch's tracers a black box."""
    return x * torch.sigmoid(gate)


@torch.library.custom_op("example::scaled_norm", mutates_args=())
def scaled_norm(x: Tensor, scale: Tensor) -> Tensor:
    """Divide x by the root of its channels' mean square, and multiply by a scale per channel."""
    return x / (x.square().mean(-1, keepdim=True) + 1e-6).sqrt() * scale


@soft_gate.register_fake
@scaled_norm.register_fake
def _(x: Tensor, other: Tensor) -> Tensor:
    return torch.empty_like(x)


# Element by element: the result has the axes of x, and the gate has the same.  It is not linear in them, and
# so its axes are only ever permuted: what a rule does not say of freedom is that.
def soft_gate_axes(x, gate):
    """b n c, b n c -> b n c"""
    return Flow(x.axes, same=list(zip(x.axes, gate.axes, strict=True)))


# A norm takes a statistic over its channels: `reduced` says so.  But for the norm itself, which rotations
# leave as it is, it is the product of x and its scale: `linear` and `rotates` say so, and a stream that such
# norms read may be rotated (`fxprune.rebase`).
def scaled_norm_axes(x, scale):
    """... c, c -> ... c"""
    channels = x.axes[-1]
    return Flow(
        x.axes,
        same=[(channels, scale.axes[0])],
        reduced=[channels],
        linear="... c, c -> ... c",
        rotates=[channels],
    )


# What the norm is over kept channels, written by hand: the certificate runs it on the model at full size,
# where removed channels are zero (mask: 1 for a kept element, 0 for a removed one).
def masked_scaled_norm(x, scale, mask):
    mean = (x.square() * mask).sum(-1, keepdim=True) / mask.sum(-1, keepdim=True)
    return x / (mean + 1e-6).sqrt() * scale


RULES = DEFAULT_RULES.extended(
    {"example::soft_gate": soft_gate_axes, "example::scaled_norm": Op(scaled_norm_axes, masked_scaled_norm)}
)


class GatedMlp(nn.Module):
    """Tokens [batch, tokens, 32] to classes [batch, 10], through 128 gated and normed hidden channels."""

    def __init__(self) -> None:
        super().__init__()
        self.value, self.gate = nn.Linear(32, 128), nn.Linear(32, 128)
        self.scale = nn.Parameter(torch.rand(128) + 0.5)
        self.out = nn.Linear(128, 10)

    def forward(self, x: Tensor) -> Tensor:
        gated = soft_gate(self.value(x), self.gate(x))
        return self.out(scaled_norm(gated, self.scale).mean(dim=1))


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
