"""Everything long that edgepack does, killed at random moments.

    python -m benchmarks.kills [--kills 1000] [--seed 0] [--only WORD] [--minutes M] [--add]

Each run of `benchmarks._long_runs` is made once in peace, in this process, which has then loaded
and compiled all that it needs. Then it is made again and again by forks of this process, from an
empty cache, and ended at a random moment (SIGKILL, SIGTERM, SIGHUP or Ctrl-C's SIGINT, by chance),
until one comes to its end. Its output and its cache must have the very bytes of the undisturbed one
(files that hold times: the same structure), and nothing may be left beside them: no folder, no
lock, no process; small folders in the system's temporary one are counted. A process that is asked
to end must do so, with the exit code of its signal and without a traceback. With --add, counts are
added to those of earlier runs, with --minutes each run is killed for so long at most.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import re
import shutil
import signal
import sys
import tempfile
import time
import traceback
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil

from benchmarks._long_runs import RUNS, Long
from benchmarks.same_type import RESULTS

SIGNALS = (signal.SIGKILL, signal.SIGTERM, signal.SIGHUP, signal.SIGINT)
PATIENCE = 120.0
"""Seconds that a process may take to end in good order, on a machine with other things to do."""
SAVE_EVERY = 0.05
"""Seconds between saved states of a training that lasts a second or two."""
BEFORE = "Aborted!"
"""What click says when a signal comes before the command has begun."""
GENERAL = 16
"""Tokens of each text that a model writes before it is trained."""
DONE = "already exists"
"""What a command without --force says if it was killed when all was done."""
AFTER = 130
"""typer's exit code for a signal that comes when the command has ended, or has not begun."""
DIGEST = re.compile("[0-9a-f]{32,64}")


@dataclass
class Outcome:
    """What came of the kills of a run: kills by signal and by stage, folders left in the system's
    temporary one, runs that came to their end, and everything that was not as it should be."""

    kills: Counter[str] = field(default_factory=Counter)
    stages: Counter[str] = field(default_factory=Counter)
    temporary: int = 0
    ended: int = 0
    wrong: list[str] = field(default_factory=list)

    def row(self, name: str) -> dict[str, Any]:
        """For JSON."""
        return {"run": name, **vars(self)}


def files(folder: Path) -> dict[str, bytes]:
    """Everything under a folder."""
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def structure(name: str, data: bytes) -> object:
    """Of a file that holds times: what two runs have in common."""
    if not name.endswith(".json"):
        return bool(data)

    def shape(value: object) -> object:
        if isinstance(value, dict):
            return {key: shape(one) for key, one in value.items()}
        if isinstance(value, list):
            return sorted({json.dumps(shape(one), sort_keys=True) for one in value})
        if isinstance(value, str):
            return DIGEST.sub("digest", value) if value.isalnum() else "text"
        return "number"

    return shape(json.loads(data))


def differences(run: Long, whole: Path, killed: Path) -> list[str]:
    """What differs, and what was left behind."""
    one, two = files(whole), files(killed)
    left = [p.name for p in killed.iterdir() if p.name not in ("cache", "out", "tmp")]
    one, two = (
        {n: d for n, d in found.items() if not n.startswith("tmp/")} for found in (one, two)
    )

    def same(name: str) -> bool:
        if name not in one or name not in two:
            return False
        if Path(name).name in run.timed:
            return structure(name, one[name]) == structure(name, two[name])
        return one[name] == two[name]

    return left + sorted(name for name in one.keys() | two.keys() if not same(name))


def make(run: Long, place: Path) -> None:
    """Do it in this process, with its cache, output and temporary files in `place`."""
    import torch

    from edgepack.cli import app
    from edgepack.cli._app import heed_signals
    from edgepack.finetune import general, training

    torch.set_num_threads(1)
    training.SAVE_EVERY, general.LENGTH = SAVE_EVERY, GENERAL
    os.environ["EDGEPACK_CACHE"] = str(place / "cache")
    os.environ["TMPDIR"] = tempfile.tempdir = str(place / "tmp")
    heed_signals()
    app([word.format(place) for word in run.command])


def begin(run: Long, home: Path, place: Path) -> None:
    """An empty folder for a run, and what its output begins with."""
    (place / "tmp").mkdir(parents=True)
    if run.start:
        shutil.copytree(home / run.start, place / "out")


def start(run: Long, home: Path, place: Path) -> int:
    """A process that does it."""
    child = os.fork()
    if child:
        return child
    code = 1
    try:
        os.setsid()
        os.chdir(home)
        signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background ignores it
        for number in (signal.SIGTERM, signal.SIGHUP):
            signal.signal(number, signal.SIG_DFL)
        said = (home / "said").open("a")
        os.dup2(said.fileno(), 1)
        os.dup2(said.fileno(), 2)
        sys.stderr = sys.stdout = said
        make(run, place)
    except SystemExit as end:
        code = int(end.code or 0)
    except KeyboardInterrupt:
        print(BEFORE)
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        os._exit(code)


def wait(child: int, seconds: float) -> int | None:
    """The exit code of a process, None if it does not end in time."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        found, status = os.waitpid(child, os.WNOHANG)
        if found:
            return os.waitstatus_to_exitcode(status)
        time.sleep(0.002)
    return None


def orphans(child: int) -> list[str]:
    """Processes that a killed one has left; they have some seconds to notice."""
    left: list[psutil.Process] = []
    for _ in range(100):
        left = [one for one in psutil.process_iter() if _session(one.pid) == child]
        if not left:
            return []
        time.sleep(0.1)
    names = [f"process {' '.join(one.cmdline())[:80]}" for one in left]
    for one in left:
        one.kill()
    return names


def _session(pid: int) -> int | None:
    try:
        return os.getsid(pid)
    except OSError:
        return None


def stage_of(place: Path) -> str:
    """The stage that a killed run was in."""
    partial = [*(place / "cache").glob("*/*.partial")]
    if partial:
        return max(partial, key=lambda path: path.stat().st_mtime).parent.name
    if any((place / "cache/handed-over").glob("*")):
        return "handing over"
    return "between stages"


def end(child: int, how: signal.Signals, home: Path) -> tuple[int | None, list[str]]:
    """Send a signal; the exit code, and what is wrong about it."""
    os.kill(child, how)
    code = wait(child, PATIENCE)
    if code is None:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        return None, [f"{how.name}: did not end"]
    said = (home / "said").read_text(errors="replace")
    good = code in (-how if how == signal.SIGKILL else 128 + how, 0)
    if DONE in said:
        return 0, orphans(child)
    outside = code == AFTER or BEFORE in said or (code == -how and not said)
    wrong = [] if good or outside else [f"{how.name}: ended with {code}"]
    if "Traceback" in said:
        wrong.append(f"{how.name}: traceback {said[-3000:]}")
    return code, wrong + orphans(child)


def kill_often(run: Long, kills: int, minutes: float, draw: random.Random, home: Path) -> Outcome:
    """So many kills of one run, or as many as the time allows."""
    run.prepare(home)
    os.chdir(home)
    whole = home / "whole"
    begin(run, home, whole)
    try:
        make(run, whole)
    except SystemExit as ended:
        if ended.code:
            raise
    again = home / "again"
    begin(run, home, again)
    began = time.monotonic()
    code = wait(start(run, home, again), 3600)
    seconds = time.monotonic() - began
    found = Outcome()
    if code != 0:
        raise SystemExit((home / "said").read_text())
    if wrong := differences(run, whole, again):
        raise SystemExit(f"{run.name}: two runs in peace differ: {wrong[:10]}")
    shutil.rmtree(again)
    until = time.monotonic() + 60 * minutes
    while sum(found.kills.values()) < kills and time.monotonic() < until:
        _round(run, seconds, draw, home, whole, found)
    return found


def _round(
    run: Long, seconds: float, draw: random.Random, home: Path, whole: Path, found: Outcome
) -> None:
    """Kill a run until it comes to its end."""
    place = home / f"killed-{found.ended}"
    begin(run, home, place)
    most = 0.5  # of the run's time; grows, for a machine that has become slower meanwhile
    while True:
        (home / "said").write_text("")
        child = start(run, home, place)
        code = wait(child, draw.uniform(0, most) * seconds)
        if code is None:
            how = draw.choice(SIGNALS)
            code, wrong = end(child, how, home)
            found.wrong += wrong
            if code != 0:
                found.kills[how.name] += 1
                found.stages[stage_of(place)] += 1
                most *= 1.05
                continue
        break
    found.ended += 1
    said = (home / "said").read_text()
    if code != 0 and DONE not in said:
        raise SystemExit(f"{run.name}: {said}")
    wrong = differences(run, whole, place)
    found.wrong += wrong
    found.temporary += len(list((place / "tmp").iterdir()))
    if not wrong:
        shutil.rmtree(place)


def table(rows: list[dict[str, Any]]) -> str:
    """Kills by run and signal, and what came of them."""
    names = [one.name for one in SIGNALS]
    counts = ["came to its end", "left in $TMPDIR", "not as it should be"]
    lines = [f"| run | {' | '.join([*names, *counts])} | killed in |"]
    lines.append("|---|" + "---:|" * len([*names, *counts]) + "---|")
    for row in rows:
        kills = [row["kills"].get(name, 0) for name in names]
        stages = ", ".join(f"{stage} {n}" for stage, n in Counter(row["stages"]).most_common())
        cells = [row["run"], *kills, row["ended"], row["temporary"], len(row["wrong"]), stages]
        lines.append("| " + " | ".join(map(str, cells)) + " |")
    sums = [sum(row["kills"].get(name, 0) for row in rows) for name in names]
    ended = sum(row["ended"] for row in rows)
    left = sum(row["temporary"] for row in rows)
    wrong = sum(len(row["wrong"]) for row in rows)
    cells = [f"**all: {sum(sums)} kills**", *sums, ended, left, wrong, ""]
    lines.append("| " + " | ".join(map(str, cells)) + " |")
    return "\n".join(lines)


def keep(found: Outcome, name: str, *, add: bool) -> list[dict[str, Any]]:
    """Write a run's row, and the table of all."""
    path = RESULTS / "kills.json"
    rows = {row["run"]: row for row in json.loads(path.read_text())} if path.exists() else {}
    if add and name in rows:
        earlier = rows[name]
        found.kills.update(earlier["kills"])
        found.stages.update(earlier["stages"])
        found.ended += earlier["ended"]
        found.temporary += earlier["temporary"]
        found.wrong += earlier["wrong"]
    rows[name] = found.row(name)
    kept = [rows[run.name] for run in RUNS if run.name in rows]
    path.write_text(json.dumps(kept, indent=1) + "\n", encoding="utf-8")
    text = f"`python -m benchmarks.kills`\n\n{table(kept)}\n"
    (RESULTS / "kills.md").write_text(text, encoding="utf-8")
    return kept


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kills", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", default="", help="runs with this word in their names")
    parser.add_argument("--minutes", type=float, default=60, help="most that a run is killed for")
    parser.add_argument("--add", action="store_true", help="to the counts of earlier runs")
    options = parser.parse_args()
    psutil.cpu_count = lambda logical=True: 1  # llama.cpp's threads would wait by spinning
    os.environ["OMP_NUM_THREADS"] = "1"
    draw = random.Random(options.seed)
    wrong = []
    here = Path.cwd()
    chosen = [run for run in RUNS if options.only in run.name]
    for run in chosen:
        with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
            kills = -(-options.kills // len(RUNS))
            found = kill_often(run, kills, options.minutes, draw, Path(folder))
            os.chdir(here)
            tempfile.tempdir = None
            os.environ.pop("TMPDIR", None)
        wrong += found.wrong
        keep(found, run.name, add=options.add)
        print(run.name, vars(found), flush=True)
    if wrong:
        raise SystemExit(f"not as it should be: {wrong[:10]}")


if __name__ == "__main__":
    main()
