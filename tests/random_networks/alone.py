"""Each part of the vocabulary in a network of its own, so that none waits for its turn to be drawn."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

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
)
from random_networks.attention import AttentionSpec
from random_networks.blocks import Block
from random_networks.network import Network
from random_networks.tricks import TRICKS

ATTENTION = {
    "layout": projections.LAYOUTS,
    "repeat": attention.REPEATS,
    "scores": attention.SCORES,
    "qk_norm": attention.QK_NORMS,
    "rotary": positions.ROTARY,
    "bias": positions.BIASES,
    "talking": attention.TALKING,
    "reduced": attention.REDUCED,
    "gate": attention.GATES,
    "merged": attention.MERGED,
    "inner_norm": norms.TOKEN_NORMS,
    "local": (True,),
    "dropout": (True,),
}
BLOCK = {
    "mlp": feedforward.MLPS,
    "norm": norms.TOKEN_NORMS,
    "scale": blocks.SCALES,
    "drop": blocks.DROPS,
    "copy": blocks.COPIES,
}
NETWORK = {
    "stem": stages.STEMS,
    "position": stages.POSITIONS,
    "head": network.HEADS,
    "output": network.OUTPUTS,
}


def _each(choices: dict[str, tuple[Any, ...]]) -> Iterator[dict[str, Any]]:
    return ({field: value} for field, values in choices.items() for value in values)


def _blocks() -> Iterator[Block]:
    for choice in _each(ATTENTION):
        shared = 2 if "repeat" in choice else 1
        yield Block(kind="attention", attention=AttentionSpec(heads=4, shared=shared, **choice))
    yield from (Block(**choice) for choice in _each(BLOCK))
    yield from (Block(kind="map", map=name, hidden=6) for name in maps.MAPS)
    yield from (Block(kind="map", map="gated", map_norm=norm) for norm in norms.MAP_NORMS)
    yield from (Block(kind="trick", trick=name) for name in TRICKS)
    yield from (Block(kind=kind, variant=variant) for kind in blocks.KINDS for variant in range(3))


def alone() -> list[Network]:
    """Networks that differ from the simplest one in one thing."""
    plain = Network(embed=6, first=2)
    found = [replace(plain, blocks=(block,)) for block in _blocks()]
    found += [replace(plain, **choice) for choice in _each(NETWORK)]
    found += [replace(plain, transition=kind, later=(Block(),)) for kind in stages.TRANSITIONS]
    return list(dict.fromkeys(found))
