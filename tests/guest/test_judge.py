"""The policy's word on guests that are unknown, damaged, hostile or large."""

from __future__ import annotations

import hashlib
import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from formats.source import Memory
from packer.guest.model import Guest
from packer.guest.provenance import find_provenance
from packer.guest.tree import Tree
from tests.guest.material import guest_in_memory, judged, survey_of_volumes, volume


def test_a_disk_that_nobody_can_read_is_kept_whole() -> None:
    survey = survey_of_volumes([volume(1, kind="raw", note="LUKS2: encrypted", state="")])
    judgement = judged(survey, Memory(bytes(survey.size)))
    assert judgement.guest == Guest()
    assert (judgement.path, judgement.expected, judgement.packages) == ([], [], ())
    assert (judgement.dropped, judgement.refusals, judgement.warnings) == ((), (), ())


def test_a_linux_without_a_kernel_is_warned_of() -> None:
    judgement = judged(*guest_in_memory({"/etc/os-release": b"ID=x\n", "/boot/readme": b"x"}))
    assert judgement.guest.id == "x"
    assert judgement.boot.tolist() == [-1, -1]
    assert judgement.warnings[0].startswith("no kernel was found")


def test_the_files_of_an_unknown_system_are_all_private() -> None:
    files = {"/Windows/System32/ntoskrnl.exe": b"MZ", "/bootmgr": b"x"}
    judgement = judged(*guest_in_memory(files))
    assert judgement.guest == Guest()
    assert judgement.path == list(files)
    assert judgement.boot.tolist() == judgement.package.tolist() == [-1, -1]


WORDS = (
    *(b"Package: a\n", b"Status: install ok installed\n", b"Version: 1\n", b"Architecture: all\n"),
    *(b"Conffiles:\n", b" /etc/fstab 00000000000000000000000000000000\n", b" /x 0\n", b"\n"),
    *(
        b"00000000000000000000000000000000  ",
        b"usr/x\n",
        b"../../../etc/fstab\n",
        b"/boot/vmlinuz\n",
    ),
    *(b"linux /boot/k (hd0)/k\n", b"initrd ", b"(", b"{", b"$", b"\\", b"'", b'"', b"\xff", b"\0"),
    *(b"UUID=1 / ext4\n", b"/swap none swap\n", b"LABEL= /boot x\n", b"/ / /\n"),
    *(b"KERNEL ../../k\n", b"INCLUDE extlinux.conf\n", b"ID=\n", b"NAME='\n"),
)
HOSTILE = st.one_of(
    st.binary(max_size=300),
    st.lists(
        st.sampled_from(WORDS),
        max_size=30,
    ).map(b"".join),
)
READ = (
    "/etc/fstab",
    "/etc/os-release",
    "/var/lib/dpkg/status",
    "/var/lib/dpkg/diversions",
    "/var/lib/dpkg/info/a.md5sums",
    "/var/lib/dpkg/info/a.list",
    "/boot/grub/grub.cfg",
    "/boot/loader/entries/x.conf",
    "/boot/extlinux/extlinux.conf",
    "/swap",
    "/bin/sh",
    "/boot/vmlinuz",
)


@settings(max_examples=200, deadline=None)
@given(st.fixed_dictionaries({}, optional=dict.fromkeys(READ, HOSTILE)))
def test_whatever_a_guests_own_files_say_it_is_judged(files: dict[str, bytes]) -> None:
    judgement = judged(*guest_in_memory({"/sbin/init": b""} | files, {"/x": "x", "/lib": "/usr"}))
    assert judgement.guest.family == "linux"
    assert len(judgement.expected) == len(files) + 1


@pytest.mark.slow
def test_600_packages_of_79000_files_are_found_in_less_than_a_second() -> None:
    files = {"/etc/os-release": b"ID=debian\n"}
    status = []
    for package in range(600):
        paths = [f"lib/package{package}/folder{i % 9}/file{i}" for i in range(131)]
        lines = "".join(f"{hashlib.md5(path.encode()).hexdigest()}  {path}\n" for path in paths)
        files |= {f"/usr/{path}": path.encode() for path in paths}
        files[f"/var/lib/dpkg/info/package{package}.md5sums"] = lines.encode()
        status.append(
            f"Package: package{package}\nStatus: install ok installed\nArchitecture: all\n"
            "Version: 1\nDescription: none\n"
        )
    files["/var/lib/dpkg/status"] = "\n".join(status).encode()
    tree = Tree(*guest_in_memory(files, {"/lib": "usr/lib"}))
    start = time.process_time()
    found = find_provenance(tree)
    seconds = time.process_time() - start
    assert sum(md5 is not None for md5 in found.expected) == 600 * 131
    assert seconds < 1
