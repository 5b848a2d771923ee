import os
import struct
import zlib

import pytest

from agentdb.errors import FormatError, IntegrityError, InvalidInputError
from agentdb.storage.payload import (
    HEADER_BYTES,
    RAW,
    ZSTD,
    ZSTD_DELTA,
    Payload,
    compress,
    content_of,
    pack,
    unpack,
)


def reseal(header: bytes, body: bytes) -> bytes:
    """A frame with a correct CRC around any header."""
    return header + struct.pack("<I", zlib.crc32(body, zlib.crc32(header))) + body


def test_a_frame_gives_back_what_was_put_in():
    frame = unpack(pack(b"body", codec=ZSTD_DELTA, key_id=7, base=1 << 62))
    assert frame == Payload(ZSTD_DELTA, 7, 1 << 62, memoryview(b"body"))
    assert bytes(unpack(pack(b"")).body) == b""
    assert len(pack(b"")) == HEADER_BYTES == 24


def test_the_layout_is_fixed():
    # Stored for ever: if this fails, the format changed.
    assert pack(b"ab", codec=ZSTD, key_id=1, base=2).hex() == "ad01010001000000020000000000000002000000218282fb6162"


def test_a_view_of_a_larger_buffer_is_read():
    assert bytes(unpack(memoryview(b"xx" + pack(b"body"))[2:]).body) == b"body"


@pytest.mark.parametrize("cut", range(0, 34, 3))
def test_a_cut_frame_is_an_integrity_error(cut):
    with pytest.raises(IntegrityError):
        unpack(pack(b"0123456789")[:cut])


def test_every_flipped_bit_is_noticed():
    frame = pack(b"content", codec=ZSTD, base=3)
    for position in range(len(frame)):
        for bit in range(8):
            broken = bytearray(frame)
            broken[position] ^= 1 << bit
            with pytest.raises((IntegrityError, FormatError)):
                unpack(bytes(broken))


def test_longer_than_stated_is_an_integrity_error():
    with pytest.raises(IntegrityError):
        unpack(pack(b"body") + b"x")


def test_another_format_is_a_format_error_whatever_follows():
    with pytest.raises(FormatError, match="format 2"):
        unpack(b"\xad\x02" + os.urandom(40))


@pytest.mark.parametrize(("codec", "flags"), [(3, 0), (255, 0), (0, 1)])
def test_unknown_codecs_and_flags_are_format_errors(codec, flags):
    header = struct.pack("<BBBBIQI", 0xAD, 1, codec, flags, 0, 0, 2)
    with pytest.raises(FormatError):
        unpack(reseal(header, b"ab"))


@pytest.mark.parametrize("wrong", [{"base": -1}, {"base": 1 << 64}, {"key_id": 1 << 32}, {"codec": 256}])
def test_header_fields_out_of_range_are_refused(wrong):
    with pytest.raises(InvalidInputError):
        pack(b"", **wrong)


def test_compression_only_where_it_helps():
    assert unpack(compress(b"a" * 1023)).codec is RAW
    assert unpack(compress(os.urandom(4096))).codec is RAW
    blob = compress(b"abc" * 1000)
    assert unpack(blob).codec is ZSTD
    assert len(blob) < 100
    assert content_of(unpack(blob)) == b"abc" * 1000


def test_an_encrypted_payload_is_not_taken_for_content():
    with pytest.raises(FormatError, match="encrypted"):
        content_of(unpack(pack(b"secret", key_id=1)))


@pytest.mark.parametrize("body", [b"", b"garbage", b"\x28\xb5\x2f\xfd", b"\x28\xb5\x2f\xfd\x20\x05abc"])
@pytest.mark.parametrize("codec", [ZSTD, ZSTD_DELTA])
def test_a_body_that_is_no_zstd_is_an_integrity_error(codec, body):
    with pytest.raises(IntegrityError):
        content_of(unpack(pack(body, codec=codec)), b"base")


def test_a_claimed_size_is_not_believed():
    # A zstd frame of a few bytes that states 2**40 bytes of content.
    body = b"\x28\xb5\x2f\xfd\xe0" + (1 << 40).to_bytes(8, "little") + b"\x01\x00\x00"
    with pytest.raises(IntegrityError, match="impossible"):
        content_of(unpack(pack(body, codec=ZSTD)))


def test_a_delta_needs_its_base():
    with pytest.raises(IntegrityError):
        content_of(unpack(pack(b"x", codec=ZSTD_DELTA, base=1)))
