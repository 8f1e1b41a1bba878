"""The types of the library's functions for weights, products and stages, and of what draws tokens: see
csrc/weight.h, product.cpp, stage.h, sampling.h."""

from __future__ import annotations

import ctypes
from ctypes import c_float, c_int, c_long, c_void_p

_SIGNATURES = {
    "phx_weight_new": (c_void_p, c_int, c_long, c_long, c_long, c_long, c_int),
    "phx_weight_free": (None, c_void_p),
    "phx_weight_pack_f32": (None, c_void_p, c_void_p, c_long, c_long, c_long),
    "phx_weight_pack_bf16": (None, c_void_p, c_void_p, c_long, c_long, c_long),
    "phx_weight_pack_codes": (None, c_void_p, c_void_p, c_void_p, c_void_p, c_long, c_long, c_long),
    "phx_weight_pack_channels": (None, c_void_p, c_void_p, c_void_p, c_long, c_long, c_long),
    "phx_weight_round": (None, c_void_p, c_void_p, c_long, c_long, c_long, c_void_p, c_void_p),
    "phx_product": (None, c_void_p, c_void_p, c_long, c_void_p, c_int, c_long),
    "phx_skips_zeros": (c_int,),
    "phx_in_matrix_registers": (c_int,),
    "phx_read": (c_float, c_void_p, c_long, c_int, c_long),
    "phx_stage_new": (c_void_p, c_void_p, c_void_p, c_long, c_void_p, c_void_p, c_void_p, c_void_p),
    "phx_stage_free": (None, c_void_p),
    "phx_stage_run": (c_int, c_void_p, c_void_p),
    "phx_team_new": (c_void_p, c_int, c_int),
    "phx_team_free": (None, c_void_p),
    "phx_draw": (c_int, c_void_p, c_void_p, c_void_p, c_void_p, c_void_p),
}


def declare(native: ctypes.CDLL) -> None:
    for name, (result, *arguments) in _SIGNATURES.items():
        function = getattr(native, name)
        function.restype, function.argtypes = result, arguments
