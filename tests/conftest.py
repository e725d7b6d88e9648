"""What holds for every test: programs compiled fast and kept between runs, the real data pack.

Tests run on one device, as a user's CPU does: eight simulated ones make every step take 1.5 to 2 times as long. A test
marked `devices(n)` runs again by itself in a process that has n.
"""

import functools
import gc
import os
import subprocess
import sys
from pathlib import Path

import pytest

# Before JAX is imported, which reads them once; processes that tests start inherit them.
CACHE = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "must-ci" / "jax"
os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(CACHE))
# Even the smallest are kept: most of a suite's programs are single operations, which take 40 ms to compile, 3 to load.
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0")
os.environ.setdefault("JAX_PLATFORMS", "cpu")
# Nearly all of a test's time is compiling, for programs that then run a few times. Without LLVM's optimization and with
# the older emitters of loops that takes a quarter as long. XLA's own passes stay those of a real run; what is fused
# with what differs a little, and the last bits with it.
FAST_COMPILATION = (
    "--xla_backend_optimization_level=0",
    "--xla_llvm_disable_expensive_passes=true",
    "--xla_cpu_use_fusion_emitters=false",
    "--xla_cpu_parallel_codegen_split_count=1",
)
os.environ["XLA_FLAGS"] = " ".join([*FAST_COMPILATION, os.environ.get("XLA_FLAGS", "")]).strip()
# Where the environment forbids to keep bytecode, each of a hundred processes would compile every module again.
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
sys.dont_write_bytecode = False
gc.set_threshold(100_000, 50, 100)  # tracing makes millions of objects and little garbage
SIMULATED_DEVICES = os.environ.get("MUST_TEST_DEVICES")

from must.core.devices import set_xla_flags  # noqa: E402

set_xla_flags(simulated_devices=None if SIMULATED_DEVICES is None else int(SIMULATED_DEVICES))

LONGEST = (
    "test_main.py",
    "test_promises.py",
    "test_multas.py",
    "test_two_processes.py",
    "test_jedi.py",
    "test_hints.py",
    "test_your_data.py",
    "test_weighting.py",
    "test_new_task.py",
    "test_train_step.py",
    "test_tasks.py",
    "test_pixel_centers.py",
    "test_joint_devices.py",
    "test_joint.py",
    "test_devices.py",
    "test_unseen.py",
    "test_joint_toy.py",
    "test_finished.py",
    "test_pretrained.py",
    "test_vit.py",
    "test_transfer.py",
    "test_two_stage.py",
    "test_launch.py",
)

REPOSITORY = Path(__file__).parents[1]


def pytest_configure(config):
    config.addinivalue_line("markers", "devices(n): runs in a process of its own with n simulated CPU devices")


def pytest_collection_modifyitems(items):
    """Files that take longest come first, so that no worker is left alone with one of them at the end."""
    rank = {name: place for place, name in enumerate(LONGEST)}
    items.sort(key=lambda item: rank.get(item.path.name, len(rank)))  # a stable sort


@pytest.hookimpl(tryfirst=True)
def pytest_pyfunc_call(pyfuncitem):
    """Hands a test marked `devices(n)` to a process with n devices; its failure is this test's failure."""
    count = _devices(pyfuncitem)
    if count is None or SIMULATED_DEVICES is not None:
        return None
    same = [item for item in pyfuncitem.session.items if item.path == pyfuncitem.path and _devices(item) == count]
    said = _run_with_devices(count, tuple(f"{item.path}::{item.nodeid.partition('::')[2]}" for item in same))
    if f"{pyfuncitem.nodeid} PASSED" not in said:
        pytest.fail(f"with {count} devices:\n{said}", pytrace=False)
    return True


def _devices(item) -> int | None:
    marker = item.get_closest_marker("devices")
    return None if marker is None else marker.args[0]


@functools.cache
def _run_with_devices(count: int, nodes: tuple[str, ...]) -> str:
    """Starts one process for all tests of a file that need as many devices: imports take longer than most of them."""
    command = [sys.executable, "-m", "pytest", "-vv", "-n0", "-p", "no:cacheprovider", "--no-header", *nodes]
    environment = {**os.environ, "MUST_TEST_DEVICES": str(count)}
    done = subprocess.run(command, cwd=REPOSITORY, env=environment, capture_output=True, text=True)
    return f"{done.stdout}{done.stderr}"


@pytest.fixture(scope="session")
def data_pack() -> Path:
    """The folder of small real data sets beside the checkout."""
    folder = REPOSITORY.parent / "shared" / "data"
    if not folder.is_dir():
        pytest.skip("the real data sets are not there")
    return folder
