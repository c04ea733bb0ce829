"""Files summed up for people: the boot set by reason, private bytes by folder."""

from __future__ import annotations

from dataclasses import replace

from packer.artifact.contents import Class
from packer.inspect.files import FOLDERS_SHOWN, BootFile, largest_folders, sum_up_boot_set
from tests.artifact.make import contents_of
from tests.artifact.real_packs import hints_of, no_hints
from tests.pack.surveys import BLOCK, File
from tests.pack.test_draw import Drawn, filled


def boot_disk() -> Drawn:
    files = [
        File(4000, [(0, 1 * BLOCK, BLOCK)], ["/boot/vmlinuz", "/vmlinuz"], boot=0),
        File(3000, [(0, 2 * BLOCK, BLOCK)], ["/boot/initrd"], boot=1),
        File(2000, [(0, 3 * BLOCK, BLOCK)], ["/boot/old"], boot=0),
        File(BLOCK, [(0, 4 * BLOCK, BLOCK)], ["/home/me"]),
    ]
    drawn = Drawn(filled(9, 1, 2, 3, 4), files)
    drawn.judgement = replace(
        drawn.judgement, boot_reasons=("kernel", "initramfs"), boot_rules={0: "named: by a test"}
    )
    return drawn


def test_the_boot_set_is_summed_up_by_reason_with_every_file_once() -> None:
    drawn = boot_disk()
    metadata, kernel, initramfs = sum_up_boot_set(drawn.survey, drawn.judgement, drawn.map)
    assert (kernel.reason, kernel.files, kernel.size_bytes) == ("kernel", 2, 6000)
    assert kernel.paths == (
        BootFile("/boot/old", 2000, ""),
        BootFile("/boot/vmlinuz", 4000, "named: by a test"),
    )
    assert kernel.rules == (("named", 1),)
    assert (initramfs.reason, initramfs.files, initramfs.size_bytes) == ("initramfs", 1, 3000)
    assert (metadata.files, metadata.size_bytes) == (0, BLOCK)


def test_the_groups_add_up_to_the_boot_class() -> None:
    drawn = boot_disk()
    groups = sum_up_boot_set(drawn.survey, drawn.judgement, drawn.map)
    contents = drawn.map.contents
    boot = int(contents.size[contents.classes == Class.BOOT].sum())
    assert sum(group.size_bytes for group in groups) == boot


def test_files_with_the_same_bytes_do_not_make_the_metadata_negative() -> None:
    files = [File(BLOCK, [(0, n * BLOCK, BLOCK)], [f"/boot/copy-{n}"], boot=0) for n in range(1, 5)]
    drawn = Drawn(filled(9, 7, 7, 7, 7), files)
    metadata, kernel = sum_up_boot_set(drawn.survey, drawn.judgement, drawn.map)
    assert metadata.size_bytes >= 0
    assert kernel.files == 4


def test_the_largest_folders_of_a_class_come_first_three_parts_deep() -> None:
    data = [bytes([n]) * (n + 1) * 100 for n in range(6)]
    contents = contents_of(data, [Class.PRIVATE] * 5 + [Class.SHARED])
    hints = hints_of(
        contents,
        [
            (0, "/home/me/.cache/deep/er/a", -1),
            (1, "/home/me/.cache/other/b", -1),
            (2, "/etc/passwd", -1),
            (3, "/file-in-root", -1),
            (5, "/usr/lib/x", -1),
        ],
    )
    assert largest_folders(contents, hints, Class.PRIVATE) == (
        ("(no file)", 1, 500),
        ("/", 1, 400),
        ("/etc", 1, 300),
        ("/home/me/.cache", 2, 300),
    )


def test_a_content_with_several_names_is_counted_once() -> None:
    contents = contents_of([b"x" * 100], [Class.PRIVATE])
    hints = hints_of(contents, [(0, "/a/1", -1), (0, "/b/1", -1)])
    assert largest_folders(contents, hints, Class.PRIVATE) == (("/a", 1, 100),)


def test_no_more_folders_are_shown_than_can_be_read() -> None:
    data = [n.to_bytes(2, "big") for n in range(100)]
    contents = contents_of(data, [Class.PRIVATE] * 100)
    hints = hints_of(contents, [(n, f"/{n}/x", -1) for n in range(100)])
    assert len(largest_folders(contents, hints, Class.PRIVATE)) == FOLDERS_SHOWN
    assert largest_folders(contents_of([]), no_hints(), Class.PRIVATE) == ()
