"""Notices: once per text, catchable by their category, a plain line in the command."""

import subprocess
import sys
import warnings

import pytest

from must.core.notices import Notice, notice


def test_a_notice_is_told_once_and_can_be_made_an_error():
    with pytest.warns(Notice, match="3 boxes clipped"):
        notice("mine: 3 boxes clipped")
    with warnings.catch_warnings():
        warnings.simplefilter("error", Notice)
        with pytest.raises(Notice, match="another"):
            notice("mine: another")


def test_a_notice_of_the_command_is_one_line():
    code = (
        "from must.core import notices\n"
        "notices.plain_lines()\n"
        "notices.notice('a: 1 box clipped')\nnotices.notice('a: 1 box clipped')\nnotices.notice('b')\n"
        "import warnings\nwarnings.simplefilter('default')\nnotices.notice('b')\nwarnings.warn('c')\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    *notes, other = done.stderr.splitlines()
    assert notes == ["must: note: a: 1 box clipped", "must: note: b"] and other.endswith("UserWarning: c")
