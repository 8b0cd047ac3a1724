"""authz-list: rules, of which the first that matches decides."""

from __future__ import annotations

import fnmatch

from engine.objects.authz import Authz
from engine.objects.base import user_creatable
from engine.qapi import Enum, Struct


class QAuthZListPolicy(Enum):
    """What a rule says.

    deny: refuse
    allow: let in
    """

    DENY = "deny"
    ALLOW = "allow"


class QAuthZListFormat(Enum):
    """How a rule is compared. A glob has * for any text and ? for any character.

    exact: the name as it is
    glob: a pattern with * and ?
    """

    EXACT = "exact"
    GLOB = "glob"


class QAuthZListRule(Struct):
    """match: the identity. policy: what then holds. format: how it is compared (exact)."""

    match: str
    policy: QAuthZListPolicy
    format: QAuthZListFormat | None = None

    def matches(self, identity: str) -> bool:
        """Whether the rule is about *identity*."""
        if self.format is QAuthZListFormat.GLOB:
            # Brackets mean themselves here.
            return fnmatch.fnmatchcase(identity, self.match.replace("[", "[[]"))
        return identity == self.match


class AuthZListProperties(Struct):
    """policy: what holds when no rule matches (deny). rules: in the order in which they are tried."""

    policy: QAuthZListPolicy | None = None
    rules: list[QAuthZListRule] | None = None

    def allows(self, identity: str) -> bool:
        """What the list says of *identity*."""
        found = next((rule.policy for rule in self.rules or () if rule.matches(identity)), self.policy)
        return found is QAuthZListPolicy.ALLOW


@user_creatable
class AuthzList(Authz):
    """A list of rules given in the command."""

    type_name = "authz-list"
    Options = AuthZListProperties
    properties = ("policy", "rules")
    defaults = {"policy": "deny", "rules": []}  # noqa: RUF012
    options: AuthZListProperties

    def is_allowed(self, identity: str) -> bool:
        return self.options.allows(identity)
