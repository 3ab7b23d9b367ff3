"""Snapshots that real releases wrote, and the exchanges with the daemon that a rebuilt server has to repeat.

``python -m tests.corpus record FILE`` asks a checkout's daemon everything that the tables in ``*_cases.py`` have, over
real sockets, and keeps what was sent and what came back; ``replay FILE`` asks again and shows every difference.
"""
