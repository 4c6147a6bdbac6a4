"""The control plane's decisions: which sandboxes exist, where they run, when they end. No HTTP, no mounts.

It knows nodes only through gRPC (`node`) and records only through the store. `sandboxes` holds the verbs, `expiry`
the deadlines, `reconcile` compares records with what nodes have, `templates` says what a name means.
"""
