"""The control plane's REST API: what a request says and what the answer looks like; decisions are the scheduler's.

`routes` is the one table of what is served; `app` is the ASGI application; the modules named for resources hold
their endpoints. `wire` has the schemas, and wire spellings (`sandboxID`) stop there.
"""
