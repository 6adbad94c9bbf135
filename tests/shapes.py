"""The shapes that tests and benchmarks share."""

# Rows: nothing, one, odd, around the tiles of 4, 6 and 12 rows, and two tiles and more.
ROWS = (0, 1, 2, 3, 5, 6, 7, 11, 12, 13, 24, 25, 37)
# (N, K): around the panels of 16 and 32 columns, primes, MiniLM's own.
LINEAR = (
    (1, 1),
    (7, 13),
    (16, 16),
    (17, 31),
    (32, 8),
    (33, 384),
    (64, 127),
    (384, 384),
    (48, 1536),
)
WIDTHS = (1, 2, 15, 16, 17, 31, 48, 384, 387, 1024)
# (queries, keys, head_dim)
ATTENTION = (
    (1, 1, 16), (2, 3, 32), (5, 16, 32), (12, 17, 64), (13, 33, 24), (20, 20, 32), (31, 47, 26),
    (64, 64, 128), (130, 129, 32), (512, 512, 32),
)  # fmt: skip
