"""Identifiers: one `NewType` each, so that a build id cannot pass for a template id."""

import re
import secrets
import string
import uuid
from typing import NewType

from opene2b.core.errors import InvalidArgument

SandboxId = NewType("SandboxId", str)
"""`i` and 20 of `[a-z0-9]`: a part of a DNS label, so no hyphen and no dot."""
ExecutionId = NewType("ExecutionId", str)
"""UUID of one incarnation of a sandbox, from start or resume to pause or kill."""
TemplateId = NewType("TemplateId", str)
"""20 of `[a-z0-9]`."""
BuildId = NewType("BuildId", str)
"""UUID: the Python client parses it as one."""
ImageId = NewType("ImageId", str)
"""Names what a sandbox boots from on a node: `base`, or a build id."""
TeamId = NewType("TeamId", str)
"""UUID."""
KeyId = NewType("KeyId", str)
"""UUID of an API key (never the key itself)."""
NodeId = NewType("NodeId", str)
"""`[a-z0-9-]`, chosen by the operator; `local` on one machine."""

ALPHABET = string.ascii_lowercase + string.digits
SANDBOX_ID = re.compile(r"[a-z0-9]+\Z")


def random_label(length: int) -> str:
    return "".join(secrets.choice(ALPHABET) for _ in range(length))


def new_sandbox_id() -> SandboxId:
    return SandboxId("i" + random_label(20))


def new_template_id() -> TemplateId:
    return TemplateId(random_label(20))


def new_uuid() -> str:
    return str(uuid.uuid4())


def parse_sandbox_id(text: str) -> SandboxId:
    """Read a sandbox id as clients send it: `id`, or the legacy `id-clientID`.

    Raises:
        InvalidArgument: anything else than lower-case letters and digits.
    Source: E2B REST contract, path parameter sandboxID.
    """
    head = text.split("-", 1)[0]
    if not SANDBOX_ID.match(head) or len(head) > 64:
        raise InvalidArgument("Invalid sandbox ID")  # wire: clients show it
    return SandboxId(head)
