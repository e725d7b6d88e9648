"""Runs docs/pseudo_labels.md as written: python -m tests.experiments.tutorial [--folder=EMPTY]."""

import argparse
import os
import pathlib
import re
import subprocess
import sys
import tempfile
import time

ROOT = pathlib.Path(__file__).parents[2]
TEXT = ROOT / "docs" / "pseudo_labels.md"


def blocks(text: str) -> list[tuple[str, str]]:
    """(language, code) of every fenced block, in order."""
    return re.findall(r"^```(\w+)\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)


def main() -> None:
    """Commands run one by one, all Python blocks in one process of their own place in the order."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--folder", default="")
    folder = parser.parse_args().folder or tempfile.mkdtemp()
    os.chdir(folder)
    os.symlink(ROOT / "configs", "configs")
    os.environ["PYTHONPATH"] = str(ROOT)
    names: dict = {}
    for language, code in blocks(TEXT.read_text()):
        start = time.time()
        print(f"\n--- {language}\n{code}", flush=True)
        if language == "bash":
            command = code.strip().replace("python ", f"{sys.executable} ", 1)
            subprocess.run(command, shell=True, check=True)
        else:
            exec(compile(code, str(TEXT), "exec"), names)
        print(f"--- {time.time() - start:.0f} s", flush=True)
    print(f"\nthe tutorial ran in {folder}")


if __name__ == "__main__":
    main()
