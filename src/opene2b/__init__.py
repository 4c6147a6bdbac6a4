"""OpenE2B: a self-hosted sandbox server for every unmodified E2B client."""

__version__ = "0.1.0"

ENVD_VERSION = "0.6.13"
"""What sandboxes report as `envdVersion`: clients unlock features by comparing it (PEP 440, semver)."""
