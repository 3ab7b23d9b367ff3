"""What is asked for on a command line."""
