"""blockmon: see, drive, replay and debug a block graph from a terminal.

The version is written here and nowhere else; pyproject.toml reads it. Nothing may be imported here, because
`blockmon --version` has to answer at once.
"""

__version__ = "0.1.0"
