"""index.html: what it says, and that nothing of a pack can speak through it."""

from __future__ import annotations

import re
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import msgspec
import pytest

from packer.artifact import config as configs
from packer.artifact.config import Config, Guest
from packer.artifact.contents import Class
from packer.artifact.copy import Extent, copy_packs
from packer.artifact.keys import generate
from packer.artifact.layout.extras import Extra
from packer.artifact.layout.open import create_layout, open_layout
from packer.artifact.page import Shown, make_page, most_page_bytes, render
from packer.errors import InputError
from tests.artifact.fake_packs import small_config
from tests.artifact.real_packs import noise, write_pack

PROGRAM = "unpacker/vmpack-linux-x86_64"
WHEEL = "unpacker/wheels/vmpack-0.1-py3-none-any.whl"
FINGERPRINT = "SHA256:" + "A" * 43
HOSTILE = "</style></code><script>alert('1')</script><img src=x onerror=\"1\">&amp; %s {x} ☃"
VOID = {"meta", "br", "link", "img", "input"}


class Reader(HTMLParser):
    """A page as a browser takes it: elements, which must nest, and the text that is shown."""

    def __init__(self) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.shown: list[str] = []
        self._open: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        if tag not in VOID:
            self._open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self._open.pop() == tag

    def handle_data(self, data: str) -> None:
        if "style" not in self._open:
            self.shown.append(data)

    @property
    def text(self) -> str:
        assert self._open == []
        return re.sub(r"\s+", " ", "".join(self.shown))


def parse(page: bytes) -> Reader:
    reader = Reader()
    reader.feed(page.decode())
    reader.close()
    return reader


def shown(config: Config | None = None, **more: object) -> Shown:
    one = Shown(config or small_config(), "sha256:" + "1" * 64, 211_000_000, {}, (FINGERPRINT,))
    return replace(one, **more)  # type: ignore[arg-type]


def test_a_page_says_what_the_medium_holds() -> None:
    guest = Guest("linux", "debian", "12", "Debian GNU/Linux 12 (bookworm)", "x86_64", "bios")
    config = msgspec.structs.replace(small_config(), guest=guest, expires="2031-05-06")
    text = parse(render([shown(config)], [])).text
    for said in (
        "demo", "version 3", "Debian GNU/Linux 12 (bookworm), x86_64, bios", "211 MB",
        "a disk of 1.0 MB", "everything is here", FINGERPRINT, "sha256:" + "1" * 64, "2031-05-06",
    ):  # fmt: skip
        assert said in text, said


def test_a_page_says_what_a_host_without_network_lacks() -> None:
    text = parse(render([shown(lacking={"shared": (12_571, 622_000_000)})], [])).text
    assert "12,571 shared contents (622 MB) are not here." in text
    assert "everything is here" not in text


def test_a_page_shows_how_each_system_uses_it() -> None:
    text = parse(render([shown()], [])).text
    assert "vmpack inspect . vmpack unpack . -o ~/disk.raw --signer FINGERPRINT" in text
    for system in ("Linux", "Windows", "WSL", "macOS"):
        assert system in text
    assert "cp unpacker" not in text
    assert "--find-links" not in text


def test_the_program_on_the_medium_is_named_if_it_is_there() -> None:
    text = parse(render([shown()], [PROGRAM, WHEEL])).text
    assert f"cp {PROGRAM} ~/vmpack chmod +x ~/vmpack" in text
    assert "~/vmpack unpack . -o" in text
    assert "pip install --no-index --find-links unpacker/wheels/ vmpack" in text


def test_a_page_says_which_hosts_the_unpacker_is_for(tmp_path: Path) -> None:
    (tmp_path / "needs").write_text("Linux on x86_64 with glibc 2.36 or later\n")
    extras = [
        Extra(PROGRAM, b"program"),
        Extra("unpacker/needs.txt", tmp_path / "needs"),
        Extra(WHEEL, b"wheel"),
        Extra("unpacker/wheels/needs.txt", HOSTILE.encode() * 9),
    ]
    full = write_pack(tmp_path / "full.vmpack", [noise(5000, 1)], [Class.BOOT])
    reader = parse(make_page(full.layout, extras))
    full.close()
    assert "the program, for Linux on x86_64 with glibc 2.36 or later. Nobody signs" in reader.text
    assert f"sha256sum {PROGRAM}" in reader.text
    assert "Other hosts (</style></code><script>" in reader.text
    assert not [tag for tag, _ in reader.elements if tag in ("script", "img")]


def test_of_several_packs_the_commands_name_one() -> None:
    other = msgspec.structs.replace(small_config(), name="lab", version=9)
    text = parse(render([shown(), shown(other)], [])).text
    assert "2 virtual machines" in text
    assert "lab version 9" in text
    assert "vmpack unpack '.#demo:3' -o" in text


def test_a_command_names_a_pack_whole_however_long_its_name_is() -> None:
    config = small_config("a" * configs.MAX_NAME_CHARACTERS, configs.MAX_VERSION)
    text = parse(render([shown(config), shown()], [])).text
    assert f"vmpack unpack '.#{config.ref_name}' -o" in text


def test_an_unsigned_pack_is_said_to_be_one() -> None:
    assert "Signed by" + "nobody" in parse(render([shown(signers=())], [])).text


def test_no_fingerprint_is_offered_for_copying() -> None:
    """Who made the medium made the page: the reader must get it from the author."""
    page = render([shown()], [PROGRAM]).decode()
    commands = re.findall(r"<pre>.*?</pre>", page, re.DOTALL)
    assert commands
    for command in commands:
        assert "SHA256:" not in command


def test_nothing_of_a_pack_speaks_through_the_page() -> None:
    guest = Guest(*[HOSTILE] * 6)
    config = msgspec.structs.replace(small_config(), guest=guest, expires="")
    hostile = shown(config, identity=HOSTILE, signers=(HOSTILE,) * 3)
    reader = parse(render([hostile], []))
    harmless = parse(render([shown(signers=("x",) * 3)], []))
    assert reader.elements == harmless.elements
    assert "<script>alert('1')</script>" in reader.text, "it is shown as what it is"


@pytest.mark.parametrize("extras", [[], [PROGRAM, WHEEL]])
def test_a_page_runs_nothing_and_fetches_nothing(extras: list[str]) -> None:
    page = render([shown(), shown()], extras)
    elements = parse(page).elements
    assert not {"script", "link", "img", "iframe", "object", "form", "a"} & {
        tag for tag, _ in elements
    }
    for _, attributes in elements:
        assert not {name for name in attributes if name.startswith("on")}
        assert not {"src", "href", "style"} & attributes.keys()
    assert not re.search(rb"https?:|url\(|@import", page)
    policies = [attributes for _, attributes in elements if "http-equiv" in attributes]
    assert policies[0]["content"] == "default-src 'none'; style-src 'unsafe-inline'"


@pytest.mark.parametrize("packs", [1, 2, 40])
def test_the_size_of_a_page_is_bounded(packs: int) -> None:
    guest = Guest(*["'" * configs.MAX_TEXT_CHARACTERS] * 6)
    name = "a" * configs.MAX_NAME_CHARACTERS
    config = msgspec.structs.replace(
        small_config(name, configs.MAX_VERSION), guest=guest, expires="2031-05-06"
    )
    lacking = {one.name.lower(): (1 << 40, 1 << 62) for one in Class}
    worst = shown(config, signers=("'" * 50,) * 64, lacking=lacking)
    page = render([worst] * packs, [PROGRAM, WHEEL])
    assert len(page) <= most_page_bytes(6 * packs)


def test_a_page_is_made_of_the_layout_alone(tmp_path: Path) -> None:
    data = [noise(5000, 1), noise(300_000, 2), noise(400_000, 3)]
    classes = [Class.BOOT, Class.PRIVATE, Class.SHARED]
    key = generate(tmp_path / "key")
    full = write_pack(tmp_path / "full.vmpack", data, classes, keys=[key])
    for name in ("a.iso", "b.iso", "folder/"):
        with create_layout(f"{tmp_path}/{name}") as writer:
            copy_packs([full], writer, Extent.THIN)
    (tmp_path / "stick").mkdir()
    with create_layout(f"{tmp_path}/stick/") as writer:
        copy_packs([full], writer, Extent.THIN)
    page = (tmp_path / "folder" / "index.html").read_bytes()
    assert page == (tmp_path / "stick" / "index.html").read_bytes()
    for name in ("a.iso", "b.iso", "folder"):
        layout = open_layout(tmp_path / name)
        assert make_page(layout, []) == page
        layout.close()
    text = parse(page).text
    assert key.public.fingerprint in text
    assert "1 shared contents (400 kB) are not here." in text
    assert full.config_digest in text
    extra = Extra(PROGRAM, b"program")
    with create_layout(tmp_path / "c.iso", extras=[extra]) as writer:
        copy_packs([full], writer, Extent.FULL)
    layout = open_layout(tmp_path / "c.iso")
    assert f"cp {PROGRAM}" in parse(make_page(layout, [extra])).text
    layout.close()
    full.close()


def test_a_damaged_pack_has_no_page(tmp_path: Path) -> None:
    full = write_pack(tmp_path / "full.vmpack", [noise(5000, 1)], [Class.BOOT])
    with create_layout(f"{tmp_path}/folder/") as writer:
        copy_packs([full], writer, Extent.FULL)
    (blob,) = full.manifest.maps()
    (tmp_path / "folder/blobs/sha256" / blob.digest[7:]).write_bytes(b"x" * blob.size)
    with pytest.raises(InputError, match="expected bytes with that SHA-256"):
        make_page(open_layout(tmp_path / "folder"), [])
    full.close()
