"""A workdir in a bucket, by a real server on loopback: whole, owned by one run, the same on every machine."""

import filecmp
import os
import random
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from must.core import buckets
from must.core.types import UserError
from tests.support import stores


@pytest.fixture(scope="module", params=stores.KINDS)
def store(request):
    """A server with an empty bucket, of every kind whose client is installed."""
    if lacking := stores.missing(request.param):
        pytest.skip(f"no {lacking}")
    with stores.serving(request.param) as running:
        yield running


@pytest.fixture
def machine(store, tmp_path, monkeypatch):
    """Changes the machine that the test runs on, which has local copies of its own."""
    return lambda name: monkeypatch.setenv("MUST_SCRATCH", str(tmp_path / name))


@pytest.fixture
def url(request, store):
    return f"{store.url}/{request.node.originalname}"


def fill(top, names, seed=0):
    rng = random.Random(seed)
    for name in names:
        path = Path(top, name)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(rng.randbytes(rng.randrange(2000)))


def tree(top):
    """{path: content} of the files of a workdir, but what is under way or of one machine."""
    found = {str(p.relative_to(top)): p.read_bytes() for p in Path(top).rglob("*") if p.is_file()}
    local = (".partial", ".lock", "/lock", "tmp/d", ".bucket.json")
    return {name: content for name, content in found.items() if not f"/{name}".endswith(local)}


NAMES = ("config.json", "student/done.json", "student/weights/.zarray", "clock/b lock.jpg", "labels/pool/ä é.rec")


def test_another_machine_has_the_same_files_and_nothing_unfinished(machine, url):
    machine("one")
    with buckets.workdir(url) as here:
        fill(here, (*NAMES, "lock", "student/3.orbax-checkpoint-tmp/d", ".x.partial", "unfinished/00001.lock"))
        first = tree(here)
    assert set(NAMES) <= set(first)
    machine("two")
    with buckets.workdir(url) as there:
        assert here != there and tree(there) == first
        assert not list(Path(there).rglob("*orbax*")) and not list(Path(there).rglob("*.partial"))
        os.remove(Path(there, "clock/b lock.jpg"))
        fill(there, ("student/metrics.jsonl", "student/done.json"), seed=1)
        second = tree(there)
    machine("one")
    with buckets.workdir(url) as here:
        assert tree(here) == second


def test_what_is_written_meanwhile_is_copied_meanwhile(machine, url):
    machine("one")
    with buckets.workdir(url, period=0.05) as here:
        fill(here, NAMES)
        machine("two")
        there, start = buckets.Mirror(url), time.time()
        while tree(there.local) != tree(here) and time.time() - start < 20:
            there.pull()
        assert tree(there.local) == tree(here)


def test_where_a_job_is_done_its_files_are_whole(machine, url):
    """The store fails at a random request, again and again; what says done.json is never ahead."""
    machine("one")
    jobs = [f"job{i}" for i in range(6)]
    rng, mirror = random.Random(3), buckets.Mirror(url)
    for job in jobs:
        fill(mirror.local, [f"{job}/{name}" for name in ("a", "b/c", "d", "done.json")], seed=hash(job) % 100)
    whole, put = mirror._store.put_file, [0]

    def failing(*args, **kwargs):
        put[0] += 1
        if rng.random() < 0.4:
            raise PermissionError("try later")
        return whole(*args, **kwargs)

    mirror._store.put_file = failing
    seen = []
    try:
        for _ in range(60):
            try:
                mirror.push()
            except UserError as error:
                assert "no access: try later" in str(error)
            there = set(mirror._listed())
            seen.append(len(there))
            for job in jobs:
                if f"{job}/done.json" in there:
                    assert {f"{job}/a", f"{job}/b/c", f"{job}/d"} <= there
            if len(there) == 24:
                break
    finally:
        del mirror._store.put_file
    assert seen[-1] == 24 and len(set(seen)) > 2


def test_of_many_that_start_exactly_one_owns(machine, url, tmp_path, monkeypatch):
    for race in range(4):
        mirrors = []
        for k in range(6):
            machine(f"{race}-{k}")
            mirrors.append(buckets.Mirror(f"{url}/{race}"))
        together = threading.Barrier(len(mirrors))

        def start(mirror):
            together.wait()
            try:
                return mirror.own(0.5)[0]
            except UserError as error:
                assert "another run is using this workdir" in str(error)
                return None

        with ThreadPoolExecutor(len(mirrors)) as pool:
            owners = [number for number in pool.map(start, mirrors) if number]
        # Whoever comes half a second late finds a first owner that is silent, and may be the second.
        assert 1 in owners and len(set(owners)) == len(owners)


def test_a_silent_owner_is_replaced_and_told_and_a_live_one_is_not(machine, url):
    machine("one")
    first = buckets.Mirror(url)
    number, _ = first.own(0.4)
    alive = threading.Event()

    def beating():
        while not alive.wait(0.05):
            first.beat(number)

    thread = threading.Thread(target=beating)
    thread.start()
    machine("two")
    with pytest.raises(UserError, match="another run is using this workdir, .* \\(process"):
        buckets.Mirror(url).own(2.0)
    alive.set()
    thread.join()
    assert buckets.Mirror(url).own(0.4) == (number + 1, False)
    with pytest.raises(UserError, match="has taken this workdir over"):
        first.beat(number)


def test_what_a_killed_run_left_on_its_machine_is_not_lost(machine, url):
    machine("one")
    killed = buckets.Mirror(url)
    killed.own(0.2)
    fill(killed.local, NAMES)
    killed.push()
    fill(killed.local, ("student/checkpoints/8/state", "student/metrics.jsonl"), seed=2)
    left = tree(killed.local)
    with buckets.workdir(url) as here:  # at once: nobody else can have owned it
        assert tree(here) == left
    machine("two")
    with buckets.workdir(url) as there:
        assert tree(there) == left
        fill(there, ("student/metrics.jsonl",), seed=3)
        newer = tree(there)
    machine("one")
    with buckets.workdir(url) as here:
        assert tree(here) == newer


def test_two_runs_of_one_machine(machine, url):
    machine("one")
    message = "another run is using this workdir, on this machine"
    with buckets.workdir(url), pytest.raises(UserError, match=message):
        buckets.workdir(url).__enter__()


def test_sets_are_fetched_once_and_anew_when_they_change(machine, url):
    machine("one")
    source = buckets.Mirror(url)
    fill(source.local, ("a.png", "b/c.png"))
    source.push()
    machine("two")
    local = buckets.fetched(url)
    before = {name: os.stat(Path(local, name)).st_mtime_ns for name in ("a.png", "b/c.png")}
    fill(source.local, ("b/c.png",), seed=5)
    source.push()
    assert buckets.fetched(url) == local and tree(local) == tree(source.local)
    assert os.stat(Path(local, "a.png")).st_mtime_ns == before["a.png"]
    assert filecmp.cmp(Path(local, "b/c.png"), Path(source.local, "b/c.png"), shallow=False)
    assert buckets.fetched("plain/folder") == "plain/folder"


def test_mistakes_are_one_line(machine, url):
    machine("one")
    scheme = url.partition(":")[0]
    for path, message in (
        (f"{scheme}://no-such-bucket/run", f"{scheme}://no-such-bucket/run: no such bucket"),
        (f"{scheme}://", "expected SCHEME://BUCKET/FOLDER"),
        ("nowhere://bucket/run", "nowhere://bucket/run: "),
        (f"{url}/empty", "nothing is there"),
    ):
        with pytest.raises(UserError, match=message) as caught:
            buckets.fetched(path) if "empty" in path else buckets.workdir(path).__enter__()
        assert "\n" not in str(caught.value)


def test_a_file_that_changes_or_goes_while_it_is_copied_is_taken_as_it_is_then(machine, url):
    """Another process writes meanwhile: nothing is torn, and nobody ends because of it."""
    machine("one")
    source = buckets.Mirror(url)
    fill(source.local, NAMES)
    source.push()
    machine("two")
    copy = buckets.Mirror(url)
    get = copy._store.get_file

    def meanwhile(at, to):
        if at.endswith("config.json") and not meanwhile.done:
            meanwhile.done = True
            Path(source.local, "config.json").write_bytes(b"longer than it was before" * 100)
            os.remove(Path(source.local, "labels/pool/ä é.rec"))
            source.push()
        return get(at, to)

    meanwhile.done = False
    copy._store.get_file = meanwhile
    try:
        copy.pull()
    finally:
        del copy._store.get_file
    assert meanwhile.done and tree(copy.local) == tree(source.local)


def test_signs_of_life_go_on_while_files_are_copied(machine, url, monkeypatch):
    """A copy that takes longer than the patience of others."""
    machine("one")
    put = buckets.Mirror._put
    monkeypatch.setattr(buckets.Mirror, "_put", lambda *args: (time.sleep(1.5), put(*args))[1])
    with buckets.workdir(url, period=0.2) as here:
        fill(here, ("a", "b"))
        time.sleep(0.4)  # the copy is under way
        machine("two")
        with pytest.raises(UserError, match="another run is using this workdir"):
            buckets.Mirror(url).own(0.6)


def test_a_copy_that_fails_in_any_way_ends_the_run(machine, url, monkeypatch):
    machine("one")
    monkeypatch.setattr(buckets.os, "kill", lambda pid, number: told.append(number))
    monkeypatch.setattr(buckets.Mirror, "push", lambda self: 1 // 0)
    told = []
    with pytest.raises(ZeroDivisionError), buckets.workdir(url, period=0.05):
        end = time.time() + 10
        while not told and time.time() < end:
            time.sleep(0.01)
    assert told


def test_a_full_bucket_is_one_line_with_a_path_and_room_is_used_again(machine, url, store, monkeypatch):
    machine("one")
    monkeypatch.setattr("must.core.mirror._TRIES", 1)
    mirror = buckets.Mirror(url)
    fill(mirror.local, NAMES)
    store.full.touch()
    try:
        with pytest.raises(
            UserError, match=f"{url}/.*: .*quota exceeded.* is whole, and the same command resumes"
        ) as told:
            mirror.push()
        assert "\n" not in str(told.value)
    finally:
        store.full.unlink()
    mirror.push()
    assert set(mirror._listed()) == set(NAMES)
