"""Counts the matches of a pattern in log files with Flink, in this process. Arguments: PATTERN FILE..."""
import json
import os
import sys
import time

begun = time.time()
from pyflink.table import EnvironmentSettings, TableEnvironment

pattern, files = sys.argv[1], sys.argv[2:]
flink = TableEnvironment.create(EnvironmentSettings.in_batch_mode())
flink.get_config().set("parallelism.default", str(len(os.sched_getaffinity(0))))
ready = time.time()
text = lambda value: "'" + value.replace("'", "''") + "'"
parts = []
for number, file in enumerate(files):
    flink.execute_sql(
        f"""
        CREATE TEMPORARY TABLE lines{number} (line STRING) WITH (
            'connector' = 'filesystem', 'path' = {text("file://" + os.path.abspath(file))},
            'format' = 'raw', 'raw.charset' = 'ISO-8859-1')
        """
    )
    parts.append(f"SELECT line FROM lines{number}")
rows = flink.execute_sql(
    f"""
    SELECT code, count(*) FROM ({" UNION ALL ".join(parts)})
    CROSS JOIN UNNEST(REGEXP_EXTRACT_ALL(line, {text(pattern)}, 0)) AS found (code)
    GROUP BY code
    """
)
with rows.collect() as found:
    codes = {row[0]: row[1] for row in found}
print(json.dumps({"codes": codes, "start_seconds": ready - begun}))
