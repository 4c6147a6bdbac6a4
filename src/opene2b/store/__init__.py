"""Records: what exists, who owns it, when it ends. `protocol` is the ability; `memory` and `sqlite` implement it.

The store is the truth about records; the node agent is the truth about what runs.
"""
