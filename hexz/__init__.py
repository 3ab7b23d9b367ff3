"""hexz-serve: open compressed ``.hxz`` snapshots and serve them, read-only and unchanged.

The rooms of this house, from the ground up; a module imports from its own floor and from those below
(`tests/test_house.py` has the floors)::

    metrics/    what is counted, and the forms in which it is shown; knows nobody else
    format/     the bytes of a file: header, index, codec, writer; no I/O
    protocol/   the bytes of HTTP, NBD, S3, Nydus: bytes in, values out; no sockets, no files
    storage/    where a file's bytes come from: a disk here, checked against a seal beside it; a server, web or S3, in
                remote/, its S3 keys in remote/keys/; what of servers is kept on a disk, in diskcache/
    cache/      decompressed blocks in bounded memory, and the threads that fill it
    snapshot/   one open snapshot and its parents: the lock-free reader
    catalog/    names to open snapshots, and the leases of those who read them
    rights/     who may read and write on which listener, and the files with secrets
    images/     what the images API reads and writes: files, folders, overlays, NBD servers
    control/    mounts, blobs and figures of the control API
    servers/    sockets and threads; one handler a protocol over the catalog
    options/    what was asked for: every option of the daemon, checked, as one typed value
    tools/      the commands of ``hexz``, a module each
    daemon/     being a daemon: detaching, pid file, logs, signals, systemd
    assembly/   from options to the end: catalog, sites, listeners, and serving

Beside them stand a few single modules, of which `hexz/errors.py` has every kind of trouble that has no room of its own,
and `hexz/cli.py` is the daemon's command.

How to add a protocol:

1. What its bytes mean, as a folder of `hexz/protocol/`, tested without sockets.
2. A room in `hexz/servers/`: a handler, and a listener on `hexz/servers/base.py`, as in `hexz/servers/nbd/server.py`.
3. Its name and port in ``DEFAULT_PORTS`` of `hexz/options/parser.py`; its rights in ``PROTOCOLS`` and ``LOCKS`` of
   `hexz/rights/exposure.py`.
4. A function beside ``nbd_site`` in `hexz/assembly/sites.py`; its operations in `hexz/metrics/labels.py`.
5. Its rows in the tables of `README.md` and `systemd/man/hexz-serve-security.7`; tests with its real clients.

How to add a layout of the file format:

1. What tells it from the others, in ``header_candidates`` of `hexz/format/header.py`.
2. Its entries and pages, checked before anything is sized by them, in `hexz/format/index.py`.
3. Its name in ``_layout`` of `hexz/snapshot/opening.py`; a new codec in `hexz/format/codec.py`.
4. Files of its writer and what is in them to `tests/corpus/vectors.json`: they are read over every protocol.
5. A row in `README.md`; `hexz/format/writer.py` goes on writing what the oldest supported reader opens.

How to add a place where snapshots are:

1. A class with the interface in `hexz/storage/interface.py`: right bytes or an error, and what tells a version.
2. Its addresses in `hexz/storage/remote/places.py`: where they lead, what is secret in them, what lies below what.
3. What is asked and how answers are judged in ``request`` and ``_judge`` of `hexz/storage/remote/server.py` if it is
   HTTP (bytes in `hexz/protocol/`, secrets in `hexz/storage/remote/keys/`); else ``open_storage`` opens it.
4. Its options in `hexz/options/remote.py`, as a value from there on in `hexz/storage/remote/settings.py`.
5. A real one in `tests/remote/stores.py`, behind all that is in `tests/remote/faults.py`; its words in
   `systemd/man/hexz-serve-remote.7`.

How to add an option:

1. Its line, with a bound for every number, in `hexz/options/parser.py` (`hexz/options/remote.py` for servers); what
   contradicts it, in ``parse_arguments``.
2. Its field in `hexz/options/values.py`; of ``hexz``, both in `hexz/tools/command_line.py`.
3. Its meaning from there on in `hexz/assembly/`, handed down as a value: nobody below knows options.
4. Its item in `systemd/man/hexz-serve.8` (`systemd/man/hexz.1`), and a line in `CHANGELOG.md`; a file of secrets also
   in ``CREDENTIALS`` of `hexz/rights/secrets.py`, and in the units.
5. A test of what it does, and one of what is said when it is given wrongly.

How to add an error:

1. A class in `hexz/errors.py` or its room's, if no other means the same: its facts, and a line that says what to do.
2. Its exit status, HTTP status and NBD errno there too: handlers read those and never guess.
3. Over S3 its status becomes a code, in `hexz/servers/s3/answers.py`; a new code goes to `hexz/protocol/s3/errors.py`.
4. Where it is advice about the system's unit, that in `hexz/daemon/advice.py`.
5. A test that makes it happen for real, and reads the line; a new status in `systemd/man/hexz-serve.8`.

What is read or written by several threads without a lock, and why that is right, also where Python runs threads side by
side (one operation of a dict, list or deque, and one load or store of an attribute, are whole there as well)::

    cache/blocks.py        Block.data: set before the block can be reached; readers load it once; None means evicted.
                           Block.fresh: a lost mark lets a block go early or late.  Block.ahead: twice is no harm
    snapshot/pages.py      LoadedPage.slots, PageTable.loaded: items are replaced whole; used: as fresh above
    snapshot/stream.py     _recent: any page that was seen is a right one.  _sources: forgotten and found again
    snapshot/stored.py     _uids, and storage/sealed.py's: next() of itertools.count gives each number once
    storage/remote/        server.py: Measured is of many answers, and none counts alone; elsewhere: items are replaced
                           whole.  speculation.py: its two sums need not be exact
    catalog/catalog.py     _published, _names_of: written under _lock, looked up without; take() decides
    metrics/counters.py    Cell: one thread adds, others read; figures of one moment may differ by one request
    servers/connection.py  leaving, silence, draining: stores are seen in the order in which they are made
    servers/nbd/misses.py  quick: a hint.  waiting: the connection's thread alone
    servers/crowd.py       _members: changed under _lock, looked up without.  _streaks: appended, copied whole
    everything replaced on SIGHUP (tokens, keys, certificates, seals): one load takes the old one or the new one

Everything else that threads share is under the lock that is named beside it.
"""

__version__ = "0.2.0"
PROJECT = "hexz-serve"
"""Tells this package from another project's of the same name."""
