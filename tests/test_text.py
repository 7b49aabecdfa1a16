"""The user's text as it is shown: on terminals, in tables, in messages and in commands to copy."""

import os
import subprocess

import pytest

from cnnjax import text


@pytest.mark.parametrize(
    ("given", "shown"),
    [
        ("翘头剪 $1_a [/b] \\n é 😀", "翘头剪 $1_a [/b] \\n é 😀"),
        (os.fsdecode(b"caf\xe9"), r"caf\xe9"),
        ("a\ud800b", r"a\ud800b"),
        ("a\x1b[31m\x07b\x9bc", r"a\x1b[31m\x07b\x9bc"),
        ("a\r\nb\u2028c\td", r"a\r\nb\u2028c\td"),
    ],
)
def test_one_line_is_literal_or_escaped(given, shown):
    assert text.one_line(given) == shown
    shown.encode()


def test_printable_keeps_line_ends():
    assert text.printable("a\r\nb\x0bc\n") == "a\nb\nc"


def test_a_message_keeps_its_own_lines_and_the_middle_of_long_ones_goes():
    assert text.message("a\nb: c\n  d") == "a\\nb: c\n  d"
    short = text.message("x" * 5000 + ": the cure")
    assert len(short) < 220
    assert short.endswith(": the cure")
    assert len(text.message("word " * 5000)) < 1010


@pytest.mark.parametrize("name", ["plain", "two words", "$HOME", "it's", os.fsdecode(b"caf\xe9 a"), "a\nb'\\", "汉"])
def test_a_quoted_path_means_itself_in_bash(name):
    command = ["bash", "-c", f"printf %s {text.shell(name)}"]
    assert subprocess.run(command, capture_output=True, check=True).stdout == os.fsencode(name)
