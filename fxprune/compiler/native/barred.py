"""Find the methods of a model that would run the code of its `forward`, which can't hold the new sizes."""

from __future__ import annotations

import dis
import inspect
import sys
import types
from collections.abc import Iterable, Iterator

from torch import nn

from fxprune.capture.reached import reached
from fxprune.compiler.native.code_terms import terms_of
from fxprune.graph.code_names import codes_in, names_in, names_of, plain_functions

__all__ = [
    "barred_methods",
    "methods_of_mode",
    "methods_that_name",
    "names_of_forward",
    "names_of_methods",
    "names_reached",
    "own_functions",
    "raises_to_powers",
]


def barred_methods(module: nn.Module) -> Iterator[str]:
    """Name a model's own methods that share code with its forward, or spell out what that does.

    Those that `forward` calls, that call such a method (in its file also a function that it calls), or that
    call one of its modules or use two.  Methods that call the model itself are fine, and those that every
    module has.
    """
    cls = type(module)
    methods = dict(_methods(cls))
    forward = methods.get("forward")
    if forward is None:
        return
    functions, held = set[str](), set[str]()
    for code in _codes(forward, methods):
        functions |= {name for name in code.co_names if _is_function(name, methods, forward)}
        held |= {name for name in code.co_names if _is_held(name, module)}
    for name, method in methods.items():
        if hasattr(nn.Module, name):
            continue
        codes = [*_codes(method, methods)]
        own = {used for code in codes for used in code.co_names}
        shared = own & functions if method.__module__ == forward.__module__ else own & functions & {*methods}
        if name in functions or shared or len(own & held) > 1 or _calls(codes) & held:
            yield name


def names_of_forward(module: nn.Module) -> set[str]:
    """Return the names in the code of a module's `forward`, and of the methods that it names."""
    methods = dict(_methods(type(module)))
    forward = methods.get("forward")
    return {name for code in _codes(forward, methods) for name in code.co_names} if forward else set()


def names_of_methods(module: nn.Module) -> set[str]:
    """Return the names in the code of all of a module's own methods, but of its constructor."""
    methods = {name: method for name, method in _methods(type(module)) if name != "__init__"}
    codes = (code for method in methods.values() for code in codes_in(method.__code__))
    return {name for code in codes for name in code.co_names}


def names_reached(module: nn.Module) -> set[str]:
    """Return the names in that code, and in the users' functions that it calls in turn."""
    methods = dict(_methods(type(module)))
    named = [methods[name] for name in {"forward", *names_of_forward(module)} if name in methods]
    return {name for function in reached(named) for name in names_in(function.__code__)}


def raises_to_powers(module: nn.Module) -> bool:
    """Does the code of a module's `forward` raise something to a power, or take a root?"""
    if names_of_forward(module) & {"pow", "rsqrt", "sqrt"}:
        return True
    methods = dict(_methods(type(module)))
    codes = _codes(methods["forward"], methods) if "forward" in methods else ()
    steps = (step for code in codes for step in dis.get_instructions(code))
    return any(step.opname == "BINARY_POWER" or step.argrepr in ("**", "**=") for step in steps)


def methods_of_mode(module: nn.Module) -> Iterator[str]:
    """Name a module's own methods, beside `forward`, whose code looks at `training`."""
    methods = dict(_methods(type(module)))
    for name, method in methods.items():
        plain = isinstance(inspect.getattr_static(type(module), name), types.FunctionType)
        looks = plain and any("training" in code.co_names for code in _codes(method, methods))
        if looks and not hasattr(nn.Module, name):
            yield name


def methods_that_name(module: nn.Module, attribute: str) -> Iterator[tuple[str, types.FunctionType]]:
    """List a module's own methods whose code, or that of methods that they call, reads an attribute.

    Properties are methods, too.
    """
    methods = dict(own_functions(type(module)))
    for name, method in methods.items():
        called, front = {name: method}, [method]
        while front:
            others = names_of(front.pop().__code__) & {*methods} - {*called, "forward"}
            called |= {other: methods[other] for other in others}
            front += [methods[other] for other in others]
        if not hasattr(nn.Module, name) and any(_reads(function, attribute) for function in called.values()):
            yield name, method


def own_functions(cls: type) -> Iterator[tuple[str, types.FunctionType]]:
    """List the methods and properties of a class and of those it inherits from, up to torch's."""
    for base in reversed(cls.__mro__):
        if base.__module__.partition(".")[0] not in ("torch", "builtins"):
            for name, value in vars(base).items():
                for function in plain_functions(getattr(value, "func", value)):
                    yield name, function


def _reads(function: types.FunctionType, attribute: str) -> bool:
    """Does code read an attribute of this name, and not only call it?"""
    terms = terms_of(function)
    return attribute in names_of(function.__code__) and (not terms.is_read or bool(terms.uses(attribute)))


def _methods(cls: type) -> Iterator[tuple[str, types.FunctionType]]:
    """List the plain methods of a class and of those it inherits from, up to torch's."""
    for base in reversed(cls.__mro__):
        if base.__module__.partition(".")[0] not in ("torch", "builtins"):
            for name, value in vars(base).items():
                found = inspect.unwrap(value) if callable(value) else None
                if isinstance(found, types.FunctionType):
                    yield name, found


def _codes(function: types.FunctionType, methods: dict[str, types.FunctionType]) -> Iterator[types.CodeType]:
    """List a method's code, what is defined in it, and that of the methods that it names."""
    seen: set[types.CodeType] = set()
    front = [function]
    while front:
        for code in codes_in(front.pop().__code__):
            if code not in seen:
                seen.add(code)
                yield code
                front += [methods[n] for n in code.co_names if n in methods and n != "forward"]


def _calls(codes: Iterable[types.CodeType]) -> set[str]:
    """Return the attributes that code calls right where it reads them: `self.norm(x)`."""
    is_method = (lambda i: i.opname == "LOAD_METHOD") if sys.version_info < (3, 12) else _is_method
    return {i.argval for code in codes for i in dis.get_instructions(code) if is_method(i)}


def _is_method(instruction: dis.Instruction) -> bool:
    return instruction.opname == "LOAD_ATTR" and bool((instruction.arg or 0) & 1)


def _is_function(name: str, methods: dict[str, types.FunctionType], forward: types.FunctionType) -> bool:
    """Is it a method, or a function of Python that is none of torch's?"""
    if name in methods:
        return name != "forward"
    found = forward.__globals__.get(name)
    return isinstance(found, types.FunctionType) and str(found.__module__).partition(".")[0] != "torch"


def _is_held(name: str, module: nn.Module) -> bool:
    return name in module._modules or name in module._parameters or name in module._buffers
