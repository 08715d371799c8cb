"""From the bytes of a text file to its characters: compression and encoding, found or given.

UTF-8 is recognized by itself: other encodings are almost never valid UTF-8. All others are guesses, which ``chardet``
makes, and which are reported with the first line that depends on them.
"""

import bz2
import codecs
import gzip
import io
import lzma
import re
import zipfile
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import PurePosixPath

import chardet
import pyarrow as pa
from tailsweep.trainables.errors import UnreadableError

MAGIC = {"gzip": b"\x1f\x8b", "bz2": b"BZh", "xz": b"\xfd7zXZ\x00", "zstd": b"\x28\xb5\x2f\xfd", "zip": b"PK\x03\x04"}
OFFICE = ("[Content_Types].xml", "mimetype")  # the first members of .xlsx and .ods, which are ZIP files
BYTE_ORDER_MARKS = (
    (codecs.BOM_UTF8, "utf-8"),
    (codecs.BOM_UTF32_LE, "utf-32"),  # before UTF-16, whose mark it begins with
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)
SAMPLE = 200_000  # bytes that an encoding is guessed from
# chardet 7.7 on 405 samples of 10 to 200 lines of 18 languages in 24 encodings: all right, with confidences from 0.08.
SURE = 0.08
WESTERN = 0.2  # share of letters beyond ASCII below which a file is Windows-1252 where chardet is not sure
# What browsers do: ISO-8859-1 is read as its superset Windows-1252, which its files are nearly always written in.
SUPERSETS = {"iso8859-1": "windows-1252", "iso8859-15": "windows-1252", "gb2312": "gb18030"}
ESCAPES_OF_JAPANESE = (b"\x1b$B", b"\x1b$@", b"\x1b(J")  # ISO-2022-JP, which is ASCII to the eye of a decoder


@dataclass(frozen=True)
class Text:
    """The characters of a file, without a byte order mark."""

    content: str
    encoding: str
    guessed_by: str | None = None  # the first line that reads otherwise in another encoding, if it was guessed


def compression_of(content: bytes) -> str | None:
    """Return the compression that a file begins like, by name."""
    name = next((name for name, magic in MAGIC.items() if content.startswith(magic)), None)
    return None if name == "zip" and is_office(content) else name


def is_office(content: bytes) -> bool:
    """Return whether a ZIP file is a document of an office program, such as .xlsx."""
    return content[30:].startswith(tuple(map(str.encode, OFFICE))) or b"xl/workbook" in content[-100_000:]


def decompress(content: bytes, compression: str) -> tuple[bytes, str | None]:
    """Return what is compressed, and its name where the file says it.

    Raises:
        UnreadableError: It is not compressed like this, is damaged, or is an archive of several files.
    """
    if compression == "zip":
        return _only_member(content)
    read: dict[str, Callable[[bytes], bytes]] = {
        "gzip": gzip.decompress,
        "bz2": bz2.decompress,
        "xz": lzma.decompress,
        "zstd": lambda content: pa.CompressedInputStream(pa.BufferReader(content), "zstd").read(),
    }
    try:
        return read[compression](content), None
    except (OSError, EOFError, lzma.LZMAError, zlib.error) as error:
        raise UnreadableError(f"it is damaged, or not compressed by {compression}: {error}") from error


def _only_member(content: bytes) -> tuple[bytes, str]:
    try:
        with zipfile.ZipFile(io.BytesIO(content)) as archive:
            members = [
                member
                for member in archive.namelist()
                if not member.endswith("/") and not member.startswith("__MACOSX/")  # what macOS adds
            ]
            if len(members) != 1:
                raise UnreadableError(
                    f"it is an archive of {len(members)} files ({', '.join(members[:5])}), but must hold one: unpack it"
                )
            return archive.read(members[0]), PurePosixPath(members[0]).name
    except (
        zipfile.BadZipFile,
        zlib.error,
        NotImplementedError,
        RuntimeError,
    ) as error:  # RuntimeError: it is encrypted
        raise UnreadableError(f"it is damaged, or cannot be unpacked: {error}") from error


def decode(content: bytes, encoding: str | None = None) -> Text:
    """Return the characters of a file.

    Args:
        encoding: What the user says it is; None: find it.

    Raises:
        UnreadableError: Some bytes are not of the encoding, or none can be found; the message names a line.
    """
    if encoding is not None:
        return Text(_strictly(content, encoding).removeprefix("\ufeff"), codecs.lookup(encoding).name)
    for mark, name in BYTE_ORDER_MARKS:
        if content.startswith(mark):
            return Text(_strictly(content, name).removeprefix("\ufeff"), name)
    if wide := _wide(content):
        return Text(_strictly(content, wide), wide)
    if not any(escape in content for escape in ESCAPES_OF_JAPANESE):
        try:
            return Text(content.decode("utf-8"), "utf-8")
        except UnicodeDecodeError as error:
            if _is_damaged_utf8(content):
                raise UnreadableError(_damage(content, error, "UTF-8")) from error
    return _guess(content)


def _strictly(content: bytes, encoding: str) -> str:
    try:
        return content.decode(encoding)
    except UnicodeError as error:
        if isinstance(error, UnicodeDecodeError) and codecs.lookup(encoding).name == "cp1252":
            return _windows_1252(content)
        problem = _damage(content, error, encoding) if isinstance(error, UnicodeDecodeError) else str(error)
        raise UnreadableError(problem) from error


def _windows_1252(content: bytes) -> str:
    """Decode as browsers do (WHATWG): the five bytes that the code page lacks are control characters."""
    return "".join(
        part.decode("latin-1") if part in (b"\x81", b"\x8d", b"\x8f", b"\x90", b"\x9d") else part.decode("cp1252")
        for part in re.split(rb"([\x81\x8d\x8f\x90\x9d])", content)
    )


def _wide(content: bytes) -> str | None:
    """Return UTF-16's name if every second byte of a file without a mark is nearly always zero."""
    sample = content[:SAMPLE]
    if len(content) < 4 or len(content) % 2:
        return None
    half = len(sample) // 2
    even, odd = sample[::2].count(0), sample[1::2].count(0)
    if odd > 0.4 * half and even < 0.05 * half:
        return "utf-16-le"
    if even > 0.4 * half and odd < 0.05 * half:
        return "utf-16-be"
    return None


def _is_damaged_utf8(content: bytes) -> bool:
    """Return whether most characters beyond ASCII are valid UTF-8, which those of other encodings are not."""
    lossy = content.decode("utf-8", errors="replace")
    invalid = lossy.count("\ufffd")
    beyond = len(lossy) - len(lossy.encode("ascii", errors="ignore"))
    return beyond - invalid > invalid


def _guess(content: bytes) -> Text:
    sample = content
    if len(content) > SAMPLE:
        lines = [line for line in content.split(b"\n") if not line.isascii() or b"\x1b" in line]
        sample = content[: SAMPLE // 2] + b"\n".join(lines)[: SAMPLE // 2]
    guess = chardet.detect(sample)
    name = "windows-1252"
    if guess["encoding"] is not None and guess["confidence"] >= SURE:
        name = codecs.lookup(guess["encoding"]).name
    elif _share_beyond_ascii(sample) > WESTERN:
        raise UnreadableError("its encoding cannot be found: name it in data.format.encoding, or give another file")
    encoding = SUPERSETS.get(name, name)
    try:
        text = _strictly(content, encoding)
    except UnreadableError as error:
        raise UnreadableError(f"its encoding cannot be found: it is not UTF-8, and as {encoding}, {error}") from error
    return Text(text, encoding, next((line.strip() for line in text.split("\n") if not line.isascii()), ""))


def _share_beyond_ascii(content: bytes) -> float:
    """Return which share of the letters is beyond ASCII: few of Latin script, most of any other."""
    beyond = sum(byte > 127 for byte in content)
    letters = sum(bytes([byte]).isalpha() for byte in content)
    return beyond / max(1, beyond + letters)


def _damage(content: bytes, error: UnicodeDecodeError, encoding: str) -> str:
    line = content.count(b"\n", 0, error.start) + 1
    return (
        f"byte 0x{content[error.start]:02x} in line {line:,} is not {encoding}: "
        "repair the line, or name the encoding in data.format.encoding"
    )
