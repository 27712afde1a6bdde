"""Devices as people write them: one grammar for ``SHALE_DEVICES`` and for plans, and one way of refusing."""

from __future__ import annotations

import pytest

from scheduler.device_choice import MAX_DEVICES, DeviceChoice, parse_devices, parse_plan_devices
from scheduler.errors import SettingsError

GIB, KIB = 2**30, 2**10
SETTING = "auto; cpu; or simulated devices alone"
PLAN = "cpu; or devices of one kind"


@pytest.mark.parametrize(
    ("text", "choice"),
    [
        ("", DeviceChoice("auto")),
        (" auto ", DeviceChoice("auto")),
        ("cpu", DeviceChoice("cpu")),
        ("sim:8GiB, sim:900KiB", DeviceChoice("sim", (8 * GIB, 900 * KIB))),
        ("sim:1", DeviceChoice("sim", (1,))),
    ],
)
def test_a_setting(text, choice):
    assert parse_devices(text) == choice


@pytest.mark.parametrize(
    ("text", "choice"),
    [
        (" cpu", DeviceChoice("cpu")),
        ("sim:8GiB,sim: 900KiB", DeviceChoice("sim", (8 * GIB, 900 * KIB))),
        ("24GiB, 12GiB", DeviceChoice("gpu", (24 * GIB, 12 * GIB))),
        (",".join(["1"] * MAX_DEVICES), DeviceChoice("gpu", (1,) * MAX_DEVICES)),
    ],
)
def test_a_plan_may_think_of_devices_that_are_not_there(text, choice):
    assert parse_plan_devices(text) == choice


@pytest.mark.parametrize(("parse", "allowed"), [(parse_devices, SETTING), (parse_plan_devices, PLAN)])
@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("gpu", "'gpu' is not understood"),
        ("sim", "'sim' is not understood"),
        ("sim:", "'sim:' is not understood"),
        ("cuda:0", "'cuda:0' is not understood"),
        ("8GB", "'8GB' is not understood"),
        ("sim:8GiB,sim:8GB", "'sim:8GB' is not understood"),
        ("auto,cpu", "'auto,cpu' mixes kinds of devices"),
        ("cpu,cpu", "'cpu' is not understood"),
        ("cpu,1GiB", "'cpu,1GiB' mixes kinds of devices"),
        ("24GiB,", "'' is not understood"),
        ("sim:0", "'sim:0' has 0 bytes"),
        ("sim:1GiB,sim:0.5", "'sim:0.5' has 0 bytes"),
        ("24GiB,0", "'0' has 0 bytes"),
        ("cpu,sim:1GiB", "'cpu,sim:1GiB' mixes kinds of devices"),
        ("sim:1GiB,1GiB", "'sim:1GiB,1GiB' mixes kinds of devices"),
        (",".join(["sim:1"] * (MAX_DEVICES + 1)), "there are 17"),
    ],
)
def test_what_is_refused_says_what_was_found_and_what_is_allowed(parse, allowed, text, found):
    with pytest.raises(SettingsError) as caught:
        parse(text)
    assert str(caught.value).startswith(f"devices: {found}; allowed: {allowed}, each of at least 1 byte")
    assert f"at most {MAX_DEVICES} of them, such as " in str(caught.value)
    assert caught.value.status == 400


def test_each_has_what_the_other_has_not():
    with pytest.raises(SettingsError, match=r"^devices: '24GiB,12GiB' is not simulated; allowed: auto; cpu; or "):
        parse_devices("24GiB,12GiB")
    for text in ("auto", ""):
        with pytest.raises(SettingsError, match=rf"^devices: '{text}' is not understood; allowed: cpu; or "):
            parse_plan_devices(text)
