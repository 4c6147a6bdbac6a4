"""Sandboxes as OCI containers: crun (or runc) makes them, the fork server puts envd into them.

`spec` writes the container's configuration (pure), `client` speaks to the fork server, `driver` is the runtime.
"""
