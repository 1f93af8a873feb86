"""The compiled library of products with packed weights."""

from ctypes import c_int, c_int64, c_void_p
from pathlib import Path

from rlrc.native.build import Native
from rlrc.native.processor import level

HERE = Path(__file__).parent
_WEIGHT = (c_void_p, c_void_p, c_void_p, c_int64, c_int64, c_int64, c_int64)
LIBRARY = Native(
    name="kernels",
    sources=(HERE / "product.cpp", HERE / "decode.cpp"),
    headers=tuple(sorted(HERE.glob("*.h"))),
    level=level,
    functions={
        "packed_product": (*_WEIGHT, c_int, c_void_p, c_int64, c_void_p, c_void_p, c_int),
        "decode_token": (c_void_p, c_int64, c_void_p, c_int),
    },
)
