"""The launchers, run for real against a recording stand-in for `gcloud` and a tiny module in place of `must.main`."""

import json
import os
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).parents[1]
TPU = REPOSITORY / "launch" / "tpu" / "run.sh"
TWO = REPOSITORY / "launch" / "local" / "two_process.sh"

GCLOUD = f"""#!{sys.executable}
import json, os, sys, time
arguments = sys.argv[1:]
with open(os.environ["CALLS"], "a") as file:
    print(json.dumps(["gcloud", *arguments]), file=file)
verb = next(a for a in arguments if a in ("list", "create", "describe", "scp", "ssh", "delete"))
if verb == "ssh" and "must.main" in " ".join(arguments):
    verb = "main"
if verb == "describe":
    states = os.environ.get("STATES", "ACTIVE").split()
    asked = sum("describe" in line for line in open(os.environ["CALLS"]))
    print(states[min(asked, len(states)) - 1])
if verb == "list":
    print(os.environ.get("EXISTING", ""))
if verb == os.environ.get("HANGS"):
    time.sleep(60)
sys.exit(int(os.environ.get("FAIL_" + verb, 0)))
"""

MAIN = """import os, sys, time
rank = sys.argv[-1][-1]
with open(f"rank{rank}.partial", "w") as file:
    print(os.getpid(), *sorted(os.sched_getaffinity(0)), sep=" ", file=file)
    print(*sys.argv[1:], sep="\\n", file=file)
os.rename(f"rank{rank}.partial", f"rank{rank}.txt")
mode = sys.argv[1]
if mode == "fail" and rank == "1":
    while not os.path.exists("rank0.txt"):
        time.sleep(0.02)
    sys.exit(7)
if mode in ("fail", "hang"):
    time.sleep(60)
"""


@pytest.fixture
def tpu(tmp_path):
    """Starts the TPU launcher; returns (exit code, gcloud's calls, stdout, stderr)."""
    folder = tmp_path / "bin"
    folder.mkdir()
    (folder / "gcloud").write_text(GCLOUD)
    (folder / "gcloud").chmod(0o755)
    calls = tmp_path / "calls.jsonl"
    calls.touch()

    def launch(*options, interrupt_at=None, **environment):
        command = [TPU, "--name=t1", "--project=p", "--zone=z", "--accelerator-type=v4-32", "--poll-seconds=0"]
        command += ["--runtime-version=image", *options]
        command += ["--", "--config=configs/must.py:folders", "--workdir=runs/x", "--config.root=a b"]
        environment |= {"PATH": f"{folder}:{os.environ['PATH']}", "CALLS": str(calls), "TMPDIR": str(tmp_path)}
        process = subprocess.Popen(
            command,
            cwd=tmp_path,
            env={**os.environ, **environment},
            text=True,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            # A suite in the background ignores Ctrl-C, which its children inherit and a shell cannot undo.
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
        )
        if interrupt_at is not None:
            wait_for(lambda: interrupt_at in calls.read_text())
            process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=30)
        return process.returncode, [shlex.join(json.loads(line)) for line in calls.read_text().splitlines()], out, err

    return launch


def wait_for(condition, seconds=20):
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def verbs(calls):
    return [next(w for w in c.split() if w in ("list", "create", "describe", "scp", "ssh", "delete")) for c in calls]


def test_tpu_success_runs_everywhere_brings_results_home_and_deletes(tpu, tmp_path):
    code, calls, _, err = tpu("--spot", STATES="WAITING_FOR_RESOURCES PROVISIONING ACTIVE")
    assert code == 0, err
    assert verbs(calls) == ["list", "create", "describe", "describe", "describe", "scp", "ssh", "ssh", "scp", "delete"]
    assert "queued-resources create t1 --node-id=t1 --accelerator-type=v4-32 --runtime-version=image --spot" in calls[1]
    assert "--worker=all" in calls[5] and "--worker=all" in calls[6] and "--worker=all" in calls[7]
    main = shlex.split(calls[7])
    inner = shlex.split(next(word for word in main if word.startswith("--command=")).removeprefix("--command="))
    wanted = [
        "-m",
        "must.main",
        "--config=configs/must.py:folders",
        "--workdir=runs/x",
        "--config.root=a b",
        "--coordinator=auto",
    ]
    assert inner[-6:] == wanted
    assert "t1:must/runs/x runs --recurse --worker=0" in calls[8]
    assert "delete t1 --force" in calls[9]
    assert all("--project=p" in call and "--zone=z" in call for call in calls)
    assert not list(tmp_path.glob("t1*")), "the copy of the code stays behind"


def test_tpu_code_is_that_of_the_ref(tpu, tmp_path):
    code, calls, _, err = tpu("--ref=no-such-ref")
    assert code == 2 and "no-such-ref" in err and calls == []
    commit = subprocess.run(
        ["git", "-C", REPOSITORY, "rev-parse", "HEAD"], capture_output=True, text=True
    ).stdout.strip()
    _, _, out, _ = tpu("--dry-run", "--ref=HEAD")
    assert f"checkout --quiet --detach {commit}" in out


@pytest.mark.parametrize(
    ("environment", "expected", "last"),
    [
        ({"FAIL_create": "3"}, 3, "create"),
        ({"STATES": "PROVISIONING FAILED"}, 1, "describe"),
        ({"STATES": "SUSPENDED"}, 1, "describe"),
        ({"FAIL_scp": "5"}, 5, "scp"),
        ({"FAIL_ssh": "4"}, 4, "ssh"),
    ],
)
def test_tpu_is_deleted_when_something_fails_on_the_way(tpu, environment, expected, last):
    code, calls, _, err = tpu(**environment)
    assert (code, verbs(calls)[-2:]) == (expected, [last, "delete"])
    assert "STATES" not in environment or f"went to {environment['STATES'].split()[-1]}" in err


def test_tpu_keeps_the_exit_code_of_a_failed_run_and_its_results(tpu):
    code, calls, _, _ = tpu(FAIL_main="9")
    assert (code, verbs(calls)[-3:]) == (9, ["ssh", "scp", "delete"])


def test_tpu_never_active_times_out(tpu):
    code, calls, _, err = tpu("--timeout-minutes=0", STATES="WAITING_FOR_RESOURCES")
    assert (code, verbs(calls)[-1]) == (1, "delete")
    assert "still WAITING_FOR_RESOURCES after 0 minutes" in err


def test_tpu_failed_deletion_is_tried_again_and_shouted(tpu):
    code, calls, _, err = tpu(FAIL_delete="1")
    assert (code, verbs(calls)[-3:]) == (1, ["delete"] * 3)
    assert "COULD NOT BE DELETED" in err


def test_tpu_of_someone_else_is_not_deleted(tpu):
    code, calls, _, err = tpu(EXISTING="t1")
    assert (code, verbs(calls)) == (2, ["list"])
    assert "t1 exists already" in err
    assert tpu(EXISTING="t10")[0] == 0


@pytest.mark.parametrize("during", ["create", "must.main"])
def test_tpu_interrupt_deletes_at_once(tpu, during):
    start = time.monotonic()
    code, calls, _, _ = tpu(interrupt_at=during, HANGS="main" if during == "must.main" else during)
    assert (code, verbs(calls)[-1]) == (130, "delete")
    assert time.monotonic() - start < 30


def test_tpu_dry_run_prints_the_commands_of_a_real_run_and_calls_nothing(tpu, tmp_path):
    code, calls, printed, _ = tpu("--dry-run")
    assert (code, calls, list(tmp_path.glob("t1*"))) == (0, [], [])
    shown = [shlex.join(shlex.split(line)) for line in printed.splitlines() if line.startswith("gcloud")]
    _, made, _, _ = tpu()
    assert shown == made


def test_tpu_missing_options_are_named(tpu, tmp_path):
    done = subprocess.run([TPU, "--name=a", "--project=b"], capture_output=True, text=True)
    assert done.returncode == 2 and "--zone= is required" in done.stderr


@pytest.fixture
def two(tmp_path):
    """Starts the two-process launcher in a folder whose `must.main` is the one above."""
    (tmp_path / "must").mkdir()
    (tmp_path / "must" / "__init__.py").touch()
    (tmp_path / "must" / "main.py").write_text(MAIN)

    def launch(mode):
        environment = {**os.environ, "PYTHON": sys.executable, "PYTHONPATH": ""}
        return subprocess.Popen([TWO, mode, "--config.x=a b"], cwd=tmp_path, env=environment, stderr=subprocess.PIPE)

    return launch


def ranks(folder):
    lines = [(folder / f"rank{k}.txt").read_text().splitlines() for k in range(2)]
    return [[int(word) for word in rank[0].split()] for rank in lines], [rank[1:] for rank in lines]


def test_two_processes_get_the_same_command_a_rank_and_a_core_each(two, tmp_path):
    assert two("work").wait(30) == 0
    (first, second), (a, b) = ranks(tmp_path)
    assert a[:2] == ["work", "--config.x=a b"] and a[:4] == b[:4]
    assert a[2].startswith("--coordinator=127.0.0.1:") and a[3] == "--processes=2"
    assert (a[4], b[4]) == ("--process_id=0", "--process_id=1")
    if len(os.sched_getaffinity(0)) > 1:
        assert len(first) == len(second) == 2 and first[1] != second[1]


def is_running(pid):
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


def test_a_failing_process_ends_the_other_and_gives_its_code(two, tmp_path):
    start = time.monotonic()
    assert two("fail").wait(30) == 7
    assert time.monotonic() - start < 20
    (first, second), _ = ranks(tmp_path)
    assert not is_running(first[0]) and not is_running(second[0])


def test_an_ended_launcher_ends_both(two, tmp_path):
    launcher = two("hang")
    wait_for(lambda: len(list(tmp_path.glob("rank?.txt"))) == 2)
    launcher.send_signal(signal.SIGTERM)
    assert launcher.wait(30) == 143
    assert not any(is_running(rank[0]) for rank in ranks(tmp_path)[0])


RECORD = f"""#!{sys.executable}
import json, os, sys
from pathlib import Path
name, given = Path(sys.argv[0]).name, sys.argv[1:]
text = sys.stdin.read() if "-" in given else "".join(Path(one).read_text() for one in given if one.endswith(".yaml"))
with open(os.environ["CALLS"], "a") as file:
    print(json.dumps([name, given, text]), file=file)
sys.exit(int(os.environ.get("CODE_" + name, 0)))
"""
FLAGS = ["--config=configs/must.py:paper", "--workdir=/runs/a b", '--config.title=it\'s; $(date) "x"']


@pytest.fixture
def cluster(tmp_path):
    """Runs a launcher; returns (exit code, what it printed, [(command, arguments, input)] of the stand-ins)."""
    folder, calls = tmp_path / "bin", tmp_path / "calls.jsonl"
    folder.mkdir()
    for name in ("sbatch", "srun", "scontrol", "kubectl", "sky"):
        (folder / name).write_text(RECORD)
        (folder / name).chmod(0o755)

    def launch(script, *options, flags=FLAGS, **environment):
        calls.write_text("")
        environment |= {"PATH": f"{folder}:{os.environ['PATH']}", "CALLS": str(calls), "PYTHON": "python"}
        command = [REPOSITORY / "launch" / script, *options, *(["--", *flags] if flags else [])]
        done = subprocess.run(
            command, cwd=tmp_path, env={**os.environ, **environment}, text=True, capture_output=True, timeout=60
        )
        return (
            done.returncode,
            done.stdout or done.stderr,
            [json.loads(line) for line in calls.read_text().splitlines()],
        )

    return launch


SLURM = ["--ntasks-per-node=1", "--signal=TERM@90", "--requeue", "--open-mode=append", "--output=%x-%j.log"]


@pytest.mark.parametrize(
    ("options", "nodes", "more"),
    [
        (["--nodes=4", "--gpus-per-node=8"], 4, ["--gpus-per-node=8"]),
        (["--label-array=16", "--time=4:00:00"], 1, ["--time=4:00:00", "--array=0-15"]),
    ],
)
def test_slurm_submits_what_the_dry_run_shows(cluster, options, nodes, more):
    job = str(REPOSITORY / "launch" / "slurm" / "job.sh")
    wanted = ["--job-name=a b;c", f"--nodes={nodes}", *SLURM, *more, job, *FLAGS]
    code, shown, calls = cluster("slurm/run.sh", "--name=a b;c", "--grace=90", *options)
    assert code == 0 and calls == [["sbatch", wanted, ""]]
    code, dry, calls = cluster("slurm/run.sh", "--name=a b;c", "--grace=90", *options, "--dry-run")
    assert code == 0 and calls == [] and dry == shown and shlex.split(dry) == ["sbatch", *wanted]


def test_slurm_mistakes_are_named(cluster):
    for options, flags, said in (
        (["--label-array=x"], FLAGS, "--label-array=x: expected"),
        (["--label-array=2", "--nodes=2"], FLAGS, "leave --nodes out"),
        (["-N2"], FLAGS, "unknown option -N2"),
        (["--nodes=2"], [], "flags of must.main are required"),
    ):
        code, text, calls = cluster("slurm/run.sh", *options, flags=flags)
        assert code == 2 and said in text and calls == []


@pytest.mark.parametrize(
    ("environment", "more"),
    [
        ({"SLURM_JOB_NUM_NODES": "2"}, ["--coordinator=auto"]),
        ({"SLURM_JOB_NUM_NODES": "1"}, []),
        ({"SLURM_ARRAY_TASK_ID": "3", "SLURM_ARRAY_TASK_COUNT": "16"}, ["--stage=label", "--part=3/16"]),
    ],
)
def test_a_terminated_slurm_job_queues_again_and_a_failed_one_does_not(cluster, environment, more):
    srun = ["srun", ["--kill-on-bad-exit=0", "--wait=120", "python", "-m", "must.main", *FLAGS, *more], ""]
    for ended, again in ((0, []), (2, []), (143, [["scontrol", ["requeue", "7"], ""]])):
        environment |= {"SLURM_JOB_ID": "7", "CODE_srun": str(ended)}
        code, _, calls = cluster("slurm/job.sh", *FLAGS, flags=[], **environment)
        assert code == ended and calls == [srun, *again]


GKE = ["--name=must-1", "--image=r/must:1", "--claim=runs", "--resource=google.com/tpu=4", "--select=a.b/c=d=e"]


def _manifest(cluster, *options):
    code, shown, calls = cluster("gke/run.py", *GKE, *options)
    assert code == 0 and [call[:2] for call in calls] == [["kubectl", ["create", "-f", "-"]]]
    assert shown == f"kubectl create -f - <<'END'\n{calls[0][2]}\nEND\n"
    assert cluster("gke/run.py", *GKE, *options, "--dry-run") == (0, shown, [])
    return json.loads(calls[0][2])


def _pod(spec):
    return spec["template"]["spec"]["containers"][0]["command"]


ESCAPED = [flag.replace("$(", "$$(") for flag in FLAGS]


def test_kubernetes_trains_in_a_job_set(cluster):
    made = _manifest(cluster, "--nodes=4")
    assert (made["apiVersion"], made["kind"]) == ("jobset.x-k8s.io/v1alpha2", "JobSet")
    (workers,) = made["spec"]["replicatedJobs"]
    spec = workers["template"]["spec"]
    assert {key: spec[key] for key in spec if key != "template"} == {
        "parallelism": 4,
        "completions": 4,
        "completionMode": "Indexed",
        "backoffLimit": 0,
    }
    joined = ["--coordinator=must-1-workers-0-0.must-1:8476", "--processes=4", "--process_id=$(INDEX)"]
    assert _pod(spec) == ["python", "-m", "must.main", *ESCAPED, *joined]
    pod = spec["template"]["spec"]
    assert pod["nodeSelector"] == {"a.b/c": "d=e"} and pod["securityContext"]["runAsNonRoot"] is True
    assert pod["containers"][0]["resources"] == {"limits": {"google.com/tpu": "4"}}


def test_kubernetes_labels_in_an_indexed_job(cluster):
    made = _manifest(cluster, "--nodes=3", "--label-parts=16")
    spec = made["spec"]
    assert (made["apiVersion"], made["kind"], spec["completionMode"]) == ("batch/v1", "Job", "Indexed")
    assert (spec["parallelism"], spec["completions"], spec["backoffLimitPerIndex"]) == (3, 16, 10)
    assert _pod(spec) == ["python", "-m", "must.main", *ESCAPED, "--stage=label", "--part=$(INDEX)/16"]


@pytest.mark.parametrize("options", [("--nodes=4",), ("--nodes=3", "--label-parts=16")], ids=["training", "labeling"])
@pytest.mark.parametrize("version", ["1.29", "1.33"])
def test_kubernetes_own_schema_knows_every_key(cluster, options, version):
    schemas = pytest.importorskip("kubernetes_validate")
    made = _manifest(cluster, *options)
    if made["kind"] == "JobSet":  # whose own schema is not Kubernetes', but it holds templates of jobs
        spec = made["spec"]["replicatedJobs"][0]["template"]["spec"]
        made = {"apiVersion": "batch/v1", "kind": "Job", "metadata": made["metadata"], "spec": spec}
    schemas.validate(made, version, strict=True)
    made["spec"]["template"]["spec"]["nodeselector"] = {}
    with pytest.raises(schemas.ValidationError, match="nodeselector"):
        schemas.validate(made, version, strict=True)


def test_kubernetes_mistakes_are_named(cluster):
    for options, said in (
        (["--name=A b", *GKE[1:]], "--name=A b: expected"),
        (GKE[:2], "required: --claim"),
        ([*GKE[:3], "--resource=gpu"], "gpu: expected NAME=VALUE"),
    ):
        code, text, calls = cluster("gke/run.py", *options)
        assert code == 2 and said in text and calls == []


def test_sky_runs_the_command_on_every_node(cluster):
    options = ["--name=a b", "--accelerators=A100:8", "--bucket=b", "--nodes=2", "--spot"]
    code, shown, calls = cluster("sky/run.py", *options)
    ((name, arguments, content),) = calls
    assert code == 0 and [name, *arguments[:-1]] == ["sky", "jobs", "launch", "--yes", "--name=a b"]
    assert shown.splitlines()[0] == "sky jobs launch --yes '--name=a b' task.yaml" and content in shown
    assert cluster("sky/run.py", *options, "--dry-run") == (0, shown, [])
    task = json.loads(content)
    assert task["num_nodes"] == 2 and task["resources"] == {"accelerators": "A100:8", "use_spot": True}
    show = f"python() {{ printf '%s\\n' \"$@\"; }}; {task['run']}"
    nodes = {"SKYPILOT_NODE_IPS": "10.0.0.1\n10.0.0.2", "SKYPILOT_NUM_NODES": "2", "SKYPILOT_NODE_RANK": "1"}
    said = subprocess.run(["bash", "-c", show], env={**os.environ, **nodes}, text=True, capture_output=True, check=True)
    ranks = ["--coordinator=10.0.0.1:8476", "--processes=2", "--process_id=1"]
    assert said.stdout.splitlines() == ["-m", "must.main", *FLAGS, *ranks]


def test_the_image_has_what_it_copies_and_its_user_is_not_root():
    lines = (REPOSITORY / "launch" / "docker" / "Dockerfile").read_text().splitlines()
    words = [line.split() for line in lines if line and not line.startswith("#")]
    ignored = (REPOSITORY / ".dockerignore").read_text().splitlines()
    copied = [one for line in words if line[0] == "COPY" for one in line[1:-1]]
    assert copied and all((REPOSITORY / one).exists() and f"!{one}" in ignored for one in copied)
    users = [line[1] for line in words if line[0] == "USER"]
    assert users == ["1000"] and words[-1][0] == "ENTRYPOINT" and "[cuda]" not in str(words)
    import configparser

    config = configparser.ConfigParser()
    config.read(REPOSITORY / "setup.cfg")
    assert "cuda" in config["options.extras_require"]
