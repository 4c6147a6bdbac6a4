"""The Process service: `child` spawns and reaps, `subscribers` hands output on, `controller` knows the running
ones (no transport), `messages` and `rpc` are the wire.
"""
