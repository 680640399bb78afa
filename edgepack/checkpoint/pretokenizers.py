"""Tables of llama.cpp's tokenizer: how text is split before BPE, and which tokens are special."""

from __future__ import annotations

from dataclasses import dataclass

CONTRACTION = "'s|'t|'re|'ve|'m|'ll|'d"
ANY_CASE = "(?:'[sS]|'[tT]|'[rR][eE]|'[vV][eE]|'[mM]|'[lL][lL]|'[dD])"
WORD = r"[^\r\n\p{L}\p{N}]?\p{L}+"
REST = r" ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
MARKS = r"[^\r\n\p{L}\p{N}]?[\p{L}\p{M}]+"
MARKS_REST = r" ?[^\s\p{L}\p{M}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
SLASH_REST = REST.replace(r"[\r\n]*", r"[\r\n/]*", 1)

GPT2 = CONTRACTION + r"| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
LLAMA3 = rf"{ANY_CASE}|{WORD}|\p{{N}}{{1,3}}|{REST}"
QWEN2 = rf"{ANY_CASE}|{WORD}|\p{{N}}|{REST}"
QWEN35 = rf"{ANY_CASE}|{MARKS}|\p{{N}}|{MARKS_REST}"

# Upper and lower case: llama.cpp's approximation, and that of tokenizer.json.
UPPER, LOWER = r"(?:(?=[\p{L}])[^a-z])", r"(?:(?=[\p{L}])[^A-Z])"
UPPER_HF, LOWER_HF = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]", r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]"


def _by_case(upper: str, lower: str, suffix: str, digits: str) -> str:
    start = r"[^\r\n\p{L}\p{N}]?"
    words = rf"{start}{upper}*{lower}+{suffix}|{start}{upper}+{lower}*{suffix}"
    return rf"{words}|{digits}|{SLASH_REST}"


@dataclass(frozen=True)
class Splitting:
    """Regular expressions that are applied in turn, each to the pieces of the one before.

    `patterns` are llama.cpp's; `original` are those of the models' tokenizer.json where they
    differ. `ignore_merges`: a piece that is a token becomes that token, without any merges.
    `add_bos`: llama.cpp's default for files without that key.
    """

    patterns: tuple[str, ...]
    original: tuple[str, ...] | None = None
    ignore_merges: bool = False
    add_bos: bool = False

    def recognises(self, patterns: tuple[str, ...], ignore_merges: bool) -> bool:
        """Whether a tokenizer.json with these patterns splits text in the same way."""
        return ignore_merges == self.ignore_merges and patterns in (self.patterns, self.original)


SPLITTINGS = {
    "gpt-2": Splitting((GPT2,)),
    "smollm": Splitting((r"\p{N}", GPT2)),
    "llama-bpe": Splitting((LLAMA3,), ignore_merges=True, add_bos=True),
    "dbrx": Splitting((LLAMA3,)),
    "qwen2": Splitting((QWEN2,)),
    "qwen35": Splitting((QWEN35,)),
    "tekken": Splitting(
        (_by_case(UPPER, LOWER, "", r"\p{N}"),),
        (_by_case(UPPER_HF, LOWER_HF, "", r"\p{N}"),),
        ignore_merges=True,
        add_bos=True,
    ),
    "gpt-4o": Splitting(
        (_by_case(UPPER, LOWER, ANY_CASE + "?", r"\p{N}{1,3}"),),
        (_by_case(UPPER_HF, LOWER_HF, ANY_CASE + "?", r"\p{N}{1,3}"),),
    ),
    "default": Splitting(
        (r"[\p{P}\$\+<=>\^~\|]+", GPT2, r"\p{N}+", "[0-9][0-9][0-9]"),
    ),
}

ALIASES = {
    "gpt-2": "phi-2 mpt olmo jais gigachat a.x-4.0 mellum modern-bert trillion granite-docling",
    "smollm": "starcoder refact command-r codeshell exaone minerva-7b mellum2",
    "llama-bpe": "llama3 llama-v3 falcon3 falcon-h1 pixtral midm-2.0 lfm2",
    "dbrx": "smaug-bpe",
    "qwen2": "stablelm2 deepseek-r1-qwen megrez hunyuan solar-open kormo f2llmv2 grok-2",
    "gpt-4o": "llama4 kanana2 talkie",
}
"""Other names in ``tokenizer.ggml.pre`` that split text in the same way."""

BY_NAME = SPLITTINGS | {
    alias: SPLITTINGS[name] for name, aliases in ALIASES.items() for alias in aliases.split()
}


CHECK_TEXT = (
    "\n \n\n \n\n\n \t \t\t \t\n  \n   \n    \n     \n🚀 (normal) 😶\u200d🌫\ufe0f (m"
    "ultiple emojis concatenated) ✅ 🦙🦙 3 33 333 3333 3333"
    "3 333333 3333333 33333333 3.3 3..3 3...3 កាន់តែពិសេស"
    "អាច😁 ?我想在apple工作1314151天～ ------======= нещо на Бълг"
    "арски ''''''```````\"\"\"\"......!!!!!!?????? I've been "
    "'told he's there, 'RE you sure? 'M not sure I'll mak"
    "e it, 'D you like some tea? We'Ve a'lL"
)
"""The text that llama.cpp's conversion encodes to recognise a pre-tokenizer …"""

CHECK_HASHES = {
    "0fe1cf6eda062318a1af7270f3331a85c539a01778ff948e24388e949c5282f4": "gpt-2",
    "3ce83efda5659b07b1ad37ca97ca5797ea4285d9b9ab0dc679e4a720c9da7454": "gpt-2",
    "fcace8b9cac38ce847670c970cd5892031a753a1ef381abd1d9af00f713da085": "phi-2",
    "b6dc8df998e1cfbdc4eac8243701a65afe638679230920b50d6f17d81c098166": "olmo",
    "855059429035d75a914d1eda9f10a876752e281a054a7a3d421ef0533e5b6249": "smollm",
    "35d91631860c815f952d711435f48d356ebac988362536bed955d43bfa436e34": "starcoder",
    "6221ad2852e85ce96f791f476e0b390cf9b474c9e3d1362f53a24a06dc8220ff": "refact",
    "9c2227e4dd922002fb81bde4fc02b0483ca4f12911410dee2255e4987644e3f8": "command-r",
    "1431a23e583c97432bc230bff598d103ddb5a1f89960c8f1d1051aaa944d0b35": "minerva-7b",
    "0ef9807a4087ebef797fc749390439009c3b9eda9ad1a097abbe738f486c01e5": "llama-bpe",
    "9d032fcbd5501f4a38150912590928bfb36091efb5df11b8e2124b0390e3fb1e": "falcon3",
    "0e9433cbbb161f89e264eb32e8e64bfe69e834973ffca5d41d3948a604a3e2a3": "pixtral",
    "f6791d196f87ce6b56a7d234be618e0d58f8cda3549416635b2bebcd22cd95c4": "midm-2.0",
    "a8594e3edff7c29c003940395316294b2c623e09894deebbc65f33f1515df79e": "dbrx",
    "c136ed14d01c2745d4f60a9596ae66800e2b61fa45643e72436041855ad4089d": "smaug-bpe",
    "d4540891389ea895b53b399da6ac824becc30f2fba0e9ddbb98f92e55ca0e97c": "qwen2",
    "e636dc30a262dcc0d8c323492e32ae2b70728f4df7dfe9737d9f920a282b8aea": "qwen2",
    "32d85c31273f8019248f2559fed492d929ea28b17e51d81d3bb36fff23ca72b3": "stablelm2",
    "b3f499bb4255f8ca19fccd664443283318f2fd2414d5e0b040fbdd0cc195d6c5": "deepseek-r1-qwen",
    "d4c8f286ea6b520b3d495c4455483cfa2302c0cfcd4be05d781b6a8a0a7cdaf1": "megrez",
    "1444df51289cfa8063b96f0e62b1125440111bc79a52003ea14b6eac7016fd5f": "qwen35",
    "d30d75d9059f1aa2c19359de71047b3ae408c70875e8a3ccf8c5fba56c9d8af4": "qwen35",
    "63b97e4253352e6f357cc59ea5b583e3a680eaeaf2632188c2b952de2588485e": "tekken",
    "ccc2ef013c104be7bae2965776d611e1d7a8a2a9c547dd93a682c9a9fc80352e": "gpt-4o",
    "53e325976a6e142379c19b09afcae354f2f496f147afa8f9e189a33fe4e3024e": "granite-docling",
    "1994ffd01900cfb37395608534236ecd63f2bd5995d6cb1004dda1af50240f15": "trillion",
}
"""… and the sha256 of the token ids, printed as a Python list."""

ENDS = """
<|eot_id|> <|im_end|> <|end|> <end_of_turn> <|endoftext|> <|end_of_text|> <EOT> _<EOT> [EOT]
<｜end▁of▁sentence｜> <end_of_utterance> <|eom_id|> <|return|> <|call|> <|flush|> <|calls|> </s>
[EOS] <eos> <turn|> <|tool_response> [e~[
"""
FILL_IN_THE_MIDDLE = """
<|fim_prefix|> <fim-prefix> <fim_prefix> <｜fim▁begin｜> <PRE> ▁<PRE> <|code_prefix|> <|prefix|>
<|fim_suffix|> <fim-suffix> <fim_suffix> <｜fim▁hole｜> <SUF> ▁<SUF> <|code_suffix|> <|suffix|>
<|fim_middle|> <fim-middle> <fim_middle> <｜fim▁end｜> <MID> ▁<MID> <|code_middle|> <|middle|>
<|fim_pad|> <fim-pad> <fim_pad> <PAD> [PAD] <|fim_repo|> <|repo_name|> <fim-repo> <REPO>
<reponame> <|file_sep|>
"""
ENDS_BY_NAME = frozenset(ENDS.split())
"""Tokens at which llama.cpp always ends an answer, even if the file does not list them."""
CONTROL_LOOKING = ENDS_BY_NAME | frozenset(FILL_IN_THE_MIDDLE.split())
"""Tokens that llama.cpp always treats as control tokens, of any type in the file."""
USER_DEFINED_BY_NAME = frozenset(["<|channel|>", "<|message|>", "<|start|>", "<|constrain|>"])
"""Tokens that llama.cpp always matches whole as text, of any type in the file."""
