"""The node agent: the one privileged process. `server` speaks gRPC to the control plane, `table` knows
what runs and keeps it durably, `slots` prepares network places, `gateway` dials into sandboxes for the proxy.
"""
