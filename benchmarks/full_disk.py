"""A disk that is full in every stage of everything long that edgepack does.

    python -m benchmarks.full_disk [--only WORD]        # Linux, as root: it mounts small disks

Each run of `benchmarks._long_runs` is made once in peace. Then, for each of its stages, it is made
with cache and output on a disk of their own (a tmpfs) that fills up when the stage begins: nothing
is free, or half of what the stage writes. The run must end with one line that names the disk and a
hint, whatever wrote: Python, safetensors, numpy, llama.cpp's and ONNX's writers. There must be no
output. After room is made, the same command must come to the very bytes of the undisturbed run.
``publish`` stands for the end of a run, when the files that a user gets are written.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path
from typing import Any

import psutil

from benchmarks import kills
from benchmarks._long_runs import RUNS, Long
from benchmarks.kills import begin, differences, make, start, wait
from benchmarks.same_type import RESULTS

SIZE = 64 << 20
"""Bytes of a disk."""
SHARES = (0.0, 0.5)
"""What is free when a stage begins, as a share of what it writes."""
PUBLISH = "publish"
PUBLISHING = (
    ("edgepack.pipeline", "place_files"),
    ("edgepack.output.merged", "place_files"),
    ("edgepack.finetune.run", "_copy"),
    ("edgepack.bench.folder", "write"),
    ("edgepack.adapters.extract", "write"),
)
"""Functions that write what a user gets."""
BALLAST = "ballast"


@contextmanager
def disk(place: Path) -> Iterator[Path]:
    """A small disk, for as long as it takes."""
    place.mkdir()
    options = ["mount", "-t", "tmpfs", "-o", f"size={SIZE}", "tmpfs", str(place)]
    done = subprocess.run(options, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"a small disk cannot be mounted here: {done.stderr.strip()}")
    try:
        yield place
    finally:
        subprocess.run(["umount", "--lazy", str(place)], check=True)


def fill(place: Path, left: int) -> None:
    """Leave so many bytes on a disk."""
    with (place / BALLAST).open("wb") as file:
        os.posix_fallocate(file.fileno(), 0, max(1, shutil.disk_usage(place).free - left))


def at_stages(happens: Callable[[str], None]) -> None:
    """Call `happens` with the name of each stage before this process begins it, and with `PUBLISH`
    before the files take their place."""
    from edgepack.core.stage import Stage

    complete = Stage.complete

    def noticed(stage: Stage, executor: Any) -> Any:
        if not stage.is_done:
            happens(stage.name)
        return complete(stage, executor)

    def published(write: Callable[..., Any]) -> Callable[..., Any]:
        def call(*arguments: Any) -> Any:
            happens(PUBLISH)
            return write(*arguments)

        return call

    Stage.complete = noticed  # type: ignore[method-assign]
    for name, function in PUBLISHING:
        module = import_module(name)
        setattr(module, function, published(getattr(module, function)))


def stages(run: Long, home: Path, place: Path) -> dict[str, int]:
    """Stage → bytes that are on the disk more when the next one begins; made in peace."""
    begin(run, home, place)
    log = home / "stages"

    def note(name: str) -> None:
        used = sum(p.stat().st_size for p in place.rglob("*") if p.is_file())
        with log.open("a") as file:
            file.write(json.dumps([name, used]) + "\n")

    child = forked(run, home, place, note)
    if wait(child, 3600) != 0:
        raise SystemExit((home / "said").read_text())
    rows = [json.loads(line) for line in log.read_text().splitlines()]
    ends = [used for _, used in rows[1:]] + [rows[-1][1]]
    return {name: max(0, end - used) for (name, used), end in zip(rows, ends, strict=True)}


def forked(run: Long, home: Path, place: Path, happens: Callable[[str], None]) -> int:
    """A process that makes a run, and calls `happens`."""
    made = kills.make

    def noticed(run: Long, place: Path) -> None:
        at_stages(happens)
        made(run, place)

    kills.make = noticed
    try:
        return start(run, home, place)
    finally:
        kills.make = made


def try_at(run: Long, home: Path, whole: Path, stage: str, left: int) -> tuple[str, list[str]]:
    """Fill the disk when a stage begins; the line that is said, and what is wrong."""
    said = home / "said"
    said.write_text("")
    with disk(home / "disk") as mounted:
        place = mounted / "run"
        begin(run, home, place)

        def happens(name: str) -> None:
            if name == stage and not (mounted / BALLAST).exists():
                fill(mounted, left)

        code = wait(forked(run, home, place, happens), 600)
        text = said.read_text(errors="replace")
        errors = [line for line in text.splitlines() if line.startswith("error: ")]
        line = errors[0].removeprefix("error: ") if errors else ""
        wrong = []
        if code == 0:  # there was room enough
            line = "–"
        elif code != 1 or len(errors) != 1 or "Traceback" in text:
            wrong.append(f"{run.name}, {stage}: ended with {code}: {text[-2000:]}")
        else:
            if str(mounted) not in text:
                wrong.append(f"{run.name}, {stage}: names no place: {text}")
            if "hint: " not in text:
                wrong.append(f"{run.name}, {stage}: no hint")
        if code and not run.start and any((place / "out").glob("manifest.json")):
            wrong.append(f"{run.name}, {stage}: an output is there")
        (mounted / BALLAST).unlink(missing_ok=True)
        if wait(start(run, home, place), 600) != 0:
            wrong.append(f"{run.name}, {stage}: does not go on: {said.read_text()[-2000:]}")
        else:
            wrong += [f"{run.name}, {stage}: {name}" for name in differences(run, whole, place)]
    (home / "disk").rmdir()
    return line.replace(str(mounted), "DISK"), wrong


def row(run: Long, home: Path) -> dict[str, Any]:
    """What came of a run, stage by stage."""
    run.prepare(home)
    os.chdir(home)
    make_whole(run, home)
    written = stages(run, home, home / "again")
    found: dict[str, Any] = {"run": run.name, "stages": {}, "wrong": []}
    for stage, nbytes in written.items():
        lines = []
        for share in SHARES:
            line, wrong = try_at(run, home, home / "whole", stage, int(share * nbytes))
            lines.append(line)
            found["wrong"] += wrong
        found["stages"][stage] = lines
    return found


def make_whole(run: Long, home: Path) -> None:
    """The undisturbed run, in this process, which has then loaded what it needs."""
    begin(run, home, home / "whole")
    try:
        make(run, home / "whole")
    except SystemExit as ended:
        if ended.code:
            raise


def table(rows: list[dict[str, Any]]) -> str:
    """What is said where nothing is free, by run and stage."""
    lines = [
        "| run | full in | said, with nothing free | went on to the same bytes |",
        "|---|---|---|---|",
    ]
    for one in rows:
        for stage, (said, _) in one["stages"].items():
            good = not any(f", {stage}: " in wrong for wrong in one["wrong"])
            lines.append(f"| {one['run']} | {stage} | {said} | {'yes' if good else 'NO'} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", default="", help="runs with this word in their names")
    options = parser.parse_args()
    psutil.cpu_count = lambda logical=True: 1  # llama.cpp's threads would wait by spinning
    os.environ["OMP_NUM_THREADS"] = "1"
    random.seed(0)
    path, wrong, here = RESULTS / "full_disk.json", [], Path.cwd()
    rows = {one["run"]: one for one in json.loads(path.read_text())} if path.exists() else {}
    for run in RUNS:
        if options.only not in run.name:
            continue
        with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
            rows[run.name] = row(run, Path(folder))
            os.chdir(here)
            tempfile.tempdir = None
            os.environ.pop("TMPDIR", None)
        wrong += rows[run.name]["wrong"]
        print(json.dumps(rows[run.name], indent=1), flush=True)
        kept = [rows[one.name] for one in RUNS if one.name in rows]
        path.write_text(json.dumps(kept, indent=1) + "\n", encoding="utf-8")
        text = f"`python -m benchmarks.full_disk`\n\n{table(kept)}\n"
        (RESULTS / "full_disk.md").write_text(text, encoding="utf-8")
    if wrong:
        raise SystemExit(f"not as it should be: {wrong[:10]}")


if __name__ == "__main__":
    main()
