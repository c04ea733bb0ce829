from packer.run.nbd.limits import Limits
from packer.run.nbd.server import NbdServer, server_tls

__all__ = ["Limits", "NbdServer", "server_tls"]
