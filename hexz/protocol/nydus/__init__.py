"""The management API of the Nydus image service as values: requests, answers, refusals."""
