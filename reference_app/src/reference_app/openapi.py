"""OpenAPI 3.1 and Swagger UI, all of it served by this host: the pages work without the internet."""

from __future__ import annotations

from importlib.resources import files
from pathlib import Path

from litestar import Router, get
from litestar.openapi import OpenAPIConfig
from litestar.openapi.plugins import SwaggerRenderPlugin
from litestar.response import Redirect
from litestar.static_files import create_static_files_router

_ASSETS = "/docs/assets"
# The package also ships an index page that loads from a CDN; only the bundle itself is served.
_BUNDLE = Path(str(files("openapi_ui_bundles.swagger_ui") / "vendor"))


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
        path="/docs",
        render_plugins=[page],
    )


@get("/", include_in_schema=False)
async def home() -> Redirect:
    """A visitor's first address leads to the API page."""
    return Redirect("/docs")


def openapi_assets() -> Router:
    """Scripts and styles of the page."""
    return create_static_files_router(path=_ASSETS, directories=[_BUNDLE], include_in_schema=False)
