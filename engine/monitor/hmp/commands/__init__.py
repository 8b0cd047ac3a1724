"""HMP commands by topic. Importing this package makes every command known; a new topic is a file and a line here."""

from engine.monitor.hmp.commands import (  # noqa: F401
    backup,
    commit,
    descriptors,
    devices,
    drives,
    help,
    info_block,
    info_state,
    jobs,
    mirror,
    nbd,
    nodes,
    objects,
    qemu_io,
    quit,
    snapshots,
    throttle,
)
