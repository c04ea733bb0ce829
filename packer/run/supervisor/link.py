"""What a VM's supervisor and those who attend to the VM say to each other: JSON, one line each.

    {"do": "attach", "start": {"arguments": []}}    {"is": "state", "state": "running"}
    {"do": "input", "data": "bHMK"}                 {"is": "console", "data": "bHMNCg=="}
    {"do": "stop", "grace_seconds": 60}             {"is": "ended", "reason": "…"}

A client says first whether it attaches, asks or stops. Nothing is answered in a fixed order: what
happens to the VM is told to everybody who is connected, its console to those who attached.
"""

from __future__ import annotations

from typing import Annotated, Literal

import msgspec

from packer.run.server.control_protocol import Failure

MAX_LINE_BYTES = 1 << 20
MAX_INPUT_BYTES = 1 << 16
SOCKET = "supervisor"

State = Literal["starting", "running", "paused", "stopping"]


class Start(msgspec.Struct, frozen=True):
    """How a VM is to be started. arguments: of QEMU. folder: what relative paths in them mean."""

    arguments: tuple[str, ...] = ()
    folder: str = "/"
    window: bool = False


class Attach(msgspec.Struct, frozen=True, tag_field="do", tag="attach"):
    """Tell me what it says on its console. start: start it, if it does not run.

    replay: begin with what it said of late.
    """

    start: Start | None = None
    replay: bool = True


class Ask(msgspec.Struct, frozen=True, tag_field="do", tag="ask"):
    """Tell me how it is, once."""


class Detach(msgspec.Struct, frozen=True, tag_field="do", tag="detach"):
    """Its own base is there: let it be read from now on. config: of the pack it was made of."""

    config: str


class Input(msgspec.Struct, frozen=True, tag_field="do", tag="input"):
    """Type this on its console."""

    data: Annotated[bytes, msgspec.Meta(max_length=MAX_INPUT_BYTES)]


class Stop(msgspec.Struct, frozen=True, tag_field="do", tag="stop"):
    """Press its power button, and pull the plug after a while."""

    grace_seconds: Annotated[float, msgspec.Meta(ge=0)]


Request = Attach | Ask | Detach | Input | Stop


class Console(msgspec.Struct, frozen=True, tag_field="is", tag="console"):
    """What it said on its serial console."""

    data: bytes


class Say(msgspec.Struct, frozen=True, tag_field="is", tag="say"):
    """A line for the person at the terminal."""

    text: str


class Now(msgspec.Struct, frozen=True, tag_field="is", tag="state"):
    """How it is now. why: in words, where it waits for something.

    spare_bytes: memory that the guest could give back, where it tells. accelerator: of its QEMU.
    """

    state: State
    why: str = ""
    pid: int = 0
    accelerator: str = ""
    spare_bytes: int = -1


class Ended(msgspec.Struct, frozen=True, tag_field="is", tag="ended"):
    """It runs no more. how: "guest" shut down, it was "stopped", QEMU was "lost", it did not run
    ("not running"). text: more about it.
    """

    how: Literal["guest", "stopped", "lost", "not running"]
    text: str = ""


class Failed(msgspec.Struct, frozen=True, tag_field="is", tag="failed"):
    """It could not be started."""

    failure: Failure


class Detached(msgspec.Struct, frozen=True, tag_field="is", tag="detached"):
    """It reads its own base now; failure: why it does not."""

    failure: Failure | None = None


Told = Console | Say | Now | Ended | Failed | Detached

_requests = msgspec.json.Decoder(Request)
_told = msgspec.json.Decoder(Told)


def encode(message: Request | Told) -> bytes:
    """Return the line of a message."""
    return msgspec.json.encode(message) + b"\n"


def decode_request(line: bytes) -> Request:
    """Return what a client asks. Raises ValueError."""
    request: Request = _requests.decode(line)
    return request


def decode_told(line: bytes) -> Told:
    """Return what a supervisor says. Raises ValueError."""
    told: Told = _told.decode(line)
    return told
