from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import msgspec
import pytest

from packer.survey import child, wire
from packer.survey.child import ChildError, Job
from packer.survey.limits import Limits

LIMITS = Limits(memory_bytes=512 << 20, cpu_seconds=2, wall_seconds=20.0, result_bytes=1 << 20)


def misbehave(name: str, value: str = "", limits: Limits = LIMITS) -> bytes:
    request = msgspec.msgpack.encode({"name": name, "limits": limits, "value": value})
    job = Job("ext4", "volume 2 of guest.qcow2", request, limits=limits)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(child, "WORKER", "tests.survey.misbehaving")
        return bytes(child.run(job))


def children_of_this_process() -> set[int]:
    found = set()
    for task in Path("/proc/self/task").iterdir():
        found |= {int(pid) for pid in (task / "children").read_text().split()}
    return found


@pytest.mark.parametrize("name", ["SIGSEGV", "SIGABRT", "SIGKILL", "SIGBUS"])
def test_a_child_that_dies_by_a_signal_is_one_clear_error(name: str) -> None:
    with pytest.raises(ChildError) as caught:
        misbehave("kill_itself", name)
    number = int(signal.Signals[name])
    assert str(caught.value) == (
        f"the ext4 reader stopped (signal {number}, {name}) while reading volume 2 of guest.qcow2"
    )
    assert caught.value.exit_code == 3
    assert caught.value.hint


def test_a_real_crash_in_c_is_caught() -> None:
    with pytest.raises(ChildError, match=r"stopped \(signal 11, SIGSEGV\)"):
        misbehave("follow_a_null_pointer")


def test_memory_is_bounded() -> None:
    with pytest.raises(ChildError, match="needed more than 512 MiB of memory"):
        misbehave("allocate_without_end")


def test_processor_time_is_bounded() -> None:
    with pytest.raises(ChildError, match="used more than 1 seconds of processor time"):
        misbehave("spin", limits=Limits(cpu_seconds=1, wall_seconds=20.0))


@pytest.mark.parametrize("misdeed", ["sleep", "close_the_pipes_and_sleep"])
def test_time_is_bounded_and_the_child_is_gone_afterwards(misdeed: str) -> None:
    before = children_of_this_process()
    begin = time.monotonic()
    with pytest.raises(ChildError, match="took longer than 1 seconds"):
        misbehave(misdeed, limits=Limits(wall_seconds=1.0))
    assert time.monotonic() - begin < 5
    assert children_of_this_process() == before


def test_an_answer_is_bounded() -> None:
    with pytest.raises(ChildError, match="answered more than 1048576 bytes"):
        misbehave("talk_without_end")


def test_a_child_that_fills_standard_error_does_not_block() -> None:
    assert misbehave("complain_without_end_then_answer") == b"answer"


def test_an_exception_in_the_child_is_told_without_its_control_characters() -> None:
    with pytest.raises(ChildError, match=r"failed .exit code 1.: ValueError: something .*odd") as e:
        misbehave("raise_an_error")
    assert "\x1b" not in str(e.value)


def test_a_child_writes_no_file(tmp_path: Path) -> None:
    target = tmp_path / "target"
    with pytest.raises(ChildError, match="File too large"):
        misbehave("write_a_file", str(target))
    assert not target.exists() or target.stat().st_size == 0


def test_a_child_opens_few_files() -> None:
    with pytest.raises(ChildError, match="Too many open files"):
        misbehave("open_many_files")


def test_a_child_dumps_no_core_gains_no_rights_and_sees_few_variables() -> None:
    os.environ["VMPACK_SECRET"] = "x"
    try:
        answer = misbehave("tell_limits").decode()
    finally:
        del os.environ["VMPACK_SECRET"]
    assert answer.startswith("(0, 0) True")
    assert "VMPACK_SECRET" not in answer
    assert "PYTHONPATH" not in answer


def test_a_child_that_answers_nothing_is_an_error() -> None:
    with pytest.raises(wire.MalformedError):
        wire.decode_reply(b"", wire.TableReply)


def test_a_request_that_no_child_reads_does_not_block(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(child, "WORKER", "tests.survey.no_such_module")
    request = msgspec.msgpack.encode({"name": "x", "limits": LIMITS, "value": "x" * (8 << 20)})
    job = Job("ext4", "here", request, limits=LIMITS)
    with pytest.raises(ChildError, match="exit code 1"):
        child.run(job)


def test_the_child_dies_with_the_thread_that_waits_for_it(tmp_path: Path) -> None:
    """Kill a parent in the middle of a job: its child must not stay behind."""
    script = (
        "import sys; sys.path.insert(0, sys.argv[1])\n"
        "from tests.survey.test_child import misbehave\n"
        "misbehave('sleep')\n"
    )
    root = Path(__file__).parents[2]
    parent = subprocess.Popen([sys.executable, "-c", script, str(root)], cwd=tmp_path)
    try:
        found = _wait_for_child(parent.pid)
    finally:
        parent.kill()
        parent.wait()
    deadline = time.monotonic() + 10
    while Path(f"/proc/{found}").exists() and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not Path(f"/proc/{found}").exists()


def _wait_for_child(pid: int) -> int:
    deadline = time.monotonic() + 15
    while time.monotonic() < deadline:
        listed = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
        # asleep at last: the limits were taken on before
        if listed and "clock_nanosleep" in _waits_in(listed[0]):
            return int(listed[0])
        time.sleep(0.05)
    raise AssertionError("no child")


def _waits_in(pid: str) -> str:
    try:
        number = Path(f"/proc/{pid}/syscall").read_text().split()[0]
    except OSError:
        return ""
    return "clock_nanosleep" if number == "230" else number


def test_starting_a_child_takes_less_than_a_second() -> None:
    misbehave("tell_limits")
    begin = time.monotonic()
    misbehave("tell_limits")
    assert time.monotonic() - begin < 1
