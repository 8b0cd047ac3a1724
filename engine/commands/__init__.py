"""QMP commands by topic. Importing this package makes every command known; a new topic is a file and a line here."""

from engine.commands import (  # noqa: F401
    blockdev,
    blockmon,
    blockstats,
    debuggraph,
    events,
    guest,
    jobs,
    misc,
    monitor,
    query,
    snapshot,
    transaction,
)
