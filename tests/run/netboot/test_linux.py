"""Which kernel, initramfs and arguments the boot menus of a guest name."""

from __future__ import annotations

import pytest

from packer.errors import InputError, UsageError
from packer.run.netboot.linux import Start, choose, find_starts
from packer.run.netboot.script import Place, dnsmasq_lines, ipxe_script

GRUB = b"""
menuentry 'Debian GNU/Linux' --class debian {
  search --fs-uuid --set=root 1234
  linux /boot/vmlinuz-6.1 root=UUID=1234 ro quiet $vt_handoff 'dyndbg=file a.c +p'
  initrd /boot/initrd.img-6.1
}
menuentry 'Debian GNU/Linux, older' {
  linux /boot/vmlinuz-5.10 root=UUID=1234 ro
  initrd /boot/initrd.img-5.10
}
menuentry 'gone' { linux /boot/vmlinuz-4.9 root=UUID=1234 }
"""


class Files(dict[str, bytes]):
    """A guest's files in memory; see linux.GuestFiles."""

    @property
    def paths(self) -> list[str]:
        return sorted(self)

    def read(self, path: str, max_bytes: int) -> bytes:
        assert len(self[path]) <= max_bytes
        return self[path]


DEBIAN = Files(
    {
        "/boot/grub/grub.cfg": GRUB,
        "/boot/vmlinuz-6.1": b"",
        "/boot/initrd.img-6.1": b"",
        "/boot/vmlinuz-5.10": b"",
        "/boot/initrd.img-5.10": b"",
    }
)


def test_the_entries_of_grub_whose_files_are_there() -> None:
    first, older = find_starts(DEBIAN)
    assert first == Start(
        "Debian GNU/Linux",
        "/boot/vmlinuz-6.1",
        ("/boot/initrd.img-6.1",),
        ("root=UUID=1234", "ro", "quiet", '"dyndbg=file a.c +p"'),
        ("$vt_handoff",),
    )
    assert (older.kernel, older.left_out) == ("/boot/vmlinuz-5.10", ())


def test_paths_that_begin_at_a_partition_of_their_own() -> None:
    text = GRUB.replace(b"/boot/", b"/")
    (first, _) = find_starts(Files({**DEBIAN, "/boot/grub/grub.cfg": text}))
    assert first.kernel == "/boot/vmlinuz-6.1"


def test_entries_of_their_own_begin_with_the_newest() -> None:
    files = Files(
        {
            "/boot/grub2/grub.cfg": b"blscfg\n",
            "/boot/loader/entries/1-6.8.conf": b"title F 6.8\nlinux /vmlinuz-6.8\noptions ro $x\n",
            "/boot/loader/entries/1-6.9.conf": b"title F 6.9\nlinux /vmlinuz-6.9\ninitrd /i-6.9\n",
            "/boot/vmlinuz-6.8": b"",
            "/boot/vmlinuz-6.9": b"",
            "/boot/i-6.9": b"",
        }
    )
    assert [one.title for one in find_starts(files)] == ["F 6.9", "F 6.8"]


def test_syslinux_names_files_from_its_own_folder() -> None:
    text = b"LABEL a\nLINUX ../vmlinuz\nAPPEND initrd=i.img ro\n"
    files = Files({"/boot/extlinux/extlinux.conf": text, "/boot/vmlinuz": b""})
    files["/boot/extlinux/i.img"] = b""
    (start,) = find_starts(files)
    assert start == Start("a", "/boot/vmlinuz", ("/boot/extlinux/i.img",), ("ro",), ())


@pytest.mark.parametrize(
    "word",
    [
        *("${net0/mac}", "$x", "a\x00b", "a\tb\x1b", 'a"b', "a\\", "\udcff"),
        *("&&", "||", ";", "#a", "a || chain http://192.0.2.1/x", "a ; b", "a && b", "a #b"),
    ],
)
def test_a_word_that_ipxe_would_not_hand_on_is_left_out(word: str) -> None:
    quoted = word.replace("\\", "\\\\").replace('"', '\\"')
    text = f"menuentry x {{ linux /boot/k ro '{word}' end\n}}"
    if "\\" in word or '"' in word:
        text = f'menuentry x {{ linux /boot/k ro "{quoted}" end\n}}'
    data = text.encode("utf-8", "surrogateescape")
    (start,) = find_starts(Files({"/boot/grub/grub.cfg": data, "/boot/k": b""}))
    assert start.arguments == ("ro", "end")
    assert start.left_out == (word,)


@pytest.mark.parametrize(
    "data", [b"", b"\xff" * 1000, b"menuentry", b"linux", b"menuentry a { linux", b"'" * 99]
)
def test_odd_configurations_offer_nothing(data: bytes) -> None:
    names = ("grub/grub.cfg", "extlinux/extlinux.conf", "loader/entries/a.conf")
    assert find_starts(Files({f"/boot/{name}": data for name in names})) == []


def test_too_long_a_command_line_is_no_entry() -> None:
    data = b"menuentry x { linux /boot/k " + b"a " * 1001 + b"\n}"
    assert find_starts(Files({"/boot/grub/grub.cfg": data, "/boot/k": b""})) == []


def test_an_entry_is_chosen_by_number_or_title() -> None:
    starts = find_starts(DEBIAN)
    assert choose(starts, None) is starts[0]
    assert choose(starts, "1") is starts[0]
    assert choose(starts, "2") is choose(starts, "Debian GNU/Linux, older") is starts[1]
    for wrong in ("0", "3", "older", "9" * 5000, "²", "0" * 9 + "12"):
        with pytest.raises(UsageError, match="Debian GNU/Linux, older"):
            choose(starts, wrong)


def test_a_guest_without_linux_has_no_entry() -> None:
    with pytest.raises(InputError, match="no boot menu"):
        choose([], None)


def test_the_script_has_one_command_a_line() -> None:
    script = ipxe_script("demo:1 Debian", 2, ["root=UUID=1", "ro"])
    assert script.decode().splitlines() == [
        "#!ipxe",
        "# demo:1 Debian",
        "kernel vmlinuz initrd=initrd0.img initrd=initrd1.img root=UUID=1 ro",
        "initrd initrd0.img",
        "initrd initrd1.img",
        "boot",
    ]


def test_dnsmasq_is_told_of_loaders_that_are_served() -> None:
    place = Place("192.0.2.7", 8080, 69, 10809, "demo")
    assert dnsmasq_lines(place, []) == [
        "dhcp-match=set:ipxe,175",
        "dhcp-boot=tag:ipxe,http://192.0.2.7:8080/boot.ipxe",
    ]
    lines = dnsmasq_lines(place, ["snponly.efi", "undionly.kpxe"])
    assert "dhcp-boot=tag:!ipxe,tag:uefi,snponly.efi,,192.0.2.7" in lines
    assert "dhcp-boot=tag:!ipxe,tag:!uefi,undionly.kpxe,,192.0.2.7" in lines
