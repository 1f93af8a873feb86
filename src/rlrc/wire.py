"""Messages with arrays in them, as robots and policy servers send them to each other. Nothing is ever unpickled.

- msgpack as openpi writes it: an array is {b"__ndarray__": True, b"data", b"dtype", b"shape"}, a number of numpy
  {b"__npgeneric__": True, b"data", b"dtype"}; both with keys of bytes.
- msgpack as vla-eval writes it: the same array with keys of text, and pictures {"__image__": True, "format", "data",
  "shape"} as PNG, JPEG or raw bytes.
- JSON as json-numpy writes it: {"__numpy__": base64, "dtype", "shape"}.

What comes from outside is bounded before memory is taken for it: the entries of a message, its depth, the size of
arrays and pictures. This file needs numpy and msgpack alone, so that a robot's computer can do without torch.
"""

import base64
import binascii
import io
import json
import math
from collections.abc import Callable
from typing import Any

import msgpack
import numpy as np

from rlrc.errors import shorten

MAX_ENTRIES = 100_000
"""Largest number of values and keys in a message, not counting what lies in arrays."""
MAX_KEYS = 1000
"""Largest number of keys of one mapping."""
MAX_DIMENSIONS = 8
MAX_PIXELS = 2**24
"""Largest number of pixels of all compressed pictures of a message together."""
_NUMBERS = "biuf"
"""Kinds of numpy's dtypes that travel: truth values, integers and floating-point numbers."""


class WireError(ValueError):
    """A message is damaged, too large, or holds what does not travel: the text says so in one line."""


def pack(value: Any, keys: type[bytes] | type[str] = bytes) -> bytes:
    """Write msgpack.

    Args:
        keys: bytes as openpi has them, or str as vla-eval.

    Raises:
        WireError: an array holds objects or complex numbers, or a value is of a kind that does not travel.
    """

    def plain(item: Any) -> Any:
        if isinstance(item, np.ndarray | np.generic) and item.dtype.kind not in _NUMBERS:
            raise WireError(f"arrays of dtype {item.dtype} do not travel")
        if isinstance(item, np.generic):
            return item.item()
        if not isinstance(item, np.ndarray):
            raise WireError(f"values of type {type(item).__name__} do not travel")
        fields = {"__ndarray__": True, "data": item.tobytes(), "dtype": item.dtype.str, "shape": item.shape}
        return {name.encode() if keys is bytes else name: field for name, field in fields.items()}

    return msgpack.packb(value, default=plain)


def unpack(data: bytes) -> Any:
    """Read msgpack with arrays of either kind.

    Raises:
        WireError: see there.
    """
    count = _Count()

    def mapping(item: dict[Any, Any]) -> Any:
        count.add(len(item))
        for name, read in _READERS.items():
            if item.get(name) is True or item.get(name.encode()) is True:
                return read(_fields(item), count)
        return item

    def array(item: list[Any]) -> list[Any]:
        count.add(len(item))
        return item

    try:
        return msgpack.unpackb(
            data, object_hook=mapping, list_hook=array, max_map_len=MAX_KEYS, max_array_len=MAX_ENTRIES, max_ext_len=0
        )
    except WireError:
        raise
    except (ValueError, msgpack.UnpackException, RecursionError, TypeError, KeyError) as error:
        # msgpack tells of truncated, too deep and too large messages by errors of many classes.
        reason = shorten(str(error)) or type(error).__name__
        raise WireError(f"the message is no msgpack that can be read ({reason})") from error


def pack_json(value: Any) -> str:
    """Write JSON with arrays as json-numpy does.

    Raises:
        WireError: as `pack`.
    """

    def plain(item: Any) -> Any:
        if not isinstance(item, np.ndarray | np.generic) or item.dtype.kind not in _NUMBERS:
            raise WireError(f"values of type {getattr(item, 'dtype', type(item).__name__)} do not travel")
        return {
            "__numpy__": base64.b64encode(item.tobytes()).decode(),
            "dtype": item.dtype.str,
            "shape": list(item.shape),
        }

    return json.dumps(value, default=plain)


def unpack_json(text: str) -> Any:
    """Read JSON with arrays as json-numpy writes them.

    Raises:
        WireError: see there.
    """
    if text.count(",") > MAX_ENTRIES or text.count("[") + text.count("{") > MAX_ENTRIES:
        raise WireError(f"the message has more than {MAX_ENTRIES:,} values; send arrays as json-numpy writes them")

    def mapping(item: dict[str, Any]) -> Any:
        if isinstance(item.get("__numpy__"), str):
            return _array(item | {"data": base64.b64decode(item["__numpy__"], validate=True)})
        return item

    try:
        return json.loads(text, object_hook=mapping)
    except WireError:
        raise
    except (ValueError, RecursionError, TypeError, KeyError, binascii.Error) as error:
        raise WireError(f"the message is no JSON that can be read ({shorten(str(error))})") from error


class _Count:
    """Counts the entries of a message, and the pixels of its compressed pictures, while it is read."""

    def __init__(self) -> None:
        self.entries = self.pixels = 0

    def add(self, entries: int) -> None:
        self.entries += entries
        if self.entries > MAX_ENTRIES:
            raise WireError(f"the message has more than {MAX_ENTRIES:,} values")

    def add_picture(self, width: int, height: int) -> None:
        self.pixels += width * height
        if self.pixels > MAX_PIXELS:
            raise WireError(
                f"a picture has {width} x {height} pixels; at most {MAX_PIXELS:,} are read of all in a message"
            )


def _fields(item: dict[Any, Any]) -> dict[str, Any]:
    return {key.decode("ascii", "replace") if isinstance(key, bytes) else key: value for key, value in item.items()}


def _array(fields: dict[str, Any], count: _Count | None = None) -> np.ndarray:
    """An array from its bytes, dtype and shape; it lies in the message's own memory and cannot be written to."""
    dtype, shape, data = _dtype(fields), fields.get("shape"), fields.get("data")
    if not isinstance(shape, list | tuple) or len(shape) > MAX_DIMENSIONS:
        raise WireError(f"an array's shape must be a list of at most {MAX_DIMENSIONS} whole numbers")
    if any(type(side) is not int or side < 0 for side in shape):
        raise WireError(f"an array's shape must be whole numbers, not {shorten(str(shape))}")
    if not isinstance(data, bytes) or math.prod(shape) * dtype.itemsize != len(data):
        size = len(data) if isinstance(data, bytes) else "no"
        raise WireError(f"an array of shape {shorten(str(list(shape)))} and dtype {dtype} came with {size} bytes")
    array = np.frombuffer(data, dtype).reshape(shape)
    return array if dtype.isnative else array.astype(dtype.newbyteorder("="))


def _dtype(fields: dict[str, Any]) -> np.dtype:
    name = fields.get("dtype")
    if not isinstance(name, str) or len(name) > 16:
        raise WireError("an array's dtype must be a text such as <f4")
    try:
        dtype = np.dtype(name)
    except (TypeError, ValueError, SyntaxError) as error:
        raise WireError(f"there is no dtype '{shorten(name)}'") from error
    if dtype.kind not in _NUMBERS or dtype.itemsize > 8:
        raise WireError(f"arrays of dtype {dtype} do not travel")
    return dtype


def _number(fields: dict[str, Any], count: _Count) -> np.generic:
    dtype, value = _dtype(fields), fields.get("data")
    if not isinstance(value, bool | int | float):
        raise WireError("a number of numpy came without its value")
    try:
        return dtype.type(value)
    except OverflowError as error:
        raise WireError(f"the number {value} does not fit into {dtype}") from error


def _picture(fields: dict[str, Any], count: _Count) -> np.ndarray:
    """A picture uint8 (H, W, 3), or (H, W) in grey."""
    kind, data = fields.get("format"), fields.get("data")
    if kind == "raw":
        return _array(fields)
    if kind not in ("png", "jpeg") or not isinstance(data, bytes):
        raise WireError("a picture's format must be png, jpeg or raw, and its data bytes")
    from PIL import Image, UnidentifiedImageError

    try:
        with Image.open(io.BytesIO(data), formats=(kind.upper(),)) as picture:
            count.add_picture(picture.width, picture.height)
            return np.asarray(picture if picture.mode == "L" else picture.convert("RGB"))
    except (UnidentifiedImageError, Image.DecompressionBombError, OSError, ValueError, SyntaxError) as error:
        if isinstance(error, WireError):
            raise
        raise WireError(f"a picture is no {kind} that can be read ({shorten(str(error))})") from error


_READERS: dict[str, Callable[[dict[str, Any], _Count], Any]] = {
    "__ndarray__": _array,
    "__npgeneric__": _number,
    "__image__": _picture,
}
