"""``make check-scale``: many clients, a few daemons and one distributed store, of which some die under load."""
