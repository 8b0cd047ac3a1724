"""Block drivers. Importing this package makes every driver known; a new one is a file and a line here."""

from engine.drivers.format import raw  # noqa: F401  (first: probing prefers earlier drivers on equal scores)
from engine.drivers.protocol import file, null  # noqa: F401
