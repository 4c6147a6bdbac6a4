"""What sandboxes start from: the default templates, and what a name means to a team."""

from collections.abc import Sequence
from dataclasses import replace
from datetime import UTC, datetime

from opene2b.core.errors import NotFound, PermissionDenied, TemplateNotFound
from opene2b.core.ids import BuildId, ImageId, new_template_id, new_uuid
from opene2b.core.records import Team, Template
from opene2b.core.resources import Resources
from opene2b.scheduler import names
from opene2b.store.protocol import Store

DEFAULT_NAMESPACE = "e2b"
"""Namespace of default templates: `e2b/base` is `base`."""


async def ensure_default(store: Store, alias: str, image_id: ImageId, resources: Resources) -> None:
    """Make a default template known; one that is known gets the resources that are set now."""
    known = await store.template_by_alias(alias, team_id=None)
    now = datetime.now(UTC)
    if known is None:
        known = Template(
            id=new_template_id(),
            team_id=None,
            aliases=(alias,),
            build_id=BuildId(new_uuid()),
            image_id=image_id,
            resources=resources,
            public=True,
            created_at=now,
            updated_at=now,
        )
    elif known.resources == resources and known.image_id == image_id:
        return
    await store.put_template(replace(known, resources=resources, image_id=image_id, updated_at=now))


async def resolve(store: Store, text: str, team: Team) -> Template:
    """The template that a name or id means to a team.

    Bare names: the team's own, then the default ones, then a template id. Names with a namespace have no fallback.

    Raises:
        InvalidArgument: not a name.
        TemplateNotFound, NotFound: no such template, or no such tag of it.
        PermissionDenied: another team's.
    Source: E2B REST contract, template names.
    """
    name = names.parse(text)
    found: Template | None
    if name.namespace is None:
        found = await store.find_template(name.alias, team.id)
    elif name.namespace == team.slug:
        found = await store.template_by_alias(name.alias, team_id=team.id)
    elif name.namespace == DEFAULT_NAMESPACE:
        found = await store.template_by_alias(name.alias, team_id=None)
    else:
        found = None
    if found is None:
        raise TemplateNotFound(text)
    if found.team_id not in {None, team.id} and not found.public:
        raise PermissionDenied(f"you don't have access to template '{text}'")
    if name.tag not in {names.DEFAULT_TAG, found.build_id}:
        raise NotFound(f"tag '{name.tag}' does not exist for template '{text}'")
    return found


async def visible(store: Store, team: Team) -> Sequence[Template]:
    return await store.templates(team.id)
