"""Instructions that a policy does not read to their end, told before one is loaded. No torch.

Once a run names its policy, :meth:`~zk0d.learning.policies.base.LoadedPolicy.cut_instructions`
counts with the policy's own tokenizer.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator

from huggingface_hub import try_to_load_from_cache
from tokenizers import Tokenizer

from zk0d.config.families import FAMILIES

#: An English word has about one token; one that is longer is taken to have a token for so many
#: letters.
LETTERS = 4
_PIECE = re.compile(r"[A-Za-z]+|[^\sA-Za-z]|\n")


def estimated_tokens(instruction: str) -> int:
    """How many tokens an instruction has, rather too many than too few.

    A letter beyond ASCII counts as its bytes, because tokenizers of English know few others. Digits
    and punctuation count as one each.
    """
    return sum(
        -(-len(piece) // LETTERS) if piece.isascii() and piece.isalpha() else len(piece.encode())
        for piece in _PIECE.findall(instruction)
    )


def cut_instructions(instructions: Iterable[str]) -> Iterator[str]:
    """By policy family that reads instructions and cuts some of these: a sentence."""
    distinct = set(instructions)
    for name, family in FAMILIES.items():
        if not family.reads_tokens:
            continue
        counted = _counter(family.tokenizer)
        # It reads the end of the line, too.
        long = sum((counted or estimated_tokens)(f"{i}\n") > family.reads_tokens for i in distinct)
        if not long:
            continue
        are, why = "are", ""
        if counted is None:
            are = "may be"
            why = f" (estimated, because {family.tokenizer}'s tokenizer is not in the hub's cache)"
        yield (
            f"{long} of {len(distinct)} instructions {are} longer than the {family.reads_tokens}"
            f" tokens that policy '{name}' reads{why}; the rest of each is cut."
        )


def _counter(name: str) -> Callable[[str], int] | None:
    """Counts tokens as a tokenizer in the hub's cache does; ``None`` if it is not there."""
    path = try_to_load_from_cache(name, "tokenizer.json")
    if not isinstance(path, str):
        return None
    try:
        tokenizer = Tokenizer.from_file(path)
    except Exception:  # what the library raises is a plain Exception
        return None
    tokenizer.no_truncation()
    return lambda text: len(tokenizer.encode(text).ids)
