"""The command line as a user meets it: mistakes are one line and exit code 2, killed runs resume."""

import json
import os
import re
import resource
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.support.commands import Ended, run_command

ROOT = Path(__file__).parents[1]
TINY = "tests/support/tiny_config.py"


def _command(workdir, *flags):
    return [sys.executable, "-m", "must.main", f"--config={TINY}", f"--workdir={workdir}", *flags]


def _environment():
    return {**os.environ, "OMP_NUM_THREADS": "1"}


def _run(workdir, *flags):
    command = _command(workdir, *flags)
    result = subprocess.run(command, cwd=ROOT, env=_environment(), capture_output=True, text=True, timeout=280)
    assert result.returncode == 0, result.stderr[-3000:]


def _fork(workdir, *flags, config=TINY) -> Ended:
    """As `_run`, without waiting for imports."""
    ended = run_command([f"--config={config}", f"--workdir={workdir}", *flags])
    assert ended.code == 0, ended.lines
    return ended


def _refused(workdir, *flags):
    """The one line of a refusal."""
    ended = run_command([f"--config={TINY}", f"--workdir={workdir}", *flags])
    assert ended.code == 2 and len(ended.lines) == 1, ended.lines
    return ended.lines[0]


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """An uninterrupted run."""
    workdir = tmp_path_factory.mktemp("whole") / "run"
    _fork(workdir, "--stage=teachers", "--config.workers=1")
    _fork(workdir, "--stage=label", "--config.workers=1")
    return workdir


def _arrays(workdir):
    """Hashes of what training and labeling left."""
    from must.train.checkpoint import Checkpoints

    facts = Checkpoints(str(workdir / "teachers" / "depth" / "checkpoints")).facts()
    records = {
        p.name: p.read_bytes()
        for p in (workdir / "pseudo_labels" / "pool" / "1.0.0").iterdir()
        if "array_record" in p.name
    }
    return facts["sha256"], records


def _kill_when(workdir, ready, *flags):
    process = subprocess.Popen(
        _command(workdir, *flags), cwd=ROOT, env=_environment(), stderr=subprocess.DEVNULL, start_new_session=True
    )
    end = time.time() + 200
    while not ready() and process.poll() is None and time.time() < end:
        time.sleep(0.02)
    alive = process.poll() is None
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    return alive


def test_killed_training_and_labeling_end_like_an_uninterrupted_run(whole, tmp_path):
    workdir = tmp_path / "killed"
    checkpoints = workdir / "teachers" / "depth" / "checkpoints"
    saved = lambda: any(p.name.isdigit() for p in checkpoints.glob("*")) if checkpoints.exists() else False  # noqa: E731
    flags = ("--stage=teachers", "--config.workers=1", "--config.teacher.data_workers=2")  # `whole` reads by itself
    assert _kill_when(workdir, saved, *flags)
    assert not (workdir / "teachers" / "depth" / "done.json").exists()
    _run(workdir, *flags)
    spent = json.loads((workdir / "teachers" / "depth" / "done.json").read_text())["spent"]
    assert all(spent[part] > 0 for part in ("init", "compile", "step", "save", "evaluate"))
    records = workdir / "pseudo_labels" / "pool" / "1.0.0"
    begun = lambda: records.exists() and any(records.iterdir())  # noqa: E731
    _kill_when(workdir, begun, "--stage=label", *flags[1:])
    _fork(workdir, "--stage=label", *flags[1:])
    assert _arrays(workdir) == _arrays(whole)


def test_other_configuration_is_refused_by_its_first_key(whole):
    assert "config.teacher.steps" in _refused(whole, "--config.teacher.steps=7")


def test_a_second_run_in_a_workdir_is_refused(whole):
    from must.core.files import lock

    with lock(str(whole / "lock")) as held:
        assert held and "another run" in _refused(whole, "--stage=student")


def test_a_configuration_that_does_not_stand_claims_no_workdir(tmp_path):
    assert "supervized" in _refused(tmp_path / "run", "--config.baselines=('supervized',)")
    assert not (tmp_path / "run").exists()


def test_damaged_shard_is_named(whole, tmp_path):
    copy = tmp_path / "copy"
    shutil.copytree(whole, copy)
    shard = next((copy / "pseudo_labels" / "pool" / "1.0.0").glob("*array_record*"))
    shard.write_bytes(shard.read_bytes()[:-10])
    assert shard.name in _refused(copy, "--stage=student", "--config.workers=1")


MISTAKES = [
    (["--config.teacher.stepz=3"], "no such key: stepz; Did you mean steps"),
    (["--stage=studnet"], "studnet"),
    (["--stage=exprot"], "--stage='exprot'"),
    (["--stage=predict"], "--images=DIR is required"),
    (["--stage=predict", "--images=nowhere"], "--images=nowhere: no such file or folder"),
    (["--stage=predict", "--images=tests", "--options={'tile': (2, 2)}"], "--options.tile: unknown key; did you mean"),
    (["--stage=evaluate", "--options=nowhere.json"], "--options=nowhere.json: No such file"),
    (["--stage=evaluate"], "--options.set: give either `set`, any data set, or `split`"),
    (["--stage=export"], "config.json: does not exist"),
    (["--stage=teachers", "--images=tests"], "--images, --output, --options: not for --stage=teachers"),
    (["--stage=student"], "label"),
    (["--stage=label", "--part=2/2"], "--part=2/2: expected K/N"),
    (["--part=0/2"], "--part=0/2: only for --stage=label"),
    (["--beam="], "--beam=: only for --stage=label"),
    (["--stage=label", "--beam=--a", "--part=0/2"], "one of --part and --beam"),
    (["--config.tasks.depth.kind=deepth", "--dry_run"], "deepth"),
    (["--config.recipe=mast"], "mast"),
    (["--config.student.steps=abc"], "--config.student.steps=abc"),
    (["--config.student.steps"], "Missing value for flag --config.student.steps"),
    (["--dryrun"], "dryrun"),
    (["--config.student.weights.kind=ratio"], "config.student.weights.kind='ratio'"),
    (["--config.student.steps=-1"], "config.student.steps=-1: must be at least 0"),
    (["--config.teacher.steps=-5", "--dry_run"], "config.teacher.steps=-5: must be at least 1"),
    (["--config.teacher.batch_size=0"], "config.teacher.batch_size=0"),
    (["--config.teacher.log_every=0"], "config.teacher.log_every=0"),
    (["--config.seeds=()"], "config.seeds=()"),
    (["--config.seeds=(0,0)"], "config.seeds=(0, 0)"),
    (["--config.workers=-1"], "config.workers=-1"),
    (["--config.image.size=(0,0)"], "config.image.size[0]=0"),
    (["--config.image.size=(64,)"], "config.image.size=[64]"),
    (["--stage=gallery"], "policy, which is not done: run --stage=label first"),
    (["--workdirs=a,b"], "--workdirs: only --stage=compare takes"),
    (["--workdir="], "--workdir=DIR is required"),
    (["--workdir=nowhere://bucket/run"], "nowhere://bucket/run: Protocol not known"),
    (["--workdir=setup.cfg"], "--workdir="),
    (["--workdir=/proc/run"], "--workdir=/proc/run"),
    (["--processes=2"], "need --coordinator=host:port"),
    (["extra"], "unexpected argument 'extra'"),
    (["--config=configs/quickstart.py:pol"], "ValueError: no variant 'pol' of quickstart: sanity, evidence, pool"),
    (["--config=configs/quickstrat.py"], "--config=configs/quickstrat.py: no such file"),
    (["--config", "nowhere.py"], "--config=nowhere.py: no such file"),
    (["--config=configs"], "--config=configs: a folder, not a file"),
    (["--config="], "--config=: no such file"),
    (["--config=raises.py"], "raises.py:2: ZeroDivisionError: division by zero"),
    (["--config=message.py"], "message.py:2: ValueError: first line second line"),
    (["--config=syntax.py"], "syntax.py:1: "),
    (["--config=imports.py"], "imports.py:1: ModuleNotFoundError: No module named 'not_there_at_all'"),
    (["--config=nothing.py"], "nothing.py: has no get_config()"),
    (["--config=none.py"], "none.py: get_config() returns None; it must return a ConfigDict"),
    (["--config=recipeless.py"], "config.recipe=None"),
]
CONFIGURATIONS = {
    "raises.py": "def get_config():\n    return 1 / 0\n",
    "message.py": "def get_config():\n    raise ValueError('first line\\nsecond line')\n",
    "syntax.py": "def get_config(:\n",
    "imports.py": "import not_there_at_all\n\ndef get_config():\n    return None\n",
    "nothing.py": "x = 1\n",
    "none.py": "def get_config():\n    return None\n",
    "recipeless.py": "from ml_collections import ConfigDict\n\ndef get_config():\n    return ConfigDict()\n",
}


def test_mistakes_are_one_line(tmp_path):
    for name, text in CONFIGURATIONS.items():
        (tmp_path / name).write_text(text)
    for name in ("configs", "tests", "setup.cfg"):
        (tmp_path / name).symlink_to(ROOT / name)
    for flags, message in MISTAKES:
        command = [f"--workdir={tmp_path / 'run'}", *flags]
        if not any(flag.startswith("--config=") or flag == "--config" for flag in flags):
            command.insert(0, f"--config={TINY}")
        ended = run_command(command, tmp_path)
        assert ended.code == 2 and len(ended.lines) == 1 and message in ended.lines[0], (flags, ended)


def test_both_forms_of_a_flag(tmp_path):
    for flags in (["--config", TINY, "--config.seeds", "(3,3)"], [f"--config={TINY}", "--config.seeds=(3,3)"]):
        ended = run_command([*flags, f"--workdir={tmp_path / 'run'}"])
        assert ended.code == 2 and "config.seeds=(3, 3)" in ended.lines[0]


def test_a_terminated_run_says_so_and_leaves_nothing_to_clean_up(tmp_path):
    flags = ("--stage=teachers", "--config.workers=2", "--config.teacher.steps=5000")
    command = _command(tmp_path / "run", *flags, "--config.teacher.checkpoint_every=5000")
    with subprocess.Popen(command, cwd=ROOT, env=_environment(), stderr=subprocess.PIPE, text=True) as process:
        path = tmp_path / "run" / "teachers" / "depth" / "metrics.jsonl"
        while not (path.exists() and path.read_text()) and process.poll() is None:
            time.sleep(0.1)
        process.terminate()
        text = process.communicate(timeout=60)[1]
    assert process.returncode == 143 and "terminated; the same command resumes" in text
    assert "Traceback" not in text and "leaked" not in text, text
    from must.train.checkpoint import Checkpoints

    # Jobs save where they are.
    at = Checkpoints(str(path.parent / "checkpoints")).latest()
    assert at == json.loads(path.read_text().splitlines()[-1])["step"] < 5000


def test_a_full_disk_is_named_and_the_same_command_goes_on(whole, tmp_path):
    copy = tmp_path / "copy"
    shutil.copytree(whole, copy, ignore=shutil.ignore_patterns("pseudo_labels", "label", "policy"))
    command = _command(copy, "--stage=label", "--config.workers=1")
    limit = lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 14, 1 << 14))  # noqa: E731
    full = subprocess.run(
        command, cwd=ROOT, env=_environment(), capture_output=True, text=True, preexec_fn=limit, check=False
    )
    assert full.returncode == 2 and "no space left; make room" in full.stderr and "Traceback" not in full.stderr
    _fork(copy, "--stage=label", "--config.workers=1")
    assert _arrays(copy) == _arrays(whole)


def test_dry_run_writes_nothing(tmp_path):
    ended = _fork(tmp_path / "run", "--dry_run")
    printed = ended.out
    assert not ended.lines and not (tmp_path / "run").exists()
    assert re.search(r"student all tasks .* M parameters", printed) and "bytes of a record" in printed
    assert re.search(r"images to label: pool \d+.* in all, by", printed)
    assert re.search(r"in all \d.* h a seed", printed)
