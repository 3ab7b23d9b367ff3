"""The bytes of a ``.hxz`` file: header, index, codec, writer.  Nothing here opens a file."""
