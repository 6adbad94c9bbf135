"""The texts that are given to each library."""

TEXTS = [
    "The sky is blue.",
    "Dogs run over lazy dogs.",
    "How many people live in Berlin?",
    "Viktor is chased by boxers.",
    "A dog jumps over a dog.",
    "The sea is blue, too.",
]
