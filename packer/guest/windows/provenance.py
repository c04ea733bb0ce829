"""Which files of a Windows guest others have, and which are its own.

Names come first, then what component manifests and catalogs list, then who has signed a program.
All of this is hints: where a digest is known, the bytes are compared with it before anybody calls
them shared, and where only a name or a signature speaks for it, a wrong claim costs a stub that
nobody but the author's own full copy can fill. What nobody else is known to have is private.

Streams that NTFS stores in another form than a reader sees are shared if their names are of a
component: another disk with the same Windows stores them in the same way. No digest is compared,
because records speak of the other form.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from formats.filesystem.model import PLAIN
from packer.artifact.hints import NO_PACKAGE, WINDOWS, Package
from packer.errors import InputError
from packer.guest.expected import Catalogued, Expected
from packer.guest.model import Origin
from packer.guest.provenance import Provenance
from packer.guest.windows.guest import Windows
from packer.guest.windows.places import Place, Places, find_places
from packer.guest.windows.products import Folders, Product, find_products
from packer.survey.records import SHA1_BYTES, SHA256_BYTES
from packer.text import printable

NAME = "Windows"
"""Of the packages that stand for its releases."""

MAX_MANIFEST_BYTES = 128 << 20
"""Of all manifests together; Windows 7 has 40 MB of them."""

MAX_CATALOG_BYTES = 64 << 20
"""Of all catalogs together: XP's have 20 MB. Windows 10 has more than this, and hardly a file that
only a catalog knows."""

MAX_SIGNED_PROGRAMS = 1 << 16
MAX_PACKAGES = 1 << 16
MAX_WORD_CHARACTERS = 128

MICROSOFT = "microsoft corporation"
# Under these names Microsoft signs what others have written [K: seen on their drivers].
NOT_ITS_OWN = frozenset(
    {
        "microsoft windows hardware compatibility publisher",
        "microsoft windows third party component ca",
        "microsoft windows third party application component",
        "microsoft windows early launch anti-malware publisher",
    }
)

_SIGNED = Origin("programs signed by Microsoft", "")
_COMPONENT = Origin("Windows' component store", "components that are not as they were delivered")
_OF_PLACE = {
    Place.COMPONENT: _COMPONENT,
    Place.HIVE: Origin("", "registry"),
    Place.LOG: Origin("", "logs"),
    Place.PROFILE: Origin("", "users' profiles, recycle bin"),
    Place.PROGRAM_DATA: Origin("", "ProgramData"),
    Place.GENERATED: Origin("", "Windows folder: made on this machine"),
    Place.WINDOWS: Origin("listed by Windows' catalogs", "Windows folder: of no component"),
    Place.PROGRAM_FILES: Origin("", "Program Files: of no installed product"),
    Place.ELSEWHERE: Origin("", "elsewhere"),
}
_OF_PRODUCTS = (Place.PROGRAM_DATA, Place.PROGRAM_FILES, Place.ELSEWHERE)
_MAY_BE_SIGNED = (Place.GENERATED, Place.WINDOWS, *_OF_PRODUCTS)


def find_windows_provenance(windows: Windows) -> Provenance:
    """Return for every stream whether others have it, and where it comes from in words.

    What cannot be read (manifests, catalogs, programs) is warned of, and supports no claim.
    """
    survey = windows.tree.survey
    places = find_places(survey, windows.volume, windows.folder)
    found = _Found(len(survey.inode))
    owners = _owners(windows, places)
    for stream, place in enumerate(places.kinds):
        product = owners.get(stream)
        found.explain(stream, _of_product(product) if product else _OF_PLACE[Place(place)])
    _claim_components(windows, places, found)
    _claim_signed(windows, places, found, owners)
    _expect_catalogued(windows, places, found)
    return found.provenance()


@dataclass(slots=True)
class _Found:
    """The answer as it grows: packages and origins under their rows."""

    streams: int
    package: NDArray[np.int64] = field(init=False)
    origin: NDArray[np.int64] = field(init=False)
    expected: list[Expected | None] = field(init=False)
    packages: dict[Package, int] = field(default_factory=dict)
    origins: dict[Origin, int] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.package = np.full(self.streams, NO_PACKAGE, dtype=np.int64)
        self.origin = np.full(self.streams, -1, dtype=np.int64)
        self.expected = [None] * self.streams

    def explain(self, stream: int, origin: Origin) -> None:
        self.origin[stream] = self.origins.setdefault(origin, len(self.origins))

    def claim(self, stream: int, package: Package) -> None:
        """Call a stream shared, unless a digest that is expected of it does not fit."""
        if package in self.packages or len(self.packages) < MAX_PACKAGES:
            row = self.packages.setdefault(package, len(self.packages))
            self.package[stream] = row

    def provenance(self) -> Provenance:
        return Provenance(
            self.package,
            self.expected,
            tuple(self.packages),
            self.origin,
            tuple(self.origins),
        )


def _owners(windows: Windows, places: Places) -> dict[int, Product]:
    """Return the product in whose folder a stream lies, outside of Windows and of profiles."""
    if windows.software is None:
        return {}
    folders = Folders(find_products(windows.software, windows.drives))
    survey = windows.tree.survey
    wanted = places.are(*_OF_PRODUCTS)
    owners: dict[int, Product] = {}
    for row in np.flatnonzero(wanted[survey.name_stream]).tolist():
        stream = int(survey.name_stream[row])
        product = folders.owner(int(survey.volume[stream]), survey.name[row].casefold())
        if product is not None:
            owners.setdefault(stream, product)
    return owners


def _claim_components(windows: Windows, places: Places, found: _Found) -> None:
    """Claim what lies in the component store, with the digests that its manifests list."""
    for stream, release in places.release.items():
        found.claim(stream, Package(WINDOWS, NAME, release.version, release.architecture))
    form = windows.tree.survey.form
    components = {component for component, _ in places.members}
    readable = sorted(
        (component, stream)
        for component, stream in places.manifests.items()
        if component in components and form[stream] == PLAIN
    )
    readable = _within(windows, readable, MAX_MANIFEST_BYTES)
    try:
        manifests = windows.examiner.manifests([stream for _, stream in readable])
    except InputError as error:
        windows.tree.warn(f"component manifests cannot be used: {error}")
        return
    for (component, _), manifest in zip(readable, manifests, strict=True):
        for name, digest in manifest.files:
            member = places.members.get((component, name.casefold().replace("\\", "/")))
            if member is None or form[member] != PLAIN:
                continue
            before = found.expected[member]
            # XP's run-time libraries state two SHA-1 digests; the first one is the file's.
            if before is None or (isinstance(before, bytes) and len(before) < len(digest)):
                found.expected[member] = digest


def _claim_signed(
    windows: Windows, places: Places, found: _Found, owners: dict[int, Product]
) -> None:
    """Claim programs outside of the component store that say they are signed by Microsoft."""
    survey = windows.tree.survey
    may_be = places.are(*_MAY_BE_SIGNED) & (survey.form == PLAIN)
    streams = [one for one in np.flatnonzero(may_be).tolist() if one in places.programs]
    streams = streams[:MAX_SIGNED_PROGRAMS]
    try:
        signers = windows.examiner.signers(streams)
    except InputError as error:
        windows.tree.warn(f"signatures of programs cannot be used: {error}")
        return
    for stream, (organization, common_name) in zip(streams, signers, strict=True):
        if not is_microsoft(organization, common_name):
            continue
        product = owners.get(stream)
        name, version = (product.name, product.version) if product else ("Microsoft", "")
        found.claim(stream, Package(WINDOWS, _word(name), _word(version), ""))
        found.explain(stream, _SIGNED)


def _expect_catalogued(windows: Windows, places: Places, found: _Found) -> None:
    """Expect what is left in the Windows folder to be listed by a catalog that Microsoft signed."""
    form = windows.tree.survey.form
    in_windows = places.are(Place.WINDOWS) & (form == PLAIN)
    left = np.flatnonzero(in_windows & (found.package == NO_PACKAGE)).tolist()
    if not left:
        return
    catalogs = [(path, stream) for path, stream in places.catalogs if form[stream] == PLAIN]
    catalogs = _within(windows, catalogs, MAX_CATALOG_BYTES)
    try:
        read = windows.examiner.catalogs([stream for _, stream in catalogs])
    except InputError as error:
        windows.tree.warn(f"security catalogs cannot be used: {error}")
        return
    sha1: set[bytes] = set()
    sha256: set[bytes] = set()
    for (_, stream), catalog in zip(catalogs, read, strict=True):
        if not is_microsoft(catalog.organization, catalog.common_name):
            continue
        sha1.update(_cut(catalog.sha1, SHA1_BYTES))
        sha256.update(_cut(catalog.sha256, SHA256_BYTES))
        found.claim(stream, Package(WINDOWS, NAME, "", ""))
    if not sha1 and not sha256:
        return
    listed = Catalogued(frozenset(sha1), frozenset(sha256))
    for stream in left:
        if found.package[stream] == NO_PACKAGE:
            found.expected[stream] = listed


def is_microsoft(organization: str, common_name: str) -> bool:
    """Return whether a certificate's subject is one that Microsoft signs its own files with."""
    return organization.casefold() == MICROSOFT and common_name.casefold() not in NOT_ITS_OWN


def _within(
    windows: Windows, files: list[tuple[str, int]], max_bytes: int
) -> list[tuple[str, int]]:
    """Return the first files, as many as have no more than so many bytes together."""
    if not files:
        return files
    sizes = windows.tree.survey.file_size[[stream for _, stream in files]]
    return files[: int(np.searchsorted(np.cumsum(sizes), max_bytes, side="right"))]


def _of_product(product: Product) -> Origin:
    return Origin("", _word(product.line))


def _cut(data: bytes, length: int) -> list[bytes]:
    return [data[start : start + length] for start in range(0, len(data), length)]


def _word(text: str) -> str:
    return printable(text)[:MAX_WORD_CHARACTERS]
