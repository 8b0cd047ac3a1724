"""FUSE exports: a node as a file of the host."""
