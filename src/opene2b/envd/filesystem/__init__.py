"""The guest's files, as the Filesystem service and the file endpoints see them.

An *entry* describes one name in a directory (`entries`); an *owner* is the user and group that new
files get (`owners`). `controller` carries out the calls and knows no transport, `incoming` receives
whole files, `faults` says what a failed system call means to a caller, `rpc` is the Connect half.

File names are bytes to the kernel. In here they are `str` with surrogateescape, so every name can
be opened again. In JSON, which must be valid UTF-8, each byte that is not UTF-8 is shown as U+FFFD:
such an entry is listed and goes away with its directory, but has no address of its own.
"""
