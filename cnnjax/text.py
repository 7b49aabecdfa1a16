"""The user's text, such as names of classes and files, so that it can be shown: literally, or with escapes."""

import os
import re
import shlex
import unicodedata

_ESCAPED = {"Cc", "Cs", "Zl", "Zp"}  # Unicode's categories of control characters, lone surrogates, line ends


def one_line(text: str) -> str:
    r"""Text in one line: control characters, line ends, and bytes that are no UTF-8 are escaped (``caf\xe9``)."""
    return "".join(_escape(char) if unicodedata.category(char) in _ESCAPED else char for char in text)


def printable(text: str) -> str:
    """Text whose line ends stay, in the form of the newline, each line as `one_line` gives it."""
    return "\n".join(map(one_line, text.splitlines()))


def message(text: str) -> str:
    """Error message: only lines that the message itself begins, by two spaces, stay lines.

    Words of more than 200 characters, and lines of more than 1,000, lose their middle.
    """
    lines = map(one_line, re.split(r"\n(?= {2})", text))
    return "\n".join(_shortened(re.sub(r"\S{201,}", lambda word: _shortened(word[0], 200), x), 1000) for x in lines)


def shell(path: str | os.PathLike) -> str:
    """Path quoted for a command that the user may copy, with bash's escapes where it has others than plain text."""
    text = os.fspath(path)
    if one_line(text) == text:
        return shlex.quote(text)
    return "$'" + one_line(text.replace("\\", r"\\").replace("'", r"\'")) + "'"


def _escape(char: str) -> str:
    # Python reads a byte that is no UTF-8 as this kind of lone surrogate.
    return f"\\x{ord(char) - 0xDC00:02x}" if "\udc80" <= char <= "\udcff" else ascii(char)[1:-1]


def _shortened(line: str, most: int) -> str:
    return line if len(line) <= most else f"{line[: most // 2]} … {line[-most // 2 :]}"
