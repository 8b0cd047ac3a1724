"""authz-pam: the system's account rules (PAM) decide."""

from __future__ import annotations

from functools import cache
from typing import Any, Final

from engine.errors import GenericError
from engine.objects.authz import Authz
from engine.objects.base import user_creatable
from engine.qapi import Struct

_CONV_ERR: Final = 19
_SILENT: Final = 0x8000


class AuthZPAMProperties(Struct):
    """service: name of the PAM service, a file in /etc/pam.d."""

    service: str


class _Pam:
    """The system's libpam. Errors: OSError when there is none."""

    def __init__(self) -> None:
        # Little else needs ctypes, and every start would wait for it.
        import ctypes
        import ctypes.util

        pointer, text, number = ctypes.c_void_p, ctypes.c_char_p, ctypes.c_int
        self._ctypes = ctypes
        self._library = ctypes.CDLL(ctypes.util.find_library("pam") or "libpam.so.0")
        self._library.pam_start.argtypes = [text, text, pointer, pointer]
        self._library.pam_acct_mgmt.argtypes = [pointer, number]
        self._library.pam_end.argtypes = [pointer, number]
        self._library.pam_strerror.argtypes = [pointer, number]
        self._library.pam_strerror.restype = text
        converse = ctypes.CFUNCTYPE(number, number, pointer, pointer, pointer)
        # Whether an account is valid is no matter of questions and answers; a module that asks all the same fails.
        self._refuse = converse(lambda count, messages, responses, data: _CONV_ERR)
        self._conversation = (pointer * 2)(ctypes.cast(self._refuse, pointer), None)

    def account_is_valid(self, service: str, user: str) -> bool:
        """What the rules of *service* say of *user*. Errors: GenericError."""
        library, handle = self._library, self._ctypes.c_void_p()
        code = library.pam_start(service.encode(), user.encode(), self._conversation, self._ctypes.byref(handle))
        if code:
            reason: Any = library.pam_strerror(handle, code)
            raise GenericError(f"Unable to start PAM transaction: {(reason or b'').decode(errors='replace')}")
        code = library.pam_acct_mgmt(handle, _SILENT)
        library.pam_end(handle, code)
        return bool(code == 0)


_pam = cache(_Pam)


@user_creatable
class AuthzPam(Authz):
    """Asks PAM whether the account of the name *identity* is valid now."""

    type_name = "authz-pam"
    Options = AuthZPAMProperties
    properties = ("service",)
    options: AuthZPAMProperties

    def complete(self) -> None:
        try:
            _pam()
        except OSError as exc:
            raise GenericError(f"invalid object type: {self.type_name} (there is no libpam)") from exc

    def is_allowed(self, identity: str) -> bool:
        return _pam().account_is_valid(self.options.service, identity)
