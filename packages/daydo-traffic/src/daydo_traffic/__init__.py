"""A service that bends instead of breaking; see README.md."""

from .breaker import Breaker, BreakerConfig, State
from .bulkhead import Bulkhead, BulkheadConfig
from .decision import Check, Decision, Standing
from .errors import (
    BulkheadFull,
    CallTimeout,
    CircuitOpen,
    FeatureOff,
    LimitExceeded,
    Overloaded,
    RateLimited,
    RuleOfAnotherKind,
    RuleUnknown,
    SwitchUnknown,
    TooManyAtOnce,
    TrafficError,
)
from .guard import Guard, GuardConfig
from .limits import Limits, LimitsConfig
from .policy import Fallback, Policy, Timeout, chain
from .retry import Retry, RetryConfig
from .rules import Bursty, Concurrent, Daily, Paced, Rule, Window
from .shedder import Priority, Shedder, ShedderConfig, Visit
from .switches import Switch, Switches, SwitchesConfig

__all__ = [
    "Breaker",
    "BreakerConfig",
    "Bulkhead",
    "BulkheadConfig",
    "BulkheadFull",
    "Bursty",
    "CallTimeout",
    "Check",
    "CircuitOpen",
    "Concurrent",
    "Daily",
    "Decision",
    "Fallback",
    "FeatureOff",
    "Guard",
    "GuardConfig",
    "LimitExceeded",
    "Limits",
    "LimitsConfig",
    "Overloaded",
    "Paced",
    "Policy",
    "Priority",
    "RateLimited",
    "Retry",
    "RetryConfig",
    "Rule",
    "RuleOfAnotherKind",
    "RuleUnknown",
    "Shedder",
    "ShedderConfig",
    "Standing",
    "State",
    "Switch",
    "SwitchUnknown",
    "Switches",
    "SwitchesConfig",
    "Timeout",
    "TooManyAtOnce",
    "TrafficError",
    "Visit",
    "Window",
    "chain",
]
