"""What torch's flight recorder knows of a rank that stands still: the collectives it has begun and not ended.

The recorder is on by itself, and keeps the last operations of every process group of the process, be it of NCCL or of
Gloo (see torch/csrc/distributed/c10d/FlightRecorder.hpp for the fields).
"""

from __future__ import annotations

import json
import time
from typing import Any

from torch._C import _distributed_c10d

_MOST = 3  # to be named; what is behind the first waits for it


def unfinished() -> str:
    """In words, the oldest first; empty when there are none. Takes some milliseconds."""
    entries = json.loads(_distributed_c10d._dump_fr_trace_json()).get("entries", [])  # type: ignore[attr-defined]
    waiting = sorted((entry for entry in entries if not entry["retired"]), key=lambda entry: entry["time_created_ns"])
    more = f" and {len(waiting) - _MOST} more" if len(waiting) > _MOST else ""
    return ", ".join(_in_words(entry) for entry in waiting[:_MOST]) + more


def _in_words(entry: dict[str, Any]) -> str:
    number = entry["p2p_seq_id" if entry["is_p2p"] else "collective_seq_id"]
    age = (time.time_ns() - entry["time_created_ns"]) / 1e9
    return f"{entry['profiling_name']} {number} of {entry['process_group'][0]} ({entry['state']} {age:.1f} s ago)"
