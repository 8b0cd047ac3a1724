"""The command line, and nothing else: everything that runs is imported when it is known to be needed.

Options are read by hand, because they take effect strictly in their order, as qemu-storage-daemon's do, and because
`blockmon --version` has less time than importing argparse takes.
"""

import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

from blockmon import __version__

if TYPE_CHECKING:
    from blockmon.options import CommonOptions


class Option(NamedTuple):
    """An option. `value` names its argument in the help ("" for a switch)."""

    value: str
    help: str


class Mode(NamedTuple):
    """One way of running: its usage line, what it is, its options, what its operands are called in errors."""

    usage: str
    help: str
    options: tuple[str, ...]
    operands: bool


OPTIONS = {
    "--object": Option("OPTS", "create an object: TYPE,id=ID[,...] with dotted keys, or JSON; 'help' lists the types"),
    "--blockdev": Option("OPTS", "add a node: driver=D,node-name=N[,...] with dotted keys, or JSON"),
    "--drive": Option("OPTS", "make a drive as qemu-system's -drive does: file=F,if=none,id=D[,...], with its device"),
    "--device": Option("OPTS", "add a guest device: MODEL,id=N,drive=D[,...]; 'help' lists the models"),
    "--nbd-server": Option("OPTS", "NBD server: addr.type=unix,addr.path=P or addr.type=inet,addr.host=H,..."),
    "--export": Option("OPTS", "export a node: [type=]nbd,id=ID,node-name=N[,writable=on][,name=E], or JSON"),
    "--chardev": Option("OPTS", "make a character device for --monitor, e.g. socket,id=C,path=P,server=on,wait=off"),
    "--monitor": Option("OPTS", "run a QMP (mode=control) or HMP (mode=readline) monitor on chardev=C"),
    "--qmp": Option("ADDR", "listen for QMP clients: unix:PATH, tcp:HOST:PORT or stdio; server=off connects"),
    "--hmp": Option("ADDR", "the same for HMP"),
    "--pidfile": Option("FILE", "write the process id to FILE when everything is set up"),
    "--rw": Option("", "open the images for writing (read-only and shared otherwise)"),
    "--theme": Option("NAME", "colours of the screen"),
    "--log": Option("FILE", "write the program's own log to FILE"),
    "--help": Option("", "show this help"),
    "--version": Option("", "show the version"),
}

_STARTUP = (
    *("--object", "--blockdev", "--drive", "--device", "--nbd-server", "--export"),
    *("--chardev", "--monitor", "--qmp", "--hmp"),
)
_ALWAYS = ("--log", "--help", "--version")

MODES = {
    "": Mode(
        "blockmon [OPTIONS] [IMAGE...]",
        "the screen; the whole chain of each IMAGE is opened",
        (*_STARTUP, "--pidfile", "--rw", "--theme", *_ALWAYS),
        True,
    ),
    "repl": Mode(
        "blockmon repl [OPTIONS] [IMAGE...]",
        "the prompt alone",
        (*_STARTUP, "--pidfile", "--rw", "--theme", *_ALWAYS),
        True,
    ),
    "run": Mode(
        "blockmon run [OPTIONS] SCRIPT...",
        "replay command files (- is standard input)",
        (*_STARTUP, "--pidfile", *_ALWAYS),
        True,
    ),
    "serve": Mode(
        "blockmon serve [OPTIONS]",
        "an engine without a screen, until it is told to quit or gets SIGTERM",
        (*_STARTUP, "--pidfile", *_ALWAYS),
        False,
    ),
    "demo": Mode(
        "blockmon demo [OPTIONS]",
        "build a small chain and a workload, and open the screen on it",
        ("--theme", *_ALWAYS),
        False,
    ),
}

# Announced, but not here yet. They are known by name so that the answer is about them and not about a missing file.
LATER_MODES = ("connect", "doctor", "map", "where", "diff")
LATER_OPTIONS = (
    *("--connect", "--add-fd", "--daemonize"),
    *("--record", "--json"),
)
NOT_AVAILABLE = "not available in this version"


class UsageError(Exception):
    """The command line is wrong; the text begins with the option at fault."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run the program with *argv* (without the program's name) and return its exit status."""
    args = list(sys.argv[1:] if argv is None else argv)
    if args[:1] == ["--version"]:
        return _say(f"blockmon {__version__}\n")
    try:
        return _run(args)
    except UsageError as error:
        return _fail(str(error))
    except KeyboardInterrupt:
        return 130


def _say(text: str) -> int:
    try:
        sys.stdout.write(text)
        sys.stdout.flush()
    except BrokenPipeError:
        # The reader has seen enough; the interpreter must not complain when it flushes at exit.
        sys.stdout = None
    return 0


def _fail(text: str) -> int:
    sys.stderr.write(f"blockmon: {text}\n")
    return 1


def _run(args: list[str]) -> int:
    mode, given, operands = parse(args)
    names = [name for name, _ in given]
    if "--version" in names:
        return _say(f"blockmon {__version__}\n")
    if "--help" in names:
        return _say(help_text(mode))
    options = _collect(mode, given, operands)
    _check(mode, options, operands)

    from blockmon.options import StartupError

    try:
        for name, text in options.startup:
            found = _option_help(name, text)
            if found:
                return _say(found)
        if options.log is not None:
            _start_log(options.log, args)
        return _start(mode, options, operands)
    except StartupError as error:
        return _fail(str(error))


def _option_help(name: str, text: str) -> str:
    """What an option that only asks what there is ("help", "?") prints, "" for any other."""
    words = {part.removeprefix("format=") for part in text.replace(",,", "").split(",")}
    if name not in ("--object", "--drive", "--device") or text.startswith("{") or not {"help", "?"} & words:
        return ""
    from blockmon.backend import option_help

    return option_help(name, text)


def parse(args: Sequence[str]) -> tuple[str, list[tuple[str, str]], list[str]]:
    """Split *args* into the mode, the options with their texts in order, and the operands. Raises UsageError."""
    mode: str | None = None
    given: list[tuple[str, str]] = []
    operands: list[str] = []
    rest = iter(args)
    for arg in rest:
        if arg == "--":
            operands += rest
        elif arg.startswith("-") and arg != "-":
            name, equals, value = arg.partition("=")
            name = {"-h": "--help", "-V": "--version"}.get(name, name)
            option = OPTIONS.get(name)
            if option is None:
                raise UsageError(f"{name}: {NOT_AVAILABLE if name in LATER_OPTIONS else 'unknown option'}")
            if option.value and not equals:
                found = next(rest, None)
                if found is None:
                    raise UsageError(f"{name}: needs {option.value}")
                value = found
            elif equals and not option.value:
                raise UsageError(f"{name}: takes no value")
            given.append((name, value))
        elif mode is None and not operands and (arg in MODES or arg in LATER_MODES):
            mode = arg
        else:
            operands.append(arg)
    mode = mode or ""
    if mode in LATER_MODES:
        raise UsageError(f"{mode}: {NOT_AVAILABLE}")
    for name, _ in given:
        if name not in MODES[mode].options:
            raise UsageError(f"{name}: not an option of 'blockmon {mode}'")
    return mode, given, operands


def _collect(mode: str, given: list[tuple[str, str]], operands: list[str]) -> "CommonOptions":
    from blockmon.options import CommonOptions

    options = CommonOptions()
    single: dict[str, str] = {}
    for name, value in given:
        if name in _STARTUP:
            options.startup.append((name, value))
        elif name in single:
            raise UsageError(f"{name}: given twice")
        else:
            single[name] = value
    options.rw = "--rw" in single
    options.theme = single.get("--theme")
    options.log = single.get("--log")
    options.pidfile = single.get("--pidfile")
    if mode != "run":
        options.images = operands
    return options


def _check(mode: str, options: "CommonOptions", operands: list[str]) -> None:
    if operands and not MODES[mode].operands:
        raise UsageError(f"{operands[0]}: 'blockmon {mode}' takes no operand")
    if mode == "run" and not operands:
        raise UsageError("run: needs a SCRIPT")
    if options.rw and not options.images:
        raise UsageError("--rw: there is no IMAGE to open for writing")
    stdio = [(name, text) for name, text in options.startup if _uses_stdio(name, text)]
    if stdio and (mode in ("", "repl") or (mode == "run" and "-" in operands)):
        name, text = stdio[0]
        raise UsageError(f"{name} {text}: standard input is in use; 'blockmon serve' can have a monitor on stdio")


def _uses_stdio(name: str, text: str) -> bool:
    if name in ("--qmp", "--hmp"):
        return text.partition(",")[0] == "stdio"
    if name == "--chardev":
        parts = text.split(",")
        return parts[0] == "stdio" or "backend=stdio" in parts
    return False


def _start_log(path: str, args: list[str]) -> None:
    import logging
    import shlex

    from blockmon.options import StartupError

    try:
        handler = logging.FileHandler(path, encoding="utf-8")
    except OSError as error:
        raise StartupError(f"--log {path}", error.strerror or str(error)) from None
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(name)s: %(message)s"))
    logging.getLogger().addHandler(handler)
    logging.getLogger().setLevel(logging.DEBUG)
    # Of other people's libraries only what is wrong; of asyncio at debug level every poll would be told.
    for library in ("asyncio", "markdown_it", "textual"):
        logging.getLogger(library).setLevel(logging.WARNING)
    logging.getLogger("blockmon").info("blockmon %s started: %s", __version__, shlex.join(args))


def _start(mode: str, options: "CommonOptions", operands: list[str]) -> int:
    if mode == "run":
        from blockmon import replay

        return replay.run(options, operands)
    if mode == "repl":
        from blockmon import repl

        return repl.run(options)
    if mode == "serve":
        from blockmon import backend

        return backend.serve(options)
    if mode == "demo":
        from blockmon import demo

        return demo.run(options)
    from blockmon import tui

    return tui.run(options)


def help_text(mode: str) -> str:
    """The help of one mode; that of the screen, "", lists the others too."""
    chosen = MODES[mode]
    lines = [f"Usage: {chosen.usage}", f"       {chosen.help}", ""]
    if not mode:
        others = [(entry.usage, entry.help) for name, entry in MODES.items() if name]
        lines += [*_columns(others), ""]
    lines.append("Options:")
    names = [name for name in OPTIONS if name in chosen.options]
    lines += _columns([(f"{name} {OPTIONS[name].value}".rstrip(), OPTIONS[name].help) for name in names])
    if not mode:
        lines += ["", "'blockmon COMMAND --help' tells the options of a command."]
    return "\n".join(lines) + "\n"


def _columns(rows: list[tuple[str, str]]) -> list[str]:
    width = max(len(left) for left, _ in rows)
    return [f"  {left:{width}}  {right}" for left, right in rows]
