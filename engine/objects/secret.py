"""secret: a password or key, given directly or in a file."""

from __future__ import annotations

from pathlib import Path

from engine.errors import GenericError, os_error_text
from engine.objects.base import user_creatable
from engine.objects.secret_common import SecretCommon, SecretCommonProperties


class SecretProperties(SecretCommonProperties):
    """data: the secret itself. file: the file it is in; one of both is given."""

    data: str | None = None
    file: str | None = None


@user_creatable
class Secret(SecretCommon):
    """A secret given in the command or a file."""

    type_name = "secret"
    Options = SecretProperties
    properties = ("iv", "keyid", "loaded", "format", "file", "data")
    options: SecretProperties

    def load(self) -> bytes:
        options = self.options
        if options.file is not None:
            if options.data is not None:
                raise GenericError("'file' and 'data' are mutually exclusive")
            return read_file(options.file)
        if options.data is None:
            raise GenericError("Either 'file' or 'data' must be provided")
        return options.data.encode(errors="surrogateescape")


def read_file(name: str) -> bytes:
    """The contents of a file. Errors: GenericError, in GLib's words."""
    try:
        with Path(name).open("rb") as file:
            return file.read()
    except IsADirectoryError as exc:
        raise GenericError(f"Unable to read {name}: Error reading file “{name}”: {os_error_text(exc)}") from exc
    except OSError as exc:
        raise GenericError(f"Unable to read {name}: Failed to open file “{name}”: {os_error_text(exc)}") from exc
