"""Who may: lists, their order and globs, files that change, PAM."""

import json
from pathlib import Path
from typing import Any

import pytest

from engine.errors import GenericError
from tests.engine.objects.conftest import Store


def test_one_identity(store: Store) -> None:
    rule = store.make("authz-simple", "a", identity="fred")
    assert rule.is_allowed("fred")
    assert not rule.is_allowed("Fred")
    rule.set_property("identity", "Fred")
    assert rule.is_allowed("Fred")


def test_the_first_rule_that_matches_decides(store: Store) -> None:
    rules = [
        {"match": "fred", "policy": "deny"},
        {"match": "f*d", "policy": "allow", "format": "glob"},
        {"match": "b?b", "policy": "allow", "format": "glob"},
        {"match": "*", "policy": "allow"},
        {"match": "[ab]", "policy": "allow", "format": "glob"},
    ]
    found = store.make("authz-list", "l", rules=rules)
    allowed = [name for name in ("fred", "find", "bob", "boob", "*", "x", "a", "[ab]") if found.is_allowed(name)]
    assert allowed == ["find", "bob", "*", "[ab]"]
    found.set_property("policy", "allow")
    assert found.is_allowed("x")
    assert not found.is_allowed("fred")


def test_nobody_may_by_an_empty_list(store: Store) -> None:
    assert not store.make("authz-list", "l").is_allowed("fred")


def write(path: Path, value: Any) -> None:
    path.write_text(json.dumps(value))


def test_a_file_is_read_again_when_it_changed(store: Store, tmp_path: Path) -> None:
    path = tmp_path / "list.json"
    write(path, {"policy": "allow"})
    fresh = store.make("authz-listfile", "a", filename=str(path))
    fixed = store.make("authz-listfile", "b", filename=str(path), refresh=False)
    assert fresh.is_allowed("fred")
    write(path, {"rules": [{"match": "alice", "policy": "allow"}]})
    assert not fresh.is_allowed("fred")
    assert fresh.is_allowed("alice")
    assert fixed.is_allowed("fred")
    path.unlink()
    assert not fresh.is_allowed("alice")
    write(path, {"policy": "allow"})
    assert fresh.is_allowed("fred")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "Unable to parse .*: JSON parse error"),
        ('{"policy": "perhaps"}', "Parameter 'policy' does not accept value 'perhaps'"),
        ('{"rule": []}', "Parameter 'rule' is unexpected"),
    ],
)
def test_a_bad_file_is_refused(store: Store, tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "list.json").write_text(text)
    with pytest.raises(GenericError, match=message):
        store.make("authz-listfile", "a", filename=str(tmp_path / "list.json"))


def test_accounts_of_the_system(store: Store) -> None:
    try:
        found = store.make("authz-pam", "p", service="other")
    except GenericError as exc:
        pytest.skip(exc.desc)
    # What ``other`` says is the system's business; a user that is not there is valid by no rules.
    assert not found.is_allowed("no-such-user-here")
