"""authz-listfile: the rules of an authz-list, in a JSON file that may be replaced while in use.

QEMU 7.2 knows the options but no type of that name, so that the object can't be made; later ones make it, as this does.
"""

from __future__ import annotations

import logging
import os
import threading

from engine.errors import GenericError, os_error_text
from engine.objects.authz import Authz
from engine.objects.authz_list import AuthZListProperties
from engine.objects.base import user_creatable
from engine.qapi import Struct, from_wire
from engine.qapi.json_stream import from_json

log = logging.getLogger("engine.objects")


class AuthZListFileProperties(Struct):
    """filename: the file. refresh: read it again when it has changed (default)."""

    filename: str
    refresh: bool | None = None


@user_creatable
class AuthzListFile(Authz):
    """A list of rules in a file. While the file can't be read, nobody may."""

    type_name = "authz-listfile"
    qom_type = "authz-list-file"
    Options = AuthZListFileProperties
    properties = ("filename", "refresh")
    defaults = {"refresh": True}  # noqa: RUF012
    options: AuthZListFileProperties

    def complete(self) -> None:
        self._lock = threading.Lock()
        self._rules: AuthZListProperties | None = self._load()

    def _load(self) -> AuthZListProperties:
        name = self.options.filename
        try:
            with open(name, encoding="utf-8") as file:
                self._seen = _signature(os.fstat(file.fileno()))
                text = file.read()
        except OSError as exc:
            raise GenericError(f"Unable to read {name}: {os_error_text(exc)}") from exc
        except UnicodeDecodeError:
            raise GenericError(f"Unable to read {name}: it is not UTF-8") from None
        try:
            found: AuthZListProperties = from_wire(AuthZListProperties, from_json(text))
        except GenericError as exc:
            raise GenericError(f"Unable to parse {name}: {exc.desc}") from None
        return found

    def is_allowed(self, identity: str) -> bool:
        with self._lock:
            if self.options.refresh is not False:
                self._refresh()
            return self._rules is not None and self._rules.allows(identity)

    def _refresh(self) -> None:
        try:
            changed = _signature(os.stat(self.options.filename)) != self._seen
        except OSError:
            changed = True
        if not changed and self._rules is not None:
            return
        self._rules = None
        try:
            self._rules = self._load()
        except GenericError as exc:
            log.warning("%s %s: %s", self.type_name, self.id, exc)


def _signature(info: os.stat_result) -> tuple[int, ...]:
    return info.st_dev, info.st_ino, info.st_size, info.st_mtime_ns
