"""What decomposing a weight takes of memory, measured from outside on a wide weight."""

import json
import subprocess
import sys

from edgepack.decompose.caldera import ROOM, needed_memory

ROWS, COLUMNS = 256, 2304
PROGRAM = """
import json, sys, threading, torch
from pathlib import Path
from edgepack import formats
from edgepack.calibration.moments import load_hessian
from edgepack.core.hardware import anonymous_memory, return_freed_memory
from edgepack.core.linalg import pack_symmetric
from edgepack.core.weight_files import save_tensors
from edgepack.core.weights import Hessian
from edgepack.decompose.caldera import caldera

torch.set_num_threads(1)
return_freed_memory()
rows, columns, rank, folder = *map(int, sys.argv[1:4]), Path(sys.argv[4])

def moments(n):
    X = torch.randn(512, n)
    H = X.T @ X / 512
    return H.add_(0.1 * torch.eye(n))

def decompose(W, H):
    options = {"rank": rank, "factors": "q4_0", "damping": [0.01], "iterations": 1}
    with torch.no_grad():
        return caldera(W, H, formats.get("q4_0"), **options)

sides = {"train": columns, "held_out": columns, "out_train": rows, "out_held_out": rows}
tensors = {f"x.{side}": pack_symmetric(moments(n)) for side, n in sides.items()}
save_tensors(folder / "x", tensors | {"x.imatrix": torch.ones(columns)}, {})
del tensors
small = moments(64)
decompose(torch.randn(64, 64), Hessian(small, small, torch.ones(64), small, small))  # compiles
W, H = torch.randn(rows, columns), load_hessian(folder / "x", "x")
before, most, over = anonymous_memory(), 0, threading.Event()

def watch():
    global most
    while not over.wait(0.002):
        most = max(most, anonymous_memory())

watching = threading.Thread(target=watch)
watching.start()
decompose(W, H)
over.set()
watching.join()
print(json.dumps(most - before))
"""


def test_a_wide_weight_takes_few_squares_of_memory(tmp_path):
    """Six float32 squares and what slabs and copies of W take; float64 in every step took 18."""
    arguments = map(str, (ROWS, COLUMNS, 16, tmp_path))
    command = [sys.executable, "-c", PROGRAM, *arguments]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    most = json.loads(done.stdout)
    square = 4 * COLUMNS**2
    assert most < 7.5 * square
    assert most > 3 * square  # H, its double, and a factor: less was not seen at work
    needed = needed_memory((ROWS, COLUMNS), rank=16, two_sided=True)
    assert most < needed
    assert needed - ROOM < 6 * square
