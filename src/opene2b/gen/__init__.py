"""Generated from proto/ by `make generate`; committed, never edited."""
