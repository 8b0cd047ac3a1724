"""Commands written as lines of a command file that say exactly the same when they are read again."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Any

from blockmon.lang import Form, ParsedHMP, ParsedQMP, ParseError, classify, hmp, parse_input

HMP = "human-monitor-command"
_LINE_LIMIT = 160
"""Characters from which on a qmp-shell line is harder to read than JSON."""

_BARE = re.compile(r"[A-Za-z/.~#_+%-][\w./:~#+%,@=-]*")
"""Strings that need no quotes, if they do not look like something else."""
_OTHER_TYPE = re.compile(r"(true|false|on|off|yes|no|y|n|null|inf|infinity|nan)|[-+]?[.\d].*|json:.*", re.IGNORECASE)

Secret = tuple[str, str]
"""The name of the environment variable that stands in place of a secret, and what it is."""


def statement(command: str, arguments: Mapping[str, Any]) -> str:
    """One line of a command file: an HMP line, a qmp-shell line, or else JSON."""
    if command == HMP and list(arguments) == ["command-line"]:
        line = _hmp_line(str(arguments["command-line"]))
        if line is not None:
            return line
    message = {"execute": command, "arguments": arguments} if arguments else {"execute": command}
    text = escape(json.dumps(message, ensure_ascii=False))
    # In JSON a variable's value is escaped as it has to be, whatever the secret is.
    shell = _shell_line(command, arguments) if f"{_MARK}env:" not in text else None
    if shell is not None:
        return shell
    return text


def escape(text: str) -> str:
    """Keep what looks like a variable from being one."""
    return text.replace("${", "$${")


def _hmp_line(line: str) -> str | None:
    line = line.strip()
    if not line or not line.replace(_MARK, "").isprintable() or line.endswith("\\"):
        return None
    word = line.split(" ", 1)[0]
    # A name that QMP has, too, is HMP only when what follows is no key=value; the qemu-io lines are many.
    plain = word == "qemu-io" or (re.fullmatch(r"[a-z_]+", word) and classify(line, {word}) is Form.HMP)
    if not plain or word in ("qmp", "hmp"):
        line = f"hmp {line}"
    parsed = parse_input(line, {word} - {"qemu-io"})
    return escape(line) if parsed == ParsedHMP(line.removeprefix("hmp ")) else None


def _shell_line(command: str, arguments: Mapping[str, Any]) -> str | None:
    if re.fullmatch(r"[A-Za-z][\w-]*", command) is None:
        return None
    pairs: list[str] = []
    if not _add_pairs(pairs, "", arguments):
        return None
    line = " ".join([command, *pairs])
    if len(line) > _LINE_LIMIT:
        return None
    try:
        parsed = parse_input(line, {command})
    except ParseError:
        return None
    same = isinstance(parsed, ParsedQMP) and parsed.command == command and _same(parsed.arguments, arguments)
    return escape(line) if same else None


def _add_pairs(pairs: list[str], prefix: str, members: Mapping[str, Any]) -> bool:
    """Add key=value for each member, dotted keys for objects; False when that can't be said so."""
    for key, value in members.items():
        # Numbers would be read as places in a list, and dots and the like as steps.
        if re.fullmatch(r"[A-Za-z_][\w-]*", key) is None:
            return False
        if isinstance(value, Mapping) and value:
            if not _add_pairs(pairs, f"{prefix}{key}.", value):
                return False
            continue
        text = _value(value)
        if text is None:
            return False
        pairs.append(f"{prefix}{key}={text}")
    return True


def _value(value: Any) -> str | None:
    """*value* so that it is read as it is whatever the schema wants in its place (if it wants it at all)."""
    if isinstance(value, str):
        if _BARE.fullmatch(value) and not _OTHER_TYPE.fullmatch(value):
            return value
        return json.dumps(value, ensure_ascii=False)
    if isinstance(value, float):
        return None  # read by the schema only
    return json.dumps(value, ensure_ascii=False)


def _same(read: Any, meant: Any) -> bool:
    """Whether what is read without a schema is what is meant; only the schema tells null from a name."""
    if isinstance(meant, Mapping):
        return (
            isinstance(read, Mapping) and read.keys() == meant.keys() and all(_same(read[k], meant[k]) for k in meant)
        )
    return read == "null" if meant is None else json.dumps(read) == json.dumps(meant)


def failure(command: str, arguments: Mapping[str, Any], answer: Any) -> str | None:
    """What an HMP line that was answered *answer* failed with; None when it did not, and for QMP."""
    if command != HMP or not isinstance(answer, str):
        return None
    return hmp.failure(str(arguments.get("command-line", "")), answer)


_AGAIN = ("GenericError", "DeviceNotActive", "DeviceNotFound", "KVMMissingCap")
_TIMING = re.compile(r"(job-|block-job-).*")
_HMP_TIMING = re.compile(r"block_job_\w+")
_NOT_IN_SCHEMA = re.compile(
    r"Parameter '.*' (is missing|is unexpected|does not accept value '.*')|Invalid parameter type for .*"
    r"|(QMP|JSON|Expecting) .*|read-only: .* was not sent.*"
)


def fails_again(command: str, arguments: Mapping[str, Any], cls: str, desc: str) -> bool:
    """Whether a command that failed can be expected to fail in the same way when it is replayed.

    What jobs refuse depends on how far they have got. What does not fit the schema, or was not sent, is no command at
    all.
    """
    word = str(arguments.get("command-line", "")).split(" ", 1)[0]
    timing = _HMP_TIMING.fullmatch(word) if command == HMP else _TIMING.fullmatch(command)
    return not timing and cls in _AGAIN and _NOT_IN_SCHEMA.match(desc) is None


def error_pattern(desc: str) -> str:
    """A regular expression, between slashes, for an error's text; node names made up by the engine differ each time."""
    escaped = re.sub(r"([\\^$.|?*+()\[\]{}/])", r"\\\1", desc.replace("\n", " "))
    return f"/{re.sub('#block[0-9]+', '#block[0-9]+', escaped)}/"


# -- secrets -------------------------------------------------------------------------------------------------

_PASSWORD_KEYS = ("password", "new-password")
_URL_PASSWORD = re.compile(r"(?<=://)([^/@\s\"]*?):([^/@\s\"]+)@")
_HMP_SECRET = re.compile(r"(?P<before>^object_add\s.*?(?:^|[\s,\"'])data=)(?P<secret>(?:,,|[^,])*)")
_HMP_SECRET_TYPE = re.compile(r"\bsecret\b")
_MARK = "\ue000"
"""Stands around variables' names while a text is still to be escaped; a private character that nobody types."""


def without_secrets(command: str, arguments: Mapping[str, Any]) -> tuple[dict[str, Any], list[Secret]]:
    """*arguments* with marks in place of secrets, and the variables that have to be set to replay it."""
    secrets: list[Secret] = []
    if command == HMP:
        line = _without_url_passwords(str(arguments.get("command-line", "")), secrets)
        found = _HMP_SECRET.search(line)
        if found is not None and _HMP_SECRET_TYPE.search(line):
            name = re.search(r"\bid=([\w.-]+)", line)
            line = line[: found.start("secret")] + _stand_in(secrets, name and name[1]) + line[found.end("secret") :]
        return {**arguments, "command-line": line}, secrets
    cleaned = _clean(arguments, secrets)
    assert isinstance(cleaned, dict)
    if command == "object-add" and str(arguments.get("qom-type", "")).startswith("secret"):
        holder = cleaned["props"] if isinstance(cleaned.get("props"), dict) else cleaned
        if "data" in holder:
            holder["data"] = _stand_in(secrets, arguments.get("id"))
    elif command == "qom-set" and arguments.get("property") == "data":
        cleaned["value"] = _stand_in(secrets, str(arguments.get("path", "")).rsplit("/", 1)[-1])
    return cleaned, secrets


def with_places(value: Any, places: Mapping[str, str]) -> Any:
    """*value* with marks in place of the folders in *places*, wherever in its texts they are; by variables' names."""
    if isinstance(value, Mapping):
        return {name: with_places(member, places) for name, member in value.items()}
    if isinstance(value, list):
        return [with_places(item, places) for item in value]
    if isinstance(value, str):
        for name, folder in places.items():
            value = value.replace(folder, f"{_MARK}{name}{_MARK}")
    return value


def with_variables(line: str) -> str:
    """A statement with variables in place of the marks of `without_secrets` and `with_places`."""
    return re.sub(f"{_MARK}([\\w:]+){_MARK}", r"${\1}", line)


def _stand_in(secrets: list[Secret], name: Any, kind: str = "SECRET") -> str:
    variable = f"BLOCKMON_{kind}"
    if name:
        variable += "_" + re.sub(r"\W", "_", str(name)).upper()
    secrets.append((variable, f"the data of secret '{name}'" if kind == "SECRET" else "a password"))
    return f"{_MARK}env:{variable}{_MARK}"


def _clean(value: Any, secrets: list[Secret], key: str = "") -> Any:
    if isinstance(value, Mapping):
        return {name: _clean(member, secrets, name) for name, member in value.items()}
    if isinstance(value, list):
        return [_clean(item, secrets) for item in value]
    if isinstance(value, str):
        return _stand_in(secrets, None, "PASSWORD") if key in _PASSWORD_KEYS else _without_url_passwords(value, secrets)
    return value


def _without_url_passwords(text: str, secrets: list[Secret]) -> str:
    return _URL_PASSWORD.sub(lambda found: f"{found[1]}:{_stand_in(secrets, None, 'PASSWORD')}@", text)
