"""Shared and tied weights, outputs of every kind, frozen neighbours, small traps."""

from __future__ import annotations

import dataclasses
import math
from collections import namedtuple
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers.modeling_outputs import ImageClassifierOutput

from hard_modules.case import CLASSES, EMBED, TOKENS, Pixels, alone, case, only, tokens

# ---------------------------------------------------------------- shared


@case(block__fc__weight=(12, 12), block__norm__weight=(12,))
class SharedModule(nn.Module):
    """One layer applied three times."""

    def __init__(self) -> None:
        super().__init__()
        self.fc, self.norm = nn.Linear(EMBED, EMBED), nn.LayerNorm(EMBED)

    def forward(self, x: Tensor) -> Tensor:
        for _ in range(3):
            x = x + self.fc(self.norm(x)).tanh()
        return x


class TiedWeights(nn.Module):
    """Encoder and decoder share one parameter; the decoder's use is transposed."""

    def __init__(self) -> None:
        super().__init__()
        self.encode, self.decode = nn.Linear(EMBED, 48), nn.Linear(EMBED, 48, bias=False)
        self.decode.weight = self.encode.weight

    def forward(self, x: Tensor) -> Tensor:
        return self.encode(x).relu() @ self.decode.weight


case(block__encode__weight=(24, 12), block__decode__weight=(24, 12))(TiedWeights)


@case(block__up__weight=(12, 12), block__down__weight=(12, 12))
class TiedModules(nn.Module):
    """Two layers of one weight, with a bias each: input and output widths become one axis."""

    def __init__(self) -> None:
        super().__init__()
        self.up, self.down = nn.Linear(EMBED, EMBED), nn.Linear(EMBED, EMBED)
        self.down.weight = self.up.weight

    def forward(self, x: Tensor) -> Tensor:
        return x + self.down(self.up(x).relu())


# ---------------------------------------------------------------- outputs

Pair = namedtuple("Pair", ["logits", "features"])


@dataclasses.dataclass
class Result:
    logits: Tensor
    scores: Tensor


torch.export.register_dataclass(Result)


class TwoHeads(nn.Module):
    """A hidden width that shrinks before two heads that must not."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.norm = nn.Linear(5, EMBED), nn.LayerNorm(EMBED)
        self.a, self.b = nn.Linear(EMBED, CLASSES), nn.Linear(EMBED, 3)

    def heads(self, x: Tensor) -> tuple[Tensor, Tensor]:
        x = self.norm(self.embed(x)).mean(1)
        return self.a(x), self.b(x)


LEFT = {"embed__weight": (12, 5), "a__weight": (CLASSES, 12), "b__weight": (3, 12)}


@case(alone, (tokens(),), **LEFT)
class TupleOutput(TwoHeads):
    def forward(self, x: Tensor) -> Any:
        return self.heads(x)


@case(alone, (tokens(),), **LEFT)
class NestedOutput(TwoHeads):
    def forward(self, x: Tensor) -> Any:
        a, b = self.heads(x)
        return [a, {"b": b, "both": (a.softmax(-1), b)}]


@case(alone, (tokens(),), **LEFT)
class DictOutput(TwoHeads):
    def forward(self, x: Tensor) -> Any:
        a, b = self.heads(x)
        return {"logits": a, "scores": b}


@case(alone, (tokens(),), **LEFT)
class NamedTupleOutput(TwoHeads):
    def forward(self, x: Tensor) -> Any:
        return Pair(*self.heads(x))


@case(alone, (tokens(),), **LEFT)
class DataclassOutput(TwoHeads):
    def forward(self, x: Tensor) -> Any:
        a, b = self.heads(x)
        return Result(logits=a, scores=b)


@case(alone, (tokens(),), **LEFT)
class ModelOutput(TwoHeads):
    def forward(self, x: Tensor) -> Any:
        a, b = self.heads(x)
        return ImageClassifierOutput(logits=a, hidden_states=(b,))


# ---------------------------------------------------------------- frozen, and its surroundings


@case(
    block__proj__weight=(12, EMBED),
    block__fc1__weight=(20, 12),
    head__weight=(CLASSES, EMBED),
)
class UnknownStaysWhole(nn.Module):
    """No rule covers this spelling of a norm: what touches it is frozen, what lies beyond shrinks."""

    def __init__(self) -> None:
        super().__init__()
        self.proj = nn.Linear(EMBED, EMBED)
        self.fc1, self.fc2 = nn.Linear(EMBED, 40), nn.Linear(40, EMBED)

    def forward(self, x: Tensor) -> Tensor:
        x = self.proj(torch.native_layer_norm(x, (EMBED,), None, None, 1e-5)[0])
        return self.fc2(self.fc1(x).relu())


@case(
    block__lstm__weight_ih_l0=(40, 12),
    block__proj__weight=(12, 20),
    block__fc1__weight=(20, 12),
    head__weight=(CLASSES, 12),
)
class LstmReadsLess(nn.Module):
    """The state of an LSTM is frozen, what it reads and what lies beyond shrinks."""

    def __init__(self) -> None:
        super().__init__()
        self.lstm = nn.LSTM(EMBED, 10, batch_first=True, bidirectional=True)
        self.proj = nn.Linear(20, EMBED)
        self.fc1, self.fc2 = nn.Linear(EMBED, 40), nn.Linear(40, EMBED)

    def forward(self, x: Tensor) -> Tensor:
        x = self.proj(self.lstm(x)[0])
        return self.fc2(self.fc1(x).relu())


@case(block__fc1__weight=(20, 12), block__mix__weight=(TOKENS, TOKENS))
class TokensMixed(nn.Module):
    """MLP-Mixer: a layer over the tokens."""

    def __init__(self) -> None:
        super().__init__()
        self.mix = nn.Linear(TOKENS, TOKENS)
        self.fc1, self.fc2 = nn.Linear(EMBED, 40), nn.Linear(40, EMBED)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.mix(x.transpose(1, 2)).transpose(1, 2)
        return self.fc2(self.fc1(x).relu())


# ---------------------------------------------------------------- small traps


@case(block__weight=(12, 12), block__other=(12, 12))
class TransposedByAttribute(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(EMBED, EMBED))
        self.other = nn.Parameter(torch.zeros(EMBED, EMBED))

    def forward(self, x: Tensor) -> Tensor:
        return (x @ self.weight.T).relu() @ self.other.mT


@case(block__fc1__weight=(20, 12))
class DividedByNumel(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.fc1, self.fc2 = nn.Linear(EMBED, 40), nn.Linear(40, EMBED)

    def forward(self, x: Tensor) -> Tensor:
        x = self.fc1(x).relu()
        return self.fc2(x * (x[0].numel() ** -0.5))


@case(block__tail__weight=(6, 12), block__out__weight=(12, 11))
class SlicedFromTheEnd(nn.Module):
    """[frozen | shrinking]: negative bounds count elements that go."""

    def __init__(self) -> None:
        super().__init__()
        self.tail, self.out = nn.Linear(EMBED, 12), nn.Linear(17, EMBED)

    def forward(self, x: Tensor) -> Tensor:
        both = torch.cat((x.new_ones(5).cumsum(0).expand(x.shape[0], TOKENS, 5), self.tail(x)), -1)
        head, tail = both[..., :-12], both[..., -12:]
        return self.out(torch.cat((head * 2, tail.relu()), -1))


@case(Pixels, block__reduce__weight=(1, 8, 1, 1), block__expand__weight=(8, 1))
class SqueezedToOneChannel(nn.Module):
    """Two channels become one: `squeeze` must not take that dimension too."""

    def __init__(self) -> None:
        super().__init__()
        self.reduce, self.expand = nn.Conv2d(16, 2, 1), nn.Linear(2, 16)

    def forward(self, x: Tensor) -> Tensor:
        pooled = F.adaptive_avg_pool2d(self.reduce(x), 1)
        return self.expand(pooled.squeeze(-1).squeeze(-1))[:, :, None, None]


@case(Pixels, block__reduce__weight=(1, 8, 1, 1), block__expand__weight=(8, 1), batches=(5,))
class SqueezedOfAllUnits(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.reduce, self.expand = nn.Conv2d(16, 2, 1), nn.Linear(2, 16)

    def forward(self, x: Tensor) -> Tensor:
        pooled = F.adaptive_avg_pool2d(self.reduce(x), 1)
        return self.expand(pooled.squeeze())[:, :, None, None]


# ---------------------------------------------------------------- writes in place


class Mlp(nn.Module):
    """What happens to the hidden features is the subclass's."""

    def __init__(self, hidden: int = 40) -> None:
        super().__init__()
        self.fc1, self.fc2 = nn.Linear(EMBED, 40), nn.Linear(hidden, EMBED)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(self.hidden(self.fc1(x)))

    def hidden(self, x: Tensor) -> Tensor:
        raise NotImplementedError


HALVED = {"block__fc1__weight": (20, 12), "block__fc2__weight": (12, 20)}
WHOLE = {"block__fc1__weight": (40, 12), "block__fc2__weight": (12, 40)}


@case(captures=only("export"), **HALVED)
class ActivatedInPlace(Mlp):
    """The result of the call is dropped, its effect is not."""

    def hidden(self, x: Tensor) -> Tensor:
        F.relu(x, inplace=True)
        return x


@case(**HALVED)
class ActivatedInPlaceByAModule(Mlp):
    def __init__(self) -> None:
        super().__init__()
        self.act = nn.ReLU(inplace=True)

    def hidden(self, x: Tensor) -> Tensor:
        self.act(x)
        return x


@case(**HALVED)
class AddedInPlace(Mlp):
    """Both names are the tensor after the write."""

    def forward(self, x: Tensor) -> Tensor:
        x = self.fc1(x)
        y = x.add_(1)
        return self.fc2(x) + self.fc2(y).tanh()


@case(**HALVED)
class WrittenThroughAView(Mlp):
    """What is written to a slice shows in the whole."""

    def hidden(self, x: Tensor) -> Tensor:
        half = x[..., :20].add_(3)
        return x * half.mean(-1, keepdim=True)


@case(**HALVED)
class AssignedBySlice(Mlp):
    def hidden(self, x: Tensor) -> Tensor:
        x = x.clone()
        x[:, 0] = 0.5
        return x


# ---------------------------------------------------------------- statistics where a zero counts


@case(**WHOLE)
class InstanceNormOverChannels(Mlp):
    """b n c read as b c l: the mean is over channels."""

    def hidden(self, x: Tensor) -> Tensor:
        return F.instance_norm(x)


@case(**WHOLE)
class NanMean(Mlp):
    def hidden(self, x: Tensor) -> Tensor:
        return x / (x.nanmean(-1, keepdim=True) + 5)


@case(**WHOLE)
class SmallestByNorm(Mlp):
    """A norm of order -inf is a minimum, which a zero would be."""

    def hidden(self, x: Tensor) -> Tensor:
        return x / (torch.linalg.vector_norm(x, ord=-math.inf, dim=-1, keepdim=True) + 1)


@case(**WHOLE)
class SoftmaxByHand(Mlp):
    def hidden(self, x: Tensor) -> Tensor:
        return x - x.logsumexp(dim=-1, keepdim=True)


@case(block__fc1__weight=(40, 12), block__fc2__weight=(12, 42))
class ReflectedChannels(Mlp):
    """Padding that copies channels."""

    def __init__(self) -> None:
        super().__init__(42)

    def hidden(self, x: Tensor) -> Tensor:
        return F.pad(x, (1, 1), mode="reflect")


# ---------------------------------------------------------------- tensors and spellings of other kinds


@case(**HALVED)
class PlainTensorAttribute(Mlp):
    """A tensor that is no buffer: it shrinks, and is not saved."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = torch.rand(40)

    def hidden(self, x: Tensor) -> Tensor:
        return x * self.scale


@case(**HALVED)
class EinsumOfSublists(Mlp):
    def hidden(self, x: Tensor) -> Tensor:
        return torch.einsum(x, [0, 1, 2], x.relu(), [0, 3, 2], [0, 1, 2])


@case(**HALVED)
class MeanByNumel(Mlp):
    def hidden(self, x: Tensor) -> Tensor:
        return x - x.sum() / x.numel()


@case(block__fc1__weight=(20, 12), block__fc2__weight=(12, 20))
class FieldsByName(Mlp):
    """Results of several tensors, picked by the names of their fields."""

    def hidden(self, x: Tensor) -> Tensor:
        largest = x.max(dim=1, keepdim=True)
        return x - largest.values + x.sort(dim=1).values
