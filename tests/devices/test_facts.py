"""What machines print about themselves, and what is made of it.

The texts are what the scripts print on such machines: values from /proc, /sys, getprop and dumpsys
as their documentation and vendors' bug reports show them.
"""

from __future__ import annotations

import subprocess

import pytest

from edgepack.devices import _facts

PHONE = """\
machine=aarch64
system=Linux
kernel=5.10.157-android13-4
cores=8
arch=aarch64
board=
cache=4096K
memory_kib=7722508
arm_features=fp asimd evtstrm aes pmull sha1 sha2 crc32 atomics fphp asimdhp asimdrdm asimddp
arm_features=fp asimd evtstrm aes pmull sha1 sha2 crc32 atomics fphp asimdhp asimdrdm asimddp
khz=1803000
khz=1803000
khz=1803000
khz=1803000
khz=2348000
khz=2348000
khz=2850000
khz=2850000
ro.product.manufacturer=Google
ro.product.model=Pixel 7
ro.soc.manufacturer=Google
ro.soc.model=GS201
ro.board.platform=gs201
ro.build.version.release=14
ro.build.version.sdk=34
ro.product.cpu.abi=arm64-v8a
ro.kernel.qemu=
"""
WARM = """\
load=3.52 2.11 1.02 2/4096 12345
zone=41250
zone=38
zone=-40000
zone=0
zone=2147483647
governor=sched_pixel
governor=sched_pixel
battery.AC powered=false
battery.USB powered=true
battery.level=87
battery.temperature=311
thermal_status=1
saver=0
"""


def test_a_phone_is_described():
    about = _facts.describe(PHONE)
    assert about.pop("features")[-1] == "asimddp"
    assert about == {
        "cores": 8,
        "memory": 7722508 << 10,
        "machine": "aarch64",
        "system": "Linux",
        "kernel": "5.10.157-android13-4",
        "processor": "Google GS201",
        "model": "Google Pixel 7",
        "cache": 4 << 20,
        "clusters": [
            {"cores": 4, "mhz": 1803},
            {"cores": 2, "mhz": 2348},
            {"cores": 2, "mhz": 2850},
        ],
        "android": {"release": "14", "sdk": "34", "abi": "arm64-v8a", "platform": "gs201"},
        "emulated": False,
    }


def test_a_machine_that_tells_nothing_is_described():
    about = _facts.describe("")
    assert (about["cores"], about["memory"], about["emulated"]) == (1, 0, False)
    assert _facts.condition("") == {}


@pytest.mark.parametrize(
    "lines",
    [
        "machine=aarch64\nx86_features=fpu sse avx2",
        "machine=aarch64\narch=x86_64\narm_features=fp asimd",
        "machine=x86_64\nx86_features=sse\nro.product.cpu.abi=arm64-v8a",
        "machine=aarch64\narm_features=fp asimd\nro.boot.qemu=1",
    ],
)
def test_a_processor_that_is_not_what_it_seems_is_emulated(lines):
    assert _facts.describe(lines)["emulated"]


@pytest.mark.parametrize(
    "lines",
    [
        "machine=armv8l\narch=aarch64\narm_features=half thumb",  # a 32-bit shell on 64 bits
        "machine=i686\narch=x86_64\nx86_features=sse",
        "machine=riscv64",
    ],
)
def test_a_processor_of_the_same_family_is_not_emulated(lines):
    assert not _facts.describe(lines)["emulated"]


def test_features_are_those_of_the_machine_that_programs_see():
    about = _facts.describe("machine=aarch64\nx86_features=fpu sse avx2")
    assert "features" not in about


def test_the_condition_of_a_phone():
    assert _facts.condition(WARM) == {
        "load": 3.52,
        "celsius": 41.25,
        "governor": "sched_pixel",
        "battery": 87,
        "charging": True,
        "battery_celsius": 31.1,
        "thermal_status": 1,
        "saver": False,
    }


def test_the_battery_of_a_laptop():
    found = _facts.condition("capacity=45\nstatus=Discharging\nload=0.1 0.2 0.3 1/2 3")
    assert found == {"load": 0.1, "battery": 45, "charging": False}


@pytest.mark.parametrize("digits", ["²", "٣", "9" * 5000, "-1", "1e9", ""])
def test_digits_that_are_no_number_are_left_out(digits):
    """`str.isdigit` takes the first three."""
    keys = (
        "cores",
        "memory_kib",
        "cache",
        "khz",
        "zone",
        "thermal_status",
        "battery.level",
        "load",
    )
    text = "\n".join(f"{key}={digits}" for key in keys)
    about = _facts.describe(text)
    assert (about["cores"], about["memory"]) == (1, 0)
    assert "clusters" not in about
    assert _facts.condition(text).keys() <= {"load"}


@pytest.mark.parametrize("script", [_facts.DESCRIBE, _facts.CONDITION])
def test_the_scripts_run_in_a_plain_shell(script):
    done = subprocess.run(["sh", "-u", "-c", script], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    assert all("=" in line for line in done.stdout.splitlines())
