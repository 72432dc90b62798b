"""Images of parquet files in the order of an epoch: ``python -m bench.parquet_order`` prints images read per second.

6,400 images of some 100 kB, random bytes as of a photograph, in row groups of 100, 1,000 and 6,400; more than the row
groups that are kept in memory. Only reading is measured, not decoding: the first rows of a shuffled epoch, and as many
of the second.
"""

import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import pyarrow as pa
from pyarrow import parquet

from fastclf.data.sources import parquet as source

ROWS, SIZE = 6400, 100_000


def measured(order, read, seconds):
    """Rows per second, for so long or to the end."""
    start = time.perf_counter()
    count = 0
    for row in order.tolist():
        read(row)
        count += 1
        if time.perf_counter() - start > seconds:
            break
    return count / (time.perf_counter() - start)


def main(seconds=30.0):
    """Print the table."""
    rng = np.random.default_rng(0)
    images = [rng.bytes(SIZE) for _ in range(ROWS)]
    print("| rows of a row group | in order | first shuffled epoch | second |\n| --- | --- | --- | --- |")
    for rows in (100, 1000, ROWS):
        with tempfile.TemporaryDirectory() as place:
            file = Path(place) / "a.parquet"
            parquet.write_table(pa.table({"image": images}), file, row_group_size=rows)
            found = source.ParquetSource(Path(place), [file], "image")
            orders = [np.arange(ROWS), rng.permutation(ROWS), rng.permutation(ROWS)]
            rates = [measured(order, found.read, seconds) for order in orders]
            source._groups_read.forget()
            print(f"| {rows:,} | {' | '.join(f'{rate:,.1f}' for rate in rates)} |", flush=True)


if __name__ == "__main__":
    main(*map(float, sys.argv[1:]))
