"""@end: where a loop's body ends. One that stands by itself is an error; the loops take theirs away with their
bodies."""

from blockmon.replay.directives import Action, Call, directive


@directive("end", "")
def end(call: Call) -> Action:
    """Where the statements of @for or @repeat end."""
    raise call.error("@end without @for or @repeat")
