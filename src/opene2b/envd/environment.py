"""The environment of commands: envd's own words, then the sandbox's, then the request's."""

from collections.abc import Mapping

from opene2b.envd.config import Config
from opene2b.envd.users import User

PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"


def marks(config: Config) -> dict[str, str]:
    """What tells a program that it runs in a sandbox, and in which."""
    return {
        "E2B_SANDBOX": "true",
        "E2B_SANDBOX_ID": config.sandbox_id,
        "E2B_TEMPLATE_ID": config.template_id,
        "E2B_EVENTS_ADDRESS": "http://events.e2b.local",
    }


def of_command(config: Config, user: User, given: Mapping[str, str]) -> dict[str, str]:
    """Source: E2B envd contract, environment of processes: later ones win."""
    return {
        "PATH": PATH,
        "HOME": user.home,
        "USER": user.name,
        "LOGNAME": user.name,
        **marks(config),
        **config.env_vars,
        **given,
    }
