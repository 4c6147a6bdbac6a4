"""The sandbox proxy: `{port}-{sandboxID}.{domain}`, or the headers `E2b-Sandbox-Id` and `E2b-Sandbox-Port`, to the
sandbox's own port.

Pure: `host` (whom a request is for), `head` (what of a head is passed on), `pages` (what we answer ourselves),
`public` (what of envd may be asked from outside). With I/O: `gateway` (asks the node agent), `routes` (what it said),
`upstream` (connections to sandboxes), `client` (connections of clients), `forward` (one request between the two).

Every request is parsed; bytes are passed on unread only after 101. An *exchange* is one request and its answer.
"""
