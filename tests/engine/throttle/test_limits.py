"""What limits are valid, and how they are merged. (The texts are compared with QEMU's in tests/interop.)"""

import pytest

from engine.errors import GenericError
from engine.throttle.limits import Kind, Rate, ThrottleConfig, ThrottleLimits


def config(**limits: int) -> ThrottleConfig:
    return ThrottleLimits(**limits).apply_to(ThrottleConfig())


@pytest.mark.parametrize(
    ("limits", "text"),
    [
        ({"bps_total": 1, "bps_read": 1}, "cannot be used at the same time"),
        ({"iops_total": 1, "iops_write": 1}, "cannot be used at the same time"),
        ({"bps_total_max": 1, "bps_write_max": 1}, "cannot be used at the same time"),
        ({"iops_size": 512, "bps_total": 1}, "iops size requires an iops value"),
        ({"bps_read": 10**15 + 1}, r"within \[0, 1000000000000000\]"),
        ({"bps_read": -1}, r"within \[0, 1000000000000000\]"),
        ({"bps_read": 1, "bps_read_max": 10**15 + 1}, r"within \[0, 1000000000000000\]"),
        ({"bps_read": 1, "bps_read_max_length": 0}, "burst length cannot be 0"),
        ({"bps_read": 1, "bps_read_max_length": 2}, "burst length set without burst rate"),
        ({"bps_read": 1, "bps_read_max": 10**9, "bps_read_max_length": 10**6 + 1}, "burst length too high"),
        ({"bps_read_max": 1}, "require corresponding"),
        ({"bps_read": 2, "bps_read_max": 1}, "cannot be lower"),
    ],
)
def test_what_makes_no_sense_is_refused(limits: dict[str, int], text: str) -> None:
    with pytest.raises(GenericError, match=text):
        config(**limits).check()


@pytest.mark.parametrize(
    "limits",
    [
        {},
        {"bps_total": 10**15, "iops_read": 1, "iops_write": 2},
        {"bps_read": 1, "bps_read_max": 10**9, "bps_read_max_length": 10**6},
        {"iops_write": 5, "iops_write_max": 5, "iops_size": 1},
    ],
)
def test_what_makes_sense_is_not(limits: dict[str, int]) -> None:
    config(**limits).check()


def test_limits_that_are_not_given_stay() -> None:
    old = config(iops_total=10, iops_total_max=20, iops_total_max_length=3, iops_size=512)
    new = ThrottleLimits(iops_total=15, bps_write=7).apply_to(old)
    assert new.rates[Kind.IOPS_TOTAL] == Rate(15, 20, 3)
    assert new.rates[Kind.BPS_WRITE] == Rate(7)
    assert new.op_size == 512
    shown = ThrottleLimits.of(new)
    assert (shown.iops_total, shown.iops_total_max, shown.bps_read, shown.bps_read_max_length) == (15, 20, 0, 1)


def test_a_length_has_32_bits() -> None:
    with pytest.raises(GenericError, match=r"iops-total-max-length value must be in the range \[0, 4294967295\]"):
        config(iops_total_max_length=1 << 32)
