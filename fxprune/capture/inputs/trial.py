"""Try inputs on a copy of a model whose tensors are fake: nothing is computed, no memory is taken."""

from __future__ import annotations

import contextlib
import functools
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode

from fxprune.capture.held_state import HeldState
from fxprune.capture.inputs.entry import Entry, entry_of
from fxprune.capture.torch_errors import fakes_can_not
from fxprune.errors import first_line
from fxprune.graph.caches import has_caches
from fxprune.graph.copies import own_buffers, structural_copy
from fxprune.graph.example import Example
from fxprune.graph.fake_modules import fake_of
from fxprune.graph.quiet import quiet_libraries
from fxprune.graph.tensors import on_meta

__all__ = ["Trial"]

MOST_REAL = 4  # calls that compute: of a model that fake tensors can't follow


class Trial:
    """What a model says to inputs; `readers` are the layers that were seen to read one whole.

    Each trial has a copy of its own: what the model's code keeps for its next call is not kept.
    """

    def __init__(self, model: nn.Module) -> None:
        self.model = model
        self.readers: list[Entry] = []
        self.error = ""
        self._real_calls = 0
        # No fake tensors: a model on meta needs none, and caches would keep them.
        self._plainly = on_meta(model) or has_caches(model)

    def accepts(self, example: Example, confirm: bool = False) -> bool:
        """Does a call succeed?  `confirm`: what fake tensors refuse is computed, to be sure."""
        if self._plainly:
            return self._call(example) is None
        mode = FakeTensorMode(allow_non_fake_inputs=True)
        error = self._call(example, mode)
        undecided = error is not None and (confirm or fakes_can_not(error))
        if undecided and self._real_calls < MOST_REAL:
            self._real_calls += 1
            error = self._call(example)
        return error is None

    def accepts_really(self, example: Example) -> bool:
        """Does a call that computes succeed?  Fake tensors miss errors: an id past a table's end, a rank."""
        return self.accepts(example) and (self._plainly or self._call(example) is None)

    def _call(self, example: Example, mode: FakeTensorMode | None = None) -> Exception | None:
        copy = structural_copy(self.model, (lambda t: fake_of(t, mode)) if mode else own_buffers)
        copy.eval()
        self._watch(copy, example)
        with contextlib.ExitStack() as around:
            around.enter_context(HeldState(copy).restored(forget=mode is not None))
            around.enter_context(quiet_libraries())
            around.enter_context(torch.no_grad())
            try:
                if mode is not None:
                    around.enter_context(mode)
                    example = example.map(functools.partial(fake_of, mode=mode))
                copy(*example.args, **example.kwargs)
            except Exception as error:  # any error of the model's code is the answer
                self.error = f"{type(error).__name__}: {first_line(error)}"
                return error
        return None

    def _watch(self, copy: nn.Module, example: Example) -> None:
        """Note the first layer that is called with all of the input, reshaped or not."""
        whole = {t.numel() for t in (*example.args, *example.kwargs.values()) if isinstance(t, Tensor)}
        seen: list[Entry] = []

        def note(layer: nn.Module, args: tuple[Any, ...]) -> None:
            entry = entry_of(layer)
            if not seen and entry and args and isinstance(args[0], Tensor) and args[0].numel() in whole:
                seen.append(entry)
                self.readers = list(dict.fromkeys((*self.readers, entry)))

        for module in copy.modules():
            if entry_of(module) is not None:
                module.register_forward_pre_hook(note)
