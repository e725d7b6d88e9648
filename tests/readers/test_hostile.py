"""Inputs made to harm are refused in one line that names the file, in little memory and time."""

import ast
import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def said():
    """{case: how its reading ended}; all of them in forks of one process."""
    command = [sys.executable, "-m", "tests.support.hostile", "--json"]
    return json.loads(subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout)


def test_every_hostile_input_is_refused_by_name(said):
    assert len(said) > 130
    assert not {name: text for name, (text, _, _, met) in said.items() if not met}


def test_a_header_alone_decides(said):
    for name, (text, seconds, mib, _) in said.items():
        if name.startswith(("picture: ", "map: ")) and not name.endswith("postscript"):
            assert mib < 32 and seconds < 3, (name, text)  # decoded, 65000 x 65000 pixels are 12 GB
    assert "MUST_MAX_PIXELS allows more" in said["picture: jpeg"][0]


def test_nothing_unpacks_archives():
    """No file of an archive can be written anywhere: the package and what it uses of TFDS open none."""
    unpacking = ("tarfile", "unpack_archive", "extractall", "download_manager", "ZipFile")
    for path in sorted((ROOT / "must").rglob("*.py")):
        names = {getattr(node, "id", getattr(node, "attr", None)) for node in ast.walk(ast.parse(path.read_text()))}
        assert not names & set(unpacking), path
