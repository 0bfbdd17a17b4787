"""A graph module that passes are about to change: its code is made when it is asked for."""

from __future__ import annotations

from torch import fx, nn

from fxprune.graph.nests import Value

__all__ = ["UncompiledGraph"]


class UncompiledGraph(fx.GraphModule):
    """A graph module that is built without its code, which takes long to make."""

    def __init__(
        self, root: nn.Module, graph: fx.Graph, class_name: str = "GraphModule", *, compiled: bool = True
    ) -> None:
        self.__dict__["_compiles"] = compiled
        super().__init__(root, graph, class_name)
        del self.__dict__["_compiles"]

    def recompile(self) -> fx.graph.PythonCode:
        """Make the code of the graph, if the module is not just built."""
        return super().recompile() if self.__dict__.get("_compiles", True) else _NO_CODE

    def forward(self, *args: Value, **kwargs: Value) -> Value:
        """Make the code of the graph, which takes the place of this, and run it."""
        self.recompile()
        return type(self).forward(self, *args, **kwargs)


_NO_CODE = fx.graph.PythonCode("", {}, None)
