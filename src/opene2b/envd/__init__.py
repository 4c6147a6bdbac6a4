"""envd: the daemon inside every sandbox, on port 49983. Files, processes and terminals over Connect-RPC and REST.

It is one program with two ways to place it: forked into the sandbox by the fork server, or run from a
bundle. In both it may not import anything after it has started, resolve a name through the C library's
NSS, or assume that the guest's files are well-formed.
"""
