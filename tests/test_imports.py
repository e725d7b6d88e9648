"""Who may import whom, read from the source; and what `import must` costs."""

import ast
import re
import statistics
import subprocess
import sys
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).parents[1]
PACKAGE = REPOSITORY / "must"

# A room imports itself and rooms of a higher rank; rooms of one rank do not import each other.
RANKS = {
    "main": 0,
    "recipes": 1,
    "experiment": 2,
    "train": 3,
    "objectives": 3,
    "pseudo_label": 3,
    "evaluate": 3,
    "report": 3,
    "export": 3,
    "tasks": 4,
    "models": 5,
    "data": 5,
    "readers": 6,
    "scenes": 6,
    "core": 7,
}
CONFIG_ROOMS = {"main", "recipes", "experiment"}
FLAX_ROOMS = {"models", "tasks"}
FOREIGN = {"tensorflow", "torch", "torchvision", "transformers", "onnxruntime"}
ADAPTERS = PACKAGE / "pseudo_label" / "adapters"  # the only package that knows other frameworks, inside its functions


def files():
    return sorted(path for path in PACKAGE.rglob("*.py") if path != PACKAGE / "__init__.py")


def room(path):
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def imported(tree, path):
    """Full dotted names of everything that a file imports, inside functions too."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                package = path.relative_to(REPOSITORY).parent.parts
                package = package[: len(package) - node.level + 1]
                base = ".".join((*package, base) if base else package)
            yield from (f"{base}.{alias.name}" for alias in node.names)


def breaches(source, path):
    """Import-law breaches of one file, as messages."""
    tree = ast.parse(source)
    at_the_top = set(imported(ast.Module([node for node in tree.body if not hasattr(node, "body")], []), path))
    own = room(path)
    found = [] if own in RANKS else [f"{own} is no room"]
    for name in imported(tree, path):
        parts = name.split(".")
        if parts[0] in FOREIGN and (ADAPTERS not in path.parents or name in at_the_top):
            found.append(f"imports {name}")
        if parts[0] == "flax" and own not in FLAX_ROOMS:
            found.append(f"imports {name}: only {sorted(FLAX_ROOMS)} know flax")
        if parts[:2] == ["absl", "flags"] and own != "main" and path.name != "ahead.py":  # Grain's own
            found.append("reads flags")
        if parts[0] == "ml_collections" and own not in CONFIG_ROOMS:
            found.append("handles a config")
        if parts[0] == "must":
            target = parts[1] if len(parts) > 1 else ""
            if target not in RANKS:
                found.append(f"imports {name}: the package itself is for users")
            elif target != own and RANKS.get(own, 9) >= RANKS[target]:
                found.append(f"imports {name}")
    words = {node.id for node in ast.walk(tree) if isinstance(node, ast.Name)}
    words |= {node.attr for node in ast.walk(tree) if isinstance(node, ast.Attribute)}
    words |= {name.rpartition(".")[2] for name in imported(tree, path)}
    spread = {
        word for word in words if re.fullmatch(r"pmap|shard_map|make_mesh|(Abstract)?Mesh|NamedSharding|pjit", word)
    }
    if spread and path != PACKAGE / "core" / "devices.py":
        found.append(f"names {', '.join(sorted(spread))}")
    if "ConfigDict" in words and own not in CONFIG_ROOMS:
        found.append("names ConfigDict")
    return found


def test_every_file_keeps_the_import_law():
    found = {str(path.relative_to(REPOSITORY)): breaches(path.read_text(), path) for path in files()}
    assert len(found) > 20
    assert {name: messages for name, messages in found.items() if messages} == {}


def modules():
    """{dotted name: path} of the package."""
    named = {".".join(path.relative_to(REPOSITORY).with_suffix("").parts): path for path in PACKAGE.rglob("*.py")}
    return {name.removesuffix(".__init__"): path for name, path in named.items()}


def circles(graph):
    """Sets of modules that import each other, directly or by way of others (Tarjan 1972)."""
    number, lowest, stack, found = {}, {}, [], []

    def visit(module):
        number[module] = lowest[module] = len(number)
        stack.append(module)
        for other in graph[module]:
            if other not in number:
                visit(other)
            if other in stack:
                lowest[module] = min(lowest[module], lowest[other])
        if lowest[module] == number[module]:
            place = stack.index(module)
            if len(stack) - place > 1:
                found.append(sorted(stack[place:]))
            del stack[place:]

    for module in graph:
        if module not in number:
            visit(module)
    return found


def test_no_circle_of_imports_inside_functions_either():
    known = modules()
    graph = {}
    for name, path in known.items():
        full = set(imported(ast.parse(path.read_text()), path))
        graph[name] = {one if one in known else one.rpartition(".")[0] for one in full if one.startswith("must")}
        graph[name] = {one for one in graph[name] if one in known and one != name}
    assert len(graph) > 100 and circles(graph) == []
    assert circles({"a": {"b"}, "b": {"c"}, "c": {"a"}, "d": {"a"}}) == [["a", "b", "c"]]


# Files that hold one concept of more than 450 lines.
LONG_FILES = {
    "must/experiment/settings.py": "the reference of all keys",
    "must/experiment/joint.py": "settings, networks and jobs of joint experts",
    "must/experiment/compare.py": "the comparison of a run and of several",
    "must/models/pretrained.py": "the key maps of all families",
    "must/report/page.py": "the one page",
}


def functions(tree):
    return [node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)]


def test_files_and_functions_stay_readable():
    long = {name: path.read_text().count("\n") for name, path in modules().items()}
    long = {name.replace(".", "/") + ".py" for name, lines in long.items() if lines > 450}
    assert long <= set(LONG_FILES), long - set(LONG_FILES)
    assert not [path for path in (PACKAGE / "recipes").glob("*.py") if path.read_text().count("\n") > 250]
    found = []
    for path in modules().values():
        for node in functions(ast.parse(path.read_text())):
            lines = node.end_lineno - node.lineno + 1
            arguments = len(node.args.args) + len(node.args.kwonlyargs)
            if lines > 70 or (arguments > 12 and node.name not in ("__init__", "label_images")):
                found.append(f"{path.relative_to(REPOSITORY)}: {node.name} has {lines} lines, {arguments} arguments")
    assert found == []


def writes(tree):
    """Calls that open a path for writing."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Call) and getattr(node.func, "id", "") == "open":
            mode = list(node.args[1:2]) + [k.value for k in node.keywords if k.arg == "mode"]
            if any(isinstance(one, ast.Constant) and set(str(one.value)) & set("wax+") for one in mode):
                yield node.lineno


def test_only_core_files_opens_paths_for_writing():
    found = {}
    for name, path in modules().items():
        if name != "must.core.files" and (lines := list(writes(ast.parse(path.read_text())))):
            found[name] = lines
    assert not found


def test_every_import_at_the_top_is_declared():
    import configparser
    import importlib.metadata

    config = configparser.ConfigParser()
    config.read(REPOSITORY / "setup.cfg")
    lines = config["options"]["install_requires"].splitlines()
    declared = {re.split(r"[><=\[]", line)[0].lower().replace("-", "_") for line in lines if line and line[0] != "#"}
    distributions = importlib.metadata.packages_distributions()
    found = set()
    for path in modules().values():
        for node in ast.parse(path.read_text()).body:
            if isinstance(node, ast.Import | ast.ImportFrom):
                found |= {name.partition(".")[0] for name in imported(ast.Module([node], []), path)}
    foreign = {name for name in found if name not in sys.stdlib_module_names and name != "must"}
    needed = {distributions[name][0].lower().replace("-", "_") for name in foreign}
    assert "jax" in needed and needed <= declared, needed - declared


@pytest.mark.parametrize(
    ("where", "source"),
    [
        ("core/x.py", "from must.data import geometry"),
        ("core/x.py", "from must import data"),
        ("core/x.py", "def f():\n    import must.tasks.depth"),
        ("experiment/x.py", "from must.recipes import must"),
        ("readers/x.py", "from must.data import geometry"),
        ("train/x.py", "from must.objectives.objective import objective"),
        ("train/x.py", "from ..evaluate import statistics"),
        ("data/x.py", "from must.models import fpn"),
        ("train/x.py", "import must"),
        ("train/x.py", "from absl import flags"),
        ("train/x.py", "import jax\njax.pmap(f)"),
        ("train/x.py", "from jax.sharding import Mesh"),
        ("train/x.py", "from ml_collections import ConfigDict"),
        ("train/x.py", "def f(c: ConfigDict): ..."),
        ("train/x.py", "import flax.linen as nn"),
        ("data/x.py", "def f():\n    import tensorflow as tf"),
        ("pseudo_label/x.py", "def f():\n    import torch"),
        ("pseudo_label/adapters/x.py", "import torch"),
        ("utils/x.py", "import os"),
    ],
)
def test_the_law_can_be_broken(where, source):
    assert breaches(source, PACKAGE / where)


@pytest.mark.parametrize(
    ("where", "source"),
    [
        ("main.py", "from absl import flags\nfrom must.recipes import table"),
        ("recipes/x.py", "from must.train import loop\nfrom ml_collections import ConfigDict"),
        ("tasks/x.py", "from must.core import boxes\nfrom . import base\nfrom must.models import heads"),
        ("core/devices.py", "import jax\njax.shard_map(f)"),
        ("pseudo_label/adapters/x.py", "def f():\n    import torch"),
    ],
)
def test_what_the_law_allows(where, source):
    assert breaches(source, PACKAGE / where) == []


def python(code):
    done = subprocess.run([sys.executable, "-c", code], cwd=REPOSITORY, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout.split()


def test_importing_must_is_quick_and_brings_nothing_heavy():
    heavy = "tensorflow torch onnxruntime orbax tensorflow_datasets grain matplotlib faster_coco_eval tensorboardX PIL"
    code = (
        "import time, sys, jax, flax.linen, optax; t = time.perf_counter(); import must; dir(must);"
        "from must import train_step, Task, Depth, Batch, parallelize; spent = time.perf_counter() - t;"
        f"print(spent, *[m for m in {heavy.split()} if m in sys.modules])"
    )
    runs = [python(code) for _ in range(3)]
    assert [run[1:] for run in runs] == [[]] * 3, "heavy packages came along"
    # 0.1-0.2 s on an idle core; the bound leaves room for a busy one.
    assert statistics.median(float(run[0]) for run in runs) < 1.0


def test_importing_must_has_no_side_effects():
    code = (
        "import os, sys, random; before = dict(os.environ), list(sys.path), random.getstate(); import must;"
        "after = dict(os.environ), list(sys.path), random.getstate(); print(before == after, 'jax' in sys.modules)"
    )
    assert python(code) == ["True", "False"]


def test_no_public_name_starts_the_devices():
    code = (
        "import must; [getattr(must, name) for name in must.__all__];"
        "must.set_xla_flags(simulated_devices=3); import jax; print(jax.device_count())"
    )
    assert python(code) == ["3"], "devices were started by an import, so that flags came too late"


def test_every_public_name_exists_and_is_documented():
    import must

    for name in must.__all__:
        value = getattr(must, name)
        assert value.__doc__ and len(value.__doc__) > 20, name
    assert set(must.__all__) <= set(dir(must))
    with pytest.raises(AttributeError, match="no_such_name"):
        must.no_such_name  # noqa: B018


# Calls that run what a file says.
UNSAFE = {"eval", "exec", "compile", "pickle.load", "pickle.loads", "yaml.load", "torch.load", "marshal.loads"}


def unsafe_calls(tree):
    for node in ast.walk(tree):
        if isinstance(node, ast.Call):
            if ast.unparse(node.func) in UNSAFE:
                yield ast.unparse(node.func)
            yield from (
                "allow_pickle"
                for word in node.keywords
                if word.arg == "allow_pickle" and ast.unparse(word.value) != "False"
            )


def test_nothing_that_a_file_says_is_executed():
    found = {name: [*unsafe_calls(ast.parse(path.read_text()))] for name, path in modules().items()}
    assert {name: calls for name, calls in found.items() if calls} == {}
    assert [*unsafe_calls(ast.parse("np.load(f, allow_pickle=True), pickle.loads(b), re.compile(p), eval(s)"))] == [
        "allow_pickle",
        "pickle.loads",
        "eval",
    ]
