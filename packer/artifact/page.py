"""index.html: what a medium holds and how to use it, for whoever finds it.

One page without scripts and without network. Everything on it comes from the packs and from the
files beside them, so that the same medium has the same page; every word of a pack is escaped.
Nobody signs the page: it shows what packs say of themselves and tells the reader to compare.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape

import numpy as np

from packer.artifact.config import Config
from packer.artifact.layout.base import Layout
from packer.artifact.layout.extras import Extra, Page
from packer.artifact.opened import OpenedPack, packs_of
from packer.artifact.page_style import STYLE
from packer.artifact.signature import open_envelope
from packer.text import format_bytes, printable

MAX_TEXT_CHARACTERS = 120
MAX_SIGNERS = 8
_FRAME_BYTES = 16 << 10
_BLOB_BYTES = 2 << 10
"""A pack takes less than 12 KiB on the page and has six blobs or more."""

_PROGRAM = re.compile(r"unpacker/vmpack-linux-[A-Za-z0-9_]+")
_WHEELS = "unpacker/wheels/"
_PROGRAM_NEEDS, _WHEELS_NEED = "unpacker/needs.txt", "unpacker/wheels/needs.txt"
MAX_NEEDS_BYTES = MAX_TEXT_CHARACTERS
"""How long a line about the hosts may be on which something runs."""


@dataclass(frozen=True, slots=True)
class Shown:
    """What the page says of a pack.

    stored_bytes: on this medium. lacking: (contents, bytes) of each class that are not all here.
    signers: fingerprints of carried keys that fit their signatures.
    """

    config: Config
    identity: str
    stored_bytes: int
    lacking: dict[str, tuple[int, int]]
    signers: tuple[str, ...]


def make_page(layout: Layout, extras: Sequence[Extra]) -> bytes:
    """Return the page of a layout with these files beside it.

    Raises InputError when a pack's tables are damaged.
    """
    packs = [_look_at(pack) for pack in packs_of(layout)]
    needs = {
        extra.name: _start_of(extra)
        for extra in extras
        if extra.name in (_PROGRAM_NEEDS, _WHEELS_NEED)
    }
    return render(packs, [extra.name for extra in extras], needs)


def _start_of(extra: Extra) -> str:
    with extra.open() as file:
        return file.read(MAX_NEEDS_BYTES).decode("utf-8", "replace").strip()


def most_page_bytes(blobs: int) -> int:
    """Return an upper bound of the size of the page of a layout of so many blobs."""
    return _FRAME_BYTES + _BLOB_BYTES * blobs


PAGE = Page(make_page, most_page_bytes)


def _look_at(pack: OpenedPack) -> Shown:
    signers: tuple[str, ...] = ()
    if pack.envelope is not None:
        where = f"{pack.layout.location}: signature"
        keys = open_envelope(pack.envelope, pack.config_digest, where).claimed_signers()
        signers = tuple(sorted(key.fingerprint for key in keys))
    return Shown(
        pack.config,
        pack.config_digest,
        sum(blob.size for blob in pack.manifest.blobs()),
        _lacking(pack),
        signers,
    )


def _lacking(pack: OpenedPack) -> dict[str, tuple[int, int]]:
    contents = pack.map.contents
    absent = np.ones(len(contents), dtype=bool)
    if pack.manifest.frame_index() is not None:
        absent[pack.index.content] = False
    return contents.by_class(np.flatnonzero(absent))


def render(
    packs: Sequence[Shown], extras: Sequence[str], needs: Mapping[str, str] | None = None
) -> bytes:
    """Return the page.

    extras: names of the files beside the layout. needs: what those of them say that name hosts.
    """
    title = packs[0].config.ref_name if len(packs) == 1 else f"{len(packs)} virtual machines"
    kind = "A virtual machine" if len(packs) == 1 else "Virtual machines"
    text = f"""<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; style-src 'unsafe-inline'">
<title>{_text(title)}</title>
<style>
{STYLE}</style>
</head>
<body>
<main>
<header>
<h1>{_text(title)}</h1>
<p>{kind} on this medium, packed with vmpack, to be rebuilt bit for bit on your host.</p>
</header>
{"".join(map(_card, packs))}
{_guide(packs, extras, needs or {})}
<footer>Nobody signs this page. What counts is what <code>vmpack</code> says of the
packs.</footer>
</main>
</body>
</html>
"""
    return text.encode()


def _card(pack: Shown) -> str:
    config = pack.config
    size = sum(disk.size for disk in config.disks)
    signers = [f"<code>{_text(one)}</code>" for one in pack.signers[:MAX_SIGNERS]]
    if len(pack.signers) > MAX_SIGNERS:
        signers.append(f"and {len(pack.signers) - MAX_SIGNERS} more")
    rows = [
        ("On this medium", format_bytes(pack.stored_bytes)),
        ("Unpacked", f"a disk of {format_bytes(size)}"),
        ("Without network", _without_network(pack)),
        ("Signed by", "<br>".join(signers) or "nobody"),
        ("Identity", f"<code>{_text(pack.identity)}</code>"),
    ]
    if config.expires:
        rows.append(("Good until", f"{_text(config.expires)}, says its author"))
    return f"""
<section class="pack">
<h3>{_text(config.name)} <span class="guest">version {config.version}</span></h3>
<p class="guest">{_text(config.guest.line)}</p>
<dl>
{"".join(f"<dt>{name}</dt><dd>{value}</dd>" for name, value in rows)}
</dl>
</section>"""


def _without_network(pack: Shown) -> str:
    if not pack.lacking:
        return '<span class="whole">complete: everything is here</span>'
    parts = [
        f"{count:,} {name} contents ({format_bytes(size)})"
        for name, (count, size) in pack.lacking.items()
    ]
    return (
        f'<span class="part">{" and ".join(parts)} are not here.</span> The host takes them from '
        "its own files and stores, as far as it has them, and the rest from the network; it says "
        "what is missing before it begins (<code>--dry-run</code>)."
    )


def _guide(packs: Sequence[Shown], extras: Sequence[str], needs: Mapping[str, str]) -> str:
    program = next((name for name in extras if _PROGRAM.fullmatch(name)), None)
    wheels = any(name.startswith(_WHEELS) for name in extras)
    # Whole, or it would be another command; a config allows no characters that mean anything here.
    one = "." if len(packs) == 1 else escape(f"'.#{packs[0].config.ref_name}'", quote=False)
    command = "~/vmpack" if program else "vmpack"
    get = _program_guide(program, needs) if program else _INSTALLED
    offline = _wheels_guide(needs) if wheels else ""
    return f"""
<h2>Before you use it</h2>
<p>Anybody can make a medium like this one. Ask the author, by another way than this medium, for the
fingerprint of the signing key; vmpack unpacks only what a key that you name has signed.</p>
<h2>How to use it</h2>
<details open><summary>Linux</summary>
<p>Open a terminal in the folder of this page. (From an ISO file it works, too: name the file
instead of the dot.)</p>
{get}
<pre>{command} inspect .
{command} unpack {one} -o ~/disk.raw --signer FINGERPRINT</pre>
<p><code>--format qcow2</code>, <code>vmdk</code>, <code>vdi</code> or <code>vhdx</code> writes the
disk for QEMU, VMware, VirtualBox or Hyper-V (needs <code>qemu-img</code>);
<code>--dry-run</code> only says what would be done.</p>
{offline}
</details>
<details><summary>Windows</summary>
<p>In WSL with Debian or Ubuntu (<code>wsl --install -d Debian</code>). An ISO file becomes a drive
by a double click. If this medium is drive D:</p>
<pre>sudo mkdir -p /mnt/d
sudo mount -t drvfs D: /mnt/d
cd /mnt/d</pre>
<p>Then as on Linux; <code>--format vhdx -o /mnt/c/Users/Public/disk.vhdx</code> writes a disk for
Hyper-V.</p>
</details>
<details><summary>macOS</summary>
<p>vmpack runs on Linux. In a Linux virtual machine or container that sees this medium (below
<code>/Volumes</code>), do as on Linux; <code>--format qcow2</code> writes a disk for UTM and
QEMU.</p>
</details>"""


_INSTALLED = "<p>This needs vmpack, installed on the host.</p>"


def _program_guide(program: str, needs: Mapping[str, str]) -> str:
    hosts = needs.get(_PROGRAM_NEEDS, "Linux")
    return f"""<p>This medium carries the program, for {_text(hosts)}. Nobody signs it: compare what
<code>sha256sum</code> says of it with the author's word, or use a vmpack that you have.</p>
<pre>sha256sum {_text(program)}
cp {_text(program)} ~/vmpack
chmod +x ~/vmpack</pre>
<p>It unpacks itself to <code>/tmp</code>. If that is full or runs no programs, put
<code>TMPDIR=~</code> before the command.</p>"""


def _wheels_guide(needs: Mapping[str, str]) -> str:
    hosts = needs.get(_WHEELS_NEED, "Linux with Python 3.11 or later")
    return f"""<p>Other hosts ({_text(hosts)}) install it from this medium, without network:</p>
<pre>python3 -m venv ~/vmpack-venv
~/vmpack-venv/bin/pip install --no-index --find-links {_WHEELS} vmpack</pre>"""


def _text(text: str) -> str:
    """Return text of a pack as HTML shows it: escaped, without controls, not endless."""
    shown = printable(text)
    if len(shown) > MAX_TEXT_CHARACTERS:
        shown = shown[: MAX_TEXT_CHARACTERS - 1] + "…"
    return escape(shown)
