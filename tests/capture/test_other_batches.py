"""Code that asks for the batch size, and computes the same all the same, is captured for all of them."""

from __future__ import annotations

import warnings

import pytest
import torch
from exactness import certified_at
from helpers import randomise
from torch import Tensor, nn

import fxprune
from fxprune.errors import InputSizeError


class Layers(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.places = nn.Parameter(torch.randn(1, 6, 12))
        self.stem, self.hidden, self.head = nn.Linear(8, 12), nn.Linear(12, 16), nn.Linear(16, 5)

    def rest(self, x: Tensor) -> Tensor:
        return self.head(self.hidden(x).relu().mean(1))


class Expands(Layers):
    """Gives each sample places of its own, where there are several."""

    def forward(self, x: Tensor) -> Tensor:
        places = self.places
        if x.shape[0] != places.shape[0]:
            places = places.expand(x.shape[0], -1, -1)
        return self.rest(self.stem(x) + places)


class Repeats(Layers):
    """The same with copies, and a reshape that a single sample does not need."""

    def forward(self, x: Tensor) -> Tensor:
        places = self.places if x.shape[0] == 1 else self.places.repeat(x.shape[0], 1, 1)
        return self.rest((self.stem(x) + places).reshape(x.shape[0], 6, 12))


class Adds(Layers):
    """Computes another thing for one sample."""

    def forward(self, x: Tensor) -> Tensor:
        out = self.rest(self.stem(x) + self.places)
        return out + 1 if x.shape[0] == 1 else out


class Permutes(Layers):
    """The shape is the same for one sample, and the values are not."""

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x) + self.places
        if x.shape[0] > 1:
            x = x.flip(1)
        return self.rest(x * torch.arange(6.0, dtype=x.dtype)[:, None])


class Scales(Layers):
    """Another number for one sample."""

    def forward(self, x: Tensor) -> Tensor:
        return self.rest(self.stem(x) * (2.0 if x.shape[0] == 1 else 3.0))


class Writes(Layers):
    """A copy that is written to is no matter of taste."""

    def forward(self, x: Tensor) -> Tensor:
        y = self.stem(x)
        z = y if x.shape[0] == 1 else y.clone()
        z[:, 0] = 0
        return self.rest(y + z)


@pytest.mark.parametrize("given", [1, 2, 3])
@pytest.mark.parametrize("kind", [Expands, Repeats])
def test_one_sample_is_taken_where_nothing_else_is_computed(kind: type[nn.Module], given: int) -> None:
    model = randomise(kind()).double().eval()
    example = torch.randn(given, 6, 8, dtype=torch.float64)
    (whole,), (pruned,) = (
        certified_at((ratio,), model, example, way) for ratio, way in ((0.0, "export"), (0.5, "auto"))
    )
    for batch in (1, 2, 5):
        x = torch.randn(batch, 6, 8, dtype=torch.float64)
        assert torch.allclose(whole(x), model(x), rtol=1e-9)
        assert pruned(x).shape == (batch, 5)


@pytest.mark.parametrize("capture", ["auto", "export"])
@pytest.mark.parametrize("given", [1, 2, 3])
@pytest.mark.parametrize("kind", [Adds, Permutes, Scales, Writes])
def test_another_result_for_one_sample_is_exact_or_refused(
    kind: type[nn.Module], given: int, capture: str, recwarn: pytest.WarningsRecorder
) -> None:
    model = randomise(kind()).double().eval()
    example = torch.randn(given, 6, 8, dtype=torch.float64)
    whole = fxprune.prune(model, 0.0, example_inputs=example, capture=capture)
    refused = []
    for batch in (1, 2, 5):
        x = torch.randn(batch, 6, 8, dtype=torch.float64)
        try:
            assert torch.allclose(whole(x), model(x), rtol=1e-9)
        except InputSizeError:
            refused.append(batch)
    assert refused in ([1], [2, 5]) and given not in refused


def test_no_guard_is_left_for_one_sample() -> None:
    traced = fxprune.trace(randomise(Expands().eval()), torch.zeros(2, 6, 8), capture="export")
    assert not [
        n for n in traced.graph.nodes if "guard_size" in str(n.target) and "dimension 0" in str(n.kwargs)
    ]


class Many(Layers):
    """Copies what it has where there are many samples; computes another thing with more than that."""

    def __init__(self, more: float) -> None:
        super().__init__()
        self.more = more

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x) + self.places
        if x.shape[0] >= 8:
            x = x.contiguous() if self.more == 1 else x * self.more
        return self.rest(x)


@pytest.mark.parametrize("more", [1, 3])
@pytest.mark.parametrize("given", [1, 4, 9])
def test_a_branch_for_many_samples_is_followed_where_it_computes_nothing_else(
    given: int, more: float
) -> None:
    model = randomise(Many(more)).double().eval()
    example = torch.randn(given, 6, 8, dtype=torch.float64)
    with warnings.catch_warnings(action="error" if more == 1 else "ignore"):
        whole = fxprune.prune(model, 0.0, example_inputs=example, capture="export")
    refused = []
    for batch in (1, 4, 7, 8, 9, 30):
        x = torch.randn(batch, 6, 8, dtype=torch.float64)
        try:
            assert torch.allclose(whole(x), model(x), rtol=1e-9)
        except InputSizeError:
            refused.append(batch)
    assert refused == ([] if more == 1 else [1, 4, 7] if given == 9 else [8, 9, 30])


class CountsSamples(Layers):
    """Asks `len` for the batch size, in eval mode and for a reshape."""

    def forward(self, x: Tensor) -> Tensor:
        count = len(x)
        places = self.places.expand(count, -1, -1)
        return self.rest((self.stem(x) + places).reshape(count, len(x[0]), -1))


@pytest.mark.parametrize("given", [1, 2])
def test_the_length_of_a_batch_is_a_size(given: int, capture: str) -> None:
    model = randomise(CountsSamples().eval())
    with warnings.catch_warnings(action="error"):
        pruned = fxprune.prune(model, 0.5, example_inputs=torch.randn(given, 6, 8), capture=capture)
    assert fxprune.verify(model, pruned) < 1e-8
    for batch in (1, 2, 5):
        assert fxprune.verify(model, pruned, example_inputs=torch.randn(batch, 6, 8)) < 1e-8
    assert len([1, 2]) == 2 and len(torch.zeros(3, 2)) == 3  # nothing stays replaced


class EachSample(Layers):
    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([self.rest(sample[None]) for sample in self.stem(x)])


def test_a_warning_shows_the_users_own_line() -> None:
    example = torch.randn(2, 6, 8)
    with pytest.warns(UserWarning, match="fixes the batch size") as seen:
        fxprune.prune(randomise(EachSample().eval()), 0.5, example_inputs=example)
    assert [w.filename for w in seen] == [__file__]


class Frames(Layers):
    """Takes clips as images, which are folded into the batch."""

    def __init__(self, frames: int) -> None:
        super().__init__()
        self.frames = frames

    def forward(self, x: Tensor) -> Tensor:
        h = self.stem(x)
        clips = h.view(h.shape[0] // self.frames, self.frames, *h.shape[1:])
        return self.rest((clips + clips.roll(1, 1)).flatten(0, 1))


@pytest.mark.parametrize(("frames", "given"), [(3, 3), (3, 6), (4, 8)])
def test_frames_in_the_batch_are_taken_by_clips(frames: int, given: int) -> None:
    """The warning says what the result takes, which is more than the example's batch size."""
    model = randomise(Frames(frames).eval()).double()
    x = torch.randn(3 * frames, 6, 8, dtype=torch.float64)
    with pytest.warns(UserWarning, match=f"the result takes multiples of {frames}$"):
        pruned = fxprune.prune(model, 0.5, example_inputs=x[:given])
    assert fxprune.verify(model, pruned, example_inputs=x) < 1e-8
    with pytest.raises(InputSizeError):
        pruned(x[: frames + 1])
