"""What may help after a command of a script has failed: the nearest name that the server has."""

from typing import TYPE_CHECKING

from blockmon.backend import CommandError
from blockmon.lang import ParsedHMP, ParsedQMP

if TYPE_CHECKING:
    from blockmon.backend import Backend


async def advice(backend: "Backend", parsed: ParsedQMP | ParsedHMP, desc: str) -> str:
    """What to add to the error *desc* that the command *parsed* has brought; "" where nothing is near."""
    # The prompt's rules, which ask the server what it has. Few runs fail, so they are imported here.
    from blockmon.model.schema import Schema
    from blockmon.repl.knowledge import Knowledge
    from blockmon.repl.live import LiveNames
    from blockmon.repl.suggest import after_error, after_hmp_error

    schema = Schema([])
    knowledge = Knowledge(LiveNames(backend, schema), schema)
    try:
        await knowledge.ask(backend)
    except (CommandError, OSError, EOFError, RuntimeError):
        return ""  # the error itself is what counts
    if isinstance(parsed, ParsedQMP):
        hints = after_error(desc, parsed.command, parsed.arguments, knowledge)
    else:
        hints = after_hmp_error(parsed.line, desc, knowledge)
    return "".join(f"; {hint}" for hint in hints)
