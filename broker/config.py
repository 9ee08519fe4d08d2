"""A hub's configuration: one frozen model, filled from a TOML file, then ``BROKER_...`` variables, then flags. The
later wins.

A mistake is a :class:`ConfigError` that names the dotted key and where it was written: file and line, variable or flag.
Not here: a spoke's options (spoke/options.py), and what any of the values does.
"""

from __future__ import annotations

import difflib
import os
import re
import tomllib
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any, Final, Literal, NamedTuple, TypeVar, get_args, get_origin

import orjson
from pydantic import BaseModel, ConfigDict, Field, ValidationError, ValidationInfo, field_validator
from pydantic.fields import FieldInfo

from broker.config_values import (
    KIB,
    MIB,
    CarrierChoice,
    Count,
    HttpAddress,
    NodeId,
    OperationPatterns,
    PkarrUrl,
    RelayUrl,
    ScopeName,
    Seconds,
    TopicPattern,
    TopicPatterns,
    UdpAddress,
    relay_url,
    scope_name,
    split_address,
)
from broker.errors import ConfigError
from broker.protocol.registration import MAX_OPERATIONS
from broker.protocol.ticket import MAX_RELAYS, REALM_BYTES
from broker.toml_lines import key_lines

__all__ = [
    "ENVIRONMENT_PREFIX",
    "AccessConfig",
    "AdmissionConfig",
    "CallsConfig",
    "GossipConfig",
    "HubConfig",
    "KeyDescription",
    "LimitsConfig",
    "MetricsConfig",
    "ScopeConfig",
    "Table",
    "TopicsConfig",
    "describe_keys",
    "key_lines",
    "load",
    "load_config",
    "relay_url",
    "scope_name",
    "split_address",
]

ENVIRONMENT_PREFIX: Final = "BROKER_"


class Table(BaseModel):
    """Of keys: each has a type and a default, and none other is taken."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)


class AdmissionConfig(Table):
    """Who may connect: ``deny`` beats ``allow`` beats the hub's ``open``."""

    allow: tuple[NodeId, ...] = ()
    deny: tuple[NodeId, ...] = ()
    admins: tuple[NodeId, ...] = ()
    """May change admission while the hub runs. They are admitted too."""


class ScopeConfig(Table):
    """What those who have a scope may do, by pattern: ``*`` is one token, a last ``>`` one or more."""

    call: OperationPatterns = ()
    offer: OperationPatterns = ()
    publish: TopicPatterns = ()
    subscribe: TopicPatterns = ()


class AccessConfig(Table):
    """What the admitted may do. Without any scope they may do everything."""

    scopes: dict[ScopeName, ScopeConfig] = {}
    nodes: dict[NodeId, tuple[ScopeName, ...]] = {}
    """The scopes of a NodeId. It has those of its invite besides."""
    default: tuple[ScopeName, ...] = ()
    """The scopes of an admitted NodeId that has none of its own."""

    @field_validator("nodes", "default")
    @classmethod
    def _are_defined(cls, value: Any, info: ValidationInfo) -> Any:
        named = {name for names in value.values() for name in names} if isinstance(value, dict) else set(value)
        # Without scopes in ``data`` they are wrong themselves, and that is said already.
        if unknown := sorted(named.difference(info.data.get("scopes", named))):
            raise ValueError(f"there is no [access.scopes.{unknown[0]}]")
        return value


class TopicsConfig(Table):
    """What the hub keeps of each topic for those who come late or fall behind."""

    ring_events: Annotated[int, Field(ge=16, le=10_000_000)] = 65_536
    ring_bytes: Annotated[int, Field(ge=64 * KIB, le=16_384 * MIB)] = 64 * MIB
    log_bytes_total: Annotated[int, Field(ge=MIB, le=1_048_576 * MIB)] = 1_024 * MIB
    """All topics' rings together; the largest give up their oldest events first."""
    most_topics: Count = 100_000
    patience: Annotated[float, Field(ge=0, le=3_600, allow_inf_nan=False)] = 2.0
    """Seconds for which a slow reader that blocks may hold up a topic's publishers."""
    carrier: CarrierChoice = "auto"
    """How events travel: ``stream`` from the hub, ``gossip`` among the subscribers, or what costs the hub less."""
    carriers: dict[TopicPattern, CarrierChoice] = {}
    """The same by pattern; of several that match the longest counts."""
    uplink_bytes: Annotated[float, Field(ge=KIB, le=1e12, allow_inf_nan=False)] = 1_250_000_000
    """Bytes a second that streams of one topic may cost before ``auto`` moves it to gossip."""
    cpu_deliveries: Annotated[float, Field(ge=1, le=1e9, allow_inf_nan=False)] = 1_500_000.0
    """The same in deliveries a second."""


class GossipConfig(Table):
    """Topics that travel peer to peer."""

    enabled: bool = True
    """Without it every topic goes by stream, and nobody may gossip with this hub."""
    message_bytes: Annotated[int, Field(ge=512, le=65_536)] = REALM_BYTES
    """The largest gossip message, the same at every hub of the realm. A larger event is fetched by stream. A large one
    holds a flood's events at a price of one; a lone event is a message of its own size."""


class LimitsConfig(Table):
    """Bounds that keep one peer from harming the others."""

    max_frame_bytes: Annotated[int, Field(ge=4 * KIB, le=64 * MIB)] = MIB
    """Spokes are told. At least what the hub itself says on every connect."""
    calls_queue_bytes: Annotated[int, Field(ge=64 * KIB, le=1_024 * MIB)] = 8 * MIB
    """A connection's outgoing calls and control messages."""
    topics_queue_bytes: Annotated[int, Field(ge=64 * KIB, le=1_024 * MIB)] = MIB
    """A connection's outgoing events; beyond it the subscriber is read from the topic's ring."""
    inbox_bytes: Annotated[int, Field(ge=64 * KIB, le=1_024 * MIB)] = 4 * MIB
    """What a connection may have sent ahead of the hub's reading."""
    connections: Count = 20_000
    connections_per_node: Count = 64
    """Of one NodeId, like all that end so: the sum over its connections."""
    calls_in_flight_per_node: Count = 4_096
    subscriptions_per_node: Count = 10_000
    publish_rate_per_node: Annotated[float, Field(ge=1, le=1e9, allow_inf_nan=False)] = 200_000.0
    """Events a second. Above it acknowledgements wait, which slows the author down; nothing is dropped."""
    queued_bytes_per_node: Annotated[int, Field(ge=64 * KIB, le=65_536 * MIB)] = 64 * MIB
    """What the hub holds for a NodeId that does not read; above it the fullest connection is ended."""
    calls_in_flight: Count = 100_000
    calls_in_flight_per_peer: Count = 1_024
    operations_per_peer: Annotated[int, Field(ge=1, le=MAX_OPERATIONS)] = MAX_OPERATIONS
    """Operations that one connection offers; what it registers beyond them is left out, and it is told."""
    open_timeout: Seconds = 10.0
    """An accepted connection brings its stream and first frame in this time."""
    frame_timeout: Seconds = 30.0
    """A frame once begun is whole in this time."""
    idle_timeout: Seconds = 6.0
    """A connection that is silent for so long is dead. A third of it ends a path where relays offer another."""


class CallsConfig(Table):
    """Calls whose caller does not say."""

    default_timeout: Seconds = 30.0
    max_timeout: Seconds = 3_600.0


class MetricsConfig(Table):
    """How many label values spokes can make; what comes later is counted under ``other``."""

    topic_labels: Annotated[int, Field(ge=0, le=100_000)] = 200
    operation_labels: Annotated[int, Field(ge=0, le=100_000)] = 200


class HubConfig(Table):
    """Everything that a hub can be told. Times are seconds, sizes bytes."""

    key: Path | None = None
    """Identity file. Without it ``data``'s is used; without either, a new identity each start."""
    data: Path | None = None
    """Directory for what lasts: the identity, the port."""
    bind: UdpAddress = "127.0.0.1:0"
    http: HttpAddress = "127.0.0.1:9464"
    """``""`` or ``"off"``: no HTTP."""
    relays: Annotated[tuple[RelayUrl, ...], Field(max_length=MAX_RELAYS)] = ()
    """Relays to be reachable through. They stand in the ticket."""
    relay_ca: Path | None = None
    """PEM file of the authorities that sign the relays' certificates; without it those that browsers believe."""
    lookup: PkarrUrl | None = None
    """URL of a pkarr service where the hub says where it is, and asks where NodeIds are that it dials."""
    ticket_file: Path | None = None
    """Gets the ticket once the hub accepts connections."""
    dial: tuple[str, ...] = ()
    """Tickets (or ``@FILE``) of spokes that the hub dials."""
    join: str | None = None
    """Ticket (or ``@FILE``) of a hub of the realm to join."""
    open: bool = False
    """Admits every NodeId that is not denied."""
    name: Annotated[str, Field(min_length=1, max_length=128)] | None = None
    realm: Annotated[str, Field(pattern=r"^[A-Za-z0-9_.-]{1,128}$")] | None = None
    drain_timeout: Annotated[float, Field(ge=0, le=3_600, allow_inf_nan=False)] = 10.0
    log_level: Literal["debug", "info", "warning", "error"] = "info"
    log_format: Literal["text", "json"] = "text"
    admission: AdmissionConfig = AdmissionConfig()
    access: AccessConfig = AccessConfig()
    topics: TopicsConfig = TopicsConfig()
    gossip: GossipConfig = GossipConfig()
    limits: LimitsConfig = LimitsConfig()
    calls: CallsConfig = CallsConfig()
    metrics: MetricsConfig = MetricsConfig()

    @field_validator("gossip")
    @classmethod
    def _agrees(cls, value: GossipConfig, info: ValidationInfo) -> GossipConfig:
        topics = info.data.get("topics")
        if topics is not None and not value.enabled and "gossip" in (topics.carrier, *topics.carriers.values()):
            raise ValueError("enabled is false, and [topics] wants gossip as the carrier; one of the two has to go")
        return value


def load_config(
    path: Path | None = None,
    env: Mapping[str, str] | None = None,
    overrides: Mapping[str, Any] | None = None,
) -> HubConfig:
    """A hub's config, see :func:`load`."""
    return load(HubConfig, ENVIRONMENT_PREFIX, path, env, overrides)


T = TypeVar("T", bound=Table)


def load(
    model: type[T],
    prefix: str,
    path: Path | None = None,
    env: Mapping[str, str] | None = None,
    overrides: Mapping[str, Any] | None = None,
) -> T:
    """The config of a file, the environment (``os.environ`` unless given; variables begin with ``prefix``) and flags.
    Keys of ``overrides`` are dotted; those that are None are left out. Raises :class:`ConfigError`."""
    text, merged = _read(path)
    source: dict[str, str] = {}
    for key, variable, value in _from_environment(model, prefix, os.environ if env is None else env):
        _put(merged, key, value)
        source[key] = variable
    for key, value in (overrides or {}).items():
        if value is not None:
            _put(merged, key, _plain(value))
            source[key] = "--" + key.replace("_", "-")
    try:
        # As JSON and strict: a string is not a number in TOML either, but paths and tuples come out right.
        return model.model_validate_json(orjson.dumps(merged, default=str), strict=True)
    except ValidationError as error:
        raise _config_error(model, error, text, path, source) from None


def _read(path: Path | None) -> tuple[str, dict[str, Any]]:
    if path is None:
        return "", {}
    try:
        text = path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise ConfigError(f"not UTF-8 text (byte {error.start})", file=str(path)) from None
    except OSError as error:
        raise ConfigError(f"the config file cannot be read: {error.strerror}", file=str(path)) from None
    try:
        return text, tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        message, line = _syntax_error(str(error), text)
        raise ConfigError(f"not valid TOML: {message}", line=line, file=str(path)) from None


def _syntax_error(message: str, text: str) -> tuple[str, int]:
    """tomllib tells the place only in words."""
    place = re.search(r" \(at (?:line (\d+), column \d+|end of document)\)$", message)
    if place is None:
        return message, 1
    return message[: place.start()], int(place[1] or len(text.splitlines()) or 1)


def _plain(value: Any) -> Any:
    if isinstance(value, Path):
        return str(value)
    return [_plain(item) for item in value] if isinstance(value, list | tuple) else value


def _put(table: dict[str, Any], key: str, value: Any) -> None:
    *parents, last = key.split(".")
    for parent in parents:
        inner = table.setdefault(parent, {})
        if not isinstance(inner, dict):
            return  # the file has a plain value where a table belongs: validation will say so
        table = inner
    table[last] = value


def _leaves(model: type[BaseModel], prefix: str = "") -> Iterator[tuple[str, FieldInfo]]:
    for name, field in model.model_fields.items():
        if isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel):
            yield from _leaves(field.annotation, f"{prefix}{name}.")
        else:
            yield prefix + name, field


class KeyDescription(NamedTuple):
    """A key as `broker check --keys` lists it. ``default`` is as TOML has it, None for a key that is not set."""

    key: str
    variable: str
    default: Any
    description: str


def describe_keys(model: type[Table] = HubConfig, prefix: str = ENVIRONMENT_PREFIX) -> list[KeyDescription]:
    """Every key there is."""
    return [
        KeyDescription(
            key, _variable(prefix, key), orjson.loads(orjson.dumps(field.default, default=str)), field.description or ""
        )
        for key, field in _leaves(model)
    ]


def _variable(prefix: str, key: str) -> str:
    return prefix + key.upper().replace(".", "_")


def _from_environment(model: type[Table], prefix: str, env: Mapping[str, str]) -> Iterator[tuple[str, str, Any]]:
    """(key, variable, value) of the keys that have a variable. Other ``BROKER_`` names are not ours to judge:
    Kubernetes makes some for a service called broker."""
    for key, field in _leaves(model):
        variable = _variable(prefix, key)
        if (text := env.get(variable)) is not None:
            try:
                yield key, variable, _from_text(text, field.annotation)
            except ValueError as error:
                raise ConfigError(f"{error} (from {variable})", key=key) from None


def _from_text(text: str, annotation: Any) -> Any:
    kinds = _kinds(annotation)
    if tuple in kinds:
        return [part.strip() for part in text.split(",") if part.strip()]
    if dict in kinds:
        return orjson.loads(text)  # its errors are ValueErrors
    if bool in kinds:
        return _boolean(text)
    for kind, noun in ((int, "a whole number"), (float, "a number")):
        if kind in kinds:
            return _number(kind, text, noun)
    return text


def _kinds(annotation: Any) -> set[Any]:
    """The plain types in an annotation such as ``Annotated[int, ...] | None``."""
    origin = get_origin(annotation)
    if origin in (tuple, dict):
        return {origin}
    if origin is None:
        return {annotation}
    return set().union(*(_kinds(part) for part in get_args(annotation) if isinstance(part, type) or get_origin(part)))


def _boolean(text: str) -> bool:
    word = text.strip().lower()
    if word in ("1", "true", "yes", "on"):
        return True
    if word in ("0", "false", "no", "off", ""):
        return False
    raise ValueError(f"{text!r} is neither true nor false")


def _number(kind: Callable[[str], Any], text: str, noun: str) -> Any:
    try:
        return kind(text)
    except ValueError:
        raise ValueError(f"{text!r} is not {noun}") from None


def _config_error(
    model: type[Table], error: ValidationError, text: str, path: Path | None, source: Mapping[str, str]
) -> ConfigError:
    first, *others = error.errors(include_url=False)
    place = [part for part in first["loc"] if part != "[key]"]  # pydantic's word for a key that is wrong itself
    names = [part for part in place if isinstance(part, str)]
    key = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in place).lstrip(".")
    message = _explain(first["type"], first["msg"], first.get("input"), names, model)
    if others:
        message += f" (and {len(others)} more)"
    if (name := source.get(".".join(names))) is not None:
        return ConfigError(f"{message} (from {name})", key=key)
    lines = key_lines(text)
    line = next((lines[known] for n in range(len(names), 0, -1) if (known := tuple(names[:n])) in lines), None)
    return ConfigError(message, key=key, line=line, file=str(path) if path else None)


def _explain(kind: str, message: str, value: Any, names: list[str], model: type[Table]) -> str:
    if kind == "extra_forbidden":
        return "unknown key" + _suggestion(names, model)
    if kind == "value_error":
        return message.removeprefix("Value error, ")
    text = message[:1].lower() + message[1:]
    return f"{text}, not {orjson.dumps(value, default=str).decode():.80}"


def _suggestion(names: list[str], model: type[Table]) -> str:
    known = [key for key, _ in _leaves(model)]
    if names[:2] == ["access", "scopes"]:
        known = [".".join([*names[:3], key]) for key in ScopeConfig.model_fields]
    tables = {key.partition(".")[0] for key in known if "." in key}
    dotted = ".".join(names)
    near = difflib.get_close_matches(dotted, [*known, *tables], n=1)
    if not near:  # the right key in the wrong table
        near = [key for key in known if key.rpartition(".")[2] == names[-1]]
    return f"; did you mean {near[0]}?" if near else "; `broker check --keys` lists the keys"
