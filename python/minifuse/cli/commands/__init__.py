"""The commands: each a file, with add() for the command line."""
