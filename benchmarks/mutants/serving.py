"""Breaks of what serves a packed model, and of the lines that run it elsewhere."""

from __future__ import annotations

from benchmarks.mutants._base import Groups

SERVE = "tests/cli/test_serve.py"

GROUPS: Groups = {
    ("runtimes/served_llama.py", SERVE): {
        "keys and values stay when adapters change": (
            "self._scales = wanted\n            self._forget()",
            "self._scales = wanted",
        ),
        "adapters stay on": ("if wanted != self._scales:", "if any(wanted) or not self._scales:"),
        "logits that were never kept": ("self._forget()  # no", "pass  # no"),
        "Ctrl-C waits for the answer": (" or self._stopped.is_set()", ""),
        "a context of more tokens than there is room for": (
            "self.context = self._n_ctx = context",
            "self.context = self.n_ctx()",
        ),
        "a stream waits for bytes that are no text": (
            'codecs.getincrementaldecoder("utf-8")("replace")',
            'codecs.getincrementaldecoder("utf-8")("surrogateescape")',
        ),
        "a bad grammar ends the process": ("if not sampler:", "if False:"),
    },
    ("runtimes/served_llama.py", "tests/runtimes/test_chat_files.py"): {
        "two first tokens": ("while text.startswith(2 * first):", "while False:"),
        "no first token": ("return first + text", "return text"),
        "further ends are not heeded": ("token in self._more_ends or ", ""),
        "AMX where it kills": ("value.use_extra_bufts = extra_buffers_are_safe()", "pass"),
    },
    ("runtimes/serve.py", SERVE): {
        "no key is asked for": ("api_key is not None and not", "False and not"),
        "one adapter of two": ('.split("+")', '.split("+")[:1]'),
        "prompts of any length": ("if length >= llama.context:", "if False:"),
    },
    ("export/modelfile.py", "tests/export/test_modelfile.py"): {
        "quotation marks in quotation marks": ('"""\' if \'"\' in stop or', '"""\' if'),
        "no word about ADAPTER": ('lines += [f"# Ollama', 'lines += 0 * [f"# Ollama'),
    },
    ("targets/gguf.py", "tests/targets/test_gguf.py"): {
        "paths with spaces": ("return shlex.quote(quoted)", "return quoted"),
        "paths with commas": ("if set(text) & set('\",') else text", "if False else text"),
        "a line for LM Studio without L and R": ("if not ranked:", "if True:"),
        "nothing said while planning": ("return programs.refusals(", "return [] and programs("),
    },
}
