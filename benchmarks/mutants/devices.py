"""Remote devices: what is sent, how runs end, what is told."""

from __future__ import annotations

from benchmarks.mutants._base import Groups

SCRIPTS = "devices/_scripts.py"
REMOTE = "devices/_remote.py"
FACTS = "devices/_facts.py"
ADB = "devices/adb.py"
WITH_STUB = "tests/devices/test_adb.py"

GROUPS: Groups = {
    (SCRIPTS, WITH_STUB): {
        "a file counts without its digest": (
            '&& [ "${{sum%% *}}" = {digest} ] && chmod',
            "&& chmod",
        ),
        "a file that did not come whole stays": ('rm -f "$partial"\n', ""),
        "the end of the connection is not noticed": ("read -r _ <&3", "sleep 100"),
        "what a command started goes on": ("    kill -9 -$child\n", ""),
        "scratch files stay": ('cd / && rm -rf "$scratch" && ', ""),
        "what killed runs left stays": ("-exec rm -rf {{}} +", "-exec true {{}} +"),
        "clearing removes nothing": ("&& rm -rf {folder} && echo", "&& echo"),
        "permission to execute is not asked for": ('[ -x "$1" ] && [ ! -d "$1" ] || exit 23', ":"),
    },
    (REMOTE, WITH_STUB): {
        "free space is not asked for": ("if free is not None and free <", "if False and free <"),
        "several files of a name have one place": ("repr(sorted(sums.items()))", "repr(path.name)"),
    },
    (ADB, WITH_STUB): {
        "the first of two devices is taken": (
            "if not self.address and len(devices) > 1",
            "if not self.address and len(devices) > 2",
        ),
    },
    (FACTS, "tests/devices/test_facts.py"): {
        "an emulated processor is believed": ("return len(families) > 1 or", "return"),
        "thousandths are degrees": ("value / 1000", "value"),
        "features of the host are the guest's": (
            "f\"{_family(about['machine'])}_features\"",
            '"x86_features"',
        ),
    },
}
