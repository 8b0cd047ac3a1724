"""The NBD protocol: its numbers and layouts, and the client. The server is an export (engine.exports.nbd)."""
