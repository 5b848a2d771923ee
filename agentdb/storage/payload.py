"""Frames: the header in front of every stored payload, so that payloads can be encrypted or re-encoded later.

A frame is 24 bytes of header and a body, little-endian::

    offset  size  field
    0       1     magic    0xAD
    1       1     format   1
    2       1     codec    how the body is encoded, see ``Codec``
    3       1     flags    0 in format 1
    4       4     key id   0: not encrypted
    8       8     base     ZSTD_DELTA: the number of the key frame that the body refers to, else 0
    16      4     length   of the body
    20      4     crc      CRC-32 of the first 20 bytes and the body

The CRC finds accidents (a torn write, a cut file); tampering is found by the checksums and keys of the layers above.
"""

from __future__ import annotations

import struct
import threading
import zlib
from enum import IntEnum
from typing import NamedTuple

import zstandard

from agentdb.errors import FormatError, IntegrityError, InvalidInputError

__all__ = [
    "HEADER_BYTES",
    "MAX_BODY_BYTES",
    "RAW",
    "ZSTD",
    "ZSTD_DELTA",
    "Codec",
    "Payload",
    "compress",
    "content_of",
    "pack",
    "unpack",
]

MAGIC = 0xAD
FORMAT = 1
MAX_BODY_BYTES = (1 << 31) - 1 - 24  # a binary cell of Arrow, and of SQLite as built, ends at 2 GiB
MAX_CONTENT_BYTES = 1 << 31

_HEADER = struct.Struct("<BBBBIQI")
_CRC = struct.Struct("<I")
_ALL = struct.Struct("<BBBBIQII")
HEADER_BYTES = _ALL.size


class Codec(IntEnum):
    """How a body is encoded. Numbers are stored: they are appended, never changed."""

    RAW = 0
    ZSTD = 1
    ZSTD_DELTA = 2
    """zstd with the content of frame ``base`` as raw-content dictionary."""


RAW = Codec.RAW
ZSTD = Codec.ZSTD
ZSTD_DELTA = Codec.ZSTD_DELTA
_CODECS = {int(codec): codec for codec in Codec}


class Payload(NamedTuple):
    """What a frame holds; ``body`` is a view of the frame, not a copy."""

    codec: Codec
    key_id: int
    base: int
    body: memoryview


def pack(body: bytes | memoryview, *, codec: int = RAW, key_id: int = 0, base: int = 0) -> bytes:
    """Return a frame around ``body``, which is already encoded as ``codec`` says.

    Raises:
        InvalidInputError: the body is too long, or a header field is out of its range.
    """
    length = len(body)
    if length > MAX_BODY_BYTES:
        raise InvalidInputError(f"a payload of {length} bytes exceeds the limit of {MAX_BODY_BYTES}")
    try:
        header = _HEADER.pack(MAGIC, FORMAT, codec, 0, key_id, base, length)
    except struct.error as error:
        raise InvalidInputError("a payload's codec, key id or base is out of range") from error
    return b"".join((header, _CRC.pack(zlib.crc32(body, zlib.crc32(header))), body))


def unpack(blob: bytes | memoryview) -> Payload:
    """Return the checked header and the body of a frame.

    Raises:
        FormatError: a newer format, or a codec that this release does not know.
        IntegrityError: not a frame, cut short, or its CRC does not match.
    """
    if len(blob) < HEADER_BYTES:
        raise IntegrityError(f"a stored payload is cut short: {len(blob)} bytes")
    magic, version, codec, flags, key_id, base, length, crc = _ALL.unpack_from(blob)
    if magic != MAGIC:
        raise IntegrityError("a stored payload does not begin with a frame header")
    # The header of another format may have another length, so this comes before every other check.
    if version != FORMAT:
        raise FormatError(f"a stored payload has format {version}; this release reads {FORMAT}")
    body = memoryview(blob)[HEADER_BYTES:]
    if len(body) != length or zlib.crc32(body, zlib.crc32(blob[:20])) != crc:
        raise IntegrityError("a stored payload is corrupt: its length or CRC does not match")
    known = _CODECS.get(codec)
    if known is None or flags:
        raise FormatError(f"a stored payload has codec {codec} and flags {flags}, unknown to this release")
    return Payload(known, key_id, base, body)


# zstd contexts are not safe to share between threads, and making one costs more than a small payload.
_local = threading.local()


def compress(content: bytes, *, level: int = 1, min_bytes: int = 1024, key_id: int = 0) -> bytes:
    """Return a full frame of ``content``: compressed where that is worth it, raw below ``min_bytes``."""
    if len(content) >= min_bytes:
        contexts: dict[int, zstandard.ZstdCompressor] | None = getattr(_local, "compressors", None)
        if contexts is None:
            contexts = _local.compressors = {}
        compressor = contexts.get(level)
        if compressor is None:
            compressor = contexts[level] = zstandard.ZstdCompressor(level=level)
        body = compressor.compress(content)
        if len(body) < len(content) - (len(content) >> 4):
            return pack(body, codec=ZSTD, key_id=key_id)
    return pack(content, key_id=key_id)


def content_of(frame: Payload, base: bytes | None = None) -> bytes:
    """Return what was put into the frame.

    Args:
        frame: from ``unpack``.
        base: the content of the key frame ``frame.base``; needed for ZSTD_DELTA only.
    Raises:
        FormatError: the payload is encrypted.
        IntegrityError: the body cannot be decoded.
    """
    if frame.key_id:
        raise FormatError(f"a stored payload is encrypted with key {frame.key_id}")
    if frame.codec is RAW:
        return bytes(frame.body)
    try:
        size = zstandard.get_frame_parameters(frame.body).content_size
        if size > MAX_CONTENT_BYTES:  # also true where the size is not stated: ours always is
            raise IntegrityError("a stored payload claims an impossible size")
        if frame.codec is ZSTD:
            decompressor: zstandard.ZstdDecompressor | None = getattr(_local, "decompressor", None)
            if decompressor is None:
                decompressor = _local.decompressor = zstandard.ZstdDecompressor()
        else:
            if base is None:
                raise IntegrityError("a stored delta was read without its key frame")
            prefix = zstandard.ZstdCompressionDict(base, dict_type=zstandard.DICT_TYPE_RAWCONTENT)
            decompressor = zstandard.ZstdDecompressor(dict_data=prefix)
        return decompressor.decompress(frame.body)
    except (zstandard.ZstdError, MemoryError) as error:
        raise IntegrityError("a stored payload cannot be decompressed") from error
