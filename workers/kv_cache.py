"""Which sequence owns which KV block (rank 0 only; the blocks themselves live on every rank).

Full blocks are remembered by their tokens and everything before them, so that a later prompt with the same beginning
finds them (prefix caching). A block that no sequence refers to stays findable until its place is needed, least
recently used first.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence as Seq

# A block's content: the identity of the block before it (its tenant's root at the start) and its own tokens. Identities
# are never used twice, so equal keys mean equal prefixes of one tenant, with no hash to collide: nobody can tell by the
# time of a first token what another tenant has sent.
_Key = tuple[int, tuple[int, ...]]


class BlockManager:
    """Reference-counted KV blocks with a prefix cache."""

    def __init__(self, num_blocks: int, block_size: int, prefix_caching: bool = True) -> None:
        self.block_size = block_size
        self.num_blocks = num_blocks
        self._prefix_caching = prefix_caching
        self._references = [0] * num_blocks
        self._unused: OrderedDict[int, None] = OrderedDict.fromkeys(range(num_blocks))
        self._key_of: dict[int, _Key] = {}
        self._block_of: dict[_Key, int] = {}
        self._identity = [0] * num_blocks
        self._last_identity = 0
        self.cached = 0  # blocks that no sequence refers to and a prompt may find

    @property
    def free(self) -> int:
        """Blocks no sequence refers to, those with cached content included."""
        return len(self._unused)

    def blocks_for(self, tokens: int) -> int:
        return -(-tokens // self.block_size)

    def take(self, count: int) -> list[int] | None:
        """`count` blocks with one reference each, or None, and nothing taken, when there are not that many."""
        if count > len(self._unused):
            return None
        taken = []
        for _ in range(count):
            block, _ = self._unused.popitem(last=False)
            self._forget(block)
            self._identity[block] = 0
            self._references[block] = 1
            taken.append(block)
        return taken

    def find_prefix(self, root: int, tokens: Seq[int]) -> list[int]:
        """The cached blocks that `tokens` of the tenant `root` begins with, each with one more reference.

        At least one token is left over: a step has to compute something to sample from.
        """
        found: list[int] = []
        if not self._prefix_caching:
            return found
        before = root
        size = self.block_size
        for start in range(0, (len(tokens) - 1) // size * size, size):
            block = self._block_of.get((before, tuple(tokens[start : start + size])))
            if block is None:
                break
            if self._references[block] == 0:
                del self._unused[block]
                self.cached -= 1
            self._references[block] += 1
            before = self._identity[block]
            found.append(block)
        return found

    def identity(self, block: int) -> int:
        """What `remember` takes as `before` for the block after this one; 0 while its content is not known."""
        return self._identity[block]

    def remember(self, before: int, block: int, tokens: Seq[int]) -> int:
        """Notes that `block` now holds `tokens` after the block of identity `before` (the tenant's root at the start).

        Returns the identity of this content; when another block already holds the same, that one stays the known one.
        """
        if not self._prefix_caching:
            return 0
        key = (before, tuple(tokens))
        known = self._block_of.get(key)
        if known is not None:
            return self._identity[known]
        self._last_identity += 1
        self._identity[block] = self._last_identity
        self._key_of[block] = key
        self._block_of[key] = block
        return self._last_identity

    def release(self, blocks: Seq[int]) -> None:
        """Drops one reference of each block; the last block of a sequence is the first to be reused."""
        for block in reversed(blocks):
            self._references[block] -= 1
            if self._references[block] == 0:
                self._unused[block] = None
                self.cached += block in self._key_of

    def check(self) -> None:
        """Raises AssertionError when the books do not balance (for tests, when idle)."""
        assert all((count == 0) == (block in self._unused) for block, count in enumerate(self._references))
        assert all(self._key_of[block] == key for key, block in self._block_of.items())
        assert len(self._key_of) == len(self._block_of)
        assert self.cached == len(self._key_of.keys() & self._unused.keys())

    def _forget(self, block: int) -> None:
        key = self._key_of.pop(block, None)
        if key is not None:
            del self._block_of[key]
            self.cached -= 1
