"""Tokens that scores read out of an image, or that layers make, stay whole; what looks alike shrinks."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from exactness import certified_at
from helpers import by_capture, randomise
from torch import Tensor, nn

N, C, CLASSES = 6, 16, 5  # tokens, their width, classes
Scores = Callable[["Read", Tensor], Tensor]
Answer = Callable[["Read", Tensor, Tensor, Tensor], Tensor]


class Read(nn.Module):
    """Scores read an image's patches, an answer is made of what they read."""

    def __init__(self, scores: Scores, answer: Answer) -> None:
        super().__init__()
        self.scores, self.answer = scores, answer
        self.patches, self.queries = nn.Conv2d(3, C, 8, 8), nn.Parameter(torch.randn(N, C))
        self.maps = nn.Conv2d(C, N, 1)
        self.mlp = nn.Sequential(nn.Linear(C, 24), nn.GELU(), nn.Linear(24, N))
        self.gate, self.score, self.back = nn.Linear(C, N), nn.Linear(C, 1), nn.Linear(C, N)
        self.norm, self.head, self.flat = nn.LayerNorm(C), nn.Linear(C, CLASSES), nn.Linear(N * C, CLASSES)
        self.body = nn.Sequential(nn.Linear(C, 24), nn.GELU(), nn.Linear(24, C))
        self.over, self.temperature = nn.Linear(N, CLASSES), nn.Parameter(torch.ones(1))
        self.mix = nn.Sequential(nn.Linear(N, 24), nn.GELU(), nn.Linear(24, N))

    def forward(self, x: Tensor) -> Tensor:
        x = self.patches(x).flatten(2).transpose(1, 2)
        scores = self.scores(self, x)  # [batch, N, patches]
        return self.answer(self, scores @ x, scores, x)


# ---------------------------------------------------------------- scores of learned queries, of layers


def sigmoid(m: Read, x: Tensor) -> Tensor:
    return torch.einsum("qc,bnc->bqn", m.queries, x).sigmoid()


def softmax(m: Read, x: Tensor) -> Tensor:
    return (m.queries @ x.transpose(1, 2) * C**-0.5).softmax(-1)


def queries_last(m: Read, x: Tensor) -> Tensor:
    return (x @ m.queries.T * m.temperature).sigmoid().transpose(1, 2)


def as_a_layer(m: Read, x: Tensor) -> Tensor:
    return F.linear(x, m.queries).softmax(1).transpose(1, 2)


def signed(m: Read, x: Tensor) -> Tensor:
    return (m.queries @ x.transpose(1, 2)).tanh()


def unit_length(m: Read, x: Tensor) -> Tensor:
    """Cosines, divided by their sum: slots."""
    scores = (F.normalize(m.queries, dim=-1) @ F.normalize(x, dim=-1).transpose(1, 2)).sigmoid()
    return scores / (scores.sum(-1, keepdim=True) + 1e-6)


def learner(m: Read, x: Tensor) -> Tensor:
    """A convolution makes a map per token."""
    return m.maps(x.transpose(1, 2).unflatten(2, (4, 4))).sigmoid().flatten(2)


def learner_of_two_layers(m: Read, x: Tensor) -> Tensor:
    return m.mlp(m.norm(x)).transpose(1, 2).softmax(-1)


def gated_learner(m: Read, x: Tensor) -> Tensor:
    return (m.mlp(x).tanh() * m.gate(x).sigmoid()).softmax(1).transpose(1, 2)


BY_QUERIES = [sigmoid, softmax, queries_last, as_a_layer, unit_length]
BY_LAYERS = [learner, learner_of_two_layers, gated_learner]


# ---------------------------------------------------------------- answers


def mean(m: Read, y: Tensor, scores: Tensor, x: Tensor) -> Tensor:
    return m.head(y.mean(1))


def total(m: Read, y: Tensor, scores: Tensor, x: Tensor) -> Tensor:
    return m.head(y + m.body(m.norm(y))).sum(1)


def largest(m: Read, y: Tensor, scores: Tensor, x: Tensor) -> Tensor:
    return m.head(m.body(y)).amax(1)


def flattened(m: Read, y: Tensor, scores: Tensor, x: Tensor) -> Tensor:
    return m.flat(y.flatten(1))


def flattened_after_layers(m: Read, y: Tensor, scores: Tensor, x: Tensor) -> Tensor:
    return m.flat((y + m.body(m.norm(y))).flatten(1))


def weighed(m: Read, y: Tensor, scores: Tensor, x: Tensor) -> Tensor:
    return m.head(torch.einsum("bq,bqc->bc", m.score(m.body(y)).sigmoid().squeeze(-1), y))


def attended(m: Read, y: Tensor, scores: Tensor, x: Tensor) -> Tensor:
    return m.head((x + F.scaled_dot_product_attention(x, m.body(y), y)).mean(1))


def fused_back(m: Read, y: Tensor, scores: Tensor, x: Tensor) -> Tensor:
    """Each patch takes of each token what a layer says."""
    return m.head((x + m.back(x).sigmoid() @ m.body(y)).mean(1))


def given_back(m: Read, y: Tensor, scores: Tensor, x: Tensor) -> Tensor:
    """Each patch takes of each token what it gave to it."""
    return m.head((x + scores.transpose(1, 2) @ y).mean(1))


def written_out(m: Read, y: Tensor, scores: Tensor, x: Tensor) -> Tensor:
    """The same reading as a product of maps and pixels and a mean."""
    y = (scores[..., None] * x[:, None]).mean(2)
    return m.flat(y.flatten(1)) + m.head(y.mean(1))


def residuals(m: Read, y: Tensor, scores: Tensor, x: Tensor) -> Tensor:
    """What patches are beside learned centres, a token for each."""
    y = (scores.transpose(1, 2)[..., None] * (x[:, :, None] - m.queries)).sum(1)
    return m.head(y.mean(1))


ANSWERS = [
    mean,
    total,
    largest,
    flattened,
    flattened_after_layers,
    weighed,
    attended,
    fused_back,
    written_out,
]


def mixed(m: Read, y: Tensor, scores: Tensor, x: Tensor) -> Tensor:
    return m.head((y + m.mix(y.transpose(1, 2)).transpose(1, 2)).mean(1))


PAIRS = [(s, a) for s in (sigmoid, softmax, learner) for a in ANSWERS]
PAIRS += [(s, a) for s in (queries_last, as_a_layer, unit_length, *BY_LAYERS[1:]) for a in (mean, fused_back)]
PAIRS += [(signed, flattened), (signed, mean), (learner, residuals), (learner_of_two_layers, residuals)]
PAIRS += [(s, a) for a in (mixed, given_back) for s in (sigmoid, softmax, queries_last, unit_length)]


def shapes_of(model: nn.Module, x: Tensor, capture: str) -> dict[str, tuple[int, ...]]:
    """The shapes that are left at a half, of what is used; the result is exact."""
    (pruned,) = certified_at((0.5,), model, x, capture)
    return {name: tuple(p.shape) for name, p in pruned.named_parameters()}


@pytest.mark.parametrize(
    ("scores", "answer", "capture"),
    by_capture(PAIRS, 4),
    ids=lambda f: getattr(f, "__name__", f),
)
def test_what_reads_stays_whole(scores: Scores, answer: Answer, capture: str) -> None:
    model = randomise(Read(scores, answer)).eval()
    left = shapes_of(model, torch.randn(2, 3, 32, 32), capture)
    tokens = {"queries": (N, C // 2), "maps.weight": (N, C // 2, 1, 1), "mlp.2.weight": (N, 12)}
    tokens |= {"gate.weight": (N, C // 2), "back.weight": (N, C // 2), "flat.weight": (CLASSES, N * C // 2)}
    tokens |= {"mix.0.weight": (12, N), "head.weight": (CLASSES, C // 2), "body.0.weight": (12, C // 2)}
    assert {name: left[name] for name in tokens if name in left} == {
        name: shape for name, shape in tokens.items() if name in left
    }
    assert left["patches.weight"][0] == C // 2


# ---------------------------------------------------------------- whole models


class Slots(nn.Module):
    """Learned slots compete for patches, and are updated by a cell; a soft mixture of experts' slots."""

    def __init__(self) -> None:
        super().__init__()
        self.patches, self.slots = nn.Conv2d(3, C, 8, 8), nn.Parameter(torch.randn(1, N, C))
        self.q, self.k, self.v = (nn.Linear(C, C) for _ in range(3))
        self.phi = nn.Parameter(torch.randn(C, 2, 3))
        self.up, self.down = nn.Parameter(torch.randn(2, C, 24)), nn.Parameter(torch.randn(2, 24, C))
        self.head = nn.Linear(C, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        x = self.patches(x).flatten(2).transpose(1, 2)
        slots = self.slots.expand(x.shape[0], -1, -1)
        for _ in range(2):
            won = (self.q(slots) @ self.k(x).transpose(1, 2)).softmax(1)
            slots = slots + (won / won.sum(-1, keepdim=True)) @ self.v(x)
        logits = torch.einsum("bnc,ces->bnes", x, self.phi)
        y = torch.einsum("bnes,bnc->besc", logits.softmax(1), x)
        y = torch.einsum("besc,ecf->besf", y, self.up).relu()
        y = torch.einsum("besf,efc->besc", y, self.down)
        y = torch.einsum("bnes,besc->bnc", logits.flatten(2).softmax(-1).unflatten(-1, (2, 3)), y)
        return self.head(slots.mean(1) + y.mean(1))


class Detector(nn.Module):
    """Learned queries through class and box heads, and masks by a product with pixels."""

    def __init__(self, how: str) -> None:
        super().__init__()
        self.how = how
        self.patches, self.queries = nn.Conv2d(3, C, 8, 8), nn.Embedding(N, C)
        self.attention = nn.MultiheadAttention(C, 4, batch_first=True)
        self.body = nn.Sequential(nn.Linear(C, 24), nn.ReLU(), nn.Linear(24, C))
        self.classes, self.boxes = nn.Linear(C, CLASSES), nn.Linear(C, 4)

    def forward(self, x: Tensor) -> Tensor:
        pixels = self.patches(x)
        x = pixels.flatten(2).transpose(1, 2)
        queries = self.queries.weight.unsqueeze(0).repeat(x.shape[0], 1, 1)
        y = queries + self.attention(queries, x, x, need_weights=False)[0]
        classes, boxes = self.classes(y), self.boxes(self.body(y)).sigmoid()
        if self.how == "heads":
            return torch.cat([classes, boxes], -1).mean(1)
        masks = torch.einsum("bqc,bchw->bqhw", self.body(y), pixels)
        if self.how == "masks":
            return masks.sigmoid().mean((2, 3)).mean(1, keepdim=True)
        return torch.einsum("bqo,bqhw->bohw", classes.softmax(-1), masks.sigmoid()).mean((2, 3))


WHOLE = {
    "slots": (Slots, {"slots": (1, N, 8), "phi": (8, 2, 3), "up": (2, 8, 12), "down": (2, 12, 8)}),
    "detection": (lambda: Detector("heads"), {"queries.weight": (N, 8), "boxes.weight": (4, 8)}),
    "masks": (lambda: Detector("masks"), {"queries.weight": (N, 8), "body.2.weight": (8, 12)}),
    "segmentation": (lambda: Detector("both"), {"queries.weight": (N, 8), "body.2.weight": (8, 12)}),
}


@pytest.mark.parametrize(("make", "wanted"), WHOLE.values(), ids=WHOLE)
def test_models_of_queries_keep_them(
    make: Callable[[], nn.Module], wanted: dict[str, tuple[int, ...]], capture: str
) -> None:
    left = shapes_of(randomise(make()).eval(), torch.randn(2, 3, 32, 32), capture)
    assert {name: left[name] for name in wanted} == wanted


# ---------------------------------------------------------------- channels of the same look


class Attention(nn.Module):
    """Scores and values of few heads, in several ways; a residual stream around it."""

    def __init__(self, how: str) -> None:
        super().__init__()
        self.how = how
        self.embed, self.head = nn.Linear(3, C), nn.Linear(C, CLASSES)
        self.q, self.k, self.v = nn.Linear(C, C), nn.Linear(C, C), nn.Linear(C, C)
        self.qkv, self.o, self.talk = nn.Linear(C, 3 * C), nn.Linear(C, C), nn.Linear(4, 4)
        self.one_k, self.one_v = nn.Linear(C, 4), nn.Linear(C, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.embed(x)
        return self.head((x + self.o(getattr(self, self.how)(x))).mean(1))

    def raw_linear(self, x: Tensor) -> Tensor:
        k = (x @ self.k.weight.T).softmax(1)
        return (x @ self.q.weight.T).relu() @ (k.transpose(1, 2) @ (x @ self.v.weight.T))

    def linear(self, x: Tensor) -> Tensor:
        return (F.elu(self.q(x)) + 1) @ (self.k(x).softmax(1).transpose(1, 2) @ self.v(x))

    def gates(self, x: Tensor) -> Tensor:
        return self.q(x).sigmoid() @ (self.k(x).sigmoid().transpose(1, 2) @ self.v(x))

    def fused_linear(self, x: Tensor) -> Tensor:
        q, k, v = self.qkv(x).unflatten(-1, (3, 4, 4)).permute(2, 0, 3, 1, 4).unbind(0)
        return (q.relu() @ (k.relu().transpose(-2, -1) @ v)).transpose(1, 2).flatten(2)

    def with_itself(self, x: Tensor) -> Tensor:
        q = self.q(x)
        return (q @ q.transpose(1, 2)).softmax(-1) @ self.v(x)

    def by_hand(self, x: Tensor) -> Tensor:
        scores = (self.q(x)[:, :, None] * self.k(x)[:, None]).sum(-1)
        return scores.softmax(-1) @ self.v(x)

    def distances(self, x: Tensor) -> Tensor:
        scores = (self.q(x)[:, :, None] - self.k(x)[:, None]).square().sum(-1)
        return (-scores).softmax(-1) @ self.v(x)

    def heads_of_sigmoids(self, x: Tensor) -> Tensor:
        q, k, v = (layer(x).unflatten(-1, (4, 4)).transpose(1, 2) for layer in (self.q, self.k, self.v))
        return ((q @ k.transpose(-2, -1)).sigmoid() @ v).transpose(1, 2).flatten(2)

    def talking(self, x: Tensor) -> Tensor:
        q, k, v = (layer(x).unflatten(-1, (4, 4)).transpose(1, 2) for layer in (self.q, self.k, self.v))
        scores = self.talk((q @ k.transpose(-2, -1)).permute(0, 2, 3, 1)).permute(0, 3, 1, 2).softmax(-1)
        return (scores @ v).transpose(1, 2).flatten(2)

    def channels_to_channels(self, x: Tensor) -> Tensor:
        q, k, v = (layer(x).unflatten(-1, (4, 4)).permute(0, 2, 3, 1) for layer in (self.q, self.k, self.v))
        return ((k @ q.mT).softmax(-1) @ v).permute(0, 3, 1, 2).flatten(2)

    def one_key(self, x: Tensor) -> Tensor:
        q = self.q(x).unflatten(-1, (4, 4)).transpose(1, 2)
        k, v = self.one_k(x)[:, None], self.one_v(x)[:, None]
        return ((q @ k.transpose(-2, -1)).softmax(-1) @ v).transpose(1, 2).flatten(2)

    def gated_heads(self, x: Tensor) -> Tensor:
        q, k, v = (layer(x).unflatten(-1, (4, 4)).transpose(1, 2) for layer in (self.q, self.k, self.v))
        y = (
            F.scaled_dot_product_attention(q, k, v)
            * self.o(x).unflatten(-1, (4, 4)).transpose(1, 2).sigmoid()
        )
        return y.transpose(1, 2).flatten(2)


# Of a width of 16 half is left, along heads or inside them.
ATTENTIONS = {
    "raw_linear": {"q": 8, "k": 8, "v": 8},
    "linear": {"q": 8, "k": 8, "v": 8},
    "gates": {"q": 8, "k": 8, "v": 8},
    "fused_linear": {"qkv": 24},
    "with_itself": {"q": 8, "v": 8},
    "by_hand": {"q": 8, "k": 8, "v": 8},
    "distances": {"q": 8, "k": 8, "v": 8},
    "heads_of_sigmoids": {"q": 8, "k": 8, "v": 8},
    "talking": {"q": 8, "k": 8, "v": 8},
    "channels_to_channels": {"q": 8, "k": 8, "v": 8},
    "one_key": {"q": 8, "one_k": 4, "one_v": 4},
    "gated_heads": {"q": 8, "k": 8, "v": 8},
}


@pytest.mark.parametrize("how", ATTENTIONS)
def test_attention_shrinks(how: str, capture: str) -> None:
    left = shapes_of(randomise(Attention(how)).eval(), torch.randn(2, 7, 3), capture)
    assert {name: left[f"{name}.weight"][0] for name in ATTENTIONS[how]} == ATTENTIONS[how]
    assert left["embed.weight"] == (8, 3)


class Block(nn.Module):
    """Channel gates, token mixing, spatial gates, cross-covariance, bilinear pooling, mixtures."""

    def __init__(self, how: str) -> None:
        super().__init__()
        self.how = how
        self.embed, self.head = nn.Linear(3, C), nn.Linear(C, CLASSES)
        self.down, self.up = nn.Linear(C, 12), nn.Linear(12, C)
        self.tokens, self.back = nn.Linear(7, 12), nn.Linear(12, 7)
        self.wide, self.spatial, self.narrow = nn.Linear(C, 48), nn.Conv1d(7, 7, 1), nn.Linear(24, C)
        self.qkv, self.o = nn.Linear(C, 3 * C), nn.Linear(C, C)
        self.one, self.other, self.flat = nn.Linear(C, 6), nn.Linear(C, 10), nn.Linear(60, C)
        self.routes, self.experts = nn.Linear(C, 4), nn.Parameter(torch.randn(4, C, 12))

    def forward(self, x: Tensor) -> Tensor:
        x = self.embed(x)
        return self.head((x + getattr(self, self.how)(x)).mean(1))

    def squeeze_excite(self, x: Tensor) -> Tensor:
        return x * self.up(self.down(x.mean(1, keepdim=True)).relu()).sigmoid()

    def mixer(self, x: Tensor) -> Tensor:
        return self.back(self.tokens(x.transpose(1, 2)).relu()).transpose(1, 2)

    def gmlp(self, x: Tensor) -> Tensor:
        u, v = self.wide(x).relu().chunk(2, -1)
        return self.narrow(u * self.spatial(v))

    def xcit(self, x: Tensor) -> Tensor:
        q, k, v = self.qkv(x).unflatten(-1, (3, 4, 4)).permute(2, 0, 3, 4, 1).unbind(0)
        y = (F.normalize(q, dim=-1) @ F.normalize(k, dim=-1).transpose(-2, -1)).softmax(-1) @ v
        return self.o(y.permute(0, 3, 1, 2).flatten(2))

    def bilinear(self, x: Tensor) -> Tensor:
        return self.flat(torch.einsum("bni,bnj->bij", self.one(x), self.other(x)).flatten(1))[:, None]

    def routed(self, x: Tensor) -> Tensor:
        routes = self.routes(x.mean(1)).sigmoid()
        return self.up(torch.einsum("be,bnc,ecd->bnd", routes, x, self.experts).relu())


BLOCKS = {
    "squeeze_excite": {"down.weight": (6, 8), "up.weight": (8, 6)},
    "mixer": {"tokens.weight": (6, 7), "back.weight": (7, 6)},
    "gmlp": {"wide.weight": (24, 8), "spatial.weight": (7, 7, 1), "narrow.weight": (8, 12)},
    "xcit": {"qkv.weight": (24, 8), "o.weight": (8, 8)},
    "bilinear": {"one.weight": (3, 8), "flat.weight": (8, 30)},
    "routed": {"routes.weight": (2, 16), "experts": (2, 16, 6)},
}


@pytest.mark.parametrize("how", BLOCKS)
def test_channels_of_blocks_shrink(how: str, capture: str) -> None:
    left = shapes_of(randomise(Block(how)).eval(), torch.randn(2, 7, 3), capture)
    assert {name: left[name] for name in BLOCKS[how]} == BLOCKS[how]
