"""Classes of the user's whose code takes some sizes from an attribute, where it is written otherwise.

Code that reads one size off its input and means two (the width of the stream, the width of its heads) can
hold them once one of the expressions says another number.  Such a class is made for the module: it inherits
from the user's, has its name, its methods' source with the expressions replaced, and is pickled as data.
"""

from __future__ import annotations

import ast
import functools
import hashlib
import inspect
import linecache
import types
import weakref
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from torch import nn

from fxprune.errors import UnsupportedModuleError
from fxprune.graph.classes import subclass_of
from fxprune.graph.code_names import codes_in
from fxprune.graph.nests import Value
from fxprune.result.decorators import undecorated, with_code
from fxprune.result.own_places import Place, places_in

__all__ = ["Place", "Source", "source_of", "spelled_anew", "spelled_class", "unspelled"]

MADE = "_fxprune_spelling"  # in a class made here: (the user's class, places in its code, layer by layer)


_shown: Counter[str] = Counter()  # files of code that was made here, by how many functions stand in each

Layers = tuple[tuple[Place, ...], ...]


def spelled_anew(module: nn.Module, places: Iterable[Place]) -> None:
    """Let a module's code take sizes from attributes, which `Spelling.write` gives it.

    Raises:
        UnsupportedModuleError: its class's source can't be read, or has something else there.
    """
    places = tuple(sorted(places))
    if places:
        module.__class__ = spelled_class(type(module), places)


def spelled_class(cls: type[nn.Module], places: tuple[Place, ...]) -> type[nn.Module]:
    """Return a class whose code takes sizes from attributes at some places; one for all that ask the same."""
    users, layers = vars(cls).get(MADE, (cls, ()))
    return _class(users, (*layers, places))


def unspelled(cls: type[nn.Module]) -> type[nn.Module]:
    """Return the user's class that a class made here inherits from; any other class as it is."""
    made = vars(cls).get(MADE)
    return made[0] if made else cls


_alive = weakref.WeakValueDictionary[tuple[Value, Layers], type[nn.Module]]()  # one for all, while it is used


@functools.lru_cache(maxsize=64)
def _class(users: Value, layers: Layers) -> type[nn.Module]:
    if (known := _alive.get((users, layers))) is not None:
        return known
    made = users
    for layer in layers:
        functions = {place.method: _function(made, place.method) for place in layer}
        methods = {
            name: _spelled(function, [place for place in layer if place.method == name])
            for name, function in functions.items()
        }
        made = subclass_of(made, methods)
    made.__reduce_ex__ = _reduced
    setattr(made, MADE, (users, layers))
    _alive[users, layers] = made
    return _alive[users, layers]


def _reduced(self: nn.Module, protocol: int) -> tuple[object, ...]:
    """Return what makes the instance again: the user's class, the places, and its state."""
    users, layers = getattr(type(self), MADE)  # which may inherit from the one made here
    return _made_anew, (users, layers), *users.__reduce_ex__(self, protocol)[2:]


def _made_anew(users: Value, layers: Layers) -> nn.Module:
    made = _class(users, layers)
    instance: nn.Module = made.__new__(made)
    return instance


def _function(cls: type, name: str) -> types.FunctionType:
    function = inspect.getattr_static(cls, name, None)
    is_every_modules = hasattr(nn.Module, name) and name != "forward"
    if not isinstance(function, types.FunctionType) or is_every_modules:
        raise UnsupportedModuleError(f"{cls.__name__}.{name} is no plain method any more: prune again")
    return function


def _spelled(function: types.FunctionType, places: Iterable[Place]) -> types.FunctionType:
    source = source_of(function)
    if source is None:
        raise UnsupportedModuleError(f"the source of {function.__qualname__} can't be read")
    code, file, text = source.spelled(places)
    made = with_code(function, code)
    _show(made, file, text)
    return made


def _show(function: types.FunctionType, file: str, text: str) -> None:
    """Let what shows the source of a line, an error's or a debugger's, show a function's, while it lives."""
    linecache.cache[file] = (len(text), None, text.splitlines(keepends=True), file)
    _shown[file] += 1
    weakref.finalize(function, _forget, file)


def _forget(file: str) -> None:
    _shown[file] -= 1
    if not _shown[file]:
        del _shown[file]
        linecache.cache.pop(file, None)


@dataclass(frozen=True)
class Source:
    """The file that a method's code was made of, as text, and where the method stands in it.

    function: the method, in its decorators.
    """

    function: types.FunctionType
    file: str
    text: bytes
    node: ast.FunctionDef

    @property
    def code(self) -> types.CodeType:
        """What the method runs inside its decorators."""
        return undecorated(self.function).__code__

    @property
    def first(self) -> int:
        """The line from which a place's lines count."""
        return self.node.lineno

    @property
    def self_name(self) -> str:
        """What the method calls the module."""
        arguments = [*self.node.args.posonlyargs, *self.node.args.args]
        return arguments[0].arg

    def place(self, node: ast.expr | ast.stmt, name: str = "", *, call: str = "") -> Place:
        """Name an expression in it, or a statement that assigns a local variable."""
        assert node.end_lineno is not None and node.end_col_offset is not None
        start, end = (
            (node.lineno - self.first, node.col_offset),
            (node.end_lineno - self.first, node.end_col_offset),
        )
        text = b"\n".join(self._lines(start, end)).decode()
        return Place(self.function.__name__, start, end, text, name, call)

    def spelled(self, places: Iterable[Place]) -> tuple[types.CodeType, str, str]:
        """Return the code compiled anew, with attributes at some places, of what file, and that as text.

        Raises:
            UnsupportedModuleError: it has something else there.
        """
        lines = self.text.split(b"\n")
        for place in sorted(_outermost(places), key=lambda p: (p.end, p.name), reverse=True):
            if b"\n".join(self._lines(place.start, place.end)).decode() != place.text:
                raise UnsupportedModuleError(
                    f"{self.function.__qualname__} is not what it was when the model was pruned: "
                    f"{place.text!r} does not stand in line {self.first + place.start[0]} of {self.file}"
                )
            if (place.start, place.end, place.name, bool(place.call)) not in self._places:
                raise UnsupportedModuleError(
                    f"{place.text!r} in {self.function.__qualname__} is nothing that an attribute "
                    f"{place.attribute} can stand for"
                )
            (top, left), (bottom, right) = place.start, place.end
            top, bottom = top + self.first - 1, bottom + self.first - 1
            said = f"{self.self_name}.{place.attribute}".encode()
            if place.name:
                lines[bottom] = (
                    lines[bottom][:right] + f"; {place.name} = ".encode() + said + lines[bottom][right:]
                )
            elif place.call:
                lines[bottom] = lines[bottom][:right] + b")" + lines[bottom][right:]
                lines[top] = lines[top][:left] + said + b"(" + lines[top][left:]
            else:
                tail = lines[bottom][right:]
                lines[top : bottom + 1] = [lines[top][:left] + said + tail, *[b""] * (bottom - top)]
        text = b"\n".join(lines)
        file = f"<{self.file} {hashlib.sha256(text).hexdigest()[:8]}>"
        found = _code_in(compile(text, file, "exec", dont_inherit=True), self.code)
        if found is None or found.co_freevars != self.code.co_freevars:
            raise UnsupportedModuleError(f"{self.function.__qualname__} can't be compiled anew")
        return found, file, text.decode()

    @functools.cached_property
    def _places(self) -> set[tuple[tuple[int, int], tuple[int, int], str, bool]]:
        """Where an attribute can stand: (start, end, variable assigned, is it called?)."""
        found = set()
        for node, name, called in places_in(self.node):
            place = self.place(node, name)
            found.add((place.start, place.end, name, called))
        return found

    def changed(self, transformer: ast.NodeTransformer) -> types.CodeType:
        """Return the code compiled anew, its syntax changed."""
        tree = ast.parse(self.text)
        for node in ast.walk(tree):
            if isinstance(node, ast.FunctionDef) and (node.name, node.lineno) == (
                self.node.name,
                self.node.lineno,
            ):
                transformer.visit(node)
        found = _code_in(
            compile(ast.fix_missing_locations(tree), self.file, "exec", dont_inherit=True), self.code
        )
        assert found is not None
        return found

    def _lines(self, start: tuple[int, int], end: tuple[int, int]) -> Iterator[bytes]:
        lines = self.text.split(b"\n")[start[0] + self.first - 1 : end[0] + self.first]
        for i, line in enumerate(lines):
            last = i == len(lines) - 1
            yield line[start[1] if i == 0 else 0 : end[1] if last else len(line)]


def _outermost(places: Iterable[Place]) -> list[Place]:
    """Leave out expressions inside others, for which an attribute stands as well."""
    places = [*places]
    replaced = [p for p in places if not p.name]
    return [
        p
        for p in places
        if p.name or not any(o is not p and o.start <= p.start and p.end <= o.end for o in replaced)
    ]


@functools.lru_cache(maxsize=1024)
def source_of(function: types.FunctionType) -> Source | None:
    """Find the source of a function, if it is what the function was made of."""
    written = undecorated(function)
    code = written.__code__
    lines = linecache.getlines(code.co_filename, written.__globals__)
    text = "".join(lines)
    tree = _tree(text)
    if tree is None or _code_in(_compiled(text), code) != code:
        return None
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef) and node.name == code.co_name:
            first = min([node.lineno, *(d.lineno for d in node.decorator_list)])
            if first == code.co_firstlineno and (node.args.posonlyargs or node.args.args):
                return Source(function, code.co_filename, text.encode(), node)
    return None


@functools.lru_cache(maxsize=64)
def _tree(text: str) -> ast.Module | None:
    try:
        return ast.parse(text) if text else None
    except SyntaxError:
        return None


@functools.lru_cache(maxsize=64)
def _compiled(text: str) -> types.CodeType:
    return compile(text, "<read>", "exec", dont_inherit=True)


def _code_in(module: types.CodeType, code: types.CodeType) -> types.CodeType | None:
    """Find the code of a function in that of its module, by its name and line."""
    wanted = code.co_name, code.co_firstlineno
    return next((c for c in codes_in(module) if (c.co_name, c.co_firstlineno) == wanted), None)
