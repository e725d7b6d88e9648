"""README and docs: links resolve, the generated page is current, every command is accepted and every snippet runs."""

import importlib.util
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

import must
from tests.support.commands import run_code

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]
TUTORIAL = ROOT / "docs" / "pseudo_labels.md"  # run as a whole by tests/experiments/tutorial.py
BLOCK = re.compile(r"(<!-- skip: [^>]+ -->\n)?^```(\w+)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
LOCAL = {"root": "ROOT", "DATA": "DATA", "TFDS": "TFDS", "PHOTOS": "PHOTOS"}  # users' own folders


def blocks(language):
    """[(page, code)] of the fenced blocks in a language that are not marked with a reason to skip them."""
    return [
        pytest.param(page, code, id=f"{page.relative_to(ROOT)}-{len(code)}")
        for page in PAGES
        for skipped, kind, code in BLOCK.findall(page.read_text(encoding="utf-8"))
        if kind == language and not skipped
    ]


def commands():
    """Every distinct command line of the project in a bash block or in a table."""
    found = {}
    for page in PAGES:
        text = page.read_text(encoding="utf-8")
        for line in re.findall(r"python -m must\.main [^\n`|]+", text) + [
            f"python -m must.main {flags}"
            for flags in re.findall(r"^\| `(--config=configs/[^`]+)`", text, re.MULTILINE)
        ]:
            if "--config=my_data.py" not in line:  # made on its page, and run by test_your_data
                found.setdefault(line.split("#")[0].strip(), page)
    return [pytest.param(line, id=line.removeprefix("python -m must.main ")) for line in found]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_relative_links_lead_to_files(page):
    for target in re.findall(r"\]\(([^)#\s]+)[^)]*\)", page.read_text(encoding="utf-8")):
        assert "://" in target or (page.parent / target).exists(), target


def test_experiments_are_run_as_modules_of_the_checkout():
    """As files they find neither `tests` nor `configs`."""
    for page in (*PAGES, *(ROOT / "tests" / "experiments").glob("*.py")):
        text = page.read_text(encoding="utf-8")
        assert "python tests/experiments/" not in text, page
        for name in re.findall(r"python -m tests\.experiments\.(\w+)", text):
            assert (ROOT / "tests" / "experiments" / f"{name}.py").exists(), f"{page}: {name}"


def test_the_readme_is_short():
    assert len((ROOT / "README.md").read_bytes()) <= 8_000


def test_the_configuration_page_is_current():
    spec = importlib.util.spec_from_file_location("configuration", ROOT / "docs" / "configuration.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    assert module.PAGE.read_text(encoding="utf-8") == module.page(), "run `python docs/configuration.py`"


@pytest.mark.parametrize("command", commands())
def test_commands_resolve(command):
    """Configuration, variant, overrides and stage of a command are accepted; nothing runs."""
    from ml_collections import ConfigDict

    from must.experiment.run import check_stage, members
    from must.recipes.table import recipe_of

    flags = dict(part.removeprefix("--").partition("=")[::2] for part in shlex.split(command)[3:])
    if "config" not in flags:  # asked of a finished workdir
        from must.experiment.finished import OPTIONS, read_options
        from must.experiment.sections import parse

        parse(OPTIONS[flags["stage"]], read_options(flags.get("options", "")), "--options")
        assert flags["workdir"] and set(flags) <= {"workdir", "stage", "images", "output", "options"}
        return
    path, _, variant = flags.pop("config").partition(":")
    spec = importlib.util.spec_from_file_location("configuration_file", ROOT / path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    config = module.get_config(*filter(None, [variant]))
    assert isinstance(config, ConfigDict)
    for key, value in flags.items():
        if key.startswith("config."):
            config.update_from_flattened_dict({key.removeprefix("config."): _value(config, key, value)})
    recipe = recipe_of(config.to_dict())
    check_stage(recipe, flags.get("stage") or "all")
    assert set(flags) - {key for key in flags if key.startswith("config.")} <= {
        "workdir",
        "beam",
        "part",
        "stage",
        "dry_run",
        "workdirs",
    }
    if flags.get("config.root", "") not in LOCAL:
        members(recipe, config.to_dict())


def _value(config, key, value):
    """A command line's text in the type of its key, set or not."""
    *path, last = key.split(".")[1:]
    for name in path:
        config = config[name]
    kind = config.get_type(last)
    return kind(eval(value, {})) if kind in (tuple, int, float) else value


@pytest.mark.parametrize(("page", "code"), blocks("python"))
def test_snippets_run(page, code, tmp_path):
    if page == TUTORIAL:
        compile(code, str(page), "exec")
        assert set(re.findall(r"\bmust\.(\w+)", code)) <= set(must.__all__)
        return
    ended = run_code(code, tmp_path)
    assert ended.code == 0, ended.lines


def test_the_tutorials_own_teachers_label(tmp_path):
    """The blocks that need no earlier command: teachers of other frameworks, and a task that comes later."""
    pytest.importorskip("torch")
    pytest.importorskip("onnx")
    codes = [code for _, kind, code in BLOCK.findall(TUTORIAL.read_text(encoding="utf-8")) if kind == "python"]
    pytest.importorskip("transformers")
    alone = [code for code in codes if re.search("from_torch|hf_depth|add_labels", code)]
    assert len(alone) == 3
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "JAX_PLATFORMS": "cpu"}
    # The referees make torchvision, which transformers imports, load beside a torch that it is not built for.
    code = "import must, tests.support.referees\n" + "\n".join(alone)
    (tmp_path / "runs").mkdir()
    subprocess.run([sys.executable, "-c", code], cwd=tmp_path, env=environment, check=True, timeout=240)
    assert must.Records(tmp_path / "runs" / "inverse" / "1.0.0")[0].labels["depth"]["inverse"]
    assert (tmp_path / "runs" / "mine").exists()


@pytest.mark.parametrize(("page", "code"), blocks("bash"))
def test_shell_lines_name_what_exists(page, code):
    for line in code.replace("\\\n", " ").splitlines():
        for path in re.findall(r"(?:python|bash) ((?:tests|docs|launch)/[\w/.]+)", line):
            assert (ROOT / path).exists(), line
        for module in re.findall(r"python -m (tests\.[\w.]+)", line):
            assert importlib.util.find_spec(module), line
        extras = (ROOT / "setup.cfg").read_text(encoding="utf-8")
        for extra in re.findall(r'"\.\[(\w+)\]"', line):
            assert re.search(rf"^{extra} =", extras, re.MULTILINE), line
