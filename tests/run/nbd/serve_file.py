"""`python -m tests.run.nbd.serve_file FILE SOCKET`: our server in a process of its own."""

from __future__ import annotations

import asyncio
import signal
import sys
from pathlib import Path

from packer.run.nbd import NbdServer
from tests.run.nbd.exports import FileExport


async def serve(file: Path, path: Path) -> None:
    ended = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, ended.set)
    with FileExport(file) as export:
        server = NbdServer({"": export})
        await server.start_unix(path)
        await ended.wait()
        await server.close()


if __name__ == "__main__":
    asyncio.run(serve(Path(sys.argv[1]), Path(sys.argv[2])))
