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


def message(text: str, most: int = 1000) -> str:
    """Error message: only lines that the message itself begins, by two spaces, stay lines.

    Args:
      most: characters that each line keeps; a longer one loses its middle.
    """
    return "\n".join(_shortened(one_line(line), most) for line in re.split(r"\n(?= {2})", text))


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
