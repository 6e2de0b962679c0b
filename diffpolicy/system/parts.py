"""Parts of a batch that several processes share, and random numbers that do not depend on how many there are."""

Part = tuple[int, int]
"""(index, count): the batch is part `index` of `count` equal parts of a larger batch.

Random numbers are drawn for the whole larger batch, so that a result does not depend on the number of parts.
"""

WHOLE: Part = (0, 1)


def shared_draws(part: Part, rows: int) -> tuple[int, slice]:
    """The number of rows that all parts draw together, and the slice of them that belongs to this part."""
    index, count = part
    return rows * count, slice(index * rows, (index + 1) * rows)
