"""Limits of a process that the system sets lower than it needs."""

import resource


def raise_descriptors() -> None:
    """Each connection and each sandbox takes a few descriptors for as long as it lives."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
