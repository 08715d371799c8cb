"""From bytes to characters: what is found is right, or refused."""

import gzip
import io
import zipfile
from contextlib import suppress

import pytest
from support.public_files import CHINESE, GERMAN, JAPANESE, RUSSIAN
from tailsweep.trainables.errors import UnreadableError
from tailsweep.trainables.readers.encoding import compression_of, decode, decompress

TEXTS = {
    "german": "\n".join(text for text, _ in GERMAN * 3),
    "russian": "\n".join(text for text, _ in RUSSIAN * 3),
    "japanese": "\n".join(text for text, _ in JAPANESE * 3),
    "chinese": "\n".join(text for text, _ in CHINESE * 3),
}


@pytest.mark.parametrize(
    ("language", "encoding"),
    [
        ("german", "utf-8"), ("german", "utf-8-sig"), ("german", "utf-16"), ("german", "utf-32"),
        ("german", "utf-16-le"), ("russian", "utf-8"), ("german", "cp1252"), ("russian", "cp1251"),
        ("russian", "koi8-r"), ("japanese", "shift_jis"), ("japanese", "euc_jp"), ("japanese", "iso2022_jp"),
        ("chinese", "gb18030"), ("chinese", "gbk"),
    ],
)  # fmt: skip
def test_an_encoding_is_found(language: str, encoding: str) -> None:
    decoded = decode(TEXTS[language].encode(encoding))
    assert decoded.content == TEXTS[language]
    assert (decoded.guessed_by is None) == encoding.startswith("utf")


def test_one_mark_in_an_english_file_is_of_windows() -> None:
    content = b"text,label\n" + b"a plain line of text,x\n" * 50 + b"it\x92s here,y\n"
    assert decode(content).content.endswith("it’s here,y\n")
    assert decode(content).guessed_by == "it’s here,y"
    assert decode(b"text,label\ncaf\xe9 \x81 au lait is what they had,x\n").content.startswith("text,label\ncafé \x81 ")


def test_a_damaged_utf8_file_is_not_taken_for_another_encoding() -> None:
    content = "Größe, Maß, Grüße\n".encode() * 3 + b"caf\xe9\n"
    with pytest.raises(UnreadableError, match=r"byte 0xe9 in line 4 is not UTF-8: repair the line"):
        decode(content)
    with pytest.raises(UnreadableError, match=r"byte 0xe9 in line 1 is not utf-8"):
        decode(b"caf\xe9", "utf-8")
    assert decode(b"caf\xe9", "latin-1").content == "café"


@pytest.mark.parametrize("content", [b"", b"a", b"\xff\xfe", b"\x00", b"\xd8\x00\xd8\x00" * 9, bytes(range(256))])
def test_any_bytes_are_text_or_one_message(content: bytes) -> None:
    with suppress(UnreadableError):
        assert isinstance(decode(content).content, str)


def test_an_archive_must_hold_one_file() -> None:
    sink = io.BytesIO()
    with zipfile.ZipFile(sink, "w") as archive:
        archive.writestr("a.csv", "x")
        archive.writestr("b.csv", "y")
    assert compression_of(sink.getvalue()) == "zip"
    with pytest.raises(UnreadableError, match=r"an archive of 2 files \(a.csv, b.csv\), but must hold one: unpack it"):
        decompress(sink.getvalue(), "zip")


def test_a_truncated_file_is_damaged() -> None:
    with pytest.raises(UnreadableError, match=r"it is damaged, or not compressed by gzip"):
        decompress(gzip.compress(b"a" * 100)[:-5], "gzip")
