"""Flows: what a run will do, as a list of steps that take inputs of the run and outputs of earlier steps.

A definition is data (:meth:`Flow.describe`) plus the functions this process runs for it. The data is stored
once per version and never changes; a run is pinned to the version it was started with. Timeouts, retries and
the price are not part of it: they may be tuned without a new version (a run keeps the price it started with).
"""

from __future__ import annotations

import hashlib
import inspect
import re
from collections.abc import Awaitable, Callable, Mapping
from typing import Any, Final

import msgspec

from daydo_kernel import FieldError

from .errors import InputsInvalid
from .values import JSON, Cost

MAX_STEPS = 50
MAX_RETRIES = 20
MAX_TIMEOUT_S = 86_400.0
_NAME = re.compile(r"[a-z][a-z0-9_-]{0,47}")

StepFunction = Callable[..., Awaitable[JSON]]


class _Required:
    def __repr__(self) -> str:
        return "REQUIRED"


REQUIRED: Final = _Required()


class Input:
    """A named input of the run, to be passed to steps. Made by :meth:`Flow.input`."""

    def __init__(self, name: str, default: JSON) -> None:
        self.name = name
        self.default = default


class Output:
    """The output of a step, or a field of it: ``mask["image"]``. Made by :meth:`Flow.step`."""

    def __init__(self, step: str, path: tuple[str, ...] = ()) -> None:
        self.step = step
        self.path = path

    def __getitem__(self, field: str) -> Output:
        return Output(self.step, (*self.path, field))


class StepDefinition(msgspec.Struct, frozen=True, kw_only=True):
    """One step as declared: exactly one of ``function`` and ``provider`` is set; ``provider`` is ``""`` otherwise."""

    name: str
    function: StepFunction | None
    provider: str
    inputs: dict[str, Any]
    params: dict[str, Any]
    timeout_s: float
    retries: int

    def arguments(
        self, inputs: Mapping[str, JSON], outputs: Mapping[str, JSON]
    ) -> tuple[dict[str, JSON], dict[str, JSON]]:
        """The step's inputs and params with every reference replaced by its value.

        Raises:
            KeyError, TypeError: an earlier step's output lacks the field that was asked for.
        """

        def value(bound: Any) -> JSON:
            if isinstance(bound, Input):
                return inputs[bound.name]
            if isinstance(bound, Output):
                found = outputs[bound.step]
                for field in bound.path:
                    found = found[field]
                return found
            return bound

        return (
            {name: value(bound) for name, bound in self.inputs.items()},
            {name: value(bound) for name, bound in self.params.items()},
        )


class Flow:
    """A named, versioned list of steps::

        flow = Flow("cutout", version=1, quota=Cost("credits", 5))
        mask = flow.step("mask", provider="matting", image=flow.input("photo"), timeout_s=60)
        flow.step("compose", compose, mask=mask["image"], retries=3)

    Steps run one after another in the order of declaration. Any mistake is a ``ValueError`` that says the fix.
    """

    def __init__(self, name: str, *, version: int = 1, quota: Cost | None = None) -> None:
        if not _NAME.fullmatch(name):
            raise ValueError(f"flow {name!r}: use 1 to 48 lower-case letters, digits, '-' and '_', a letter first")
        if not 1 <= version < 1 << 31:
            raise ValueError(f"flow {name!r}: version counts from 1")
        self.name = name
        self.version = version
        self.quota = quota
        self.inputs: dict[str, Input] = {}
        self.steps: list[StepDefinition] = []
        self._sealed = False

    @property
    def key(self) -> str:
        """``cutout/1``: how a step row names the definition it belongs to."""
        return f"{self.name}/{self.version}"

    def input(self, name: str, *, default: JSON = REQUIRED) -> Input:
        """An input of the run. With ``default`` (a JSON value) it may be left out at start."""
        if not name.isidentifier():
            raise ValueError(f"flow {self.name!r}: input {name!r} is not a Python name")
        if default is not REQUIRED:
            _require_json(default, f"flow {self.name!r}: the default of input {name!r}")
        known = self.inputs.setdefault(name, Input(name, default))
        if known.default is not default and known.default != default:
            raise ValueError(f"flow {self.name!r}: input {name!r} is declared with two defaults; keep one and reuse it")
        return known

    def step(
        self,
        name: str,
        function: StepFunction | None = None,
        /,
        *,
        provider: str = "",
        params: Mapping[str, Any] | None = None,
        timeout_s: float = 60.0,
        retries: int = 2,
        **inputs: Any,
    ) -> Output:
        """Add a step: an async ``function(call, **inputs)``, or the ``provider`` registered under that name.

        Args:
            params: settings of the step, kept apart from its inputs; values as for inputs.
            timeout_s: bound of one attempt, in seconds.
            retries: further attempts after a *retryable* error.
            inputs: ``flow.input(…)``, the output of an earlier step or a field of it, or a JSON constant.
        """
        where = f"flow {self.name!r}, step {name!r}"
        if self._sealed:
            raise ValueError(f"{where}: Runs has taken this flow already; declare all steps before")
        if not _NAME.fullmatch(name):
            raise ValueError(f"{where}: use 1 to 48 lower-case letters, digits, '-' and '_', a letter first")
        if any(step.name == name for step in self.steps):
            raise ValueError(f"{where}: this name is taken by an earlier step")
        if len(self.steps) >= MAX_STEPS:
            raise ValueError(f"{where}: a flow has at most {MAX_STEPS} steps")
        if (function is None) == (provider == ""):
            raise ValueError(f"{where}: pass either a function or provider=")
        if function is not None and not inspect.iscoroutinefunction(function):
            raise ValueError(f"{where}: {function!r} must be an `async def`; wrap blocking work in asyncio.to_thread")
        if provider and not _NAME.fullmatch(provider):
            raise ValueError(f"{where}: provider {provider!r} is not a plain name")
        if not 0 < timeout_s <= MAX_TIMEOUT_S or not 0 <= retries <= MAX_RETRIES:
            raise ValueError(f"{where}: 0 < timeout_s ≤ {MAX_TIMEOUT_S:g} and 0 ≤ retries ≤ {MAX_RETRIES}")
        for argument, bound in {**inputs, **(params or {})}.items():
            self._check(bound, f"{where}, {argument!r}")
        self.steps.append(
            StepDefinition(
                name=name,
                function=function,
                provider=provider,
                inputs=inputs,
                params=dict(params or {}),
                timeout_s=timeout_s,
                retries=retries,
            )
        )
        return Output(name)

    def describe(self) -> dict[str, JSON]:
        """The definition as JSON data: what is stored, hashed and pinned."""
        return {
            "name": self.name,
            "version": self.version,
            "inputs": {
                name: {} if given.default is REQUIRED else {"default": given.default}
                for name, given in self.inputs.items()
            },
            "steps": [
                {
                    "name": step.name,
                    "provider": step.provider,
                    "inputs": {name: _describe(bound) for name, bound in step.inputs.items()},
                    "params": {name: _describe(bound) for name, bound in step.params.items()},
                }
                for step in self.steps
            ],
        }

    def hash(self) -> str:
        """SHA-256 of :meth:`describe`, in hex: two definitions under one version must agree on it."""
        return hashlib.sha256(msgspec.json.encode(self.describe(), order="sorted")).hexdigest()

    def complete(self, inputs: Mapping[str, JSON]) -> dict[str, JSON]:
        """``inputs`` with defaults filled in.

        Raises:
            InputsInvalid: some are missing or unknown; ``fields`` names each.
        """
        missing = [name for name, given in self.inputs.items() if name not in inputs and given.default is REQUIRED]
        unknown = [name for name in inputs if name not in self.inputs]
        if missing or unknown:
            fields = [FieldError(name, "缺少该输入。", "This input is missing.") for name in missing]
            fields += [FieldError(str(name), "未知的输入。", "This flow has no such input.") for name in unknown]
            raise InputsInvalid(flow=self.name, fields=tuple(fields))
        return {name: inputs.get(name, given.default) for name, given in self.inputs.items()}

    def seal(self) -> None:
        """No more steps: called by ``Runs``, whose runs rely on the list."""
        if not self.steps:
            raise ValueError(f"flow {self.name!r} has no steps; add one with flow.step(…)")
        self._sealed = True

    def _check(self, bound: Any, where: str) -> None:
        if isinstance(bound, Input):
            if self.inputs.get(bound.name) is not bound:
                raise ValueError(f"{where}: this input belongs to another flow")
        elif isinstance(bound, Output):
            if not any(step.name == bound.step for step in self.steps):
                raise ValueError(f"{where}: there is no earlier step {bound.step!r} in this flow")
        else:
            _require_json(bound, where)


def _describe(bound: Any) -> JSON:
    if isinstance(bound, Input):
        return {"input": bound.name}
    if isinstance(bound, Output):
        return {"step": bound.step, "path": list(bound.path)}
    return {"value": bound}


def _require_json(value: Any, where: str) -> None:
    try:
        same = msgspec.json.decode(msgspec.json.encode(value)) == value
    except (TypeError, ValueError, RecursionError):
        same = False
    if not same:
        raise ValueError(f"{where} is not a JSON value; references stand alone, not inside lists or dicts")
