"""Endpoints of templates: what there is. Source: E2B REST contract, /templates."""

from starlette.responses import Response

from opene2b import ENVD_VERSION
from opene2b.api import paging, wire
from opene2b.api.call import Call, Json
from opene2b.core.errors import PermissionDenied
from opene2b.core.records import Team, Template
from opene2b.scheduler import templates

DEFAULT_NAMESPACE = templates.DEFAULT_NAMESPACE


async def list_all(call: Call) -> Response:
    check_team(call)
    found = await templates.visible(call.parts.store, call.team)
    return Json([view(template, call.team) for template in found])


async def list_page(call: Call) -> Response:
    check_team(call)
    limit = paging.parse_limit(call.query("limit"))
    token = call.query("nextToken")
    found = sorted(
        await templates.visible(call.parts.store, call.team),
        key=lambda template: (template.created_at, template.id),
        reverse=True,
    )
    if token:
        cursor = paging.decode(token)
        found = [row for row in found if (row.created_at, row.id) < (cursor.moment, cursor.id)]
    headers = {}
    if len(found) > limit:
        last = found[limit - 1]
        headers[paging.NEXT] = paging.encode(paging.Cursor(last.created_at, last.id))
    return Json([view(template, call.team) for template in found[:limit]], headers=headers)


async def list_default(call: Call) -> Response:
    found = await templates.visible(call.parts.store, call.team)
    return Json([view(template, call.team) for template in found if template.team_id is None])


async def get(call: Call) -> Response:
    template = await templates.resolve(call.parts.store, call.params["templateID"], call.team)
    head = view(template, call.team)
    build = wire.TemplateBuild(
        build_id=template.build_id,
        status=template.build_status,
        created_at=template.updated_at,
        updated_at=template.updated_at,
        cpu_count=template.resources.cpu_count,
        memory_mib=template.resources.memory_mib,
        disk_mib=template.resources.disk_mib,
        envd_version=ENVD_VERSION,
    )
    fields = {name: getattr(head, name) for name in head.__struct_fields__}
    return Json(wire.TemplateWithBuilds(**fields, builds=[build]))


async def get_alias(call: Call) -> Response:
    """404: the name is free. 403: it is another team's."""
    template = await templates.resolve(call.parts.store, call.params["alias"], call.team)
    return Json(wire.TemplateAlias(template.id, template.public))


def check_team(call: Call) -> None:
    if call.query("teamID") not in {None, call.team.id}:
        raise PermissionDenied("the API key belongs to another team")


def view(template: Template, team: Team) -> wire.Template:
    namespace = DEFAULT_NAMESPACE if template.team_id is None else team.slug
    return wire.Template(
        template_id=template.id,
        build_id=template.build_id,
        cpu_count=template.resources.cpu_count,
        memory_mib=template.resources.memory_mib,
        disk_mib=template.resources.disk_mib,
        public=template.public,
        aliases=list(template.aliases),
        names=[f"{namespace}/{alias}" for alias in template.aliases],
        created_at=template.created_at,
        updated_at=template.updated_at,
        created_by=None,
        last_spawned_at=template.last_spawned_at,
        spawn_count=template.spawn_count,
        build_count=template.build_count,
        envd_version=ENVD_VERSION,
        build_status=template.build_status,
        is_default=template.team_id is None,
    )
