"""The functions of csrc/collectives.h."""

from __future__ import annotations

import ctypes
import functools
from ctypes import c_double, c_int, c_long, c_uint32, c_void_p

from workers.native.library import library

Address = int


class Stall(ctypes.Structure):
    """Who was waited for in vain, and the numbers that were wanted and reached."""

    _fields_ = (("peer", c_int), ("wanted", c_uint32), ("reached", c_uint32), ("seconds", c_double))
    peer: int
    wanted: int
    reached: int
    seconds: float


_SIGNATURES = {
    "phx_group_bytes": (c_long, c_int, c_long),
    "phx_group_open": (c_void_p, c_int, c_int, c_int, c_long, c_double, c_double),
    "phx_group_close": (None, c_void_p),
    "phx_group_abort": (None, c_void_p),
    "phx_group_operations": (c_uint32, c_void_p),
    "phx_group_waited": (c_double, c_void_p),
    "phx_group_stall": (None, c_void_p, ctypes.POINTER(Stall)),
    "phx_all_reduce_f32": (c_int, c_void_p, c_void_p, c_long),
    "phx_all_reduce_bf16": (c_int, c_void_p, c_void_p, c_long),
    "phx_all_gather": (c_int, c_void_p, c_void_p, c_void_p, c_long),
    "phx_hand_out": (c_int, c_void_p, c_void_p, c_long),
    "phx_broadcast": (c_int, c_void_p, ctypes.POINTER(c_void_p), ctypes.POINTER(c_long)),
    "phx_channel_bytes": (c_long, c_long),
    "phx_channel_open": (c_void_p, c_int, c_int, c_long, c_double, c_double),
    "phx_channel_close": (None, c_void_p),
    "phx_channel_abort": (None, c_void_p),
    "phx_channel_stall": (None, c_void_p, ctypes.POINTER(Stall)),
    "phx_channel_send": (c_int, c_void_p, c_void_p, c_long),
    "phx_channel_receive": (c_int, c_void_p, c_void_p, c_long),
}


@functools.cache
def native_collectives() -> ctypes.CDLL:
    """The library with its collectives declared; to be asked for where `library()` is there."""
    native = library()
    assert native is not None, "without the library, ranks meet over Gloo"
    for name, (result, *arguments) in _SIGNATURES.items():
        function = getattr(native, name)
        function.restype, function.argtypes = result, arguments
    return native
