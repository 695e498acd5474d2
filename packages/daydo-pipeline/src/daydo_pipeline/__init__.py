"""Durable multi-step flows over a SQL database; see README.md."""

from .config import RunsConfig
from .errors import (
    FlowChanged,
    FlowUnavailable,
    FlowUnknown,
    InputsInvalid,
    InputsTooLarge,
    KeyConflict,
    Overloaded,
    PipelineError,
    RunFinished,
    RunTimedOut,
    RunUnknown,
    StepAbandoned,
    StepFailed,
    StepTimedOut,
)
from .flow import Flow
from .ports import Provider, ProviderCall, Quota, StepCall
from .runs import Runs
from .values import JSON, Account, Cost, Owner, Run, RunError, RunEvent, StepState

__all__ = [
    "JSON",
    "Account",
    "Cost",
    "Flow",
    "FlowChanged",
    "FlowUnavailable",
    "FlowUnknown",
    "InputsInvalid",
    "InputsTooLarge",
    "KeyConflict",
    "Overloaded",
    "Owner",
    "PipelineError",
    "Provider",
    "ProviderCall",
    "Quota",
    "Run",
    "RunError",
    "RunEvent",
    "RunFinished",
    "RunTimedOut",
    "RunUnknown",
    "Runs",
    "RunsConfig",
    "StepAbandoned",
    "StepCall",
    "StepFailed",
    "StepState",
    "StepTimedOut",
]
