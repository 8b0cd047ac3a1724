"""What a command file can say, told to its writers: `blockmon run --help`, and `\\help` at the prompt."""

import textwrap

from blockmon.replay.directives import NAMES, find_directive

WIDTH = 100  # columns, as wide as the help of the options

FORMS = (
    "Command files have a command a line, in the forms of the prompt: JSON, over several lines too; a QMP command with"
    " key=value ...; or HMP. `qmp ` or `hmp ` in front decides by force. \\ at the end continues a line, # begins one"
    " that is a comment. A command that fails ends the run, unless @error stands behind it.",
    "${NAME} is a variable of @set, @let, @for or --set, ${env:NAME} one of the environment; $${ is ${ itself."
    " DURATION is 5s, 500ms, 2m, 1h, or a number of seconds.",
)
EXPECTED = (
    "Behind a command: the answer expected of it, up to an empty line. A line is literal, or ends in ` (re)`, a regular"
    " expression, or in ` (glob)`, with * ? and [...]; the line ... is any lines. --update writes them."
)
PATHS = (
    'PATH leads into the last answer: .name or ["any name"] is a member, [0] or [-1] an element, [?name==value] the'
    " first element with that value, .length() at the end how many there are."
)


def _filled(text: str, indent: int, width: int) -> str:
    return textwrap.fill(
        " ".join(text.split()),
        width,
        initial_indent=" " * indent,
        subsequent_indent=" " * indent,
        break_long_words=False,
        break_on_hyphens=False,
    )


def tell_directive(name: str, width: int = WIDTH) -> tuple[str, str]:
    """The usage of the directive @*name*, which there is, and its help in indented lines."""
    known = find_directive(name)
    assert known is not None
    return f"@{name} {known.usage}".rstrip(), _filled(known.help, 6, width)


def manual(width: int = WIDTH) -> str:
    """All of it, in lines of at most *width* columns."""
    parts = [_filled(part, 2, width) for part in FORMS]
    parts += [f"  {usage}\n{text}" for usage, text in (tell_directive(name, width) for name in NAMES)]
    parts += [f"  ----\n{_filled(EXPECTED, 6, width)}", _filled(PATHS, 2, width)]
    return "\n".join(parts) + "\n"
