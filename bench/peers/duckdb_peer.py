"""Counts the matches of a pattern in log files with DuckDB. Arguments: PATTERN FILE..."""
import json
import sys
import time

begun = time.time()
import duckdb

pattern, files = sys.argv[1], sys.argv[2:]
database = duckdb.connect()
# The progress bar would be part of the output.
database.execute("SET enable_progress_bar = false")
ready = time.time()
# A line is a row with one column. Read as Latin-1, so that lines with invalid UTF-8 are counted, too.
rows = database.execute(
    """
    SELECT code, count(*) FROM (
        SELECT unnest(regexp_extract_all(line, ?)) AS code
        FROM read_csv(?, columns = {'line': 'VARCHAR'}, header = false, auto_detect = false, delim = '\x01',
                      quote = '', escape = '', encoding = 'latin-1', strict_mode = false))
    GROUP BY code
    """,
    [pattern, files],
).fetchall()
print(json.dumps({"codes": dict(rows), "start_seconds": ready - begun}))
