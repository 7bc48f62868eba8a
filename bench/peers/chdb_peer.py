"""Counts the matches of a pattern in log files with ClickHouse. Arguments: PATTERN FILE..."""
import json
import os
import sys
import time

begun = time.time()
import chdb

pattern, files = sys.argv[1], sys.argv[2:]
ready = time.time()
folder = os.path.commonpath([os.path.dirname(os.path.abspath(file)) for file in files])
names = ",".join(os.path.relpath(os.path.abspath(file), folder) for file in files)
text = lambda value: "'" + value.replace("\\", "\\\\").replace("'", "\\'") + "'"
paths = folder + "/{" + names + "}" if len(files) > 1 else os.path.abspath(files[0])
rows = chdb.query(
    f"""
    SELECT code, toUInt32(count()) AS times
    FROM (SELECT arrayJoin(extractAll(line, {text(pattern)})) AS code FROM file({text(paths)}, 'LineAsString'))
    GROUP BY code
    """,
    "JSONCompact",
)
codes = dict(json.loads(str(rows))["data"])
print(json.dumps({"codes": codes, "start_seconds": ready - begun}))
