"""What envd was told about its sandbox. `POST /init` may change it; where envd is forked it is complete at its start."""

from dataclasses import dataclass, field


@dataclass(slots=True, kw_only=True)
class Config:
    sandbox_id: str = ""
    template_id: str = ""
    access_token: str | None = field(default=None, repr=False)
    """Every request needs it; None: everything is open."""
    env_vars: dict[str, str] = field(default_factory=dict, repr=False)
    """Of every command, below what its request gives."""
    default_user: str = "user"
    default_workdir: str | None = None
    """None: the home of the request's user."""
    cpu_count: int | None = None
    """Of the sandbox; None: all that the machine has."""
    memory_bytes: int | None = None
    write_marks: bool = False
    """Write the files below /run/e2b that programs know a sandbox by."""
