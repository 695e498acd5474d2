"""What every part of daydo stands on; see README.md."""

from .clock import Clock, SystemClock, isoformat
from .config import Config
from .context import RequestContext, get_context, negotiate_locale, reset_context, set_context
from .envelope import Envelope, ErrorEnvelope, Page, Rendered, ok, render
from .errors import (
    BadRequest,
    DaydoError,
    Draining,
    FieldError,
    InternalError,
    KernelError,
    MethodNotAllowed,
    NotFound,
    NotStarted,
    PayloadTooLarge,
    RequestRefused,
    UnsupportedMediaType,
    declared_errors,
)
from .events import Event, EventSink, NoEvents
from .ids import new_id
from .lifecycle import Health, Part, running, to_the_end
from .masking import mask_email, mask_id_card, mask_phone, mask_token, redact, redact_text
from .metrics import Counter, FamilySnapshot, Gauge, Histogram, Metrics

__all__ = [
    "BadRequest",
    "Clock",
    "Config",
    "Counter",
    "DaydoError",
    "Draining",
    "Envelope",
    "ErrorEnvelope",
    "Event",
    "EventSink",
    "FamilySnapshot",
    "FieldError",
    "Gauge",
    "Health",
    "Histogram",
    "InternalError",
    "KernelError",
    "MethodNotAllowed",
    "Metrics",
    "NoEvents",
    "NotFound",
    "NotStarted",
    "Page",
    "Part",
    "PayloadTooLarge",
    "Rendered",
    "RequestContext",
    "RequestRefused",
    "SystemClock",
    "UnsupportedMediaType",
    "declared_errors",
    "get_context",
    "isoformat",
    "mask_email",
    "mask_id_card",
    "mask_phone",
    "mask_token",
    "negotiate_locale",
    "new_id",
    "ok",
    "redact",
    "redact_text",
    "render",
    "reset_context",
    "running",
    "set_context",
    "to_the_end",
]
