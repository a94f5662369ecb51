"""Text of any encoding as UTF-8; what is no text is refused.

UTF-8 passes unchanged. Other encodings are detected, and the log says which one was taken.
"""

from __future__ import annotations

import codecs
import logging
from typing import Any

from querykey.extras import load

SAMPLE = 1 << 16  # bytes that the encoding is detected from
FEWEST = 16  # bytes beyond ASCII, with fewer of which a detection is a guess
UNICODE = ("utf_8", "utf_16", "utf_16_be", "utf_16_le", "utf_32", "utf_32_be", "utf_32_le")
KINDS = {
    b"%PDF-": "a PDF; extract its text first, for example with pdftotext",
    b"PK\x03\x04": "an archive or a document of an office program; save it as plain text first",
}


def as_utf8(content: bytes, path: str) -> bytes:
    """The content of a file in UTF-8; the last character may be cut.

    Raises:
        ValueError: if it is no text, or its encoding cannot be told.
    """
    kind = next((kind for start, kind in KINDS.items() if content.startswith(start)), None)
    if kind is not None:
        raise ValueError(f"{path} is no text but {kind}")
    if b"\0" not in content and _decodes(content, "utf-8"):
        return content
    encoding = _detected(content[:SAMPLE], path)
    if not _decodes(content, encoding):
        raise ValueError(_unclear(path))
    logging.getLogger("querykey").warning("%s is read as %s", path, encoding.upper().replace("_", "-"))
    return codecs.getincrementaldecoder(encoding)().decode(content).encode()


def _detected(sample: bytes, path: str) -> str:
    """The name of an encoding."""
    charset: Any = load("charset_normalizer", "study")
    whole = (sample[: len(sample) - cut] for cut in range(4))  # without a last character that was cut
    readable = next((part for part in whole if not charset.is_binary(part)), None)
    if readable is None:
        raise ValueError(f"{path} is no text but a binary file; give files of plain text")
    best = charset.from_bytes(readable).best()
    clear = best is not None and (
        best.encoding in UNICODE or (best.language != "Unknown" and sum(byte > 127 for byte in sample) >= FEWEST)
    )
    if not clear or "\0" in str(best):
        raise ValueError(_unclear(path))
    return str(best.encoding)


def _decodes(content: bytes, encoding: str) -> bool:
    try:
        codecs.getincrementaldecoder(encoding)().decode(content)
    except UnicodeDecodeError:
        return False
    return True


def _unclear(path: str) -> str:
    return (
        f"{path} is not text in UTF-8, and its encoding is not clear; convert it, for example with "
        "iconv -f ENCODING -t UTF-8"
    )
