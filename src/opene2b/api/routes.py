"""The one table of what is served; requests are matched by it and `/openapi.json` is made from it."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from opene2b.api import documents, sandboxes, system, templates, wire
from opene2b.api.call import Handler


@dataclass(frozen=True, slots=True)
class Query:
    """A query parameter, for the document; its handler reads and checks it."""

    name: str
    about: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Endpoint:
    method: str
    path: str
    """Segments in braces are parameters; one segment of the raw path each, decoded after the match."""
    handler: Handler
    about: str
    body: type | None = None
    answer: Any = None
    """Type of the answer's JSON; None: no body."""
    status: int = 200
    errors: tuple[int, ...] = ()
    query: Sequence[Query] = ()
    is_open: bool = False
    """Needs no API key."""
    is_listed: bool = True
    """Part of the document."""


METADATA = Query(
    "metadata",
    "form of name=value pairs, names and values percent-encoded once more; all must match",
)
PAGE = (Query("limit", "1 to 100, default 100"), Query("nextToken", "from X-Next-Token"))
CREATE_ERRORS = (400, 401, 403, 404, 409, 422, 429, 500, 501, 503, 504)
SANDBOX_ERRORS = (400, 401, 404, 500)

ENDPOINTS: tuple[Endpoint, ...] = (
    Endpoint(
        method="POST",
        path="/v2/sandboxes",
        handler=sandboxes.create,
        about="Create a sandbox; answers once it can be used. Default timeout 300 s.",
        body=wire.NewSandbox,
        answer=wire.Sandbox,
        status=201,
        errors=CREATE_ERRORS,
    ),
    Endpoint(
        method="POST",
        path="/sandboxes",
        handler=sandboxes.create_old,
        about="Create a sandbox: the form of older clients. Default timeout 15 s.",
        body=wire.NewSandbox,
        answer=wire.Sandbox,
        status=201,
        errors=CREATE_ERRORS,
    ),
    Endpoint(
        method="GET",
        path="/v2/sandboxes",
        handler=sandboxes.list_page,
        about="List sandboxes, a page at a time.",
        answer=list[wire.ListedSandbox],
        errors=(400, 401, 500),
        query=(
            METADATA,
            Query("state", "running, paused, or both separated by a comma"),
            Query("order", "asc or desc (default) by start time"),
            Query("startedAfter", "RFC 3339, inclusive"),
            Query("template", "id or alias"),
            *PAGE,
        ),
    ),
    Endpoint(
        method="GET",
        path="/sandboxes",
        handler=sandboxes.list_all,
        about="List running sandboxes: the form of older clients.",
        answer=list[wire.ListedSandbox],
        errors=(400, 401, 500),
        query=(METADATA,),
    ),
    Endpoint(
        method="GET",
        path="/sandboxes/{sandboxID}",
        handler=sandboxes.get,
        about="One sandbox.",
        answer=wire.SandboxDetail,
        errors=SANDBOX_ERRORS,
    ),
    Endpoint(
        method="DELETE",
        path="/sandboxes/{sandboxID}",
        handler=sandboxes.kill,
        about="End a sandbox for ever.",
        status=204,
        errors=(*SANDBOX_ERRORS, 409),
    ),
    Endpoint(
        method="POST",
        path="/v2/sandboxes/{sandboxID}/connect",
        handler=sandboxes.connect,
        about="Use a sandbox, and let it live for at least `timeout` seconds from now (default 300).",
        body=wire.ConnectSandbox,
        answer=wire.Sandbox,
        errors=SANDBOX_ERRORS,
    ),
    Endpoint(
        method="POST",
        path="/sandboxes/{sandboxID}/connect",
        handler=sandboxes.connect,
        about="The same: the form of older clients.",
        body=wire.ConnectSandbox,
        answer=wire.Sandbox,
        errors=SANDBOX_ERRORS,
    ),
    Endpoint(
        method="POST",
        path="/sandboxes/{sandboxID}/resume",
        handler=sandboxes.resume,
        about="Let a paused sandbox go on: the oldest form.",
        body=wire.ResumeSandbox,
        answer=wire.Sandbox,
        status=201,
        errors=(*SANDBOX_ERRORS, 409, 429, 501, 503, 504),
    ),
    Endpoint(
        method="POST",
        path="/sandboxes/{sandboxID}/pause",
        handler=sandboxes.pause,
        about="Let the processes of a sandbox stand still, until somebody connects.",
        body=wire.PauseSandbox,
        status=204,
        errors=(*SANDBOX_ERRORS, 409, 501, 503, 504),
    ),
    Endpoint(
        method="POST",
        path="/sandboxes/{sandboxID}/timeout",
        handler=sandboxes.set_timeout,
        about="Let a sandbox end so many seconds from now, sooner or later than before.",
        body=wire.SandboxTimeout,
        status=204,
        errors=SANDBOX_ERRORS,
    ),
    Endpoint(
        method="POST",
        path="/sandboxes/{sandboxID}/refreshes",
        handler=sandboxes.refresh,
        about="Let a sandbox live for at least so many seconds from now (15 or more).",
        body=wire.SandboxRefresh,
        status=204,
        errors=SANDBOX_ERRORS,
    ),
    Endpoint(
        method="GET",
        path="/templates",
        handler=templates.list_all,
        about="The team's templates and the default ones.",
        answer=list[wire.Template],
        errors=(401, 403, 500),
        query=(Query("teamID", "the key's own team"),),
    ),
    Endpoint(
        method="GET",
        path="/v2/templates",
        handler=templates.list_page,
        about="The same, a page at a time.",
        answer=list[wire.Template],
        errors=(400, 401, 403, 500),
        query=(Query("teamID", "the key's own team"), *PAGE),
    ),
    Endpoint(
        method="GET",
        path="/default-templates",
        handler=templates.list_default,
        about="Templates that every team may use.",
        answer=list[wire.Template],
        errors=(401, 500),
    ),
    Endpoint(
        method="GET",
        path="/templates/{templateID}",
        handler=templates.get,
        about="One template with its builds.",
        answer=wire.TemplateWithBuilds,
        errors=(400, 401, 403, 404, 500),
    ),
    Endpoint(
        method="GET",
        path="/templates/aliases/{alias}",
        handler=templates.get_alias,
        about="Which template has a name. 404: the name is free; 403: it is another team's.",
        answer=wire.TemplateAlias,
        errors=(400, 401, 403, 404, 500),
    ),
    Endpoint(
        method="GET",
        path="/health",
        handler=system.health,
        about="200 while requests are taken, 503 while the server stops.",
        answer=str,
        errors=(503,),
        is_open=True,
    ),
    Endpoint(
        method="GET",
        path="/openapi.json",
        handler=documents.openapi,
        about="This document.",
        is_open=True,
        is_listed=False,
    ),
    Endpoint(
        method="GET",
        path="/docs",
        handler=documents.page,
        about="This document, to read and try.",
        is_open=True,
        is_listed=False,
    ),
    Endpoint(
        method="GET",
        path="/docs/{file}",
        handler=documents.asset,
        about="What the page loads.",
        is_open=True,
        is_listed=False,
    ),
)

NOT_YET: tuple[tuple[str, str], ...] = (
    ("GET", "/sandboxes/metrics"),
    ("PUT", "/sandboxes/{sandboxID}/network"),
    ("POST", "/sandboxes/{sandboxID}/fork"),
    ("POST", "/sandboxes/{sandboxID}/snapshots"),
    ("GET", "/snapshots"),
    ("GET", "/sandboxes/{sandboxID}/metrics"),
    ("GET", "/sandboxes/{sandboxID}/logs"),
    ("GET", "/v2/sandboxes/{sandboxID}/logs"),
    ("POST", "/v3/templates"),
    ("POST", "/v2/templates"),
    ("POST", "/templates"),
    ("POST", "/templates/{templateID}"),
    ("DELETE", "/templates/{templateID}"),
    ("PATCH", "/templates/{templateID}"),
    ("PATCH", "/v2/templates/{templateID}"),
    ("GET", "/templates/{templateID}/files/{hash}"),
    ("POST", "/templates/{templateID}/builds/{buildID}"),
    ("POST", "/v2/templates/{templateID}/builds/{buildID}"),
    ("GET", "/templates/{templateID}/builds/{buildID}/status"),
    ("GET", "/templates/{templateID}/builds/{buildID}/logs"),
    ("POST", "/templates/tags"),
    ("DELETE", "/templates/tags"),
    ("GET", "/templates/{templateID}/tags"),
    ("GET", "/templates/{templateID}/tags/count"),
    ("GET", "/templates/{templateID}/tags/exists"),
    ("GET", "/templates/{templateID}/tags/groups"),
    ("GET", "/templates/{templateID}/tags/{tag}/assignments"),
    ("GET", "/volumes"),
    ("POST", "/volumes"),
    ("GET", "/volumes/{volumeID}"),
    ("DELETE", "/volumes/{volumeID}"),
    ("GET", "/secrets"),
    ("POST", "/secrets"),
    ("GET", "/secrets/{secretID}"),
    ("POST", "/secrets/{secretID}"),
    ("DELETE", "/secrets/{secretID}"),
    ("GET", "/teams"),
    ("GET", "/teams/{teamID}/metrics"),
    ("GET", "/teams/{teamID}/metrics/max"),
    ("GET", "/api-keys"),
    ("POST", "/api-keys"),
    ("PATCH", "/api-keys/{apiKeyID}"),
    ("DELETE", "/api-keys/{apiKeyID}"),
    ("POST", "/access-tokens"),
    ("DELETE", "/access-tokens/{accessTokenID}"),
    ("GET", "/nodes"),
    ("GET", "/nodes/{nodeID}"),
    ("POST", "/nodes/{nodeID}"),
    ("GET", "/events/sandboxes"),
    ("GET", "/events/sandboxes/{sandboxID}"),
    ("GET", "/events/webhooks"),
    ("POST", "/events/webhooks"),
    ("GET", "/events/webhooks/{webhookID}"),
    ("PATCH", "/events/webhooks/{webhookID}"),
    ("DELETE", "/events/webhooks/{webhookID}"),
)
"""(method, path) of what the contract has and OpenE2B has not yet: a JSON 501 that says so."""
