"""Analyse: from a model to its groups of coupled dimensions."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import nn

from fxprune.analysis.analysis import Analysis, analysis_of
from fxprune.analysis.outputs import outputs_option
from fxprune.analysis.typed_graph import TypedGraph, type_graph
from fxprune.capture.trace import capture_model, example_of
from fxprune.graph.example import Example
from fxprune.graph.nests import Value
from fxprune.graph.tensors import named_tensors
from fxprune.rules.registry import DEFAULT_RULES, RuleSet

__all__ = ["AnalysisOptions", "analyze", "analyzed", "typed_by"]


@dataclass(frozen=True)
class AnalysisOptions:
    """How a model is captured and analysed: the options of `analyze` but for its example.

    Raises:
        OptionError: `outputs` is no word and no list of words.
    """

    outputs: str | Sequence[str] = "keep"
    split_qkv: bool = False
    capture: str = "auto"
    strict: bool = False
    rules: RuleSet = DEFAULT_RULES

    @staticmethod
    def of(analysis: Analysis) -> AnalysisOptions:
        """Return the options that an analysis was made with; `strict` has raised by then, and is off."""
        captured = analysis.captured
        return AnalysisOptions(analysis.outputs, captured.split_qkv, analysis.capture, rules=analysis.rules)

    def __post_init__(self) -> None:
        object.__setattr__(self, "outputs", outputs_option(self.outputs))


def analyze(
    model: nn.Module,
    *,
    example_inputs: Value = None,
    example_kwargs: dict[str, Value] | None = None,
    outputs: str | Sequence[str] = "keep",
    split_qkv: bool = False,
    capture: str = "auto",
    strict: bool = False,
    rules: RuleSet = DEFAULT_RULES,
) -> Analysis:
    """Find which dimensions of a model's weights are coupled, and which are frozen and why.

    Arguments as of `prune`.

    Example:
        >>> analysis = fxprune.analyze(timm.create_model("deit_tiny_patch16_224"))
        >>> print(analysis)
        >>> analysis.why("blocks.0.mlp.fc1.weight[0]", "blocks.0.mlp.fc2.weight[1]")
    """
    options = AnalysisOptions(outputs, split_qkv, capture, strict, rules)
    return analyzed(model, example_of(model, example_inputs, example_kwargs), options)


def analyzed(model: nn.Module, example: Example, options: AnalysisOptions) -> Analysis:
    """Capture a model by an example call, infer its axes, and group them."""
    analysis = analysis_of(typed_by(model, example, options))
    if options.strict:
        analysis.refuse_missing_rules()
    return analysis


def typed_by(model: nn.Module, example: Example, options: AnalysisOptions) -> TypedGraph:
    """Capture a model by an example call, and infer its axes."""
    captured = capture_model(
        model, example, capture=options.capture, split_qkv=options.split_qkv, taught=options.rules.taught
    )
    tensors = dict(named_tensors(model))
    return type_graph(captured, options.rules, tensors, outputs=outputs_option(options.outputs))
