"""Layer files with right checksums and a header that lies: refused, whatever it says."""

from __future__ import annotations

import json
import struct
import zlib
from pathlib import Path
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from rbe_cli.container.layer_file import MAX_HEADER, VERSION, LayerFile
from rbe_cli.container.methods import CODECS
from rbe_cli.errors import CorruptFile
from tests.forge import canonical, layer_bytes

GOOD = {"chunks": 1, "codec": "lossless", "dtype": "U8", "name": "a", "shape": [4]}


def entry(**changes: Any) -> dict[str, Any]:
    return {"tensors": [GOOD | changes]}


def without(key: str) -> dict[str, Any]:
    return {"tensors": [{k: v for k, v in GOOD.items() if k != key}]}


def expect_refused(path: Path, data: bytes) -> None:
    path.write_bytes(data)
    with pytest.raises(CorruptFile) as error:
        LayerFile(path)
    assert str(path) in str(error.value)


def test_the_header_they_start_from_is_sound(tmp_path: Path) -> None:
    (tmp_path / "a.rbe").write_bytes(layer_bytes(entry(), [b"data"]))
    file = LayerFile(tmp_path / "a.rbe")
    assert file.tensors[0].shape == (4,)


HOSTILE_VALUES: dict[str, Any] = {
    "not an object": [],
    "a number": 5,
    "null": None,
    "no tensors": {},
    "tensors is an object": {"tensors": {}},
    "tensors is text": {"tensors": "abc"},
    "another key": {"tensors": [GOOD], "x": 1},
    "entry is a list": {"tensors": [[]]},
    "entry is null": {"tensors": [None]},
    "entry with another key": entry(offset=3),
    "no name": without("name"),
    "no dtype": without("dtype"),
    "no shape": without("shape"),
    "no codec": without("codec"),
    "no chunks": without("chunks"),
    "name is a number": entry(name=3),
    "name is null": entry(name=None),
    "name is a list": entry(name=["a"]),
    "unknown dtype": entry(dtype="F128"),
    "dtype is a list": entry(dtype=["U8"]),
    "dtype is an object": entry(dtype={}),
    "unknown codec": entry(codec="zip"),
    "codec is a list": entry(codec=["lossless"]),
    "codec is null": entry(codec=None),
    "shape is a number": entry(shape=4),
    "shape is text": entry(shape="4"),
    "shape is an object": entry(shape={}),
    "negative dimension": entry(shape=[-4]),
    "two negative dimensions": entry(shape=[-2, -2]),
    "float dimension": entry(shape=[4.0]),
    "huge float dimension": entry(shape=[1e300]),
    "boolean dimension": entry(shape=[True]),
    "text dimension": entry(shape=["4"]),
    "dimension of 2^63": entry(shape=[1 << 63]),
    "dimension of 10^400": entry(shape=[10**400]),
    "product of 2^96": entry(shape=[1 << 32] * 3),
    "33 dimensions": entry(shape=[1] * 33),
    "negative chunks": entry(chunks=-1),
    "float chunks": entry(chunks=1.0),
    "boolean chunks": entry(chunks=True),
    "more chunks than the table": entry(chunks=2),
    "fewer chunks than the table": entry(chunks=0),
    "chunks of 2^62": entry(chunks=1 << 62),
    "trellis without chunks": entry(codec="trellis", chunks=0),
    "same with chunks": entry(codec="same") | {"tensors": [GOOD | {"codec": "same", "as": "b"}]},
    "same as nothing": {"tensors": [GOOD, GOOD | {"name": "b", "codec": "same", "chunks": 0, "as": ""}]},
    "same as a number": {"tensors": [GOOD, GOOD | {"name": "b", "codec": "same", "chunks": 0, "as": 3}]},
    "same without as": {"tensors": [GOOD, GOOD | {"name": "b", "codec": "same", "chunks": 0}]},
    "as with another codec": entry(**{"as": "b"}),
    "base is null": entry(base=None),
    "base is empty": entry(base=""),
    "base is a number": entry(base=0x0123456789ABCDEF),
    "base is a list": entry(base=["0123456789abcdef"]),
    "base is an object": entry(base={}),
    "base that is too short": entry(base="0123456789abcde"),
    "base that is too long": entry(base="0123456789abcdef0"),
    "base that is much too long": entry(base="0" * 1_000_000),
    "base in capitals": entry(base="0123456789ABCDEF"),
    "base with a line after it": entry(base="0123456789abcdef\n"),
    "base of other digits": entry(base="\u0660" * 16),
    "base of surrogates": entry(base="\ud800" * 16),
    "base of what is the same": {
        "tensors": [GOOD, GOOD | {"name": "b", "codec": "same", "chunks": 0, "as": "a", "base": "0" * 16}]
    },
    "the same name twice": {"tensors": [GOOD, GOOD | {"chunks": 0}]},
}


@pytest.mark.parametrize("what", HOSTILE_VALUES)
def test_header_that_makes_no_sense(what: str, tmp_path: Path) -> None:
    expect_refused(tmp_path / "a.rbe", layer_bytes(HOSTILE_VALUES[what], [b"data"]))


@pytest.mark.parametrize("version", [1, 2])
def test_a_base_in_an_older_file(version: int, tmp_path: Path) -> None:
    based = entry(base="0123456789abcdef")
    expect_refused(tmp_path / "a.rbe", layer_bytes(based, [b"data"], version=version))
    (tmp_path / "a.rbe").write_bytes(layer_bytes(based, [b"data"], version=3))
    assert LayerFile(tmp_path / "a.rbe").tensors[0].base == "0123456789abcdef"


HOSTILE_TEXTS = {
    "empty": b"",
    "no JSON": b"tensors",
    "spaces": b'{"tensors": []}',
    "duplicate keys": b'{"tensors":[],"tensors":[]}',
    "keys out of order": b'{"tensors":[{"codec":"lossless","chunks":1,"dtype":"U8","name":"a","shape":[4]}]}',
    "duplicate key in an entry": canonical(entry()).replace(b'"chunks":1,', b'"chunks":1,"chunks":1,'),
    "NaN": canonical(entry()).replace(b"[4]", b"[NaN]"),
    "infinity": canonical(entry()).replace(b"[4]", b"[Infinity]"),
    "exponent": canonical(entry()).replace(b"[4]", b"[4e0]"),
    "leading zero": canonical(entry()).replace(b"[4]", b"[04]"),
    "minus zero": canonical(entry()).replace(b"[4]", b"[-0]"),
    "needless escape": canonical(entry()).replace(b'"a"', b'"\\u0061"'),
    "UTF-8": canonical(entry()).replace(b'"a"', '"é"'.encode()),
    "not UTF-8": canonical(entry()).replace(b'"a"', b'"\xff"'),
    "a byte order mark": b"\xef\xbb\xbf" + canonical(entry()),
    "UTF-16": canonical(entry()).decode().encode("utf-16"),
    "a zero byte at the end": canonical(entry()) + b"\0",
    "two values": canonical(entry()) * 2,
    "deep nesting": b"[" * 200_000 + b"]" * 200_000,
    "deep objects": b'{"tensors":' * 100_000 + b"0" + b"}" * 100_000,
    "a number of a million digits": b'{"tensors":' + b"1" * 1_000_000 + b"}",
}


@pytest.mark.parametrize("what", HOSTILE_TEXTS)
def test_header_that_is_not_canonical(what: str, tmp_path: Path) -> None:
    expect_refused(tmp_path / "a.rbe", layer_bytes(HOSTILE_TEXTS[what], [b"data"]))


@pytest.mark.parametrize(
    "data",
    [
        layer_bytes(entry(), [b"data"], version=0),
        layer_bytes(entry(), [b"data"], version=VERSION + 1),
        layer_bytes(entry(), [b"data"], version=65535),
        layer_bytes(entry(), [b"data"], zero=1),
        layer_bytes(entry(), [b"data"], magic=b"\x93RBE\n\n\x1a\n"),
        layer_bytes(entry(), [b"data"], tail=b"more"),
        layer_bytes(entry(), [b"data"], table=[]),
        layer_bytes(entry(), [b"data"], count=0),
        layer_bytes(entry(), [b"data"], count=2),
        layer_bytes(entry(), [b"data"], count=0xFFFFFFFF),
        layer_bytes(entry(), [b"data"], table=[(5, 0)]),
        layer_bytes(entry(), [b"data"], table=[(3, 0)]),
        layer_bytes(entry(), [b"data"], table=[(0xFFFFFFFF, 0)]),
        layer_bytes(entry(chunks=2), [b"data"], table=[(0xFFFFFFFF, 0), (5, 0)]),
        layer_bytes(entry(), [b"data"])[:-4] + b"dat",
    ],
)
def test_prefix_or_table_that_lies(data: bytes, tmp_path: Path) -> None:
    expect_refused(tmp_path / "a.rbe", data)


def test_newer_version_says_upgrade(tmp_path: Path) -> None:
    (tmp_path / "a.rbe").write_bytes(layer_bytes(entry(), [b"data"], version=VERSION + 1))
    with pytest.raises(CorruptFile, match="upgrade"):
        LayerFile(tmp_path / "a.rbe")


def test_header_longer_than_the_cap(tmp_path: Path) -> None:
    header = canonical({"tensors": ["x" * MAX_HEADER]})
    expect_refused(tmp_path / "a.rbe", layer_bytes(header, []))


def test_header_length_beyond_the_file_allocates_nothing(tmp_path: Path) -> None:
    prefix = struct.pack("<8sHHII", b"\x93RBE\r\n\x1a\n", 1, 0, 0xFFFFFFFF, 0xFFFFFFFF)
    expect_refused(tmp_path / "a.rbe", prefix + struct.pack("<I", zlib.crc32(prefix)) + b"{}")


def test_wrong_chunk_checksum_is_found_when_the_chunk_is_read(tmp_path: Path) -> None:
    (tmp_path / "a.rbe").write_bytes(layer_bytes(entry(), [b"data"], table=[(4, 123)]))
    file = LayerFile(tmp_path / "a.rbe")
    with pytest.raises(CorruptFile, match="checksum"):
        list(file.chunks(file.tensors[0]))


_JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=5), inner, max_size=4),
    max_leaves=8,
)
_FIELDS = st.fixed_dictionaries(
    {
        "chunks": _JSON | st.integers(-1, 3),
        "codec": _JSON | st.sampled_from(CODECS),
        "dtype": _JSON | st.sampled_from(["F32", "U8", "F4"]),
        "name": _JSON | st.text(max_size=3),
        "shape": _JSON | st.lists(_JSON | st.integers(-2, 1 << 64), max_size=4),
    },
    optional={"as": _JSON},
)


@settings(max_examples=200)
@given(_FIELDS | _JSON)
@example({"chunks": 1, "codec": "lossless", "dtype": "U8", "name": "\ud800", "shape": [4]})
def test_any_entry_is_read_or_refused(tmp_path: Path, fields: Any) -> None:
    """Whatever JSON stands in an entry: CorruptFile, or records that hold what the types promise."""
    path = tmp_path / "a.rbe"
    path.write_bytes(layer_bytes(canonical({"tensors": [fields]}), [b"data"]))
    try:
        file = LayerFile(path)
        (record,) = file.tensors
    except CorruptFile:
        return
    assert isinstance(record.name, str)
    assert record.codec in CODECS
    assert all(type(n) is int and n >= 0 for n in record.shape)
    assert record.chunks == 1


@settings(max_examples=300)
@given(st.integers(0, 10**9), st.binary(min_size=1, max_size=6))
def test_random_mutations_with_the_checksum_repaired(tmp_path: Path, place: int, patch: bytes) -> None:
    """Overwrite some bytes of the prefix, header or table, repair the CRC: read, or refused with CorruptFile."""
    data = bytearray(layer_bytes(entry(), [b"data"]))
    size = len(data) - 4
    at = place % size
    data[at : at + len(patch)] = patch[: size - at]
    data[20:24] = struct.pack("<I", zlib.crc32(bytes(data[:20] + data[24:size])))
    path = tmp_path / "a.rbe"
    path.write_bytes(bytes(data))
    try:
        file = LayerFile(path)
        assert sum(record.chunks for record in file.tensors) == 1
        list(file.chunks(file.tensors[0]))
    except CorruptFile:
        pass


def test_canonical_helper_agrees_with_the_package() -> None:
    from rbe_cli.container.canonical import dump

    assert canonical(entry()) == dump(entry())
    assert json.loads(dump(entry())) == entry()


@pytest.mark.parametrize("shape", [[0, 1 << 62, 1 << 62], [1 << 62, 1 << 62, 0]])
def test_shape_that_overflows_but_for_a_zero(shape: list[int], tmp_path: Path) -> None:
    """numpy and safetensors refuse such an array, though it is empty: decode would write what nobody can read."""
    expect_refused(tmp_path / "a.rbe", layer_bytes(entry(shape=shape, chunks=0), []))


@pytest.mark.parametrize("codec", ["lossless", "trellis", "sparse", "lowrank"])
def test_chunk_longer_than_any_of_its_shape(codec: str, tmp_path: Path) -> None:
    longest = 65536 + 12 * 4 + (4 * 4**2 if codec == "trellis" else 0)
    header = entry(codec=codec, dtype="F32")
    expect_refused(tmp_path / "a.rbe", layer_bytes(header, [bytes(longest + 1)]))
    (tmp_path / "a.rbe").write_bytes(layer_bytes(header, [bytes(longest)]))
    assert LayerFile(tmp_path / "a.rbe").tensors
