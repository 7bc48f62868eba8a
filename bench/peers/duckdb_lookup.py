"""Looks up batches in the lake's Parquet files with DuckDB, one after the other: the same rows as for a report.

Arguments: the lake's folder, and a file with batch ids, one per line.
Prints the milliseconds of each look-up, one per line.
"""

import glob
import sys
import time

import duckdb

lake, ids = sys.argv[1:]
db = duckdb.connect()
db.execute("SET enable_object_cache = true")
for table in ("files", "error_counts"):
    paths = glob.glob(f"{lake}/{table}/*.parquet")
    db.execute(f"CREATE VIEW {table} AS SELECT * FROM read_parquet({paths!r})")
counts = """
    SELECT c.file, c.code, sum(c.count), epoch_us(min(c.first_seen)), epoch_us(max(c.last_seen)),
            arg_min(c.example_text, c.example_line)
    FROM error_counts c
    WHERE c.batch_id = ? AND c.version IN
        (SELECT version FROM files WHERE batch_id = ? GROUP BY version HAVING sum(live) > 0)
    GROUP BY c.file, c.code
"""
files = """
    SELECT name, max(generation), sum(bytes), sum(lines), sum(error_lines), sum(occurrences)
    FROM files WHERE batch_id = ? GROUP BY name, version HAVING sum(live) > 0
"""
for batch in open(ids).read().split():
    begun = time.perf_counter()
    found = db.execute(files, [batch]).fetchall(), db.execute(counts, [batch, batch]).fetchall()
    taken = time.perf_counter() - begun
    assert len(found[0]) == 1 and len(found[1]) == 5, found
    print(taken * 1e3)
