"""The training step as a graph, and ONNX folders read back."""

from __future__ import annotations

from benchmarks.mutants._base import Groups

GRADIENTS, RUNNER = "tests/finetune/graph/test_gradients.py", "tests/finetune/graph/test_runner.py"
READ_BACK = "tests/export/test_onnx_checkpoint.py"

GROUPS: Groups = {
    ("finetune/graph/autodiff.py", GRADIENTS): {
        "rotations are undone by themselves": (
            "dy, places, cos, g.negative(sin), **given)",
            "dy, places, cos, sin, **given)",
        ),
        "softmax is differentiated element by element": (
            'return g.add("Mul", y, g.add("Sub", dy, total))',
            'return g.add("Mul", y, dy)',
        ),
        "a norm's scale counts as constant": (
            'rest = g.add("Sub", u, g.add("Mul", unit, along))',
            "rest = u",
        ),
        "LayerNorm's mean counts as constant": (
            'rest = g.add("Sub", rest, g.add("ReduceMean", u, g.whole(-1), keepdims=1))',
            "pass",
        ),
        "the second use of a value is forgotten": (
            'gradients[name] = dx if known is None else g.add("Add", known, dx)',
            "gradients[name] = dx if known is None else known",
        ),
        "attention's scale is forgotten on the way back": (
            'return g.add("FusedMatMul", dy, b, transB=1 - turned, alpha=alpha)',
            'return g.add("FusedMatMul", dy, b, transB=1 - turned)',
        ),
        "relu lets everything through": (
            'return g.add("Mul", dy, g.add("Cast", above, to=kind(np.float32)))',
            "return dy",
        ),
    },
    ("finetune/graph/matrices.py", GRADIENTS): {
        "only the last chunk of a product's gradient": (
            'total = g.add("Add", total, product) if total else product',
            "total = product",
        ),
        "int8 is around 127": ("g.number(128)", "g.number(127)"),
        "zero points in the wrong order": (
            "for by in range(0, 8, bits)]",
            "for by in range(8 - bits, -1, -bits)]",
        ),
        "frozen factors are left out": (
            "frozen = factors and store.parts[spec.name].rank > 0",
            "frozen = False",
        ),
    },
    ("finetune/graph/decoder.py", GRADIENTS): {
        "queries see one token ahead": (
            'g.add("Less", age, zero)',
            'g.add("Less", age, g.add("Neg", one))',
        ),
        "frozen factors beside trained ones": (
            'frozen = self.options.mode == "stack" or spec.name not in self.trained',
            "frozen = True",
        ),
    },
    ("finetune/graph/loss.py", GRADIENTS): {
        "ignored tokens are counted in the mean": (
            'number = g.add("Max", g.add("ReduceSum", counts, keepdims=0), g.number(1))',
            'number = g.add("Cast", g.add("Size", "labels"), to=kind(np.float32))',
        ),
        "the sum of a chunk is not rescaled": (
            'shrunk = g.add("Mul", total, g.add("Exp", g.add("Sub", most, new)))',
            "shrunk = total",
        ),
        "the label's own row is forgotten": (
            'total = g.add("Neg", g.add("Mul", rows, self.shares))',
            'total = g.add("Mul", g.add("Mul", rows, self.shares), g.number(0))',
        ),
    },
    ("finetune/graph/step.py", RUNNER): {
        "moments are not corrected for their start": (
            'g.add("Div", x, g.add("Sub", number(1), g.add("Pow", number(beta), "step")))',
            'g.add("Identity", x)',
        ),
        "the gradient is never clipped": ("if options.clip:", "if False:"),
        "weights do not decay": ("if options.weight_decay:", "if False:"),
    },
    ("finetune/graph/runner.py", RUNNER): {
        "a state of another run is taken": ('if about.get("run") != key:', "if False:"),
        "rows come in the order of the file": (
            "np.random.default_rng([seed, e]).permutation(count)",
            "np.arange(count)",
        ),
        "a resumed run begins again": (
            "state = state or session.first_state()",
            "state = session.first_state()",
        ),
    },
    ("export/_onnx_unpack.py", READ_BACK): {
        "mirrored codes stay mirrored": (
            "codes, scales = 2**layout.bits - 1 - codes, -scales",
            "pass",
        ),
        "high bits in the order of the bytes": (
            "high << 2 & 0x44, high << 1 & 0x44, high & 0x44, high >> 1 & 0x44",
            "high >> 1 & 0x44, high & 0x44, high << 1 & 0x44, high << 2 & 0x44",
        ),
        "codes of DequantizeLinear keep their sign": (
            "values = (values ^ 2 ** (layout.bits - 1)) & (2**layout.bits - 1)",
            "values = values & (2**layout.bits - 1)",
        ),
    },
    ("export/onnx_checkpoint.py", READ_BACK): {
        "joined weights all begin at the first row": (
            "return label, sum(rows[: joined.index(name)]), sum(rows)",
            "return label, 0, sum(rows)",
        ),
        "the hidden size is that of config.json": (
            '{**self._read_config(), "hidden_size": about.hidden_size}',
            "{**self._read_config()}",
        ),
    },
}
