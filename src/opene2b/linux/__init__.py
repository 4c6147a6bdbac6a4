"""Linux, as far as the standard library does not reach: system calls through ctypes, rtnetlink, cgroups,
seccomp. No policy here: callers decide what to do with it. Standard library only.
"""
