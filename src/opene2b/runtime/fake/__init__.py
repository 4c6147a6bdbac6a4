"""A runtime that ISOLATES NOTHING: envd as an ordinary process of this machine. For tests."""
