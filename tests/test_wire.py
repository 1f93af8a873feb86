"""Messages with arrays, against the formats of openpi, vla-eval and json-numpy written out by hand."""

import base64
import io
import json
import struct

import msgpack
import numpy as np
import pytest
from PIL import Image

from rlrc.wire import MAX_ENTRIES, WireError, pack, pack_json, unpack, unpack_json

ARRAYS = [
    np.arange(12, dtype=np.uint8).reshape(2, 2, 3),
    np.linspace(-1, 1, 7, dtype=np.float32),
    np.array(3.5),
    np.zeros((0, 4), np.int64),
    np.array([True, False]),
    np.arange(6, dtype=">i4").reshape(2, 3),
    np.arange(6, dtype=np.float16)[::2],
]


@pytest.mark.parametrize("array", ARRAYS, ids=str)
@pytest.mark.parametrize("keys", [bytes, str])
def test_arrays_come_back(array: np.ndarray, keys: type) -> None:
    back = unpack(pack({"a": array, "n": [1, "x", None]}, keys))
    assert back["a"].shape == array.shape and back["a"].dtype == array.dtype.newbyteorder("=")
    np.testing.assert_array_equal(back["a"], array)
    assert back["n"] == [1, "x", None]
    np.testing.assert_array_equal(unpack_json(pack_json(array)), array)


def test_openpis_bytes() -> None:
    """As openpi_client.msgpack_numpy writes them: keys of bytes, the dtype as text, the shape as a tuple."""
    array = np.arange(6, dtype=np.float32).reshape(2, 3)
    fields = {b"__ndarray__": True, b"data": array.tobytes(), b"dtype": "<f4", b"shape": (2, 3)}
    assert pack({"state": array}) == msgpack.packb({"state": fields})
    np.testing.assert_array_equal(unpack(msgpack.packb({"state": fields}))["state"], array)
    number = {b"__npgeneric__": True, b"data": 2.5, b"dtype": "<f4"}
    assert unpack(msgpack.packb(number)) == np.float32(2.5)


@pytest.mark.parametrize("kind", ["png", "jpeg", "raw"])
def test_vla_evals_pictures(kind: str) -> None:
    picture = np.random.default_rng(0).integers(0, 256, (20, 30, 3), np.uint8)
    fields = {"__image__": True, "format": kind, "shape": [20, 30, 3]}
    if kind == "raw":
        fields |= {"data": picture.tobytes(), "dtype": "|u1"}
    else:
        file = io.BytesIO()
        Image.fromarray(picture).save(file, kind.upper(), **({"quality": 95} if kind == "jpeg" else {}))
        fields["data"] = file.getvalue()
    back = unpack(msgpack.packb({"images": {"agentview": fields}}))["images"]["agentview"]
    assert back.shape == picture.shape and back.dtype == np.uint8
    if kind != "jpeg":
        np.testing.assert_array_equal(back, picture)


def test_json_numpys_text() -> None:
    array = np.array([[1.5, -2.0]], np.float32)
    text = {"__numpy__": base64.b64encode(struct.pack("<2f", 1.5, -2.0)).decode(), "dtype": "<f4", "shape": [1, 2]}
    assert json.loads(pack_json(array)) == text
    np.testing.assert_array_equal(unpack_json(json.dumps({"state": text}))["state"], array)


def of(dtype: object = "<f4", shape: object = (2,), data: object = b"\0" * 8) -> bytes:
    return msgpack.packb({b"__ndarray__": True, b"data": data, b"dtype": dtype, b"shape": shape})


def nested(depth: int) -> bytes:
    return b"\x91" * depth + b"\xc0"


BOMB = io.BytesIO()
Image.new("L", (8192, 8192)).save(BOMB, "PNG")
BAD = {
    "nothing": b"",
    "cut-off": pack({"a": np.zeros(100)})[:-5],
    "two": msgpack.packb(1) + msgpack.packb(2),
    "reserved": b"\xc1",
    "deep": nested(100_000),
    "million-keys": b"\xdf" + struct.pack(">I", 10**6) + b"\x01\x01" * 10**6,
    "claimed-keys": b"\xdf" + struct.pack(">I", 2**32 - 1),
    "claimed-list": b"\xdd" + struct.pack(">I", 2**32 - 1),
    "claimed-bytes": b"\xc6" + struct.pack(">I", 2**30),
    "many-values": msgpack.packb([[0] * 1000] * (MAX_ENTRIES // 1000 + 1)),
    "extension": msgpack.packb(msgpack.ExtType(5, b"abc")),
    "timestamp": msgpack.packb(msgpack.Timestamp(1, 1)),
    "list-as-key": b"\x81\x91\x01\x01",
    "objects": of("|O"),
    "record": of([["a", "<f4"]]),
    "text": of("<U2"),
    "complex": of("<c16", (1,), b"\0" * 16),
    "long-double": of("<f16", (1,), b"\0" * 16),
    "no-dtype": of("nonsense"),
    "code": of("i4,(f4"),
    "dtype-number": of(7),
    "short": of(shape=(3,)),
    "huge": of(shape=(2**40, 2**40)),
    "negative": of(shape=(-1,)),
    "shape-text": of(shape="2"),
    "shape-float": of(shape=(2.0,)),
    "shape-true": of(shape=(True, 2)),
    "dimensions": of(shape=(1,) * 40 + (2,)),
    "data-text": of(data="abcdefgh"),
    "data-none": of(data=None),
    "number-list": msgpack.packb({b"__npgeneric__": True, b"data": [1], b"dtype": "<f4"}),
    "number-too-large": msgpack.packb({b"__npgeneric__": True, b"data": 300, b"dtype": "|u1"}),
    "no-picture": msgpack.packb({"__image__": True, "format": "png", "data": b"abc", "shape": [1]}),
    "gif": msgpack.packb({"__image__": True, "format": "gif", "data": b"GIF89a", "shape": [1]}),
    "not-what-it-says": msgpack.packb({"__image__": True, "format": "jpeg", "data": BOMB.getvalue(), "shape": [1]}),
    "bomb": msgpack.packb({"__image__": True, "format": "png", "data": BOMB.getvalue(), "shape": [8192, 8192]}),
}


def test_the_pictures_of_a_message_are_bounded_together() -> None:
    data = io.BytesIO()
    Image.new("1", (2048, 2048)).save(data, "PNG")
    pictures = [{"__image__": True, "format": "png", "data": data.getvalue(), "shape": [2048, 2048]}] * 5
    assert len(data.getvalue()) < 2000
    assert len(unpack(msgpack.packb(pictures[:4]))) == 4
    with pytest.raises(WireError, match="of all in a message"):
        unpack(msgpack.packb(pictures))


@pytest.mark.parametrize("name", BAD)
def test_bad_messages_are_told_in_one_line(name: str) -> None:
    with pytest.raises(WireError) as refusal:
        unpack(BAD[name])
    assert 5 < len(str(refusal.value)) < 300 and "\n" not in str(refusal.value)


BAD_JSON = {
    "nothing": "",
    "cut-off": '{"a": [1, 2',
    "deep": "[" * 50_000,
    "many-values": "[" + "0," * (MAX_ENTRIES + 1) + "0]",
    "many-lists": "[" + "[]" * (MAX_ENTRIES + 1),
    "long-number": "1" * 5000,
    "base64": '{"__numpy__": "%%%", "dtype": "<f4", "shape": [1]}',
    "objects": '{"__numpy__": "AAAAAAAAAAA=", "dtype": "|O", "shape": [1]}',
    "short": '{"__numpy__": "AAAA", "dtype": "<f4", "shape": [1]}',
    "no-shape": '{"__numpy__": "AAAA", "dtype": "|u1"}',
}


@pytest.mark.parametrize("name", BAD_JSON)
def test_bad_json_is_told_in_one_line(name: str) -> None:
    with pytest.raises(WireError) as refusal:
        unpack_json(BAD_JSON[name])
    assert 5 < len(str(refusal.value)) < 300 and "\n" not in str(refusal.value)


@pytest.mark.parametrize("value", [np.array([None]), np.zeros(2, complex), {"a": {1, 2}}, np.array(["x"])])
def test_what_does_not_travel_is_not_sent(value: object) -> None:
    with pytest.raises(WireError):
        pack(value)
    with pytest.raises(WireError):
        pack_json(value)
