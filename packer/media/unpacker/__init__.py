from packer.media.unpacker.carried import DEFAULT_KIND, KINDS, Unpacker, find_unpacker

__all__ = ["DEFAULT_KIND", "KINDS", "Unpacker", "find_unpacker"]
