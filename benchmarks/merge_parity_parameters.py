"""Values of parameters as mergekit 0.1.5 resolves them, for `tests/merge/test_parameters.py`.

    VENV/bin/python -m benchmarks.merge_parity_parameters tests/merge/golden/parameters.json

Run it with mergekit's own interpreter; nothing of edgepack is imported. Each entry is a setting as
recipes write it, a tensor's name, t, and the value (null: no filter fits).
"""

import itertools
import json
import sys
from pathlib import Path
from typing import Any

from mergekit.config import ConditionalParameter, evaluate_setting

NAMES = (
    "model.layers.3.self_attn.q_proj.weight",
    "model.layers.0.mlp.up_proj.weight",
    "lm_head.weight",
)
DEPTHS = (0.0, 1 / 3, 0.5, 0.7, 1.0)
NUMBERS = (
    0.5,
    "1e-5",
    [0, 0.5, 0.3, 0.7, 1],
    [1, "5e-1", 0.25],
    [{"filter": "self_attn", "value": [0, 0.5, 0.3, 0.7, 1]}, {"value": 0.5}],
    [{"filter": "mlp", "value": 0.25}, {"filter": "*", "value": [0, 1]}],
    [{"filter": "layers.3", "value": 0.125}],
)
TRUTHS = (True, [True, False], [False, True, True], [{"filter": "mlp", "value": [True, False]}])


def conditions(setting: Any) -> Any:
    """The setting with mergekit's types in it."""
    if isinstance(setting, list) and isinstance(setting[0], dict):
        return [ConditionalParameter(**one) for one in setting]
    return setting


def main() -> None:
    """Write the file."""
    found = []
    for kind, settings, convert in (("float", NUMBERS, float), ("bool", TRUTHS, bool)):
        for setting, name, t in itertools.product(settings, NAMES, DEPTHS):
            value = evaluate_setting(name, conditions(setting), t, validate=convert)
            found.append({"kind": kind, "setting": setting, "name": name, "t": t, "value": value})
    Path(sys.argv[1]).write_text(json.dumps(found))


if __name__ == "__main__":
    main()
