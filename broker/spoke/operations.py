"""Typed operations: a Python function becomes an operation with a JSON Schema, a checked input and a JSON output.

The schema comes from the type hints through pydantic. A function that cannot wait is told apart: it needs no task. Not
here: when a handler runs (answers.py).
"""

from __future__ import annotations

import dis
import inspect
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass
from typing import Any, Literal, get_args, get_type_hints

from pydantic import BaseModel, ConfigDict, TypeAdapter, ValidationError, create_model

from broker.errors import ValidationFailed
from broker.protocol.registration import Operation

__all__ = ["Call", "Direct", "DirectCall", "Handler", "Offer", "plain", "typed"]

Kind = Literal["query", "mutation", "subscription"]


@dataclass(frozen=True, slots=True)
class Call:
    """What a handler may know about the call that it answers."""

    request_id: str
    operation: str
    identity: dict[str, Any]
    """Stamped by the hub: ``id`` (the caller's NodeId), ``scopes``, ``resources``."""


class DirectCall(Call):
    """One that came from its caller itself: ``identity`` is from the connection and the hub's grant."""

    __slots__ = ()


Handler = Callable[[Any, Call], Awaitable[Any]] | Callable[[Any, Call], AsyncIterator[Any]]
Direct = Callable[[Any, Call], Any]


@dataclass(frozen=True, slots=True)
class Offer:
    """An operation and what answers it. ``handler(input, call)`` gives an output, or an async iterator of them for a
    subscription; both are plain JSON values."""

    operation: Operation
    handler: Handler
    direct: Direct | None = None
    """The same as a plain function, if the handler never waits for anything."""

    @property
    def streams(self) -> bool:
        return self.operation.kind == "subscription"


def plain(operation: Operation, handler: Handler) -> Offer:
    """An offer whose handler takes and gives JSON as it is on the wire."""
    direct = operation.kind != "subscription" and _never_waits(handler)
    return Offer(operation, handler, _direct(handler) if direct else None)


def typed(function: Callable[..., Any], id: str, *, kind: Kind | None = None, description: str | None = None) -> Offer:
    """An offer from a function's signature. A parameter named ``call`` gets the :class:`Call`; every other one is a key
    of the input object. TypeError when a parameter cannot be a JSON key."""
    signature = inspect.signature(function)
    hints = get_type_hints(function, include_extras=True)
    fields = {
        name: _field(function, parameter, hints) for name, parameter in signature.parameters.items() if name != "call"
    }
    wants_call = "call" in signature.parameters
    streams = inspect.isasyncgenfunction(function)
    model = create_model(f"{id} input", __config__=ConfigDict(extra="forbid"), **fields)  # type: ignore[call-overload]
    output = TypeAdapter(_output_type(hints.get("return", Any), streams=streams))
    operation = Operation(
        id=id,
        kind=kind or ("subscription" if streams else "mutation"),
        description=description or inspect.getdoc(function),
        input_schema=model.model_json_schema(),
        output_schema=output.json_schema() if "return" in hints else None,
    )
    if streams != (operation.kind == "subscription"):
        raise TypeError(f"{id}: an async generator is a subscription, and only that is")
    arguments = _Arguments(model, wants_call)
    if streams:
        return Offer(operation, _streaming(function, arguments, output))
    return Offer(operation, *_single(function, arguments, output))


def _field(function: Callable[..., Any], parameter: inspect.Parameter, hints: dict[str, Any]) -> tuple[Any, Any]:
    if parameter.kind in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD, parameter.POSITIONAL_ONLY):
        raise TypeError(f"{function.__qualname__}: {parameter} cannot be a key of a JSON object; name each parameter")
    default = ... if parameter.default is parameter.empty else parameter.default
    return hints.get(parameter.name, Any), default


def _output_type(hint: Any, *, streams: bool) -> Any:
    return (get_args(hint) or (Any,))[0] if streams else hint


@dataclass(frozen=True, slots=True)
class _Arguments:
    """Turns an input into keyword arguments, or says where it does not fit."""

    model: type[BaseModel]
    wants_call: bool

    def read(self, input: Any, call: Call) -> dict[str, Any]:
        try:
            checked = self.model.model_validate({} if input is None else input)
        except ValidationError as error:
            where = error.errors(include_url=False, include_context=False, include_input=False)
            first = where[0]
            place = ".".join(str(part) for part in first["loc"]) or "input"
            raise ValidationFailed(f"{call.operation}: {place}: {first['msg']}", details=where) from None
        arguments = {name: getattr(checked, name) for name in self.model.model_fields}
        if self.wants_call:
            arguments["call"] = call
        return arguments


def _single(
    function: Callable[..., Any], arguments: _Arguments, output: TypeAdapter[Any]
) -> tuple[Handler, Direct | None]:
    is_async = inspect.iscoroutinefunction(function)

    async def handler(input: Any, call: Call) -> Any:
        result = function(**arguments.read(input, call))
        if is_async:
            result = await result
        return output.dump_python(result, mode="json")

    def direct(input: Any, call: Call) -> Any:
        result = function(**arguments.read(input, call))
        if is_async:
            result = _finish(result)
        return output.dump_python(result, mode="json")

    return handler, direct if not is_async or _never_waits(function) else None


def _never_waits(function: Callable[..., Any]) -> bool:
    """Whether this is an ``async def`` without a word on which it could wait: only a yield of its own suspends a
    coroutine, and ``await`` and its kind are made of one."""
    code = getattr(function, "__code__", None)
    if not inspect.iscode(code) or not code.co_flags & inspect.CO_COROUTINE:
        return False
    return all(instruction.opname != "YIELD_VALUE" for instruction in dis.get_instructions(code))


def _direct(handler: Callable[[Any, Call], Any]) -> Direct:
    return lambda input, call: _finish(handler(input, call))


def _finish(coroutine: Any) -> Any:
    """The result of a coroutine that does not wait."""
    try:
        coroutine.send(None)
    except StopIteration as end:
        return end.value
    coroutine.close()
    raise RuntimeError(f"{coroutine!r} waits, and has no word for it in its code")


def _streaming(function: Callable[..., Any], arguments: _Arguments, output: TypeAdapter[Any]) -> Handler:
    async def handler(input: Any, call: Call) -> AsyncIterator[Any]:
        async for item in function(**arguments.read(input, call)):
            yield output.dump_python(item, mode="json")

    return handler
