"""A graph module that passes change: its code, which takes long to make, is made when it is asked for."""

from __future__ import annotations

from torch import fx, nn

from fxprune.graph.nests import Value

__all__ = ["UncompiledGraph", "outdate"]


class UncompiledGraph(fx.GraphModule):
    """A graph module without code until it is called or its code is read."""

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

    def __getattr__(self, name: str) -> Value:
        """Make the code of the graph where somebody reads it."""
        if name == "_code":
            self.recompile()
            return self.__dict__[name]
        return super().__getattr__(name)

    def forget_code(self) -> None:
        """Drop the code of the graph as it was."""
        self.__dict__.pop("_code", None)
        if "forward" in vars(type(self)):  # a class of this instance alone
            del type(self).forward


def outdate(module: fx.GraphModule) -> None:
    """Make the code of a changed graph again: when it is asked for, where the module knows how."""
    if isinstance(module, UncompiledGraph):
        module.forget_code()
    else:
        module.recompile()


_NO_CODE = fx.graph.PythonCode("", {}, None)
