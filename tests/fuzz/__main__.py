"""Give hostile inputs to all that edgepack reads, and count what comes of them.

    python -m tests.fuzz [--inputs 2000] [--minutes 0] [--only NAME] [--first 0] [--jobs N]
                         [--keep FOLDER] [--case FOLDER] [--results FILE]

Every reader gets what is kept in `corpus` (parsers do so in `test_corpus`), then --inputs mutated
inputs. With --minutes, atheris then searches each parser, guided by coverage, for its share of that
time. Prints a table, reader × outcome, and exits 1 unless all inputs are read (`ok`) or refused in
one line with a hint. `unclear` is an error of several lines or of more than 1000 characters; `leak`
a file read or changed outside the case's folder. The files of all other inputs go into the folder
that --keep names, READER/NUMBER, with what came of them in READER/failures.txt; the same input
again is ``--only READER --first NUMBER --inputs 1``.
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
from dataclasses import dataclass
from pathlib import Path

from tests.fuzz import corpus
from tests.fuzz.case import FAMILIES, make_template
from tests.fuzz.guided import search
from tests.fuzz.harness import GOOD, OUTCOMES, Found, Reader, run
from tests.fuzz.parsers import PARSERS
from tests.fuzz.readers import READERS, SLOW

SETTINGS = {
    "OMP_NUM_THREADS": "1",
    "HF_HUB_OFFLINE": "1",
    "HF_HUB_DISABLE_PROGRESS_BARS": "1",
    "TOKENIZERS_PARALLELISM": "false",
    "GGML_NO_BACKTRACE": "1",
}
MEMORY = Path("/dev/shm")
"""Where Linux has a disk in memory: cases are copied and written there some thousand times."""


@dataclass
class Row:
    """What came of one reader; `edges` are those that atheris reached."""

    name: str
    found: Found
    seconds: float
    edges: int = 0


def scratch() -> Path | None:
    """The folder for cases; None is the system's own."""
    return MEMORY if os.access(MEMORY, os.W_OK) else None


def prepare(folder: Path) -> Path:
    """The whole case, made in a process of its own: this one must have no threads when it forks."""
    template = folder / "template"
    if template.is_dir():
        return template
    fork = multiprocessing.get_context("fork")
    maker = fork.Process(target=_made, args=(template, folder / "cache"))
    maker.start()
    maker.join()
    if maker.exitcode:
        sys.exit("the whole case could not be made")
    return template


def _made(template: Path, cache: Path) -> None:
    import torch
    import transformers

    # torch makes its pool of threads anew after a fork; several threads at once would race for it
    torch.set_num_threads(1)
    transformers.logging.disable_progress_bar()
    os.environ["EDGEPACK_CACHE"] = os.environ["XDG_CACHE_HOME"] = str(cache)
    made = template.with_name("template.new")
    shutil.rmtree(made, ignore_errors=True)
    made.mkdir(parents=True)
    make_template(made)
    made.rename(template)


def load_libraries() -> None:
    """Once, for all forks; one thread each, as llama.cpp's wait for each other by spinning."""
    import onnx  # noqa: F401
    import onnxruntime  # noqa: F401
    import psutil
    import torch
    import transformers
    from llama_cpp import llama_cpp  # noqa: F401
    from transformers import CONFIG_MAPPING, AutoTokenizer, PreTrainedTokenizerFast  # noqa: F401

    import edgepack.cli
    import edgepack.merge.documents
    import edgepack.pipeline
    import edgepack.report.show  # noqa: F401

    for family in ("llama", *FAMILIES):
        _ = CONFIG_MAPPING[family]  # imports it
    torch.set_num_threads(1)
    psutil.cpu_count = lambda logical=True: 1
    transformers.logging.set_verbosity_error()


def table(rows: list[Row]) -> list[str]:
    """Markdown: outcomes that never came are left out, but for the two good ones."""
    seen = [o for o in OUTCOMES if o in GOOD or any(row.found.counts[o] for row in rows)]
    head = ["reader", "inputs", *seen, "different errors", "seconds", "edges"]
    lines = [f"| {' | '.join(head)} |", "|---|" + "---:|" * (len(head) - 1)]
    for row in rows:
        counts = [row.found.counts.total(), *(row.found.counts[outcome] for outcome in seen)]
        cells = [*counts, len(row.found.words), round(row.seconds), row.edges or "–"]
        lines.append(f"| {row.name} | {' | '.join(map(str, cells))} |")
    return lines


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
    parser.add_argument(
        "--minutes", type=float, default=0, help="of atheris, for all parsers together"
    )
    parser.add_argument("--only", action="append", metavar="NAME", help=", ".join(READERS))
    parser.add_argument("--first", type=int, default=0, metavar="NUMBER")
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--keep", type=Path, default=Path("out/fuzz"), metavar="FOLDER")
    parser.add_argument(
        "--case", type=Path, metavar="FOLDER", help="keep the whole case there, or take it up"
    )
    parser.add_argument("--results", type=Path, metavar="FILE", help="write the table there too")
    options = parser.parse_args()
    os.environ.update(SETTINGS)
    names = options.only or list(READERS)
    unknown = [name for name in names if name not in READERS]
    if unknown:
        parser.error(f"there is no reader {unknown[0]!r}")
    keep = options.keep.resolve()
    rows: list[Row] = []
    with tempfile.TemporaryDirectory(prefix="fuzz-", dir=scratch()) as folder:
        load_libraries()
        template = prepare(options.case or Path(folder))
        for name in names:
            count = options.inputs and max(1, options.inputs // SLOW.get(name, 1))
            numbers = range(options.first, options.first + count)
            rows += _mutated(READERS[name], numbers, template, Path(folder), options.jobs, keep)
            _write(rows, options.results)
        guided = [name for name in names if name in PARSERS] if options.minutes else []
        for name in guided:
            seconds = options.minutes * 60 / len(guided)
            rows.append(_guided(name, template, keep, seconds))
            _write(rows, options.results)
    print("", *table(rows), sep="\n")
    return int(any(row.found.failures for row in rows))


def _write(rows: list[Row], path: Path | None) -> None:
    """Write the table as far as it is known: a run takes hours."""
    if path:
        path.write_text("\n".join(table(rows)) + "\n", encoding="utf-8")


def _mutated(
    reader: Reader, numbers: range, template: Path, folder: Path, jobs: int, keep: Path
) -> list[Row]:
    """What is whole, what is kept, and the mutated inputs of a reader."""
    rows, name = [], corpus.folder_of(reader.name).name
    place = folder / name
    _check_whole(reader, template, place)
    kept = corpus.cases_of(reader.name)
    parts = [(f"{reader.name}, kept", _kept_reader(reader, kept), range(len(kept)))] if kept else []
    for title, one, some in [*parts, (reader.name, reader, numbers)]:
        began = time.monotonic()
        found = run(one, some, template, place, jobs)
        rows.append(Row(title, found, time.monotonic() - began))
        _say(rows[-1])
        _keep(found, place, keep / name)
    return rows


def _guided(name: str, template: Path, keep: Path, seconds: float) -> Row:
    began, place = time.monotonic(), keep / "guided" / corpus.folder_of(name).name
    found, edges = search(name, template, place, seconds)
    row = Row(f"{name}, guided", found, time.monotonic() - began, edges)
    _say(row)
    return row


def _say(row: Row) -> None:
    print(f"{row.name}: {row.seconds:.0f} s", *reasons(row.found), sep="\n", flush=True)


def _check_whole(reader: Reader, template: Path, place: Path) -> None:
    """What is not spoiled is read, so that inputs are refused for what was spoiled in them."""
    whole = run(Reader(reader.name, _nothing, reader.read), range(1), template, place)
    if not whole.counts["ok"]:
        sys.exit(f"{reader.name}: even the whole case is not read: {whole.failures or whole.words}")


def _nothing(folder: Path, number: int) -> list[str]:
    return []


def _kept_reader(reader: Reader, kept: list[Path]) -> Reader:
    """A reader whose inputs are those of the corpus."""

    def put(folder: Path, number: int) -> list[str]:
        case = kept[number]
        names = [str(p.relative_to(case)) for p in sorted(case.rglob("*")) if p.is_file()]
        for name in names:
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(case / name, folder / name)
        return names

    return Reader(reader.name, put, reader.read, reader.may_name_any)


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
