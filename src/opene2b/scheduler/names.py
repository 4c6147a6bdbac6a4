"""Names of templates: `[namespace/]alias[:tag]`. Pure. Source: E2B REST contract, template names."""

import re
from dataclasses import dataclass

from opene2b.core.errors import InvalidArgument

WORD = re.compile(r"[a-z0-9_-]+\Z")
TAG = re.compile(r"[a-z0-9_.-]+\Z")
DEFAULT_TAG = "default"
MAX_LENGTH = 128


@dataclass(frozen=True, slots=True)
class Name:
    namespace: str | None
    alias: str
    tag: str
    """`default` when none is given."""


def parse(text: str) -> Name:
    """Trimmed and lower-cased. Raises InvalidArgument."""
    given = text.strip().lower()
    if not given or len(given) > MAX_LENGTH:
        raise InvalidArgument(f"invalid template name '{text[:MAX_LENGTH]}'")
    path, colon, tag = given.partition(":")
    namespace, slash, alias = path.rpartition("/")
    if not WORD.match(alias) or (slash and not WORD.match(namespace)):
        raise InvalidArgument(
            f"invalid template name '{text[:MAX_LENGTH]}': letters, digits, '-' and '_' only"
        )
    if colon and not TAG.match(tag):
        raise InvalidArgument(f"invalid tag '{tag[:MAX_LENGTH]}' in template name")
    return Name(namespace if slash else None, alias, tag or DEFAULT_TAG)
