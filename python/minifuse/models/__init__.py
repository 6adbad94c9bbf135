"""Models as data: what a folder says, and an encoder with its weights."""
