"""What a graph has not, and the original's class has, is named with the way to get it."""

from __future__ import annotations

import copy
import pickle

import pytest
import torch
from helpers import images, small_hf_vit, small_vit

import fxprune


def test_a_method_of_the_original_is_named_with_the_form_that_has_it() -> None:
    model = small_vit()
    pruned = fxprune.prune(model, 0.5)
    for same in (pruned, copy.deepcopy(pruned), pickle.loads(pickle.dumps(pruned))):
        with pytest.raises(AttributeError, match=r"forward_features'.*VisionTransformer; form='module'"):
            same.forward_features(images())
    assert not hasattr(pruned, "forward_features")
    fxprune.prune(model, 0.5, form="module").forward_features(images())


def test_what_the_instance_held_is_named_too() -> None:
    """A configuration, a number: nothing that a class says."""
    for model, held in ((small_hf_vit(), "config"), (small_vit(), "num_prefix_tokens")):
        pruned = fxprune.prune(model, 0.5, example_inputs=images())
        for same in (pruned, pickle.loads(pickle.dumps(pruned))):
            with pytest.raises(AttributeError, match=rf"{held}'.*form='module' of .*, with {held}"):
                getattr(same, held)


def test_what_neither_has_is_missing_as_ever() -> None:
    with pytest.raises(AttributeError, match=r"has no attribute 'no_such_thing'$"):
        _ = fxprune.prune(small_vit(), 0.5).no_such_thing


def test_compilers_are_not_in_the_way() -> None:
    pruned, x = fxprune.prune(small_vit(), 0.5).eval(), images()
    wanted = pruned(x)
    torch.testing.assert_close(torch.compile(pruned, backend="eager", fullgraph=True)(x), wanted)
    torch.testing.assert_close(torch.jit.trace(pruned, x)(x), wanted)
    torch.testing.assert_close(torch.export.export(pruned, (x,)).module()(x), wanted)
