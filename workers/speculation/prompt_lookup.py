"""Guesses without a model: a text that repeats its prompt, or itself, goes on as it did before.

Saxena, "Prompt Lookup Decoding", 2023; Yang et al., "Inference with Reference", 2023.
"""

from __future__ import annotations

from workers.sequence import Sequence
from workers.speculation.ngram_index import NgramIndex


class PromptLookup:
    """Keeps some 200 bytes for every token of a running sequence, on rank 0."""

    def __call__(self, sequence: Sequence, most: int) -> list[int]:
        """Up to `most` tokens that may follow the sequence's last."""
        if sequence.index is None:
            sequence.index = NgramIndex()
        return sequence.index.continuation(sequence.tokens, most)
