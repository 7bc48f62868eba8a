"""Counts the matches of a pattern in log files with Polars. Arguments: PATTERN FILE..."""
import json
import sys
import time

begun = time.time()
import polars

pattern, files = sys.argv[1], sys.argv[2:]
ready = time.time()
# Polars uses Rust's regular expressions, in which a Unicode word boundary is slow.
pattern = pattern.replace(r"\b", r"(?-u:\b)")
lines = polars.scan_csv(
    files,
    has_header=False,
    new_columns=["line"],
    schema={"line": polars.String},
    separator="\x01",
    quote_char=None,
    encoding="utf8-lossy",
)
codes = (
    lines.select(polars.col("line").str.extract_all(pattern).alias("code"))
    .explode("code")
    .drop_nulls()
    .group_by("code")
    .len()
    .collect(engine="streaming")
)
print(json.dumps({"codes": dict(codes.iter_rows()), "start_seconds": ready - begun}))
