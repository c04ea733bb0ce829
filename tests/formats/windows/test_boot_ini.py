"""boot.ini as Windows XP writes it, and as people do."""

from __future__ import annotations

import pytest

from formats.windows.boot_ini import (
    MAX_BOOT_INI_BYTES,
    MAX_ENTRIES,
    ArcPath,
    parse_arc_path,
    parse_boot_ini,
)

XP = rb"""[boot loader]
timeout=30
default=multi(0)disk(0)rdisk(0)partition(1)\WINDOWS
[operating systems]
multi(0)disk(0)rdisk(0)partition(1)\WINDOWS="Microsoft Windows XP Professional" """ + (
    b"/noexecute=optin /fastdetect\r\n"
    b'multi(0)disk(0)rdisk(1)partition(2)\\WINNT="Windows, mine" '
    b"/KERNEL=ntkrnlmy.exe /Hal=halmy.dll /debugport=1394 /DEBUG /3GB\r\n"
    b'C:\\CMDCONS\\BOOTSECT.DAT="Recovery Console" /cmdcons\r\n'
)


class TestXp:
    def test_timeout_and_default(self) -> None:
        found = parse_boot_ini(XP)
        assert found.timeout == 30
        assert found.default == "multi(0)disk(0)rdisk(0)partition(1)\\WINDOWS"
        assert found.default_entry == found.entries[0]

    def test_entries(self) -> None:
        first, second, third = parse_boot_ini(XP).entries
        assert first.title == "Microsoft Windows XP Professional"
        assert first.arc == ArcPath("multi", 0, 0, 0, 1, "\\WINDOWS")
        assert first.options == {"NOEXECUTE": "optin", "FASTDETECT": ""}
        assert second.arc == ArcPath("multi", 0, 0, 1, 2, "\\WINNT")
        assert second.options == {
            "KERNEL": "ntkrnlmy.exe",
            "HAL": "halmy.dll",
            "DEBUGPORT": "1394",
            "DEBUG": "",
            "3GB": "",
        }
        assert third.arc is None
        assert third.target == "C:\\CMDCONS\\BOOTSECT.DAT"
        assert third.options == {"CMDCONS": ""}


class TestArcPaths:
    @pytest.mark.parametrize(
        ("text", "found"),
        [
            ("scsi(1)disk(2)rdisk(0)partition(3)\\W", ArcPath("scsi", 1, 2, 0, 3, "\\W")),
            (
                "signature(8b467c12)disk(1)rdisk(0)partition(2)\\winnt",
                ArcPath("signature", 0x8B467C12, 1, 0, 2, "\\winnt"),
            ),
            ("MULTI(0)DISK(0)RDISK(0)PARTITION(1)", ArcPath("multi", 0, 0, 0, 1, "")),
        ],
    )
    def test_are_taken_apart(self, text: str, found: ArcPath) -> None:
        assert parse_arc_path(text) == found

    @pytest.mark.parametrize(
        "text",
        [
            "",
            "C:\\",
            "multi(0)disk(0)rdisk(0)",
            "multi(a)disk(0)rdisk(0)partition(1)",
            "multi(0)disk(0)rdisk(0)partition(99999)",
            "signature(123456789)disk(0)rdisk(0)partition(1)",
            "multi(0)disk(0)rdisk(0)partition(1)WINDOWS",
        ],
    )
    def test_others_are_none(self, text: str) -> None:
        assert parse_arc_path(text) is None


class TestWhatPeopleWrite:
    def test_spaces_comments_and_other_sections(self) -> None:
        data = (
            b" [Boot Loader]\n ; timeout=1\n Timeout = -1 \n[other]\ntimeout=9\n"
            b'[OPERATING SYSTEMS]\n multi(0)disk(0)rdisk(0)partition(1)\\W = "x"/SOS\n=\n\n'
            b"C:\\ = Windows 98 /win95\n\x1atimeout=7"
        )
        found = parse_boot_ini(data)
        assert found.timeout == -1
        assert [entry.title for entry in found.entries] == ["x", "Windows 98"]
        assert found.entries[0].options == {"SOS": ""}
        assert found.entries[1].options == {"WIN95": ""}

    def test_a_default_that_is_not_offered_is_started_without_options(self) -> None:
        """The menu then shows "Windows (default)"."""
        found = parse_boot_ini(XP.replace(b"partition(1)\\WINDOWS\n[op", b"partition(3)\\X\n[op"))
        assert found.default_entry is not None
        assert found.default_entry.arc == ArcPath("multi", 0, 0, 0, 3, "\\X")
        assert found.default_entry.options == {}

    def test_without_default_the_first_is_started(self) -> None:
        found = parse_boot_ini(XP[XP.index(b"[operating") :])
        assert found.default_entry == found.entries[0]

    @pytest.mark.parametrize("data", [b"", b"\0" * 100, b"[", b"=" * 100, b"\xff" * 1000])
    def test_nothing_is_nothing(self, data: bytes) -> None:
        found = parse_boot_ini(data)
        assert found.entries == ()
        assert found.default_entry is None
        assert found.timeout is None

    @pytest.mark.parametrize("text", [b"ten", b"-5", b"9" * 5000, "³".encode("cp1252")])
    def test_a_timeout_that_is_none(self, text: bytes) -> None:
        assert parse_boot_ini(b"[boot loader]\ntimeout=" + text).timeout is None

    def test_is_bounded(self) -> None:
        many = parse_boot_ini(b"[operating systems]\n" + b"a=b\n" * 5000)
        assert len(many.entries) == MAX_ENTRIES
        late = b"[boot loader]\n".ljust(MAX_BOOT_INI_BYTES, b"\n") + b"timeout=5"
        assert parse_boot_ini(late).timeout is None
