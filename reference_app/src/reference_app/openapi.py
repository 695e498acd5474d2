"""OpenAPI 3.1 and Swagger UI, all of it served by this host: the pages work without the internet."""

from __future__ import annotations

import hashlib
import re
from base64 import b64encode
from importlib.resources import files
from pathlib import Path
from typing import Any

from litestar import Router, get
from litestar.openapi import OpenAPIConfig
from litestar.openapi.plugins import SwaggerRenderPlugin
from litestar.response import Redirect, Response
from litestar.static_files import create_static_files_router

from daydo_auth.litestar import anyone

_ASSETS = "/docs/assets"
# The package also ships an index page that loads from a CDN; only the bundle itself is served.
_BUNDLE = Path(str(files("openapi_ui_bundles.swagger_ui") / "vendor"))
_INLINE_SCRIPT = re.compile(rb"<script type='text/javascript'>(.*?)</script>", re.DOTALL)
_POLICY = (
    "default-src 'none'; script-src 'self' {scripts}; style-src 'self' 'unsafe-inline'; img-src 'self' data:; "
    "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)


def openapi_config(version: str) -> OpenAPIConfig:
    """The document at ``/docs/openapi.json``, the page at ``/docs``."""
    page = SwaggerRenderPlugin(
        js_url=f"{_ASSETS}/swagger-ui-bundle.js",
        css_url=f"{_ASSETS}/swagger-ui.css",
        standalone_preset_js_url=f"{_ASSETS}/swagger-ui-standalone-preset.js",
        favicon=f'<link rel="icon" type="image/png" href="{_ASSETS}/favicon-32x32.png">',
        path="/",
    )
    return OpenAPIConfig(
        title="daydo reference API",
        version=version,
        description="Accounts, credits and photo features. Errors are described by number and dotted name.",
        openapi_router=Router(
            "/docs", route_handlers=[], guards=[anyone], after_request=_with_policy, include_in_schema=False
        ),
        render_plugins=[page],
    )


@get("/", guards=[anyone], include_in_schema=False)
async def home() -> Redirect:
    """A visitor's first address leads to the API page."""
    return Redirect("/docs")


def openapi_assets() -> Router:
    """Scripts and styles of the page."""
    return create_static_files_router(path=_ASSETS, directories=[_BUNDLE], guards=[anyone], include_in_schema=False)


async def _with_policy(response: Response[Any]) -> Response[Any]:
    """Let the page run its own scripts and the bundle's, and nobody else's."""
    scripts = _INLINE_SCRIPT.findall(response.content) if isinstance(response.content, bytes) else []
    if scripts:
        hashes = (f"'sha256-{b64encode(hashlib.sha256(script).digest()).decode()}'" for script in scripts)
        response.headers["Content-Security-Policy"] = _POLICY.format(scripts=" ".join(hashes))
    return response
