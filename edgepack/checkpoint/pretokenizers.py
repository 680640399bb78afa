r"""Tables of llama.cpp's pre-tokenizers: how text is split before BPE (llm_tokenizer_bpe).

The expressions are Oniguruma's, as in tokenizer.json, and split text as llama.cpp does. llama.cpp
approximates some of them: it knows no upper and lower case outside of ASCII, and it replaces white
space outside of ASCII before it matches expressions without ``\p``.
"""

from __future__ import annotations

from dataclasses import dataclass

CONTRACTION = "'s|'t|'re|'ve|'m|'ll|'d"
ANY_CASE = "(?:'[sS]|'[tT]|'[rR][eE]|'[vV][eE]|'[mM]|'[lL][lL]|'[dD])"
WORD = r"[^\r\n\p{L}\p{N}]?\p{L}+"
REST = r" ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
MARKS = r"[^\r\n\p{L}\p{N}]?[\p{L}\p{M}]+"
MARKS_REST = r" ?[^\s\p{L}\p{M}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
SLASH_REST = REST.replace(r"[\r\n]*", r"[\r\n/]*", 1)
ONE_BREAK_REST = REST.replace(r"\s*[\r\n]+", r"\s*[\r\n]")

GPT2 = CONTRACTION + r"| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
LLAMA3 = rf"{ANY_CASE}|{WORD}|\p{{N}}{{1,3}}|{REST}"
QWEN2 = rf"{ANY_CASE}|{WORD}|\p{{N}}|{REST}"
QWEN35 = rf"{ANY_CASE}|{MARKS}|\p{{N}}|{MARKS_REST}"
LINES = r"[^\n]+|[\n]+"
DIGIT, DIGITS, THREE_DIGITS = r"\p{N}", r"\p{N}+", r"\p{N}{1,3}"
PUNCTUATION = r"[\p{P}\$\+<=>\^~\|`]+"
THREE_ASCII_DIGITS = "[0-9][0-9][0-9]"

# Upper and lower case: llama.cpp's approximation, and that of tokenizer.json.
UPPER, LOWER = r"(?:(?=[\p{L}])[^a-z])", r"(?:(?=[\p{L}])[^A-Z])"
UPPER_MARKS, LOWER_MARKS = (part.replace(r"\p{L}", r"\p{L}\p{M}") for part in (UPPER, LOWER))
UPPER_HF, LOWER_HF = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]", r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]"
NO_CASE = r"[\p{L}\p{M}]"
"""What llama.cpp makes of both, where it reads the expression of tokenizer.json."""

# Chinese, Japanese and Korean.
HAN_KANA = "[\u4e00-\u9fa5\u3040-\u309f\u30a0-\u30ff]+"
HAN_HANGUL = "[\u4e00-\u9fa5\u0800-\u4e00\uac00-\ud7ff&&[^\\s]]+"
HAN_HANGUL_HF = HAN_HANGUL.replace(r"&&[^\s]", "")
HAN = (
    "\u4e00-\u9fff\u3400-\u4dbf\U00020000-\U0002a6df\U0002a700-\U0002ebef\uf900-\ufaff"
    "\U0002f800-\U0002fa1f"
)
SCRIPTS_WITHOUT_SPACES = (
    "[\u4e00-\u9fff\u3400-\u4dbf\u8c48-\ufaff\u3040-\u309f\u30a0-\u30ff\uff65-\uff9f\u2f00-\u2fdf"
    "\u0e40-\u0e7f\u0e80-\u0eff\u1780-\u17ff\u1000-\u109f\uaa60-\uaa7f\ua9e0-\ua9ff\uac00-\ud7af"
    "\u1100-\u11ff]+"
)
YOUTU_SCRIPTS = (
    "[\uac00-\ud7a3\u3131-\u318e]+|[\uff01\u2026\u201c\u201d\u2018\u2019\u2014\uff1a\uff1b\uff0c"
    "\u3001-\u303f\ufe30-\ufe4f]+|[\u3105-\u312f]+|" + HAN_KANA
)
DEEPSEEK_LETTERS = (
    "\\s?[A-Za-z\u00b5\u00c0-\u00d6\u00d8-\u00f6\u00f8-\u01ba\u01bc-\u01bf\u01c4-\u0293\u0295-\u02af"
    "\u0370-\u0373\u0376\u0377\u037b-\u037d\u037f\u0386\u0388-\u038a\u038c\u038e-\u03a1\u03a3-\u03f5"
    "\u03f7-\u0481\u048a-\u052f\u0531-\u0556\u10a0-\u10c5\u13a0-\u13f5\u13f8-\u13fd\u1c90-\u1cba"
    "\u1cbd-\u1cbf\u1d00-\u1d2b\u1d6b-\u1d77\u1d79-\u1d9a\u1e00-\u1f15\u1f18-\u1f1d\u1f20-\u1f45"
    "\u1f48-\u1f4d\u1f50-\u1f57\u1f59\u1f5b\u1f5d\u1f5f-\u1f7d\u1f80-\u1fb4\u1fb6-\u1fbc\u1fbe"
    "\u1fc2-\u1fc4\u1fc6-\u1fcc\u1fd0-\u1fd3\u1fd6-\u1fdb\u1fe0-\u1fec\u1ff2-\u1ff4\u1ff6-\u1ffc"
    "\u2102\u2107\u210a-\u2113\u2115\u2119-\u211d\u2124\u2126\u2128\u212a-\u212d\u212f-\u2134\u2139"
    "\u213c-\u213f\u2145-\u2149\u214e\u2183\u2184\u2c00-\u2c7b\u2c7e-\u2ce4\u2ceb-\u2cee\u2cf2\u2cf3"
    "\ua640-\ua66d\ua680-\ua69b\ua722-\ua76f\ua771-\ua787\ua78b-\ua78e\uab70-\uabbf\ufb00-\ufb06"
    "\ufb13-\ufb17\uff21-\uff3a\uff41-\uff5a\U00010400-\U0001044f\U000104b0-\U000104d3\U000104d8-\U000104fb"
    "\U00010c80-\U00010cb2\U00010cc0-\U00010cf2\U000118a0-\U000118df\U0001e900-\U0001e943]+"
)
DEEPSEEK_SIGNS_HF = "\\s?[!-/:-~\uff01-\uff0f\uff1a-\uff5e\u2018-\u201f\u3000-\u3002]+"
DEEPSEEK_SIGNS = DEEPSEEK_SIGNS_HF.replace("\u3000", "\u3001")

CODE_WORDS = (
    r"""[!"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+|[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+|"""
)
DEEPSEEK3 = CODE_WORDS + r" ?[\p{P}\p{S}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
NOT_BLOOMS_SIGNS = " ?[^(\\s|.,!?\u2026\u3002\uff0c\u3001\u0964\u06d4\u060c)]+"

# Digits in groups of three from the right: "1234567" is 1, 234, 567. llama.cpp leaves the text
# before the digits in one piece with their first group; later expressions cut there.
GROUPS_HF = r"\d{1,3}(?=(?:\d{3})*\b)"
GROUPS = r"\P{N}*\p{N}{1,3}(?=(?:\p{N}{3})*(?!\p{N}))|\P{N}+"


def _by_case(upper: str, lower: str, suffix: str, digits: str) -> str:
    start = r"[^\r\n\p{L}\p{N}]?"
    words = rf"{start}{upper}*{lower}+{suffix}|{start}{upper}+{lower}*{suffix}"
    return rf"{words}|{digits}|{SLASH_REST}"


@dataclass(frozen=True)
class Splitting:
    """Regular expressions that are applied in turn, each to the pieces of the one before.

    `patterns` are llama.cpp's; `original` are those of the models' tokenizer.json where they
    differ. `ignore_merges`: a piece that is a token becomes that token, without any merges.
    `add_bos`: llama.cpp's default for files without that key; `always_bos`: whatever the key says.
    `raw`: tokens are texts with ▁ for blanks, and bytes like ``<0x0A>`` for unknown characters, not
    GPT-2's printable bytes. `whole_breaks`: line ends that are a token become that token.
    """

    patterns: tuple[str, ...]
    original: tuple[str, ...] | None = None
    ignore_merges: bool = False
    add_bos: bool = False
    always_bos: bool = False
    raw: bool = False
    whole_breaks: bool = False

    def recognises(self, patterns: tuple[str, ...], ignore_merges: bool) -> bool:
        """Whether a tokenizer.json with these patterns splits text in the same way."""
        own = [tuple(map(canonical, p)) for p in (self.patterns, self.original) if p]
        return ignore_merges == self.ignore_merges and tuple(map(canonical, patterns)) in own


SPLITTINGS = {
    "gpt-2": Splitting((GPT2,)),
    "smollm": Splitting((DIGIT, GPT2)),
    "llama-bpe": Splitting((LLAMA3,), ignore_merges=True, add_bos=True),
    "dbrx": Splitting((LLAMA3,)),
    "qwen2": Splitting((QWEN2,)),
    "qwen35": Splitting((QWEN35,)),
    "tekken": Splitting(
        (_by_case(UPPER, LOWER, "", DIGIT),),
        (_by_case(UPPER_HF, LOWER_HF, "", DIGIT),),
        ignore_merges=True,
        add_bos=True,
    ),
    "gpt-4o": Splitting(
        (_by_case(UPPER, LOWER, ANY_CASE + "?", THREE_DIGITS),),
        (_by_case(UPPER_HF, LOWER_HF, ANY_CASE + "?", THREE_DIGITS),),
    ),
    "deepseek-v3": Splitting((THREE_DIGITS, HAN_KANA, DEEPSEEK3)),
    "minicpm5": Splitting((THREE_DIGITS, LLAMA3.replace(THREE_DIGITS, DIGITS)), ignore_merges=True),
    "glm4": Splitting((LLAMA3,), ignore_merges=True),
    "seed-coder": Splitting(
        (
            rf"{ANY_CASE}|{WORD}|\p{{N}}{{1}}"
            r"| ?[^\s\p{L}\p{N}\r\n]+|\s*[\r\n]+|\s+(?!\S)|\s+",
        ),
    ),
    "bailingmoe": Splitting(
        (
            r"'(?:[sSdDmMtT]|[lL][lL]|[vV][eE]|[rR][eE])"
            rf"|{WORD}|\p{{N}}|{ONE_BREAK_REST}",
        )
    ),
    "exaone-moe": Splitting(
        (
            rf"{ANY_CASE}|[^\r\n\p{{L}}\p{{N}}]?(?:\p{{L}}\p{{M}}*(?: \p{{L}}\p{{M}}*)*)+|\p{{N}}|"
            + ONE_BREAK_REST.replace(r"[\r\n]*", r"[\r\n/]?", 1),
        )
    ),
    "deepseek-llm": Splitting(
        (r"[\r\n]", DEEPSEEK_LETTERS, DEEPSEEK_SIGNS, r"\s+$", HAN_HANGUL, DIGITS),
        (r"[\r\n]", DEEPSEEK_LETTERS, DEEPSEEK_SIGNS_HF, r"\s+$", HAN_HANGUL_HF, DIGIT),
    ),
    "deepseek-coder": Splitting(
        (r"[\r\n]", r"\s?\p{L}+", r"\s?\p{P}+", HAN_HANGUL, DIGIT),
        (r"[\r\n]", r"\s?\p{L}+", r"\s?\p{P}+", HAN_HANGUL_HF, DIGIT),
    ),
    "spark2_5": Splitting(
        (
            THREE_DIGITS,
            HAN_KANA,
            CODE_WORDS + r" ?[\p{P}\p{S}]+|[\r\n]|\s+(?!\S)|\s+",
            DIGIT,
        )
    ),
    "youtu": Splitting(
        (YOUTU_SCRIPTS, _by_case(NO_CASE, NO_CASE, ANY_CASE + "?", DIGIT)),
        (YOUTU_SCRIPTS, _by_case(UPPER_HF, LOWER_HF, ANY_CASE + "?", DIGIT)),
        ignore_merges=True,
    ),
    "tiny_aya": Splitting(
        (GROUPS, _by_case(NO_CASE, NO_CASE, ANY_CASE + "?", THREE_DIGITS)),
        (GROUPS_HF, _by_case(UPPER_HF, LOWER_HF, ANY_CASE + "?", THREE_DIGITS)),
    ),
    "afmoe": Splitting((GROUPS, SCRIPTS_WITHOUT_SPACES, DEEPSEEK3)),
    "kimi-k2": Splitting(
        (rf"[{HAN}]+|[^\r\n\p{{L}}\p{{N}}]?[\p{{L}}&&[^{HAN}]]+{ANY_CASE}?|\p{{N}}{{1,3}}|{REST}",)
    ),
    "granite-embed-multi-97m": Splitting(
        (_by_case(UPPER_MARKS, LOWER_MARKS, ANY_CASE + "?", THREE_DIGITS),),
        (_by_case(UPPER_HF, LOWER_HF, ANY_CASE + "?", THREE_DIGITS),),
        ignore_merges=True,
    ),
    "jais-2": Splitting(
        (
            LLAMA3.removesuffix(r"\s+(?!\S)|\s+")
            + "".join(rf"\s{{{2**n}}}(?!\S)|" for n in range(9, 1, -1))
            + r"\s{1,2}(?!\S)|\s{1}",
        )
    ),
    "ufakzeka": Splitting((rf"{WORD}|\p{{N}}|{REST}",)),
    "laguna": Splitting((LINES, QWEN2)),
    "falcon": Splitting((PUNCTUATION, GPT2, THREE_ASCII_DIGITS)),
    "bloom": Splitting((NOT_BLOOMS_SIGNS,)),
    "viking": Splitting((NOT_BLOOMS_SIGNS, DIGIT)),
    "chameleon": Splitting(
        (
            "<sentinel:[0-9]+>",
            "(IMGIMG)((A|B|C|D|E|F|G|H|I){1,4})Z",
            r"([\t\n]|    |  )",
            DIGIT,
            r"[\p{P}!-/:-@\[-`{-~]",
            GPT2,
        ),
        add_bos=True,
    ),
    "superbpe": Splitting((DIGITS, r"(?=([0-9]{3})+(?![0-9]))"), (DIGITS, r"(?=(\d{3})+(?!\d))")),
    "gemma4": Splitting((LINES,), always_bos=True, raw=True, whole_breaks=True),
    "sarvam-moe": Splitting((LINES,), raw=True),
    "default": Splitting((r"[\p{P}\$\+<=>\^~\|]+", GPT2, DIGITS, THREE_ASCII_DIGITS)),
}

ALIASES = {
    "gpt-2": "phi-2 mpt olmo jais gigachat a.x-4.0 mellum modern-bert trillion granite-docling "
    "exaone4 jina-es jina-de jina-v2-es jina-v2-de jina-v1-en jina-v2-code roberta-bpe",
    "smollm": "starcoder refact command-r codeshell exaone minerva-7b mellum2",
    "llama-bpe": "llama3 llama-v3 falcon3 falcon-h1 pixtral midm-2.0 lfm2 jina-v5-nano",
    "dbrx": "smaug-bpe chatglm-bpe",
    "glm4": "glm5",
    "qwen2": "stablelm2 deepseek-r1-qwen megrez hunyuan solar-open kormo f2llmv2 grok-2",
    "gpt-4o": "llama4 kanana2 talkie minimax-m2",
    "deepseek-v3": "hunyuan-dense joyai-llm hy_v4",
    "bailingmoe": "bailingmoe2 llada-moe",
    "bloom": "poro-chat gpt3-finnish",
    "tiny_aya": "cohere2moe",
    "gemma4": "granite-embed-multi-311m",
}
"""Other names in ``tokenizer.ggml.pre`` that split text in the same way."""

BY_NAME = SPLITTINGS | {
    alias: SPLITTINGS[name] for name, aliases in ALIASES.items() for alias in aliases.split()
}
"""All names of byte-pair tokenizers in llama.cpp but ``whitespace``, which cuts words."""

SPELLINGS = {
    f"(?i:{CONTRACTION})": ANY_CASE,
    "'(?i:[sdmt]|ll|ve|re)": "'(?:[sSdDmMtT]|[lL][lL]|[vV][eE]|[rR][eE])",
    "\r": r"\r",
    "\n": r"\n",
    "\t": r"\t",
    "]?+": "]?",  # possessive: what follows cannot match the same characters
    "]++": "]+",
}
"""Parts of the models' expressions → the spelling in the tables above."""


def canonical(pattern: str) -> str:
    """An expression in the spelling of the tables above."""
    for found, ours in SPELLINGS.items():
        pattern = pattern.replace(found, ours)
    return pattern
