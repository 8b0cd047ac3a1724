"""NBD: the server, its handshake, and what it does with requests."""
