"""Where everything lies below OPENE2B_HOME. One place, so that `opene2b down` knows what to remove."""

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, slots=True)
class Home:
    """The directory that holds all state of one installation."""

    root: Path

    @property
    def run(self) -> Path:
        """Sockets and pid files; meaningless after a reboot."""
        return self.root / "run"

    @property
    def node_socket(self) -> Path:
        """gRPC: control plane -> node agent."""
        return self.run / "node.sock"

    @property
    def gateway_socket(self) -> Path:
        """docs/gateway.md: proxy -> node agent."""
        return self.run / "gateway.sock"

    @property
    def supervisor_pid(self) -> Path:
        """Locked (flock) while `opene2b serve` runs; holds its process id."""
        return self.run / "serve.pid"

    @property
    def database(self) -> Path:
        """Owned by the control plane's user."""
        return self.root / "control" / "opene2b.db"

    @property
    def first_key(self) -> Path:
        """Mode 0600: the generated first API key, in clear, for the one who may read it."""
        return self.root / "api-key"

    @property
    def images(self) -> Path:
        """images/<image id>/manifest.json (see image/manifest.py), written last and atomically."""
        return self.root / "images"

    @property
    def layers(self) -> Path:
        """layers/<layer id>/: read-only trees, shared by all sandboxes."""
        return self.root / "layers"

    @property
    def node(self) -> Path:
        """The agent's own: node/sandboxes/<sandbox id>/..., its durable table."""
        return self.root / "node"

    @property
    def logs(self) -> Path:
        return self.root / "logs"
