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
    """One way of running: its usage line, what it is, its options, whether it takes operands."""

    usage: str
    help: str
    options: tuple[str, ...]
    operands: bool
    ending: str = ""
    """What the help says behind the options."""


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
    "--add-fd": Option("OPTS", "have an inherited descriptor opened as /dev/fdset/N: fd=FD,set=N[,opaque=TEXT]"),
    "--daemonize": Option("", "go into the background when everything is set up"),
    "--pidfile": Option("FILE", "write the process id to FILE when everything is set up"),
    "--connect": Option("ADDR", "talk to the QMP server at unix:PATH, tcp:HOST:PORT or ssh://[USER@]HOST/PATH"),
    "--rw": Option("", "open the images for writing (read-only and shared otherwise); let a remote engine be changed"),
    "--read-only": Option("", "refuse commands that change anything, before they are sent"),
    "--record": Option("FILE", "write what is done as a command file, for 'blockmon run'; FILE is replaced"),
    "--theme": Option("NAME", "colours of the screen"),
    "--low-bandwidth": Option("", "send the terminal little, for a slow link"),
    "--dry-run": Option("", "check every line against the schema, execute nothing"),
    "--update": Option("", "write the answers into the files, in place of those expected there"),
    "--keep-going": Option("", "go on behind a failure"),
    "--step": Option("", "ask before each statement"),
    "--speed": Option("FACTOR", "let the pauses of @sleep pass FACTOR times as fast"),
    "--trace": Option("", "tell each statement on stderr before it runs"),
    "--json": Option("", "answers, events and results as lines of JSON on stdout"),
    "--junit": Option("FILE", "write a report in JUnit's XML"),
    "--tui": Option("", "watch the run on the screen"),
    "--allow-shell": Option("", "let @shell start commands"),
    "--set": Option("NAME=VALUE", "a variable of the command files, as @set makes it"),
    "--log": Option("FILE", "write the program's own log to FILE"),
    "--write-config": Option("", "write the configuration file with every setting, commented, and end"),
    "--help": Option("", "show this help"),
    "--version": Option("", "show the version"),
}

_STARTUP = (
    *("--object", "--blockdev", "--drive", "--device", "--nbd-server", "--export"),
    *("--chardev", "--monitor", "--qmp", "--hmp"),
)
_ALWAYS = ("--log", "--help", "--version")

_SCREEN = ("--theme", "--low-bandwidth", "--record")
_RUN = (
    *("--dry-run", "--update", "--keep-going", "--step", "--speed", "--trace", "--json", "--junit", "--tui"),
    *("--allow-shell", "--set"),
)
_RUN_ENDING = """Exit status:
  0    all went well
  1    a command failed, or an expectation was not met
  2    wrong options, or a line that cannot be understood or does not fit the schema
  3    an image or an engine could not be opened
  4    a wait timed out
  77   left out, because @require found something missing
  130  interrupted
"""

MODES = {
    "": Mode(
        "blockmon [OPTIONS] [IMAGE...]",
        "the screen; the whole chain of each IMAGE is opened",
        (*_STARTUP, "--add-fd", "--pidfile", "--rw", "--read-only", *_SCREEN, "--write-config", *_ALWAYS),
        True,
    ),
    "repl": Mode(
        "blockmon repl [OPTIONS] [IMAGE...]",
        "the prompt alone",
        (*_STARTUP, "--connect", "--add-fd", "--pidfile", "--rw", "--read-only", "--record", "--theme", *_ALWAYS),
        True,
    ),
    "run": Mode(
        "blockmon run [OPTIONS] SCRIPT...",
        "replay command files (- is standard input)",
        (*_STARTUP, "--connect", "--add-fd", "--pidfile", "--read-only", *_RUN, *_SCREEN, *_ALWAYS),
        True,
        _RUN_ENDING,
    ),
    "serve": Mode(
        "blockmon serve [OPTIONS]",
        "an engine without a screen, until it is told to quit or gets SIGTERM",
        (*_STARTUP, "--add-fd", "--daemonize", "--pidfile", "--record", *_ALWAYS),
        False,
    ),
    "connect": Mode(
        "blockmon connect [OPTIONS] ADDR",
        "the screen on a running QMP server; it is only looked at unless --rw is given",
        ("--rw", "--read-only", *_SCREEN, *_ALWAYS),
        True,
    ),
    "demo": Mode(
        "blockmon demo [OPTIONS]",
        "build a small chain and a workload, and open the screen on it",
        (*_SCREEN, *_ALWAYS),
        False,
    ),
}

# Announced, but not here yet. They are known by name so that the answer is about them and not about a missing file.
LATER_MODES = ("doctor", "map", "where", "diff")
NOT_AVAILABLE = "not available in this version"


class UsageError(Exception):
    """The command line is wrong; the text begins with the option at fault."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run the program with *argv* (without the program's name) and return its exit status."""
    args = list(sys.argv[1:] if argv is None else argv)
    if args[:1] == ["--version"]:
        return _say(f"blockmon {__version__}\n")
    # A run tells by its status what went wrong; elsewhere there is one status for all that keeps the program from
    # starting, as QEMU's tools have it.
    usage, opening = (2, 3) if args[:1] == ["run"] else (1, 1)
    from blockmon.options import StartupError

    try:
        return _run(args)
    except UsageError as error:
        return _fail(str(error), usage)
    except StartupError as error:
        return _fail(str(error), opening)
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


def _fail(text: str, status: int) -> int:
    sys.stderr.write(f"blockmon: {text}\n")
    return status


def _run(args: list[str]) -> int:
    mode, given, operands = parse(args)
    names = [name for name, _ in given]
    if "--version" in names:
        return _say(f"blockmon {__version__}\n")
    if "--help" in names:
        return _say(help_text(mode))
    if "--write-config" in names:
        from blockmon.config import write_default

        return _say(f"{write_default()}\n")
    options = _collect(mode, given, operands)
    _check(mode, options, operands)
    for name, text in options.startup:
        found = _option_help(name, text)
        if found:
            return _say(found)
    if options.log is not None:
        _start_log(options.log, args)
    else:
        _name_warnings()
    return _start(mode, options, operands)


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
                raise UsageError(f"{name}: unknown option{_did_you_mean(name)}")
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
            raise UsageError(f"{name}: not an option of '{f'blockmon {mode}'.rstrip()}'")
    return mode, given, operands


def _did_you_mean(name: str) -> str:
    import difflib

    found = difflib.get_close_matches(name, OPTIONS, 1, 0.7)
    return f"; did you mean '{found[0]}'?" if found else ""


def _collect(mode: str, given: list[tuple[str, str]], operands: list[str]) -> "CommonOptions":
    from blockmon.options import CommonOptions

    options = CommonOptions()
    single: dict[str, str] = {}
    for name, value in given:
        if name in _STARTUP:
            options.startup.append((name, value))
        elif name == "--add-fd":
            options.add_fd.append(value)
        elif name == "--set":
            variable, equals, text = value.partition("=")
            if not equals or not variable.isidentifier():
                raise UsageError(f"--set {value}: NAME=VALUE is expected")
            options.run.variables[variable] = text
        elif name in single:
            raise UsageError(f"{name}: given twice")
        else:
            single[name] = value
    options.rw = "--rw" in single
    options.theme = single.get("--theme")
    options.log = single.get("--log")
    options.pidfile = single.get("--pidfile")
    options.record = single.get("--record")
    options.daemonize = "--daemonize" in single
    options.low_bandwidth = "--low-bandwidth" in single
    options.connect = operands[0] if mode == "connect" and operands else single.get("--connect")
    # Who comes to look must not change a machine by a slip. A script says what it does beforehand.
    looking = options.connect is not None and mode != "run" and not options.rw
    options.read_only = "--read-only" in single or looking
    _collect_run(options, single)
    if mode not in ("run", "connect"):
        options.images = operands
    return options


def _collect_run(options: "CommonOptions", single: dict[str, str]) -> None:
    run = options.run
    run.dry_run = "--dry-run" in single
    run.update = "--update" in single
    run.keep_going = "--keep-going" in single
    run.step = "--step" in single
    run.trace = "--trace" in single
    run.json = "--json" in single
    run.junit = single.get("--junit")
    run.tui = "--tui" in single
    run.allow_shell = "--allow-shell" in single
    if "--speed" in single:
        try:
            run.speed = float(single["--speed"])
        except ValueError:
            run.speed = 0.0
        if not 0 < run.speed < float("inf"):
            raise UsageError(f"--speed {single['--speed']}: a number above 0 is expected")


def _check(mode: str, options: "CommonOptions", operands: list[str]) -> None:
    if operands and not MODES[mode].operands:
        raise UsageError(f"{operands[0]}: 'blockmon {mode}' takes no operand")
    if mode == "run" and not operands:
        raise UsageError("run: needs a SCRIPT")
    if mode == "connect" and len(operands) != 1:
        raise UsageError("connect: needs an ADDR" if not operands else f"{operands[1]}: there is an ADDR already")
    if options.rw and not options.images and options.connect is None:
        raise UsageError("--rw: there is no IMAGE to open for writing")
    if options.rw and options.read_only:
        raise UsageError("--rw: contradicts --read-only")
    if options.connect is not None:
        _check_remote(options)
    if mode == "run":
        _check_run(options, operands)
    if options.daemonize:
        _check_daemon(options)
    stdio = [(name, text) for name, text in options.startup if _uses_stdio(name, text)]
    if stdio and (mode in ("", "repl") or (mode == "run" and "-" in operands)):
        name, text = stdio[0]
        raise UsageError(f"{name} {text}: standard input is in use; 'blockmon serve' can have a monitor on stdio")


def _check_remote(options: "CommonOptions") -> None:
    for name, _ in [*options.startup, *(("--add-fd", text) for text in options.add_fd)]:
        raise UsageError(f"{name}: the engine at {options.connect} was set up by whoever started it")
    if options.images:
        raise UsageError(f"{options.images[0]}: images can't be opened by name on the engine at {options.connect}")
    if options.pidfile is not None:
        raise UsageError(f"--pidfile: the engine at {options.connect} is another process")


def _check_daemon(options: "CommonOptions") -> None:
    for name, text in options.startup:
        if _uses_stdio(name, text):
            raise UsageError(f"{name} {text}: cannot use stdio with --daemonize")


def _check_run(options: "CommonOptions", operands: list[str]) -> None:
    run = options.run
    if not run.tui:
        for name, given in (("--theme", options.theme is not None), ("--low-bandwidth", options.low_bandwidth)):
            if given:
                raise UsageError(f"{name}: needs --tui")
    for first, second in (("dry_run", "update"), ("dry_run", "step"), ("dry_run", "tui"), ("tui", "json")):
        if getattr(run, first) and getattr(run, second):
            raise UsageError(f"--{first.replace('_', '-')}: contradicts --{second}")
    if run.dry_run and options.record is not None:
        raise UsageError("--record: contradicts --dry-run")
    if "-" in operands:
        for name, given in (("--update", run.update), ("--step", run.step), ("--tui", run.tui)):
            if given:
                raise UsageError(f"{name}: the script can't come from standard input")


def _uses_stdio(name: str, text: str) -> bool:
    if name in ("--qmp", "--hmp"):
        return text.partition(",")[0] == "stdio"
    if name == "--chardev":
        parts = text.split(",")
        return parts[0] == "stdio" or "backend=stdio" in parts
    return False


def _name_warnings() -> None:
    """Without a log the engine's warnings go to stderr; say there whose they are, as QEMU's programs do."""
    import logging

    class Named(logging.Formatter):
        def format(self, record: logging.LogRecord) -> str:
            return f"blockmon: {record.levelname.lower()}: {super().format(record)}"

    if logging.lastResort is not None:
        logging.lastResort.setFormatter(Named())


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
    if mode == "run" and options.run.tui:
        from blockmon.tui import script_app

        return script_app.main(options, operands)
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
    if mode == "run":
        from blockmon.replay.manual import manual

        lines += ["", "Command files:", manual().rstrip()]
    if chosen.ending:
        lines += ["", chosen.ending.rstrip()]
    return "\n".join(lines) + "\n"


def _columns(rows: list[tuple[str, str]]) -> list[str]:
    width = max(len(left) for left, _ in rows)
    return [f"  {left:{width}}  {right}" for left, right in rows]
