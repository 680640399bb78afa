"""Names of weights in their block, where experts have weights of their own."""


def part_name(role: str, expert: int | None = None) -> str:
    """The role, and behind its stem an expert's index (``ffn_up_exps.3``)."""
    if expert is None:
        return role
    stem, dot, kind = role.partition(".")
    return f"{stem}.{expert}{dot}{kind}"


def stem(name: str) -> str:
    """The role without an expert's index and without ``bias``."""
    return name.partition(".")[0]
