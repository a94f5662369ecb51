"""Text of any encoding is read as what it says; what is no text is refused."""

import logging
import random

import pytest

from querykey.tasks.corpus import Corpus
from querykey.tasks.encoding import as_utf8

CHINESE = "注意力机制把每个词元的查询与所有键作比较，打分必然对称。" * 20
RUSSIAN = "Внимание сравнивает запрос каждого токена со всеми ключами. " * 9
GERMAN = "Grüße aus Köln, wo die Bäche fließen. " * 30


@pytest.mark.parametrize(
    ("text", "encoding"),
    [
        (CHINESE, "gbk"),
        (CHINESE, "utf-16"),
        (CHINESE, "utf-16-le"),
        (RUSSIAN, "koi8-r"),
        (RUSSIAN, "cp1251"),
        (GERMAN, "latin-1"),
    ],
)
@pytest.mark.parametrize("cut", [0, 1])
def test_other_encodings_become_utf8_and_are_named(text, encoding, cut, caplog):
    content = text.encode(encoding)
    found = as_utf8(content[: len(content) - cut], "notes.txt").decode()
    assert found == text[: len(found)]
    assert len(found) >= len(text) - cut
    (said,) = caplog.messages
    assert said.startswith("notes.txt is read as ")


def test_utf8_passes_unchanged_even_if_cut(caplog):
    for content in (b"", b"plain", CHINESE.encode(), CHINESE.encode()[:-1], b"\xef\xbb\xbfmark"):
        assert as_utf8(content, "notes.txt") == content
    assert caplog.messages == []


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        (b"%PDF-1.4 all of it printable", "a PDF; extract its text first"),
        (b"PK\x03\x04" + CHINESE.encode(), "an archive or a document"),
        (random.Random(0).randbytes(5000), "a binary file"),
        (b"words and\0 zeros" * 99, "a binary file"),
        ("Grüße".encode("latin-1"), "its encoding is not clear"),
    ],
)
def test_what_is_no_text_is_refused(content, sentence):
    with pytest.raises(ValueError, match=sentence):
        as_utf8(content, "notes.txt")


def test_a_corpus_of_another_encoding_is_that_of_its_text(tmp_path, caplog):
    caplog.set_level(logging.WARNING, "querykey")
    for name, encoding in (("a.txt", "gbk"), ("b.txt", "utf-8")):
        (tmp_path / name).write_bytes(CHINESE.encode(encoding))
    one, other = (Corpus.read(tmp_path / name) for name in ("a.txt", "b.txt"))
    assert one.data_hash == other.data_hash
    assert len(caplog.messages) == 1
