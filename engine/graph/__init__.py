"""The block graph: nodes, edges, permissions, drain, opening and reopening."""
