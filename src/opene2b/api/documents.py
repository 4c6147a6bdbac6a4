"""`/openapi.json`, made from the route table, and the page that shows it."""

from functools import cache
from http import HTTPStatus
from pathlib import Path
from typing import Any

import msgspec
from starlette.responses import FileResponse, HTMLResponse, Response

from opene2b import __version__
from opene2b.api import wire
from opene2b.api.call import Call
from opene2b.core.errors import NotFound

PAGE = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>OpenE2B API</title>
<link rel="icon" href="docs/favicon-32x32.png">
<link rel="stylesheet" href="docs/swagger-ui.css">
</head>
<body>
<div id="api"></div>
<script src="docs/swagger-ui-bundle.js"></script>
<script src="docs/start.js"></script>
</body>
</html>
"""
START = 'SwaggerUIBundle({url: "openapi.json", dom_id: "#api"});\n'
ASSETS = {
    "swagger-ui.css": "text/css",
    "swagger-ui-bundle.js": "text/javascript",
    "favicon-32x32.png": "image/png",
}
POLICY = {
    "Content-Security-Policy": (
        "default-src 'none'; script-src 'self'; style-src 'self' 'unsafe-inline';"
        " img-src 'self' data:; connect-src 'self'; frame-ancestors 'none'"
    )
}


async def openapi(call: Call) -> Response:
    return Response(document(), media_type="application/json")


async def page(call: Call) -> Response:
    return HTMLResponse(PAGE, headers=POLICY)


async def asset(call: Call) -> Response:
    name = call.params["file"]
    if name == "start.js":
        return Response(START, media_type="text/javascript")
    if name not in ASSETS:
        raise NotFound(f"no file '{name[:100]}' here")
    return FileResponse(assets() / name, media_type=ASSETS[name])


@cache
def assets() -> Path:
    from swagger_ui_bundle import swagger_ui_path

    return Path(swagger_ui_path)


@cache
def document() -> bytes:
    """OpenAPI 3.0.3, which is what the page's version of Swagger UI shows."""
    from opene2b.api.routes import ENDPOINTS

    listed = [endpoint for endpoint in ENDPOINTS if endpoint.is_listed]
    types = [kind for row in listed for kind in (row.body, row.answer) if kind is not None]
    schemas, components = msgspec.json.schema_components(
        [*types, wire.Error], ref_template="#/components/schemas/{name}"
    )
    by_type = dict(zip(map(repr, [*types, wire.Error]), map(without_null, schemas), strict=True))
    paths: dict[str, dict[str, Any]] = {}
    for row in listed:
        paths.setdefault(row.path, {})[row.method.lower()] = operation(row, by_type)
    return msgspec.json.encode(
        {
            "openapi": "3.0.3",
            "info": {
                "title": "OpenE2B",
                "version": __version__,
                "description": "Self-hosted sandboxes for every unmodified E2B client.",
            },
            "paths": paths,
            "components": {
                "schemas": without_null(components),
                "securitySchemes": {"key": {"type": "apiKey", "in": "header", "name": "X-API-Key"}},
            },
        }
    )


def operation(row: Any, schemas: dict[str, Any]) -> dict[str, Any]:
    parameters = [
        {"name": part[1:-1], "in": "path", "required": True, "schema": {"type": "string"}}
        for part in row.path.split("/")
        if part.startswith("{")
    ]
    parameters += [
        {"name": q.name, "in": "query", "description": q.about, "schema": {"type": "string"}}
        for q in row.query
    ]
    answer: dict[str, Any] = {"description": HTTPStatus(row.status).phrase}
    if row.answer is str:
        answer["content"] = {"text/plain": {"schema": schemas[repr(str)]}}
    elif row.answer is not None:
        answer["content"] = {"application/json": {"schema": schemas[repr(row.answer)]}}
    responses = {str(row.status): answer}
    for status in row.errors:
        responses[str(status)] = {
            "description": HTTPStatus(status).phrase,
            "content": {"application/json": {"schema": schemas[repr(wire.Error)]}},
        }
    found: dict[str, Any] = {
        "summary": row.about,
        "tags": [row.path.removeprefix("/v2").split("/")[1]],
        "parameters": parameters,
        "responses": responses,
    }
    if row.body is not None:
        found["requestBody"] = {
            "required": row.status == 201,
            "content": {"application/json": {"schema": schemas[repr(row.body)]}},
        }
    if not row.is_open:
        found["security"] = [{"key": []}]
    return found


def without_null(schema: Any) -> Any:
    """OpenAPI 3.0 has no type null: `anyOf: [X, null]` becomes X with `nullable`."""
    if isinstance(schema, list):
        return [without_null(item) for item in schema]
    if not isinstance(schema, dict):
        return schema
    options = schema.get("anyOf")
    if isinstance(options, list) and {"type": "null"} in options:
        rest = [without_null(option) for option in options if option != {"type": "null"}]
        return (
            {"nullable": True, "allOf": rest}
            if len(rest) == 1
            else {"nullable": True, "anyOf": rest}
        )
    return {
        name: without_null(value)
        for name, value in schema.items()
        if name != "default" or value is not None
    }
