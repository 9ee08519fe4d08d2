"""Scenarios as data: what is done to a lab, and what must be seen. Not here: doing it (chaos.py)."""

from __future__ import annotations

import tomllib
from pathlib import Path
from typing import Annotated, Any, Final, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, model_validator

from broker.errors import UsageError

__all__ = ["ACTIONS", "Scenario", "Step", "scenarios"]

FILE: Final = Path(__file__).with_name("scenarios.toml")
ACTIONS: Final = {
    "kill": (), "stop": (), "start": (), "pause": (), "resume": (), "fill": (), "bad": (), "wait": (), "mend": (),
    "see": ("within",), "clock": ("by",), "cut": ("from_", "one_way"), "lose": ("percent",), "slow": ("kbit",),
    "add": ("rate", "size"), "rebind": (),
}  # fmt: skip
"""What a step does, and what else it says."""
BEGAN: Final = "$began"
"""In a `see`: when the scenario began, in Unix seconds. `METRIC @ $began` is what it was then."""
ENDING: Final = ("kill", "stop", "clock")
"""Actions after which a process is another one."""
AUTHORLESS: Final = ("hub1", "hub2", "hubs", "relay", "prometheus")
"""Members that publish nothing and check nothing."""
LINKS: Final = ("cut", "lose", "slow", "mend", "rebind")
"""Actions that need namespaces."""

Strict = ConfigDict(extra="forbid", frozen=True, populate_by_name=True)


class Step(BaseModel):
    """One action: exactly one of ACTIONS is given. scenarios.toml says what each means."""

    model_config = Strict

    kill: str | None = None
    stop: str | None = None
    start: str | None = None
    pause: str | None = None
    resume: str | None = None
    fill: str | None = None
    bad: Literal["json", "words", "answers"] | None = None
    wait: Annotated[float, Field(gt=0, le=60)] | None = None
    mend: Literal[True] | None = None
    see: str | None = None
    within: float = Field(default=20, gt=0, le=300)
    clock: str | None = None
    by: str = "+1d"
    cut: str | None = None
    from_: str = Field(default="all", alias="from")
    one_way: bool = False
    lose: str | None = None
    percent: int = Field(default=30, ge=1, le=99)
    slow: str | None = None
    kbit: int = Field(default=64, ge=8)
    add: Annotated[int, Field(ge=1, le=100)] | None = None
    rate: float = Field(default=1, ge=0)
    size: int = Field(default=0, ge=0, le=900_000)
    rebind: str | None = None

    @property
    def action(self) -> str:
        return next(name for name in ACTIONS if getattr(self, name) is not None)

    @model_validator(mode="after")
    def _one_action(self) -> Step:
        given = [name for name in ACTIONS if getattr(self, name) is not None]
        if len(given) != 1:
            raise ValueError(f"a step does one thing, this one does {', '.join(given) or 'nothing'}")
        more = self.model_fields_set - {given[0], *ACTIONS[given[0]]}
        if more:
            raise ValueError(f"{given[0]} takes no {', '.join(sorted(more))}")
        if self.see is not None and "== 0" in self.see:
            raise ValueError("a value of 0 counts as not seen: write == bool 0")
        return self

    def __str__(self) -> str:
        more = [f"{name.rstrip('_')} {getattr(self, name)}" for name in ACTIONS[self.action]]
        return " ".join([self.action, str(getattr(self, self.action)), *more])


def _whole_steps(value: Any) -> Any:
    return tuple(value) if isinstance(value, list) else value


class Scenario(BaseModel):
    """``links``: it breaks links, so it needs namespaces. ``nat``: it is for a lab with routers and a relay, and for no
    other. ``needs``: a program that must be installed."""

    model_config = Strict

    name: str
    text: str
    steps: Annotated[tuple[Step, ...], BeforeValidator(_whole_steps)]
    verdict: Literal["whole", "told"] = "whole"
    links: bool = False
    nat: bool = False
    needs: str | None = None

    @model_validator(mode="after")
    def _says_what_it_needs(self) -> Scenario:
        if self.links != any(step.action in LINKS for step in self.steps):
            raise ValueError("links = true is for scenarios that break links, and for no others")
        if not self.nat and any(step.action == "rebind" for step in self.steps):
            raise ValueError("only routers rebind: nat = true")
        if not any(step.action == "see" for step in self.steps):
            raise ValueError("nothing has to be seen: add a step with see")
        return self

    def at(self, hub: str) -> Scenario:
        """The same with ``hub`` in the place of hub1, and the other way round."""
        text = self.model_dump_json(by_alias=True, exclude_unset=True)
        return self.model_validate_json(text.replace("hub1", "\0").replace(hub, "hub1").replace("\0", hub))

    def since(self, began: float) -> Scenario:
        """The same with the time when it began in each `see`."""
        text = self.model_dump_json(by_alias=True, exclude_unset=True)
        return self.model_validate_json(text.replace(BEGAN, f"{began:.3f}"))

    @property
    def same_authors(self) -> bool:
        """Whether nodes and observer are the same processes all through, so that their counts can be compared."""
        return all(
            step.action != "add" and (step.action not in ENDING or getattr(step, step.action) in AUTHORLESS)
            for step in self.steps
        )


def scenarios(file: Path = FILE) -> dict[str, Scenario]:
    """By name, in the file's order. UsageError names the scenario and what is wrong with it."""
    found = {}
    for name, row in tomllib.loads(file.read_text()).items():
        try:
            found[name] = Scenario(name=name, **row)
        except ValidationError as error:
            fault = error.errors()[0]
            where = ".".join(map(str, fault["loc"]))
            raise UsageError(f"{file.name}, {name}: {where + ': ' if where else ''}{fault['msg']}") from None
    return found
