"""Programs that run by themselves, beside nothing of the tests: other packages have names like theirs."""
