"""Give hostile inputs to all that edgepack reads, and count what comes of them.

    python -m tests.fuzz [--inputs 2000] [--only NAME] [--first 0] [--jobs N] [--keep FOLDER]

Prints a table, reader × outcome, and exits 1 unless all inputs are read (`ok`) or refused in one
line with a hint. `unclear` is an error of several lines, of more than 1000 characters or without a
hint; `leak` a file read or changed outside the case's folder. The files of all other inputs go into
the folder that --keep names, READER/NUMBER, with what came of them in READER/failures.txt; the
same input again is ``--only READER --first NUMBER --inputs 1``.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import shutil
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

from tests.fuzz.harness import GOOD, OUTCOMES, Found, Reader, run
from tests.fuzz.readers import READERS, SLOW, make_template

SETTINGS = {
    "OMP_NUM_THREADS": "1",
    "HF_HUB_OFFLINE": "1",
    "TOKENIZERS_PARALLELISM": "false",
    "GGML_NO_BACKTRACE": "1",
}


def prepare(folder: Path) -> Path:
    """The whole case, made in a process of its own: this one must have no threads when it forks."""
    template = folder / "template"
    fork = multiprocessing.get_context("fork")
    maker = fork.Process(target=_made, args=(template, folder / "cache"))
    maker.start()
    maker.join()
    if maker.exitcode:
        sys.exit("the whole case could not be made")
    return template


def _made(template: Path, cache: Path) -> None:
    os.environ["EDGEPACK_CACHE"] = os.environ["XDG_CACHE_HOME"] = str(cache)
    template.mkdir()
    make_template(template)


def load_libraries() -> None:
    """Once, for all forks; one thread each, as llama.cpp's wait for each other by spinning."""
    import onnx  # noqa: F401
    import onnxruntime  # noqa: F401
    import psutil
    import torch
    import transformers
    from llama_cpp import llama_cpp  # noqa: F401

    import edgepack.cli
    import edgepack.pipeline
    import edgepack.report.show  # noqa: F401

    torch.set_num_threads(1)
    psutil.cpu_count = lambda logical=True: 1
    transformers.logging.set_verbosity_error()


def table(found: dict[str, Found]) -> list[str]:
    """Markdown: outcomes that never came are left out, but for the two good ones."""
    seen = [o for o in OUTCOMES if o in GOOD or any(f.counts[o] for f in found.values())]
    head = ["reader", "inputs", *seen, "different errors"]
    rows = [f"| {' | '.join(head)} |", "|---|" + "---:|" * (len(head) - 1)]
    for name, one in found.items():
        counts = [*(one.counts[outcome] for outcome in seen), len(one.words)]
        rows.append(f"| {name} | {one.counts.total()} | {' | '.join(map(str, counts))} |")
    return rows


def reasons(found: Found, most: int = 12) -> list[str]:
    """What failed most often, with the number of one input."""
    counted: Counter[tuple[str, str]] = Counter()
    first: dict[tuple[str, str], int] = {}
    for number, outcome, detail in found.failures:
        key = outcome, detail.split(" (")[0][:110]
        counted[key] += 1
        first.setdefault(key, number)
    return [
        f"{count:6} × {key[0]}: {key[1]} [{first[key]}]" for key, count in counted.most_common(most)
    ]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument(
        "--inputs", type=int, default=2000, help="of each reader; slow ones get fewer"
    )
    parser.add_argument("--only", action="append", metavar="NAME", help=", ".join(READERS))
    parser.add_argument("--first", type=int, default=0, metavar="NUMBER")
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--keep", type=Path, default=Path("out/fuzz"), metavar="FOLDER")
    options = parser.parse_args()
    os.environ.update(SETTINGS)
    names = options.only or list(READERS)
    unknown = [name for name in names if name not in READERS]
    if unknown:
        parser.error(f"there is no reader {unknown[0]!r}")
    keep = options.keep.resolve()
    found: dict[str, Found] = {}
    with tempfile.TemporaryDirectory(prefix="fuzz-") as folder:
        load_libraries()
        template = prepare(Path(folder))
        for name in names:
            place, began = Path(folder) / name.replace(" ", "-"), time.monotonic()
            count = max(1, options.inputs // SLOW.get(name, 1))
            numbers = range(options.first, options.first + count)
            _check_whole(READERS[name], template, place)
            found[name] = run(READERS[name], numbers, template, place, options.jobs)
            print(f"{name}: {time.monotonic() - began:.0f} s", *reasons(found[name]), sep="\n")
            _keep(found[name], place, keep / name.replace(" ", "-"))
            sys.stdout.flush()
    print("", *table(found), sep="\n")
    return int(any(one.failures for one in found.values()))


def _check_whole(reader: Reader, template: Path, place: Path) -> None:
    """What is not spoiled is read, so that inputs are refused for what was spoiled in them."""
    whole = run(Reader(reader.name, _nothing, reader.read), range(1), template, place)
    if not whole.counts["ok"]:
        sys.exit(f"{reader.name}: even the whole case is not read: {whole.failures or whole.words}")


def _nothing(folder: Path, number: int) -> list[str]:
    return []


def _keep(found: Found, place: Path, target: Path) -> None:
    shutil.rmtree(target, ignore_errors=True)
    if not found.failures:
        return
    if (place / "kept").is_dir():
        shutil.copytree(place / "kept", target)
    target.mkdir(parents=True, exist_ok=True)
    lines = (f"{number}\t{outcome}\t{detail}\n" for number, outcome, detail in found.failures)
    (target / "failures.txt").write_text("".join(lines), encoding="utf-8", errors="replace")


if __name__ == "__main__":
    sys.exit(main())
