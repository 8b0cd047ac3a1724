"""Groups: members share limits, take turns, and a drained one does not wait."""

import pytest

from engine.errors import GenericError
from engine.throttle.group import ThrottleGroup, ThrottleGroups, ThrottleMember
from engine.throttle.limits import Direction, ThrottleConfig, ThrottleLimits
from tests.engine.throttle.clock import MS, SECOND, FakeClock, Requests


def limits(**given: int) -> ThrottleConfig:
    return ThrottleLimits(**given).apply_to(ThrottleConfig())


@pytest.fixture
def clock() -> FakeClock:
    return FakeClock()


@pytest.fixture
def groups(clock: FakeClock) -> ThrottleGroups:
    return ThrottleGroups(clock)


def slow_group(groups: ThrottleGroups) -> ThrottleGroup:
    """One request a second, after two."""
    return groups.create("g", limits(iops_total=1))


def use_up(member: ThrottleMember) -> None:
    """Take what goes at once."""
    member.admit(False, 1)


def test_members_share_the_limits(clock: FakeClock, groups: ThrottleGroups) -> None:
    group = slow_group(groups)
    a, b = ThrottleMember(group), ThrottleMember(group)
    use_up(a)
    requests = Requests(clock)
    requests.start("b", lambda: b.admit(True, 1))
    assert clock.waiting == [900 * MS]
    clock.advance(899 * MS)
    clock.until(lambda: clock.waiting == [MS])
    clock.advance(MS)
    requests.settle(1)
    requests.join()


def test_members_take_turns_whoever_has_more(clock: FakeClock, groups: ThrottleGroups) -> None:
    group = slow_group(groups)
    a, b, c = (ThrottleMember(group) for _ in range(3))
    use_up(a)
    requests = Requests(clock)
    for label, member in (("a1", a), ("a2", a), ("a3", a), ("b1", b), ("c1", c), ("c2", c)):
        requests.start(label, lambda member=member: member.admit(False, 1))  # type: ignore[misc]
    for number in range(1, 7):
        clock.advance(SECOND)
        requests.settle(number)
    requests.join()
    assert requests.done == ["a1", "b1", "c1", "a2", "c2", "a3"]


def test_nobody_overtakes_who_waits(clock: FakeClock, groups: ThrottleGroups) -> None:
    member = ThrottleMember(groups.create("g", limits(bps_total=1000)))
    member.admit(False, 1100)
    requests = Requests(clock)
    requests.start("large", lambda: member.admit(False, 5000))
    requests.start("small", lambda: member.admit(False, 1))
    assert clock.waiting == [SECOND, None]
    clock.advance(SECOND)
    requests.settle(1)
    assert requests.done == ["large"]
    clock.advance(5 * SECOND)
    requests.settle(2)
    requests.join()


def test_nobody_goes_first_while_the_one_whose_time_has_come_wakes_up(clock: FakeClock, groups: ThrottleGroups) -> None:
    group = slow_group(groups)
    a, b = ThrottleMember(group), ThrottleMember(group)
    use_up(a)
    requests = Requests(clock)
    requests.start("a", lambda: a.admit(False, 1))
    clock.time += SECOND
    requests.start("b", lambda: b.admit(False, 1))
    assert requests.done == []
    clock.advance(0)
    requests.settle(1)
    clock.advance(SECOND)
    requests.settle(2)
    requests.join()
    assert requests.done == ["a", "b"]


def test_reads_do_not_wait_for_writes_that_wait(clock: FakeClock, groups: ThrottleGroups) -> None:
    member = ThrottleMember(groups.create("g", limits(bps_write=1000)))
    member.admit(True, 1100)
    requests = Requests(clock)
    requests.start("write", lambda: member.admit(True, 1))
    member.admit(False, 1 << 30)
    assert member.pending(Direction.WRITE) == 1
    clock.advance(SECOND)
    requests.join()


def test_a_free_member_waits_for_nothing_and_lets_go_what_waits(clock: FakeClock, groups: ThrottleGroups) -> None:
    group = slow_group(groups)
    drained, other = ThrottleMember(group), ThrottleMember(group)
    use_up(drained)
    requests = Requests(clock)
    requests.start("d1", lambda: drained.admit(False, 1))
    requests.start("d2", lambda: drained.admit(False, 1))
    requests.start("o1", lambda: other.admit(False, 1))
    drained.set_free()
    requests.settle(2)
    assert sorted(requests.done) == ["d1", "d2"]
    drained.admit(False, 1)
    drained.unset_free()
    # What went meanwhile has been counted, so the other one has four to wait for.
    clock.advance(3899 * MS)
    clock.until(lambda: clock.waiting == [MS])
    clock.advance(MS)
    requests.settle(3)
    requests.join()


def test_other_limits_hold_at_once(clock: FakeClock, groups: ThrottleGroups) -> None:
    group = slow_group(groups)
    member = ThrottleMember(group)
    use_up(member)
    requests = Requests(clock)
    requests.start("a", lambda: member.admit(False, 1))
    with pytest.raises(GenericError, match="within"):
        group.configure(limits(iops_total=-1))
    requests.settle(0)
    group.configure(limits(bps_total=1))
    requests.settle(1)
    requests.join()


def test_who_leaves_does_not_hold_up_the_others(clock: FakeClock, groups: ThrottleGroups) -> None:
    group = slow_group(groups)
    gone, other = ThrottleMember(group), ThrottleMember(group)
    use_up(gone)
    requests = Requests(clock)
    requests.start("gone", lambda: gone.admit(False, 1))
    requests.start("other", lambda: other.admit(False, 1))
    gone.leave()
    requests.settle(1)
    assert requests.done == ["gone"]
    clock.advance(2 * SECOND)
    requests.settle(2)
    requests.join()


def test_a_group_without_an_object_goes_with_its_last_member(groups: ThrottleGroups) -> None:
    group = groups.find_or_create("d0")
    a, b = ThrottleMember(group), ThrottleMember(groups.find_or_create("d0"))
    a.leave()
    assert groups.find("d0") is group
    with pytest.raises(GenericError, match="already exists"):
        groups.create("d0", ThrottleConfig())
    b.leave()
    with pytest.raises(GenericError, match="Throttle group 'd0' does not exist"):
        groups.find("d0")
