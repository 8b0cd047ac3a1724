"""`COMMAND | SHELL COMMAND`: where a command of the prompt ends and the shell's begins."""

from blockmon.lang.errors import ParseError

_OPENING, _CLOSING = "{[", "}]"


def find_pipe(text: str, *, brackets: bool = True) -> int | None:
    """Return the offset of the `|` that ends the command in *text*, or None.

    It has a blank, or the end of the text, on at least one side (a file name may hold one, as in `file=a|b`), and does
    not stand in quotes; nor, with *brackets*, inside an object or a list. What is left open hides everything behind it.
    """
    if "|" not in text:
        return None
    depth, quote, position = 0, "", 0
    while position < len(text):
        char = text[position]
        if quote:
            if char == "\\" and quote == '"':
                position += 1
            elif char == quote:
                quote = ""
        elif char in "\"'":
            quote = char
        elif brackets and char in _OPENING:
            depth += 1
        elif brackets and char in _CLOSING:
            depth -= 1
        elif char == "|" and depth <= 0 and _stands_apart(text, position):
            return position
        position += 1
    return None


def _stands_apart(text: str, position: int) -> bool:
    before, after = text[position - 1 : position], text[position + 1 : position + 2]
    return not before.strip() or not after.strip()


def shell_command(text: str, pipe: int) -> str:
    """Return the shell's part of *text* behind the `|` at offset *pipe*. Raises ParseError when there is none."""
    command = text[pipe + 1 :].strip()
    if not command or command.startswith("|"):
        raise ParseError.at("a shell command is missing behind '|'", text, pipe)
    return command
