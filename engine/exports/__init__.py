"""Block exports: nodes offered to other programs (NBD so far)."""
