"""Does the plan's share of the model fit the memory that is free now?"""

from __future__ import annotations

from cluster.doctor.finding import Finding, failed, ok
from partitioning.topology import usable_memory


def memory(needed: int) -> Finding:
    """`needed` are bytes of weights and KV cache of all ranks of this host."""
    free = usable_memory()
    if not needed:
        return ok("memory", f"{free / 1e9:.1f} GB free")
    text = f"{free / 1e9:.1f} GB free, {needed / 1e9:.1f} GB needed for weights and KV cache"
    if needed <= free:
        return ok("memory", text)
    return failed("memory", text, "end what uses memory there, or lower kv_cache_tokens, or use more nodes")
