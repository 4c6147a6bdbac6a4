"""The fork server: one warm, single-threaded process per node that has envd imported.

The node agent asks over a SOCK_SEQPACKET pair; for each request the server forks a child that does the work
and answers by itself, so requests overlap while nobody ever forks a process that has threads. `plan` is
what it is told, `launch` starts a container, `enter` takes a process into it, `main` is the loop.
"""
