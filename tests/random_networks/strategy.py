"""Networks drawn at random: the first choice of each list is the simplest, so that failures shrink to it."""

from __future__ import annotations

from hypothesis import strategies as st

from random_networks import (
    attention,
    blocks,
    feedforward,
    maps,
    network,
    norms,
    positions,
    projections,
    stages,
    tricks,
)
from random_networks.attention import AttentionSpec
from random_networks.blocks import Block
from random_networks.network import Network


def rarely(choices: tuple[str, ...]) -> st.SearchStrategy[str]:
    """The first choice in every second network."""
    return st.booleans().flatmap(lambda usual: st.sampled_from(choices) if usual else st.just(choices[0]))


@st.composite
def attentions(draw: st.DrawFn) -> AttentionSpec:
    heads = draw(st.integers(1, 4))
    return AttentionSpec(
        layout=draw(st.sampled_from(projections.LAYOUTS)),
        heads=heads,
        key=draw(st.integers(1, 4)),
        value=draw(st.integers(1, 5)),
        shared=draw(st.sampled_from([1, 1, *(s for s in range(2, heads + 1) if heads % s == 0)])),
        repeat=draw(st.sampled_from(attention.REPEATS)),
        scores=draw(st.sampled_from(attention.SCORES)),
        qk_norm=draw(rarely(attention.QK_NORMS)),
        rotary=draw(rarely(positions.ROTARY)),
        bias=draw(rarely(positions.BIASES)),
        talking=draw(rarely(attention.TALKING)),
        reduced=draw(rarely(attention.REDUCED)),
        gate=draw(rarely(attention.GATES)),
        merged=draw(st.sampled_from(attention.MERGED)),
        inner_norm=draw(rarely(("none", "layer", "rms", "group"))),
        local=draw(st.sampled_from([False, False, False, True])),
        dropout=draw(st.booleans()),
    )


@st.composite
def some_block(draw: st.DrawFn) -> Block:
    kind = draw(st.sampled_from((*blocks.KINDS[:5], "attention", "map", *blocks.KINDS[5:])))
    attends = kind in ("attention", "windows")
    on_map = kind == "map"
    sizes = st.builds(AttentionSpec, heads=st.integers(1, 4), key=st.integers(1, 4))
    return Block(
        kind=kind,
        attention=draw(attentions() if attends else sizes),
        mlp=draw(st.sampled_from(feedforward.MLPS)) if kind == "mlp" else "plain",
        map=draw(st.sampled_from(tuple(maps.MAPS))) if on_map else "inverted",
        map_norm=draw(st.sampled_from(norms.MAP_NORMS)) if on_map else "batch",
        trick=draw(st.sampled_from(tuple(tricks.TRICKS))) if kind == "trick" else "memory tokens",
        hidden=draw(st.integers(1, 9)),
        variant=draw(st.integers(0, 2)),
        norm=draw(st.sampled_from(norms.TOKEN_NORMS)),
        post=draw(st.booleans()),
        residual=draw(st.sampled_from([True, True, False])),
        scale=draw(rarely(blocks.SCALES)),
        drop=draw(rarely(blocks.DROPS)),
        copy=draw(rarely(blocks.COPIES)),
    )


@st.composite
def networks(draw: st.DrawFn) -> Network:
    first = draw(st.sampled_from([0, 1, 2]))
    heads = [h for h in network.HEADS if {"first": 1, "distilled": 2}.get(h, 0) <= first]
    transition = draw(rarely(("none", *stages.TRANSITIONS)))
    later = st.lists(some_block(), max_size=1).map(tuple)
    return Network(
        embed=draw(st.integers(2, 12)),
        stem=draw(st.sampled_from(stages.STEMS)),
        first=first,
        position=draw(st.sampled_from(stages.POSITIONS)),
        blocks=draw(st.lists(some_block(), min_size=1, max_size=2).map(tuple)),
        transition=transition,
        wider=draw(st.integers(2, 14)),
        later=() if transition == "none" else draw(later),
        norm=draw(st.sampled_from(norms.TOKEN_NORMS)),
        head=draw(st.sampled_from(heads)),
        output=draw(st.sampled_from(network.OUTPUTS)),
    )
