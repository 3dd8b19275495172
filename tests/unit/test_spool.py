from __future__ import annotations

import os
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from audit import spool as spool_module
from audit.spool import Spool, SpoolFull, boot_of, read_lines


@pytest.fixture
def spool(tmp_path):
    spool = Spool(tmp_path / "spool", "a" * 32)
    spool.open()
    yield spool
    spool.close()


def lines_of(spool: Spool) -> list[bytes]:
    return [line for segment in spool.sealed() for line in read_lines(segment)]


def run_child(folder: Path, code: str) -> subprocess.Popen[bytes]:
    """Start a process with an open spool of boot b, which then runs the code."""
    program = (
        "import os, sys; from pathlib import Path; from audit.spool import Spool\n"
        f"spool = Spool(Path({str(folder)!r}), 'b' * 32); spool.open()\n{code}"
    )
    return subprocess.Popen(
        [sys.executable, "-c", program],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        cwd=Path(__file__).parents[2],
    )


def test_appended_lines_come_back_in_order(spool):
    spool.append(b'{"n":1}\n')
    spool.append(b'{"n":2}\n')
    spool.seal()
    spool.append(b'{"n":3}\n')
    spool.seal()
    assert len(spool.sealed()) == 2
    assert lines_of(spool) == [b'{"n":1}', b'{"n":2}', b'{"n":3}']


def test_a_line_is_in_the_file_as_soon_as_append_returns(spool):
    spool.append(b"x\n")
    [segment] = spool.folder.glob("*.jsonl")
    assert segment.read_bytes() == b"x\n"


def test_only_the_owner_can_read_the_spool(spool):
    spool.append(b"x\n")
    spool.set_aside(b"y")
    assert spool.folder.stat().st_mode & 0o777 == 0o700
    assert {path.stat().st_mode & 0o777 for path in spool.folder.iterdir()} == {0o600}


def test_sealing_nothing_makes_no_segment(spool):
    spool.seal()
    assert spool.sealed() == []


def test_a_discarded_segment_is_gone(spool):
    spool.append(b"x\n")
    spool.seal()
    [segment] = spool.sealed()
    spool.discard(segment)
    assert spool.sealed() == []
    assert not segment.exists()
    assert read_lines(segment) == []


def test_a_torn_last_line_is_left_out(tmp_path):
    segment = tmp_path / "boot-1.jsonl"
    segment.write_bytes(b'{"n":1}\n{"n":2}\n{"n"')
    assert read_lines(segment) == [b'{"n":1}', b'{"n":2}']


def test_a_full_segment_is_sealed_by_itself(spool, monkeypatch):
    monkeypatch.setattr(spool_module, "SEGMENT_BYTES", 10)
    for _ in range(5):
        spool.append(b"12345\n")
    assert len(spool.sealed()) == 2


def test_no_line_is_lost_or_torn_when_threads_append_while_it_rotates(spool):
    threads = [
        threading.Thread(
            target=lambda name=name: [
                spool.append(b"%d-%d-%s\n" % (name, n, b"x" * 500)) for n in range(500)
            ]
        )
        for name in range(8)
    ]
    for thread in threads:
        thread.start()
    while any(thread.is_alive() for thread in threads):
        spool.seal()
    for thread in threads:
        thread.join(10)
    spool.seal()
    found = [line.split(b"-") for line in lines_of(spool)]
    assert all(rest == b"x" * 500 for _, _, rest in found)
    for name in range(8):
        assert [int(n) for owner, n, _ in found if int(owner) == name] == list(range(500))


def test_a_line_that_the_disk_takes_by_half_leaves_no_trace(tmp_path):
    child = run_child(
        tmp_path,
        "import resource\n"
        "hard = resource.getrlimit(resource.RLIMIT_FSIZE)[1]\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (25, hard))\n"
        "refused = 0\n"
        "for _ in range(4):\n"
        "    try: spool.append(b'123456789\\n')\n"
        "    except OSError: refused += 1\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (hard, hard))\n"
        "spool.append(b'after\\n'); print(refused); spool.close()",
    )
    out, _ = child.communicate(timeout=20)
    assert out == b"2\n"
    [segment] = tmp_path.glob("*.jsonl")
    assert read_lines(segment) == [b"123456789", b"123456789", b"after"]


def test_appending_to_a_closed_spool_is_an_oserror(spool):
    spool.close()
    with pytest.raises(OSError, match="not open"):
        spool.append(b"x\n")


def test_a_boot_is_alive_until_its_process_is_killed(spool):
    child = run_child(spool.folder, "spool.append(b'x\\n'); print(1, flush=True); sys.stdin.read()")
    assert child.stdout is not None
    try:
        assert child.stdout.readline() == b"1\n"
        assert spool.is_alive("b" * 32)
        with spool.recovery():
            assert spool.leftovers() == []
    finally:
        child.kill()
        child.communicate(timeout=10)
    assert not spool.is_alive("b" * 32)
    with spool.recovery():
        [segment] = spool.leftovers()
        spool.remove_dead_locks()
    assert boot_of(segment) == "b" * 32
    assert read_lines(segment) == [b"x"]
    assert {path.name for path in spool.folder.glob("*.lock")} == {
        f"{'a' * 32}.lock",
        "recovery.lock",
    }


def test_our_own_boot_is_alive_and_an_unheard_one_is_not(spool):
    spool.append(b"x\n")
    spool.seal()
    assert spool.is_alive(spool.boot)
    assert not spool.is_alive("c" * 32)
    with spool.recovery():
        assert spool.leftovers() == []


def test_a_closed_boot_leaves_no_lock_and_no_descriptor(tmp_path):
    before = len(os.listdir("/dev/fd"))
    spool = Spool(tmp_path, "a" * 32)
    spool.open()
    spool.append(b"x\n")
    spool.close()
    assert not spool.is_alive(spool.boot)
    assert [path.suffix for path in tmp_path.iterdir()] == [".jsonl"]
    assert len(os.listdir("/dev/fd")) == before


def test_a_line_set_aside_is_no_segment(spool):
    spool.set_aside(b"bad\n")
    spool.set_aside(b"worse")
    assert (spool.folder / "rejected.jsonl").read_bytes() == b"bad\nworse\n"
    with spool.recovery():
        assert spool.leftovers() == []


# --- The bound ------------------------------------------------------------------------------


@pytest.fixture
def small(tmp_path):
    spool = Spool(tmp_path / "spool", "a" * 32, max_bytes=20)
    spool.open()
    yield spool
    spool.close()


def test_above_the_bound_a_line_is_refused_without_a_trace(small):
    small.append(b"123456789\n")
    small.append(b"123456789\n")
    assert small.is_full
    with pytest.raises(SpoolFull):
        small.append(b"x\n")
    small.seal()
    assert lines_of(small) == [b"123456789"] * 2


def test_a_promised_line_may_go_beyond_the_bound_as_far_as_told(small):
    small.append(b"123456789\n")
    small.append(b"123456789\n")
    small.append(b"1234\n", beyond=5)
    with pytest.raises(SpoolFull):
        small.append(b"x\n", beyond=5)
    small.append(b"x\n", beyond=float("inf"))


def test_a_discarded_segment_makes_room(small):
    small.append(b"1234567890123456789\n")
    small.seal()
    [segment] = small.sealed()
    with pytest.raises(SpoolFull):
        small.append(b"x\n")
    small.discard(segment)
    small.append(b"1234567890123456789\n")


def test_segments_of_dead_boots_count_until_they_are_stored(tmp_path):
    for boot in "bc":
        dead = Spool(tmp_path, boot * 32)
        dead.open()
        dead.append(b"123456789\n")
        dead.close()
    spool = Spool(tmp_path, "a" * 32, max_bytes=20)
    spool.open()
    with pytest.raises(SpoolFull):
        spool.append(b"x\n")
    with spool.recovery():
        spool.discard(spool.leftovers()[0])
        spool.append(b"x\n")
        spool.forget_leftovers()
    spool.append(b"12345678901234567\n")
    spool.close()


def test_a_line_that_the_disk_refuses_weighs_nothing(small, monkeypatch):
    def refuse(*_):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr("audit.spool.os.write", refuse)
        with pytest.raises(OSError, match="No space"):
            small.append(b"1234567890123456789\n")
    small.append(b"1234567890123456789\n")
