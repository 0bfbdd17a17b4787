"""The instance of a user's own class as JSON data and back: edited numbers, replaced modules."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import cast, get_args

from torch import Tensor, nn

from fxprune.compiler.native.instance import instance_of, with_form
from fxprune.compiler.native.slots import tensors_held
from fxprune.errors import FileError, FxpruneError
from fxprune.graph.nests import Value
from fxprune.graph.tensors import named_tensors
from fxprune.result.json_types import JsonObject, json_count, json_list, json_name, json_object, json_value
from fxprune.result.own_calls import WORDS, FullWidth, Made, UnevenParts
from fxprune.result.own_code import (
    Call,
    Edit,
    Forward,
    Keys,
    OneWay,
    OwnCode,
    Part,
    Read,
    Ref,
    Slot,
    Spelling,
    Table,
    What,
)
from fxprune.result.own_spelling import Place
from fxprune.result.pruned_module import PrunedModule

__all__ = ["OWN", "held_tensors", "own_data", "own_from", "own_instance"]

OWN = "own:"  # before the names of tensors that the instance has and its graph does not use


def own_data(own: OwnCode) -> dict[str, object]:
    """Write an own class's record down as plain lists, words and numbers."""
    return {
        "unsaid": own.unsaid,
        "untrained": own.untrained,
        "edits": [[e.slot.path, list(e.slot.keys), e.slot.held, e.old, e.new] for e in own.edits],
        "parts": [
            {
                "path": part.path,
                "why": part.why,
                "inputs": [[name, list(keys), node] for name, keys, node in part.inputs],
                "reads": [[r.node, r.of, r.what, r.dim] for r in part.reads],
                "result": _spelled(part.result),
                "given": [[name, list(keys), value] for name, keys, value in part.given],
                "layouts": [list(layout) for layout in part.layouts],
            }
            for part in own.parts
        ],
        "forward": None if own.forward is None else _forward_data(own.forward),
        "spellings": [
            [
                s.path,
                s.place.method,
                list(s.place.start),
                list(s.place.end),
                s.place.text,
                s.place.name,
                s.old,
                s.new if isinstance(s.new, int) else _made_data(s.new),
            ]
            for s in own.spellings
        ],
        "tables": [
            [t.path, t.name, t.dim, t.old, list(t.kept), [[list(keys), old] for keys, old in t.numbers]]
            for t in own.tables
        ],
        "flags": [list(flag) for flag in own.flags],
        "ways": [[way.path, way.numbers, way.calls] for way in own.ways],
        "unsure": [list(words) for words in own.unsure],
    }


def _forward_data(forward: Forward) -> dict[str, object]:
    return {
        "opened": list(forward.opened),
        "why": forward.why,
        "barred": list(forward.barred),
        "calls": [
            {
                "path": call.path,
                "args": _spelled(call.args),
                "kwargs": _spelled(call.kwargs),
                "results": [[node, list(keys)] for node, keys in call.results],
            }
            for call in forward.calls
        ],
    }


def own_from(data: object) -> OwnCode:
    """Read what `own_data` wrote down.  Raises FileError for anything else."""
    try:
        record = json_object(data)
        edits = tuple(map(_edit, json_list(record["edits"])))
        parts = tuple(_part(json_object(part)) for part in json_list(record["parts"]))
        found = record.get("forward")
        forward = None if found is None else _forward(json_object(found))
        spellings = tuple(map(_spelling, json_list(record.get("spellings", []))))
        tables = tuple(map(_table, json_list(record.get("tables", []))))
        flags = tuple(map(_flag, json_list(record.get("flags", []))))
        ways = tuple(map(_way, json_list(record.get("ways", []))))
        unsure = tuple((str(p), *_words(w)) for p, *w in map(json_list, json_list(record.get("unsure", []))))
    except (KeyError, TypeError, ValueError) as error:
        raise FileError(f"the record of the model's own class can't be read: {error}") from error
    said = (str(record.get(key, "")) for key in ("unsaid", "untrained"))
    return OwnCode(edits, parts, next(said), forward, next(said), spellings, tables, flags, ways, unsure)


def _way(data: object) -> OneWay:
    path, numbers, calls = json_list(data)
    found = tuple(tuple(map(_words, json_list(call))) for call in json_list(calls))
    return OneWay(json_value(path, str), json_value(numbers, str), found)


def _words(data: object) -> tuple[str, str]:
    name, said = json_list(data)
    return json_value(name, str), json_value(said, str)


def _flag(data: object) -> tuple[str, str, bool]:
    path, name, value = json_list(data)
    return json_value(path, str), json_value(name, str), json_value(value, bool)


def _edit(data: object) -> Edit:
    path, keys, held, old, new = json_list(data)
    slot = Slot(json_value(path, str), _keys(keys), json_value(held, int))
    return Edit(slot, _number(old), _number(new))


def _number(data: object) -> float:
    """Take data for a number as it is: a size stays whole."""
    return json_value(data, int) if isinstance(data, int) else json_value(data, float)


def _spelling(data: object) -> Spelling:
    path, method, start, end, text, name, old, new = json_list(data)
    (line, column), (last, right) = ([json_count(n) for n in json_list(at)] for at in (start, end))
    method, text = json_name(method), json_value(text, str)
    name = json_name(name) if name else ""
    made = _made(new) if isinstance(new, dict) else json_value(new, int)
    call = "" if isinstance(made, int) else WORDS[type(made)]
    place = Place(method, (line, column), (last, right), text, name, call)
    return Spelling(json_value(path, str), place, json_value(old, int), made)


def _table(data: object) -> Table:
    path, name, dim, old, kept, numbers = json_list(data)
    path, name = json_value(path, str), json_value(name, str)
    edited = tuple((_keys(keys), json_value(n, int)) for keys, n in map(json_list, json_list(numbers)))
    return Table(path, name, json_value(dim, int), json_value(old, int), _tuples(kept), edited)


def _made_data(made: Made) -> dict[str, object]:
    if isinstance(made, UnevenParts):
        return {"dim": made.dim, "sizes": made.sizes}
    return {"widths": made.widths, "numbers": made.numbers, "kept": made.kept}


def _made(data: JsonObject) -> Made:
    if "sizes" in data:
        return UnevenParts(json_value(data["dim"], int), _tuples(data["sizes"]))
    return FullWidth(**{key: _tuples(data[key]) for key in ("widths", "numbers", "kept")})


def _tuples(value: object) -> Value:
    """Read lists of whole numbers as tuples, and tuples that were not written yet."""
    return tuple(map(_tuples, value)) if isinstance(value, (list, tuple)) else json_value(value, int)


def _part(data: JsonObject) -> Part:
    inputs = [
        (json_value(name, str), _keys(keys), json_value(node, str))
        for name, keys, node in map(json_list, json_list(data["inputs"]))
    ]
    reads = [
        Read(json_value(node, str), json_value(of, str), _what(what), json_value(dim, int))
        for node, of, what, dim in map(json_list, json_list(data["reads"]))
    ]
    given = [
        (json_value(name, str), _keys(keys), value)
        for name, keys, value in map(json_list, json_list(data.get("given", [])))
    ]
    layouts = [
        (json_value(name, str), json_value(layout, str))
        for name, layout in map(json_list, json_list(data.get("layouts", [])))
    ]
    path, why = json_value(data["path"], str), json_value(data["why"], str)
    result = _read(json_object(data["result"]))
    return Part(path, why, tuple(inputs), tuple(reads), result, tuple(given), tuple(layouts))


def _what(data: object) -> What:
    if data not in get_args(What):
        raise ValueError(f"{data!r} is nothing that is read of a tensor")
    return cast(What, data)


def _forward(data: JsonObject) -> Forward:
    opened, barred = (tuple(json_value(v, str) for v in json_list(data[key])) for key in ("opened", "barred"))
    calls = [_call(json_object(call)) for call in json_list(data["calls"])]
    return Forward(opened, json_value(data["why"], str), tuple(calls), barred)


def _call(data: JsonObject) -> Call:
    args, kwargs = (_read(json_object(data[key])) for key in ("args", "kwargs"))
    for name in json_value(kwargs, dict):
        json_name(name)
    results = [
        (json_value(node, str), _keys(keys)) for node, keys in map(json_list, json_list(data["results"]))
    ]
    return Call(json_value(data["path"], str), args, kwargs, tuple(results))


def _keys(data: object) -> Keys:
    return tuple(key if isinstance(key, int) else json_value(key, str) for key in json_list(data))


def own_instance(
    model: nn.Module, pruned: PrunedModule, own: OwnCode, tensors: Mapping[str, Tensor]
) -> nn.Module:
    """Build the instance of a model's class again, on a graph's tensors and those that it does not use.

    Raises:
        FileError: the record speaks of numbers or modules that the model has not.
    """
    known = dict(named_tensors(pruned))

    def slices(names: Sequence[str], t: Tensor) -> Tensor:
        for name in names:
            if name in known:
                return known[name]
            if name in tensors:
                return _like(t, tensors[name])
        return t

    try:
        for call in own.forward.calls if own.forward else ():
            model.get_submodule(call.path)  # no other may stand in a graph's code
        made = instance_of(model, own, pruned, slices)
        named = {id(t) for t in (*made.parameters(), *made.buffers())}
        for slot, t in [*tensors_held(made)]:
            own_tensor = id(t) not in named and not slot.is_shared(model, made)
            if str(slot) in tensors and own_tensor:
                slot.write(made, _like(t, tensors[str(slot)]))
        with_form(made, own, pruned)
    except (AttributeError, KeyError, IndexError, TypeError, ValueError, RuntimeError, FxpruneError) as error:
        raise FileError(f"the record of the model's own class does not fit the model: {error}") from error
    return made


def held_tensors(instance: nn.Module, graph: nn.Module) -> dict[str, Tensor]:
    """Copy the tensors that an instance holds in its plain state, by where, less those that its graph has.

    Raises:
        FileError: one has no values.
    """
    known = {name for name, _ in named_tensors(graph)}
    named = {id(t) for t in (*instance.parameters(), *instance.buffers())}  # `self.listed = [self.a.weight]`
    held = [(str(slot), t) for slot, t in tensors_held(instance) if id(t) not in named]
    found = {name: t for name, t in held if name not in known}
    for name, t in found.items():
        if t.is_meta:
            raise FileError(f"{name} has no values to save: it is on the meta device")
    return {name: t.detach().contiguous().clone() for name, t in found.items()}


def _like(t: Tensor, stored: Tensor) -> Tensor:
    return nn.Parameter(stored, t.requires_grad) if isinstance(t, nn.Parameter) else stored


def _spelled(value: object) -> dict[str, object]:
    if isinstance(value, Ref):
        return {"node": value.node}
    if isinstance(value, (list, tuple)):
        return {type(value).__name__: [_spelled(v) for v in value]}
    if isinstance(value, dict):
        return {"dict": {k: _spelled(v) for k, v in value.items()}}
    return {"value": value}


def _read(data: JsonObject) -> object:
    ((kind, value),) = data.items()
    if kind == "node":
        return Ref(json_value(value, str))
    if kind in ("list", "tuple"):
        items = [_read(json_object(v)) for v in json_list(value)]
        return items if kind == "list" else tuple(items)
    if kind == "dict":
        return {k: _read(json_object(v)) for k, v in json_object(value).items()}
    return value
