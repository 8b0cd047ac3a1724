"""`\\help`: the prompt's own commands, its keys, its forms of input; a command of the server."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

from blockmon.model.schema import type_word
from blockmon.repl.commands import PromptCommand, all_commands, lookup
from blockmon.repl.host import PromptError
from blockmon.repl.printers import Fragments
from blockmon.repl.settings import SETTINGS, did_you_mean
from blockmon.repl.summaries import SUMMARIES

if TYPE_CHECKING:
    from blockmon.repl.session import ReplSession

NAME, NOTE = "class:pygments.name.tag", "class:notice"

FORMS = r"""Three forms of input, told apart by how a line begins:
  {"execute": "COMMAND", …}   QMP as JSON, over as many lines as it takes
  COMMAND key=value …         a QMP command; a.b=1 is a member of an object, a.0=x an element of a list
  anything else               an HMP command, such as `info block`
`qmp ` or `hmp ` in front decides by force. A \ at the end continues a line, # begins a comment line.
"""
ANSWERS = r"""$_ is the last answer: `block-job-cancel device=$_[0].device`, `$_.inserted.node-name`, `$_["a key"]`.
A value that is only such a path becomes what is there, of whatever type; $$_ is the text $_. A line that is one shows
it: `$_[0]`, `$_.inserted | jq .image`.
The empty answer {} of a command that only does something leaves $_ as it is.
COMMAND | SHELL COMMAND pipes an answer: `query-block | jq .[0]`, `info block | grep vda`. QMP's answers are JSON there.
Lists of objects are tables; \json shows all of the last one. Answers longer than the terminal go to $PAGER.
Alt+W copies the last answer, \save FILE writes it.
"""
TOPICS = {"forms": FORMS, "answers": ANSWERS, "keys": "", "settings": "", "files": ""}


async def run(session: ReplSession, argument: str) -> bool:
    """Show the overview or one topic."""
    topic = argument.removeprefix("\\").strip()
    fragments = _overview(session) if not topic else _topic(session, topic)
    session.last_answer = ""
    await session.host.show(fragments)
    return True


def _overview(session: ReplSession) -> Fragments:
    commands = all_commands().values()
    wide = max(len(command.name) + len(command.usage) for command in commands) + 3
    fragments: Fragments = []
    for command in sorted(commands, key=lambda known: known.name):
        usage = f"\\{command.name} {command.usage}".rstrip()
        fragments += [(NAME, f"{usage:{wide}}"), ("", f"{command.help}\n")]
    topics = ", ".join(TOPICS)
    return [
        *fragments,
        (NOTE, f"\\help NAME tells more: of one of these, of a server's command, or of {topics}"),
        ("", "\n"),
    ]


def _topic(session: ReplSession, topic: str) -> Fragments:
    if topic == "keys":
        from blockmon.repl.keys import HELP

        return [("", HELP)]
    if topic == "files":
        from blockmon.replay.manual import manual

        return [("", manual(min(100, session.width())))]
    if topic.startswith("@"):
        return _directive(session, topic)
    if topic == "settings":
        topic = "set"
    text = TOPICS.get(topic)
    if text:
        return [("", text)]
    command = lookup(topic)
    if command is not None:
        return _own(command)
    schema, hmp = session.knowledge.schema, session.knowledge.hmp
    if topic in schema.commands:
        return _of_server(session, topic)
    if topic in hmp.commands:
        found = hmp.commands[topic]
        arguments = " ".join(f"[{a.name}]" if a.optional else a.name for a in found.arguments)
        return [(NAME, f"{topic} {arguments}".rstrip()), ("", f"\n  hmp · {found.help}\n")]
    from blockmon.replay.directives import NAMES

    if topic in NAMES:
        return _directive(session, f"@{topic}")
    known = [*all_commands(), *TOPICS, *schema.commands, *hmp.commands]
    raise PromptError(f"there is nothing on '{topic}'{did_you_mean(topic, known)}")


def _own(command: PromptCommand) -> Fragments:
    lines = f"  {command.help}\n" + "".join(f"  {line}\n" for line in command.more.splitlines())
    if command.name == "set":
        lines += "".join(f"  {name:8} {setting.help}\n" for name, setting in SETTINGS.items())
    return [(NAME, f"\\{command.name} {command.usage}".rstrip()), ("", "\n" + lines)]


def _directive(session: ReplSession, topic: str) -> Fragments:
    from blockmon.replay.directives import NAMES
    from blockmon.replay.manual import tell_directive

    if topic[1:] not in NAMES:
        raise PromptError(f"there is nothing on '{topic}'{did_you_mean(topic, [f'@{name}' for name in NAMES])}")
    usage, text = tell_directive(topic[1:], min(100, session.width()))
    return [(NAME, usage), ("", f"\n{text}\n"), (NOTE, "  of command files; \\help files tells all\n")]


def _of_server(session: ReplSession, name: str) -> Fragments:
    schema = session.knowledge.schema
    about = SUMMARIES.get(name, "")
    marked = ", ".join(sorted(schema.features(name)))
    fragments: Fragments = [
        (NAME, name),
        ("", f"  {about}" if about else ""),
        (NOTE, f"  {marked}\n" if marked else "\n"),
    ]
    members = schema.members_at(name, (), {})
    wide = max((len(info.name) for info in members), default=0) + 2
    for info in members:
        need = "" if info.optional else "  required"
        fragments += [("", f"  {info.name:{wide}}{type_word(info, 60)}"), (NOTE, f"{need}\n")]
    if not members:
        fragments.append((NOTE, "  takes no arguments\n"))
    return fragments


def complete(session: ReplSession, argument: str) -> Iterable[tuple[str, str]]:
    """Topics, own commands, directives and the server's commands."""
    from blockmon.replay.directives import NAMES

    directives = [(f"@{name}", "of command files") for name in NAMES]
    own = [(name, command.help) for name, command in sorted(all_commands().items())]
    theirs = [(name, SUMMARIES.get(name, "")) for name in sorted(session.knowledge.schema.commands)]
    return [*((topic, "topic") for topic in TOPICS), *own, *directives, *theirs]


COMMAND = PromptCommand("help", "[TOPIC]", "what there is, or more about one thing", run, complete)
