"""Rows <-> records. Pure."""

from collections.abc import Mapping
from dataclasses import fields
from typing import Any

from opene2b.core.records import Sandbox, Template
from opene2b.core.resources import Resources
from opene2b.core.states import SandboxState

RESOURCES = tuple(field.name for field in fields(Resources))


def flat(record: Any) -> dict[str, Any]:
    """The fields of a record, its resources among them."""
    values = {field.name: getattr(record, field.name) for field in fields(record)}
    resources = values.pop("resources", None)
    if resources is not None:
        values.update((name, getattr(resources, name)) for name in RESOURCES)
    return values


def nested(row: Mapping[str, Any]) -> dict[str, Any]:
    values = dict(row)
    values["resources"] = Resources(**{name: values.pop(name) for name in RESOURCES})
    return values


def sandbox(row: Mapping[str, Any]) -> Sandbox:
    values = nested(row)
    values["state"] = SandboxState(values["state"])
    return Sandbox(**values)


def template(row: Mapping[str, Any]) -> Template:
    values = nested(row)
    values["aliases"] = tuple(values["aliases"])
    return Template(**values)
