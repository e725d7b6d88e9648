"""One automated trial per promise about robustness, its figure counted by the trial itself.

    python tests/promises.py [--quick] [--json FILE] [--only R1,R7]

Prints a table; a row is met only if all of it was tried and held. `--quick` tries fewer times, and what takes
long not at all, which its rows say. docs/results/promises.md has the whole table as measured.
"""

import argparse
import ast
import contextlib
import functools
import importlib.util
import itertools
import json
import os
import random
import resource
import shutil
import signal
import socket
import sys
import tempfile
import threading
import time
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO, NamedTuple

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))
os.chdir(ROOT)
os.environ.update(JAX_PLATFORMS="cpu", OMP_NUM_THREADS="1", PYTHONPATH=str(ROOT))

from must.core.notices import Notice  # noqa: E402
from must.core.types import UserError  # noqa: E402
from tests.support import contracts, forks, hostile, stores  # noqa: E402

TINY = "--config=tests/support/tiny_config.py:depth"
NOT_TRIED = "not tried"
PERIOD = 0.5  # seconds between copies to a bucket, 20 by default: trials are short
# A label pass of many shards, to be killed between them; its teachers are trained under the same configuration.
SHARDS = 24
LABELS = ("--config.pool.pool.count=192", f"--config.label.shards={SHARDS}", "--config.label.batch_size=4")


class Found(NamedTuple):
    """What a trial counted: in words, whether that is what was promised, and what was left out of it."""

    figure: str
    met: bool
    missing: str = ""


class Ended(NamedTuple):
    """How a command ended: exit status, lines of its standard error, seconds, and those of a processor."""

    code: int
    lines: list[str]
    seconds: float
    processor: float

    def refused(self, *words: str, code: int = 2) -> bool:
        """This exit status and one line, notes aside, that has one of the words."""
        lines = [line for line in self.lines if line.startswith("must: ") and not line.startswith("must: note")]
        clean = not any("Traceback" in line for line in self.lines) and len(lines) == 1
        return self.code == code and clean and any(word in lines[0] for word in words)


class Trial:
    """What the trials share: a folder, whether to be quick, runs of the command line.

    Args:
      top: a folder that is removed afterwards.
      quick: try less.
    """

    def __init__(self, top: Path, quick: bool):
        self.top, self.quick, self.less = top, quick, False

    def times(self, quick: int, whole: int) -> int:
        """How often to try."""
        self.less = self.quick
        return quick if self.quick else whole

    def begin(self, workdir: Path | str, *flags: str, before: Callable[[], None] = lambda: None) -> tuple[int, Path]:
        """(process id, file of its errors) of a command that goes on."""
        said = Path(tempfile.mkstemp(dir=self.top, suffix=".err")[1])
        arguments = [TINY, f"--workdir={workdir}", "--config.workers=1", *flags]
        with open(said, "w") as file:
            return forks.start(arguments, file.fileno(), before), said

    def begin_pair(self, workdir: Path, *flags: str) -> list[tuple[int, Path]]:
        """The same for both processes of a run."""
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        joined = (*flags, f"--coordinator=127.0.0.1:{port}", "--processes=2")
        return [self.begin(workdir, *joined, f"--process_id={k}") for k in range(2)]

    def run(self, workdir: Path | str, *flags: str, before: Callable[[], None] = lambda: None) -> Ended:
        """A command, to its end."""
        began = time.monotonic()
        child, said = self.begin(workdir, *flags, before=before)
        return ended(child, said, began)

    def stores(self) -> list[str]:
        """The kinds of object stores to try."""
        return [] if self.quick else [kind for kind in stores.KINDS if not stores.missing(kind)]

    def untried_stores(self) -> str:
        """What to say of those that are not."""
        if self.quick:
            return f"object stores: {NOT_TRIED}"
        lacking = {kind: stores.missing(kind) for kind in stores.KINDS}
        return ", ".join(f"{kind}://: {NOT_TRIED}, without {name}" for kind, name in lacking.items() if name)

    def prepared(self, stage: str = "all") -> Path:
        """A finished run to work on copies of, made once; "label" ends before the student."""
        whole = self.top / f"prepared-{stage}"
        if not whole.exists():
            for one in ("teachers", "label") if stage == "label" else (stage,):
                if (done := self.run(whole, f"--stage={one}")).code:
                    raise RuntimeError("\n".join(done.lines[-5:]))
        return whole

    def copy(self, stage: str = "all") -> Path:
        """A copy of a finished run."""
        path = Path(tempfile.mkdtemp(dir=self.top)) / "run"
        shutil.copytree(self.prepared(stage), path)
        return path


def ended(child: int, said: Path, began: float, most: float = 120) -> Ended:
    """Waits for a command, which is killed when it takes too long."""
    while (found := os.wait4(child, os.WNOHANG))[0] == 0:
        if time.monotonic() - began > most:
            os.kill(child, signal.SIGKILL)
        time.sleep(0.01)
    lines = [line for line in said.read_text(errors="replace").splitlines() if line.strip()]
    spent = found[2].ru_utime + found[2].ru_stime
    return Ended(os.waitstatus_to_exitcode(found[1]), lines, time.monotonic() - began, spent)


@contextlib.contextmanager
def serving(kind: str) -> Iterator[stores.Store]:
    """A store whose client is imported once for all forks."""
    with stores.serving(kind) as store:
        importlib.import_module(stores.KINDS[kind][0])
        yield store


def on(machine: Path, more: Callable[[], None] = lambda: None) -> Callable[[], None]:
    """What a fork runs first to be on a machine, which has local copies of its own."""

    def before() -> None:
        from must.core import buckets

        os.environ["MUST_SCRATCH"] = str(machine)
        buckets.workdir.__wrapped__.__kwdefaults__["period"] = PERIOD
        more()

    return before


def put(url: str, folder: Path, machine: Path) -> None:
    """Copies a folder into a bucket."""

    def copy() -> None:
        from must.core import buckets

        on(machine)()
        mirror = buckets.Mirror(url)
        shutil.copytree(folder, mirror.local, dirs_exist_ok=True)
        mirror.push()

    forks.result(copy)


def taken(url: str, machine: Path) -> Path:
    """All that a folder of a bucket has, copied to another machine."""

    def fetch() -> str:
        from must.core import buckets

        on(machine)()
        mirror = buckets.Mirror(url, local=str(machine / "taken"))
        for path in mirror._listed():
            os.makedirs(os.path.dirname(target := os.path.join(mirror.local, path)), exist_ok=True)
            mirror.download(path, target)
        return mirror.local

    return Path(forks.result(fetch))


def copies(machine: Path) -> Path:
    """The local copy of the only workdir that a machine has had."""
    return next((path for path in machine.glob("*") if path.is_dir()), machine / "none")


def saved(directory: Path) -> int:
    """Step of the newest checkpoint that is committed, 0 without one."""
    return max((int(path.name) for path in (directory / "checkpoints").glob("*") if path.name.isdigit()), default=0)


def digests(directory: Path, most: int | None = 1) -> dict[int, str]:
    """{step: hash of its arrays} of the newest checkpoints; a kill may cut the removal of older ones short."""

    def read() -> list[tuple[int, str]]:
        from must.train.checkpoint import Checkpoints

        found = Checkpoints(str(directory / "checkpoints"), keep=None)
        return [(step, found.facts(step)["sha256"]) for step in found.steps()[:most]]

    return dict(forks.result(read))


def resumes(trial: Trial) -> Found:
    """R1: killed at random moments, inside saves too, a student goes on and ends in the same bits."""
    length = trial.times(12, 40)
    steps = [f"--config.{section}.steps={length}" for section in ("student", "supervised", "scratch")]
    flags = ("--stage=student", *steps, "--config.student.checkpoint_every=1")
    for stage in ("teachers", "label"):
        trial.run(trial.top / "base", f"--stage={stage}", *flags[1:])
    whole, rng, kills, inside, right, ends, runs = trial.top / "whole", random.Random(0), 0, 0, 0, 0, 0
    shutil.copytree(trial.top / "base", whole)

    def keep_all() -> None:
        from must.experiment import training

        training._KEPT = None

    trial.run(whole, *flags, before=keep_all)
    wanted, many = digests(whole / "student", None), trial.times(2, 20)
    while kills < many:
        workdir, runs = trial.top / f"killed-{runs}", runs + 1
        shutil.copytree(trial.top / "base", workdir)
        student = workdir / "student"
        for _ in range(10):
            mark, (child, said) = saved(student) + rng.choice((1, 1, 2)), trial.begin(workdir, *flags)
            wait_until(lambda: saved(student) >= mark or gone(child), 60)
            if rng.random() < 0.5:  # in the middle of the next save
                wait_until(lambda: any((student / "checkpoints").glob("*tmp*")) or gone(child), 5)
            else:
                time.sleep(rng.uniform(0, 0.1))
            if not (over := gone(child) or kills == many):
                inside += any((student / "checkpoints").glob("*tmp*"))
                os.kill(child, signal.SIGKILL)
                kills += 1
            ended(child, said, time.monotonic())
            if over:
                break
            (newest,) = digests(student).items()
            right += wanted.get(newest[0]) == newest[1] and newest[0] >= mark
        trial.run(workdir, *flags)
        ends += [*digests(student).items()] == [max(wanted.items())]
    figure = (
        f"{right} of {kills} kills, {inside} inside saves, left the bits of an undisturbed run, {ends} of {runs} ends"
    )
    return Found(figure, right == kills == many and ends == runs)


def gone(child: int) -> bool:
    """Whether a child has ended; it is still to be waited for."""
    return os.waitid(os.P_PID, child, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None


def wait_until(condition: Callable[[], bool], seconds: float) -> bool:
    """Whether a condition came true in time."""
    end = time.monotonic() + seconds
    while not (held := condition()) and time.monotonic() < end:
        time.sleep(0.002)
    return held


def terminates(trial: Trial) -> Found:
    """R2: SIGTERM loses no step, whichever process gets it."""
    flags, slowest = ("--stage=teachers", "--config.teacher.steps=100000"), 0.0
    flags, counts, lossless = (*flags, "--config.teacher.checkpoint_every=100000"), (trial.times(2, 6), 4), [0, 0]
    for number in range(counts[0] if trial.quick else sum(counts)):
        several = number >= counts[0]
        workdir = trial.top / f"term-{number}"
        log = workdir / "teachers" / "depth" / "metrics.jsonl"
        crew = trial.begin_pair(workdir, *flags) if several else [trial.begin(workdir, *flags)]
        training = lambda log=log, many=3 + number: log.exists() and len(log.read_text().splitlines()) >= many  # noqa: E731
        wait_until(lambda crew=crew, training=training: gone(crew[0][0]) or training(), 60)
        began = time.monotonic()
        os.kill(crew[number % 2 if several else 0][0], signal.SIGTERM)
        done = [ended(child, said, began) for child, said in crew]
        last = max(json.loads(line)["step"] for line in log.read_text().splitlines() if line.endswith("}"))
        lossless[several] += all(one.code == 143 for one in done) and saved(log.parent) >= last
        slowest = max(slowest, *(one.seconds for one in done))
    figure = f"1 process: {lossless[0]} of {counts[0]} without a lost step"
    if not trial.quick:
        figure += f"; 2 processes, signal to either one: {lossless[1]} of {counts[1]}"
    met = lossless == [*counts] or (trial.quick and lossless[0] == counts[0])
    missing = f"two processes, signal to one: {NOT_TRIED}" if trial.quick else ""
    return Found(f"{figure}; at most {slowest:.1f} s", met and slowest <= 30, missing)


def taught(trial: Trial) -> tuple[Path, dict[str, bytes]]:
    """A workdir with trained teachers to copy, and the records that an undisturbed pass writes in a folder."""
    base, whole = trial.top / "taught", trial.top / "undisturbed"
    if not whole.exists():
        trial.run(base, "--stage=teachers", *LABELS)
        shutil.copytree(base, whole)
        if (done := trial.run(whole, "--stage=label", *LABELS)).code:
            raise RuntimeError("\n".join(done.lines[-5:]))
    return base, records(whole)


def records(workdir: Path) -> dict[str, bytes]:
    """{file: content} of the records of a run."""
    from tests.experiments.label_kills import tree

    return tree(workdir / "pseudo_labels")


def killed_labels(trial: Trial) -> Found:
    """R3: a label pass that is killed ends in the same bytes, in a folder and in a bucket."""
    figure, met = forks.result(functools.partial(killed_workers, trial))
    for kind in [] if trial.quick else ["POSIX", *trial.stores()]:
        with serving(kind) if kind != "POSIX" else contextlib.nullcontext() as store:
            told, fine = killed_pass(trial, kind, store)
        figure, met = f"{figure}; {told}", met and fine
    trial.times(1, 10)
    return Found(figure, met, trial.untried_stores())


def killed_workers(trial: Trial) -> tuple[str, bool]:
    """Kills workers whose labels have fields of every kind."""
    from tests.experiments import label_kills
    from tests.support.toy_labels import ToySource, label_toy

    options = argparse.Namespace(kills=trial.times(1, 10), images=trial.times(128, 320), seconds=0.03, seed=0)
    label_toy(trial.top / "alone" / "1.0.0", source=ToySource(options.images), **label_kills.SETTINGS)
    want, workers = label_kills.tree(trial.top / "alone" / "1.0.0"), trial.times(1, 2)
    got = label_kills.killed_pass(trial.top / "killed" / "1.0.0", workers, want, options)
    figure = f"POSIX, workers: {got.kills} kills, {got.lost} lost, {got.doubled} doubled, "
    return figure + f"bytes {'same' if got.equal else 'OTHER'}", got.equal and not got.lost + got.doubled


def killed_pass(trial: Trial, kind: str, store: stores.Store | None) -> tuple[str, bool]:
    """Kills one worker's pass, which in a bucket goes on on another machine after some of the kills."""
    base, want = taught(trial)
    log, rng, many = trial.top / f"{kind}.log", random.Random(2), 10
    log.touch()
    workdir: Path | str = trial.top / "killed-alone"
    if store is None:
        shutil.copytree(base, workdir)
    else:
        put(workdir := f"{store.url}/killed", base, trial.top / f"{kind}-source")
    last: dict[str, int] = {}  # the run that last began a shard
    redone = [0] * (many + 1)  # shards of each run that had to be begun anew
    moves, kills = () if store is None else (4, 7), 0  # kills after which another machine goes on

    def slow() -> None:
        """A tenth of a second per shard, each of which is told when it begins."""
        from must.pseudo_label.shards import ShardFile

        begin, add = ShardFile.__init__, ShardFile.add

        def told(self, folder: str, shard: int) -> None:
            begin(self, folder, shard)
            with open(log, "a") as file:
                file.write(f"{shard}\n")

        ShardFile.__init__, ShardFile.add = told, lambda self, rows: (time.sleep(0.05), add(self, rows))[1]

    while True:
        before, where = len(log.read_text().split()), sum(kills >= move for move in moves) % 2
        machine = on(trial.top / f"{kind}-{where}", slow)  # in the end the first one again, whose copy is old by then
        child, said = trial.begin(workdir, "--stage=label", *LABELS, before=machine)
        mark = before + rng.choice((1, 2, 3)) if kills < many else 10**6
        wait_until(lambda child=child, mark=mark: gone(child) or len(log.read_text().split()) >= mark, 120)
        time.sleep(rng.uniform(0, 0.15))
        if not (finished := gone(child)):
            os.kill(child, signal.SIGKILL)
        done, new = ended(child, said, time.monotonic()), log.read_text().split()[before:]
        for shard in new:
            moved = [move - 1 for move in moves if last.get(shard, many) < move <= kills]
            redone[(moved or [last.get(shard, many)])[0]] += shard in last
            last[shard] = kills
        if finished:
            break
        kills += 1
    got = records(workdir if store is None else taken(str(workdir), trial.top / f"{kind}-third"))
    ids = [id for name, content in got.items() if name.endswith("ids.txt") for id in content.decode().splitlines()]
    wanted = [id for name, content in want.items() if name.endswith("ids.txt") for id in content.decode().splitlines()]
    lost, doubled = len(set(wanted) - set(ids)), len(ids) - len(set(ids))
    told = f"{kind}, a run: {kills} kills, {lost} lost, {doubled} doubled, bytes {'same' if got == want else 'OTHER'}, "
    stayed = max(count for kill, count in enumerate(redone) if kill + 1 not in moves)
    told += f"redone at most {stayed} shards a kill"
    if moves:
        told += f", {max(redone[move - 1] for move in moves)} where another machine went on, with what had been copied"
    return told, done.code == 0 and got == want and not lost + doubled and kills == many and stayed <= 1


def same_bytes(trial: Trial) -> Found:
    """R4: any number of workers writes the same bytes, wherever."""
    beam = not trial.quick and importlib.util.find_spec("apache_beam") is not None
    equal, count = forks.result(functools.partial(same_workers, trial, beam))
    by = "1, 2, 4 workers" + beam * ", two processes of Beam"
    figure, same = f"{by}: {equal} of {count} identical", []
    for kind in trial.stores():
        base, want = taught(trial)
        with serving(kind) as store:
            put(url := f"{store.url}/run", base, trial.top / f"{kind}-source")
            trial.run(url, "--stage=label", *LABELS, before=on(trial.top / f"{kind}-0"))
            same.append(records(taken(url, trial.top / f"{kind}-1")) == want)
    if same:
        figure += f"; {', '.join(f'{kind}://' for kind in trial.stores())} and a folder: {sum(same)} of {len(same)}"
    missing = "; ".join(filter(None, (trial.untried_stores(), "" if beam else f"Beam: {NOT_TRIED}")))
    return Found(figure, equal == count and all(same), missing)


def same_workers(trial: Trial, beam: bool) -> tuple[int, int]:
    """(directories of records that are equal to the first, how many there are)."""
    from tests.experiments.label_kills import tree
    from tests.support.toy_labels import label_toy

    trees = []
    for count in (1, 2, 4):
        directory = trial.top / f"{count}-workers" / "1.0.0"
        crew = [
            threading.Thread(target=label_toy, args=(directory,), kwargs={"worker": (k, count)}) for k in range(count)
        ]
        for one in crew:
            one.start()
        for one in crew:
            one.join()
        trees.append(tree(directory))
    if beam:
        from tests.pseudo_label.test_beam import SETTINGS, TWO, label_with_beam, toys

        directory = trial.top / "beam" / "1.0.0"
        label_with_beam(directory, "toy", toys, pipeline=TWO, **SETTINGS)
        trees.append(tree(directory))
    return sum(one == trees[0] for one in trees), len(trees)


def damaged_inputs(trial: Trial) -> Found:
    """R5: the damaged pictures of a set are named, all and no others."""
    from must.data.rejects import check_source
    from must.data.sources import source
    from tests.support.folder_sets import picture

    folder, rng, damaged = trial.top / "photos", random.Random(0), set()
    for number in range(60):
        file = picture(folder / f"{number:02d}.{('jpg', 'png')[number % 2]}", (48, 64), seed=number)
        data = file.read_bytes()
        middle = len(data) // 2
        damages = (
            data[:middle], b"", b"not a picture", data[: len(data) - 40], bytes(len(data)),
            data[:middle] + b"\xff\xd9" * 60 + data[middle + 120 :], data[:20], data[::-1],
        )  # fmt: skip
        if number >= 20:
            file.write_bytes(damages[(number - 20) // 2 % len(damages)] if rng else data)
            damaged.add(f"photos/{number:02d}")
    found = {reject.id for reject in check_source(source("photos", root=str(folder)), threads=2)}
    missed, wrongly = len(damaged - found), len(found - damaged)
    return Found(f"{len(damaged)} damaged, {missed} missed, {wrongly} wrongly named", not missed + wrongly)


def damaged_shards(trial: Trial) -> Found:
    """R6: damaged shards of records are found when the records are opened, which is before the first step."""
    from must.readers.records import Records
    from tests.support.toy_labels import label_toy

    whole, found, tried = trial.top / "records" / "1.0.0", 0, 0
    label_toy(whole)
    names = [*sorted(path.name for path in whole.glob("*array_record*")), "ids.txt"]
    for name in names:
        other = names[(names.index(name) + 1) % 6]
        data = (whole / name).read_bytes()
        at = len(data) // 3
        for damage in (
            lambda file, data=data: file.write_bytes(data[: len(data) // 2]),
            lambda file, data=data, at=at: file.write_bytes(data[:at] + bytes([data[at] ^ 4]) + data[at + 1 :]),
            lambda file: file.unlink(),
            lambda file, other=other: shutil.copyfile(file.parent / other, file),
        ):
            copy = trial.top / f"records-{tried}"
            shutil.copytree(whole, copy)
            damage(copy / name)
            tried += 1
            try:
                Records(copy)
            except UserError as error:
                found += name in str(error)
    return Found(f"{found} of {tried} found and named", found == tried)


def damaged_checkpoints(trial: Trial) -> Found:
    """R7: damage in the newest checkpoint is found, the one before is taken."""
    from must.experiment.training import _resume
    from must.train.checkpoint import Checkpoints
    from tests.train.test_checkpoint import _batches, _files, _saved, _state

    whole, older, unhurt, wrong = _saved(trial.top / "checkpoints"), 0, 0, 0
    # Of the newest checkpoint, what its content is read from; the others say it once more or that it is there.
    files = [file for file in _files(whole) if file.name in ("metadata", "manifest.ocdbt") or file.parts[-2] == "d"]
    files, many = [file for file in files if "ocdbt.process_0" not in file.parts], trial.times(6, 40)
    rng = random.Random(1)
    for number in range(many):
        file = files[number // 2 % len(files)]
        copy = trial.top / f"damaged-{number}"
        shutil.copytree(whole, copy)
        data = (copy / file).read_bytes()
        at = rng.randrange(len(data))
        (copy / file).write_bytes(data[:at] + (bytes([data[at] ^ 1 << number % 8]) + data[at + 1 :]) * (number % 2))
        with warnings.catch_warnings(record=True) as told:
            warnings.simplefilter("always")
            try:
                first = float(_resume(Checkpoints(str(copy), keep=2), _state(0)["train"], _batches())["w"][1])
            except UserError:
                first = -1.0
        noted = any(issubclass(one.category, Notice) for one in told)
        older, unhurt = older + (first == 1 and noted), unhurt + (first == 2)
        wrong += first not in (1, 2)
    figure = f"{older} of {many} found and the older one taken, {unhurt} without effect, {wrong} wrong"
    return Found(figure, older == many)


def finite(trial: Trial) -> Found:
    """R8: whatever is not finite changes no parameter, and does so in no other way than by being left out."""
    large = ("optimizer.learning_rate=1e38", "optimizer.learning_rate=3e38", "optimizer.weight_decay=1e38")
    cases: list[tuple[str, str, Callable[[], None]]] = [("update", case, lambda: None) for case in large]
    for kind in ("gradient", "loss", "inputs"):
        cases.append((kind, "", functools.partial(_inject, kind)))
    cases, good, states = cases[:: trial.times(6, 1)], 0, 0
    for number, (kind, case, before) in enumerate(cases):
        workdir = trial.top / f"finite-{number}"
        flags = () if kind != "update" else (f"--config.teacher.{case}",)
        done = trial.run(workdir, "--stage=teachers", *flags, before=before)
        fine = done.code in (0, 2) and not any("Traceback" in line for line in done.lines)
        if kind != "update":  # the run goes on, and counts what it left out
            facts = workdir / "teachers" / "depth" / "done.json"
            fine &= done.code == 0 and json.loads(facts.read_text()).get("skipped") == len(INJECTED)
        found = forks.result(lambda workdir=workdir: _finite_states(workdir))
        states += len(found)
        good += fine and all(found)
    kinds = ", ".join(dict.fromkeys(kind for kind, *_ in cases))
    figure = f"not finite: {kinds}: {good} of {len(cases)} runs, {states} checkpoints, all finite"
    return Found(figure, good == len(cases) and states > 0)


INJECTED = (1, 2, 5, 9)  # steps of 12


def _inject(kind: str) -> None:
    """Makes NaN of a gradient or of a batch's pictures, or an infinite loss, in some steps."""
    import jax
    import jax.numpy as jnp
    import numpy as np

    from must.data import pipeline
    from must.train import step

    updated, following, count = step._updated, pipeline.Joined.__next__, itertools.count()

    def broken(state, loss, grads, *more):
        hit = jnp.isin(state.step, jnp.array(INJECTED))
        if kind == "loss":
            loss = jnp.where(hit, jnp.inf, loss)
        else:  # of one layer
            leaves, tree = jax.tree.flatten(grads)
            grads = jax.tree.unflatten(tree, [jnp.where(hit, jnp.nan, leaves[0]), *leaves[1:]])
        return updated(state, loss, grads, *more)

    def poisoned(self):
        batch = following(self)
        return (
            batch._replace(inputs=jax.tree.map(lambda x: x * np.nan, batch.inputs))
            if next(count) in INJECTED
            else batch
        )

    if kind == "inputs":
        pipeline.Joined.__next__ = poisoned
    else:
        step._updated = broken


def _finite_states(workdir: Path) -> list[bool]:
    """Of every checkpoint, whether its parameters are finite."""
    import numpy as np
    import orbax.checkpoint as ocp

    found = []
    for state in (workdir / "teachers").rglob("checkpoints/*/state"):
        leaves = ocp.PyTreeCheckpointer().restore(state)["train"]["params"]
        found.append(all(bool(np.isfinite(leaf).all()) for leaf in _leaves(leaves)))
    return found


def _leaves(tree) -> Iterator:
    for value in tree.values():
        yield from _leaves(value) if isinstance(value, dict) else (value,)


def kept_contracts(trial: Trial) -> Found:
    """R9: broken labels are named before they are written, and when they are read."""
    from must.pseudo_label import infer
    from must.pseudo_label.write import label_images
    from must.readers.records import Records

    written = read = said = 0
    for number, (kind, field, value, says) in enumerate(contracts.BROKEN):
        label, check = {**contracts.whole()[kind], field: value}, infer.check_record
        try:
            contracts.store(trial.top / f"w{number}", kind, label)
        except UserError as error:
            written += says in str(error) and "gray/0" in str(error)
        infer.check_record = lambda *_: ""  # as an earlier version would have written it
        contracts.store(trial.top / f"r{number}", kind, label)
        infer.check_record = check
        try:
            Records(trial.top / f"r{number}").labels(2)
        except UserError as error:
            read += says in str(error) and "gray/2" in str(error)
    for number, (kind, say, says) in enumerate(contracts.SAYINGS):
        try:
            label_images(trial.top / f"s{number}", "r", contracts.Gray(), [contracts.teacher(kind, say)], shards=1)
        except UserError as error:
            said += says in str(error)
    doubled = contracts.Gray()
    doubled.ids = ("gray/0", "gray/1", "gray/0", "gray/3")
    unique = False
    try:
        label_images(trial.top / "twice", "r", doubled, [contracts.teacher(*contracts.SAYINGS[0][:2])])
    except UserError as error:
        unique = "'gray/0' occurs twice" in str(error)
    broken, sayings = len(contracts.BROKEN), len(contracts.SAYINGS)
    figure = f"{written} of {broken} at write, {read} at read, {said} of {sayings} teachers, repeated id {unique}"
    return Found(figure, written == read == broken and said == sayings and unique)


def foreign(trial: Trial) -> Found:
    """R10: a wrong configuration or run file is one line with its first difference."""
    stage, cases = "--stage=teachers", []
    prepared = trial.prepared("teachers")
    for key, value in (("teacher.steps", 7), ("image.size", "(24,24)"), ("title", "x"), ("seeds", "(3,)")):
        cases.append((f"config.{key}", (f"--config.{key}={value}",), lambda path: None))
    other = trial.top / "other-seed"
    trial.run(other, stage, "--config.seeds=(1,)")

    def swapped(path: Path) -> None:
        (path / "teachers" / "depth" / "done.json").unlink()
        shutil.rmtree(path / "teachers" / "depth" / "checkpoints")
        shutil.copytree(other / "teachers" / "depth" / "checkpoints", path / "teachers" / "depth" / "checkpoints")

    cases.append(("seed is 1 there, 0 here", (), swapped))
    for name in ("config.json", "teachers/depth/done.json"):
        cases.append((name, (), lambda path, name=name: _cut(path / name)))
    cases.append(("done.json", ("--stage=label",), lambda path: _edit(path / "teachers" / "depth" / "done.json")))
    cases.append(("network.json", ("--stage=label",), lambda path: _cut(path / "teachers" / "depth" / "network.json")))
    missed, slowest, count = [], 0.0, 0
    for says, flags, damage in cases[: trial.times(6, len(cases))]:
        if says == "config.title":
            continue  # may change
        path = trial.top / f"foreign-{count}"
        shutil.copytree(prepared, path)
        damage(path)
        done = trial.run(path, *(flags if any("--stage" in flag for flag in flags) else (stage, *flags)))
        fine = done.refused(says)
        missed += [] if fine else [f"{says}: {done.code} {done.lines[-1:]}"]
        # Of a processor: how long it takes depends on what else runs, such as another row.
        slowest, count = max(slowest, done.processor), count + 1
    figure = f"{count - len(missed)} of {count} named, at most {slowest:.1f} s of processor time"
    return Found(figure + (f"; NOT {missed}" if missed else ""), not missed and slowest < 5)


def _cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def _edit(path: Path) -> None:
    content = json.loads(path.read_text())
    content["seconds"] = content["seconds"] + 1
    path.write_text(json.dumps(content))


def races(trial: Trial) -> Found:
    """R11: of two runs that race for a workdir one wins, and its configuration is the workdir's."""
    kinds = trial.stores()
    told, met = [], True
    for kind, many in (("POSIX", trial.times(3, 50 - 10 * len(kinds))), *((kind, 10) for kind in kinds)):
        with serving(kind) if kind != "POSIX" else contextlib.nullcontext() as store:
            right, late = raced(trial, kind, store, many)
        told.append(f"{kind}: {right} of {many} ({late} came late)")
        met &= right == many
    figure = "one winner, its config.json, one line of the loser: " + ", ".join(told)
    return Found(figure, met, trial.untried_stores())


def raced(trial: Trial, kind: str, store: stores.Store | None, many: int) -> tuple[int, int]:
    """(races that were right, those whose loser came when the winner had ended); in a bucket of two machines."""
    right, late = 0, 0
    for number in range(many):
        workdir = trial.top / f"race-{number}" if store is None else f"{store.url}/race-{number}"
        began = time.monotonic()
        crew = []
        for k in range(2):
            before = on(trial.top / f"{kind}-{number}-{k}")
            crew.append(trial.begin(workdir, "--stage=check", f"--config.teacher.steps={20 + k}", before=before))
        done = [ended(child, said, began) for child, said in crew]
        winners = [k for k, one in enumerate(done) if one.code == 0]
        late += any("belongs to another configuration" in line for one in done for line in one.lines)
        folder = workdir if store is None else taken(str(workdir), trial.top / f"{kind}-{number}-2")
        kept = json.loads((folder / "config.json").read_text())["teacher"]["steps"]
        loser = [one for one in done if one.code]
        fine = len(winners) == 1 and kept == 20 + winners[0]
        right += fine and loser[0].refused("another run is using this workdir", "belongs to another configuration")
    return right, late


def full_disk(trial: Trial) -> Found:
    """R12: a full disk or bucket is one line with a path in every stage, and the same command goes on."""
    told, resumed, missed = 0, 0, []
    # Largest file, in bytes: below what the stage writes.
    stages = {"teachers": 12288, "label": 12288, "student": 12288, "compare": 512, "report": 12288, "export": 12288}
    stages = {"teachers": 12288} if trial.quick else stages
    base = trial.top / "disk"
    for stage, most in stages.items():
        if stage == "compare":
            trial.run(base, "--stage=baselines")
        limits = (most, most)
        done = trial.run(
            base, f"--stage={stage}", before=lambda limits=limits: resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        )
        if done.refused(str(base)):
            told += 1
        else:
            missed.append(f"{stage}: exit {done.code}, {len(done.lines)} lines, {done.lines[-2:]}")
        resumed += trial.run(base, f"--stage={stage}").code == 0
    figure = f"{told} of {len(stages)} stages told in one line, {resumed} went on"
    for kind in trial.stores():
        with serving(kind) as store:
            fine, says = full_bucket(trial, kind, store)
        told, resumed, figure = told + fine, resumed + fine, f"{figure}; bucket {kind}:// {says}"
    figure += f"; NOT {missed}" if missed else ""
    missing = f"other stages, object stores: {NOT_TRIED}" if trial.quick else trial.untried_stores()
    return Found(figure, told == resumed == len(stages) + len(trial.stores()), missing)


def full_bucket(trial: Trial, kind: str, store: stores.Store) -> tuple[bool, str]:
    """A bucket that becomes full while a network trains: one line, and with room again the same command goes on."""
    url, machine = f"{store.url}/run", trial.top / f"{kind}-machine"
    flags = ("--stage=teachers", "--config.teacher.steps=1000000", "--config.teacher.checkpoint_every=20")

    def slow() -> None:
        from must.data.pipeline import Joined

        following = Joined.__next__
        Joined.__next__ = lambda self: (time.sleep(0.03), following(self))[1]

    def trained_to(more: int) -> tuple[int, Path, int]:
        """A run that has made and copied so many steps more."""
        child, said = trial.begin(url, *flags, before=on(machine, slow))
        at = max(saved(copies(machine) / "teachers" / "depth"), 0) + more
        wait_until(lambda: gone(child) or saved(copies(machine) / "teachers" / "depth") >= at, 60)
        time.sleep(2 * PERIOD)
        return child, said, at

    child, said, at = trained_to(40)
    store.full.touch()
    began = time.monotonic()
    done = ended(child, said, began)
    store.full.unlink()
    there = saved(taken(url, trial.top / f"{kind}-other") / "teachers" / "depth")
    named, kept = done.refused(url), saved(copies(machine) / "teachers" / "depth")
    child, said, onward = trained_to(40)
    os.kill(child, signal.SIGTERM)
    again = ended(child, said, time.monotonic())
    here = saved(copies(machine) / "teachers" / "depth")
    whole = saved(taken(url, trial.top / f"{kind}-other") / "teachers" / "depth")
    fine = named and there > 0 and kept >= at and again.code == 143 and whole == here >= onward
    says = f"told in one line after {done.seconds:.0f} s of tries, went on from step {kept} ({there} in the bucket)"
    return fine, says if fine else f"NOT: exit {done.code}, {done.lines[-1:]}, {there}, {kept}, {again.code}, {whole}"


def hung_worker(trial: Trial) -> Found:
    """R13: the shards of a label worker that is stopped are taken over; a lost training peer ends the others."""
    equal, figure = forks.result(functools.partial(stopped_worker, trial))
    cases = ((1, signal.SIGKILL), (0, signal.SIGKILL), (1, signal.SIGSTOP))
    lost = [] if trial.quick else [lost_peer(trial, *case) for case in cases]
    if lost:
        slowest = ", ".join(f"{seconds:.0f}" for _, seconds in lost)
        figure += f"; training peer killed, first one killed, stopped: {sum(fine for fine, _ in lost)} of {len(lost)} "
        figure += f"others ended in one line that names it, after {slowest} s"
    met = equal and all(fine and seconds <= 60 for fine, seconds in lost)
    return Found(figure, met, f"training peer: {NOT_TRIED}" if trial.quick else "")


def stopped_worker(trial: Trial) -> tuple[bool, str]:
    """Whether another worker takes over what a stopped one holds, and what is to be said of it."""
    from tests.experiments.label_kills import tree
    from tests.pseudo_label.test_label_resume import start
    from tests.support.toy_labels import label_toy

    label_toy(trial.top / "alone" / "1.0.0")
    directory, patience = trial.top / "hung" / "1.0.0", 0.5
    (hung,) = start(directory, 1, seconds=0.5)
    wait_until(lambda: any((directory / "unfinished").glob("0*.tmp")), 60)
    hung.send_signal(signal.SIGSTOP)
    began = time.monotonic()
    label_toy(directory, patience=patience)
    seconds = time.monotonic() - began
    hung.kill()
    hung.communicate()
    equal = tree(directory) == tree(trial.top / "alone" / "1.0.0")
    return (
        equal,
        f"stopped label worker: taken over after {patience} s, whole after {seconds:.1f} s, same bytes {equal}",
    )


def lost_peer(trial: Trial, victim: int, sent: int) -> tuple[bool, float]:
    """Whether the other process of a pair that trains ends in a line that names the lost one, and after how long."""
    from must.core import peers

    workdir = trial.top / f"lost-{victim}-{sent}"
    log = workdir / "teachers" / "depth" / "metrics.jsonl"
    crew = trial.begin_pair(workdir, "--stage=teachers", "--config.teacher.steps=1000000")
    wait_until(lambda: gone(crew[0][0]) or (log.exists() and len(log.read_text().splitlines()) > 5), 90)
    began = time.monotonic()
    os.kill(crew[victim][0], sent)
    done = ended(*crew[1 - victim], began)
    with contextlib.suppress(ProcessLookupError):
        os.kill(crew[victim][0], signal.SIGKILL)
    ended(*crew[victim], began)
    return done.refused(f"must: process {victim} on ", code=peers.LOST), done.seconds


def no_pickle(trial: Trial) -> Found:
    """R14: nothing that a file says is executed, in the package and in a run."""
    from tests.test_imports import modules, unsafe_calls

    calls = sum(len([*unsafe_calls(ast.parse(path.read_text()))]) for path in modules().values())
    count = trial.top / "pickles"

    def hook() -> None:
        import pickle

        def told(real):
            def loads(*arguments, **options):
                with open(count, "a") as file:
                    file.write("x")
                return real(*arguments, **options)

            return loads

        pickle.loads, pickle.load = told(pickle.loads), told(pickle.load)

    done = trial.run(trial.top / "unpickled", "--stage=teachers", before=hook)
    ran = len(count.read_text()) if count.exists() else 0
    return Found(f"{calls} calls in the package, {ran} in a run", calls == ran == done.code == 0)


def hostile_inputs(trial: Trial) -> Found:
    """R15: hostile inputs are refused by name under a cap of memory."""
    found = hostile.attacks()
    met, most = sum(said.met for said in found.values()), max(said.seconds for said in found.values())
    worst = max((said.mib for said in found.values() if said.mib == said.mib), default=0)
    missed = [name for name, said in found.items() if not said.met]
    figure = f"{met} of {len(found)} under {hostile.MEMORY >> 20} MiB, at most {worst:.0f} MiB and {most:.1f} s"
    return Found(figure + (f"; NOT {missed[:3]}" if missed else ""), met == len(found))


def two_processes(trial: Trial) -> Found:
    """R16: all stages of every recipe on two processes give the networks and the table of one."""
    from tests.recipes.test_two_processes import two_and_one
    from tests.support.commands import finish
    from tests.support.shrunk_config import MADE

    recipes, equal, most = list(MADE)[: trial.times(1, len(MADE))], 0, 0.0
    for recipe in recipes:
        compared, apart = two_and_one(recipe, trial.top / recipe)
        equal, most = equal + (compared > 30 and apart < 1e-4), max(most, apart)
    finish()  # so that its time counts
    figure = f"{equal} of {len(recipes)} recipes, largest relative difference of a weight or score {most:.1g}"
    return Found(figure, equal == len(recipes))


PROMISES: dict[str, tuple[str, Callable[[Trial], Found]]] = {
    "R1": ("student resumes bit-exact after SIGKILL, 20 of 20", resumes),
    "R2": ("SIGTERM loses no step, 1 and 2 processes, 10 of 10 in 30 s", terminates),
    "R3": ("label pass killed 10 times: same bytes, on POSIX and object stores", killed_labels),
    "R4": ("1, 2, 4 workers, Beam, object stores: same bytes", same_bytes),
    "R5": ("30 and more damaged inputs named, set equality", damaged_inputs),
    "R6": ("damaged shards found before step 1", damaged_shards),
    "R7": ("damaged checkpoints found, older one taken, 40 of 40", damaged_checkpoints),
    "R8": ("parameters always finite", finite),
    "R9": ("contracts of labels checked at write and read", kept_contracts),
    "R10": ("wrong checkpoint or config: first differing key in 5 s", foreign),
    "R11": ("50 races for a workdir, one wins each", races),
    "R12": ("disk full: path in one line, goes on", full_disk),
    "R13": ("hung or killed worker or peer: others finish or end in 60 s", hung_worker),
    "R14": ("no pickle, no eval", no_pickle),
    "R15": ("hostile inputs refused by name under a memory cap", hostile_inputs),
    "R16": ("every recipe on two processes gives the table of one", two_processes),
}


LONG = ("R16", "R1", "R12", "R2", "R3", "R13")  # begin first, so that no single one is left in the end


def _tried(trial: Callable[[Trial], Found], key: str, quick: bool) -> Found:
    with tempfile.TemporaryDirectory(prefix=f"must-{key}-") as top, contextlib.redirect_stdout(sys.stderr):
        warnings.simplefilter("ignore", Notice)
        found = trial(tries := Trial(Path(top), quick))
    return found._replace(missing=", ".join(filter(None, (found.missing, tries.less * "tried less often"))))


def tried(keys: list[str], quick: bool, together: int) -> Iterator[dict]:
    """The rows in the order in which they end, some of them side by side, each in a process of its own."""
    waiting = sorted(keys, key=lambda key: LONG.index(key) if key in LONG else len(LONG))
    running: dict[int, tuple[str, float, IO[str]]] = {}
    while waiting or running:
        while waiting and len(running) < together:
            key, began = waiting.pop(0), time.monotonic()
            child, told = forks.begin(functools.partial(_tried, PROMISES[key][1], key, quick))
            running[child] = key, began, told
        child, _, spent = os.wait4(-1, 0)
        key, began, told = running.pop(child)
        try:
            found = Found(*forks.outcome(told))
        except RuntimeError as error:
            found = Found(str(error), False, "the trial failed")
        yield {
            "row": key,
            "promise": PROMISES[key][0],
            "found": found.figure,
            "missing": found.missing,
            "held": found.met,
            "met": found.met and not found.missing,
            "seconds": round(time.monotonic() - began, 1),
            "processor_seconds": round(spent.ru_utime + spent.ru_stime, 1),
        }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--json", default="", help="a file for the rows")
    parser.add_argument("--only", default=",".join(PROMISES), help="rows, separated by commas")
    parser.add_argument("--together", type=int, default=min(2, os.cpu_count() or 1), help="rows side by side")
    options = parser.parse_args()
    forks.prepare()
    rows, began = [], time.monotonic()
    for row in tried(options.only.split(","), options.quick, options.together):
        rows.append(row)
        state = "met" if row["met"] else "held, not whole" if row["held"] else "NOT MET"
        print(f"{row['row']:4}{state:16}{row['promise']}: {row['found']}", end="")
        print(f" [{row['missing']}]" if row["missing"] else "", f"{row['processor_seconds']} s", flush=True)
    whole, spent = sum(row["met"] for row in rows), sum(row["processor_seconds"] for row in rows)
    seconds = time.monotonic() - began
    print(f"{whole} of {len(rows)} met, {spent:.0f} s of processor time in {seconds:.0f} s")
    if options.json:
        Path(options.json).write_text(
            json.dumps(sorted(rows, key=lambda row: [*PROMISES].index(row["row"])), indent=1) + "\n"
        )


if __name__ == "__main__":
    main()
