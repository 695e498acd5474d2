"""What a query string may look like, where the framework would let more pass."""

from __future__ import annotations

import re
from typing import Any

from litestar.connection import Request

from daydo_kernel import BadRequest, FieldError

_DIGITS = re.compile(r"-?[0-9]+")


async def refuse_odd_queries(request: Request[Any, Any, Any]) -> None:
    """The ``before_request=`` of the API, whose parameters are single values and whose integers are digits.

    Raises:
        BadRequest: a parameter is named twice (Litestar takes the last), or an integer is written as ``1e1``.
    """
    expected = request.route_handler.parsed_fn_signature.parameters
    for name, values in request.query_params.dict().items():
        if name not in expected:
            continue
        if len(values) > 1:
            raise BadRequest(fields=(FieldError(name, "只能出现一次", "May be given once"),))
        if expected[name].annotation is int and not _DIGITS.fullmatch(values[0]):
            raise BadRequest(fields=(FieldError(name, "必须是整数", "Must be an integer"),))
