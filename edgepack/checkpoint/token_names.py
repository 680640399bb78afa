"""Tokens that llama.cpp knows by their names, whatever their type in the file."""

from __future__ import annotations

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
TEXT_BESIDE = {"</s>": (frozenset(["<|tool_response>"]),)}
"""Tokens of the lists above that are plain text if another token is there (Gemma 4) …"""
MATCHED_BESIDE = {
    "<|end|>": (
        frozenset(["<|return|>", "<|call|>"]),
        frozenset(["<|call|>", "<|flush|>"]),
        frozenset(["<|calls|>", "<|flush|>"]),
    )
}
"""… and those that end no answer beside all of a set of others (gpt-oss, Solar)."""
_VISIBLE = "<|channel> <channel|> <|tool_call> <tool_call|> <|tool_response> <tool_response|>"
GEMMA4_VISIBLE = frozenset([*_VISIBLE.split(), '<|"|>'])
"""Special tokens of Gemma 4 that llama.cpp's conversion stores as text, so that answers show
them."""

STRIPPING_NAMES = ("phi-3", "phi3")
"""Whitespace after special tokens is dropped if ``general.name`` contains one of these …"""
NOT_STRIPPING = ("<unk>", "<s>", "<|endoftext|>")
"""… except after these tokens. llama.cpp cannot load such a file without them or ``</s>``."""
