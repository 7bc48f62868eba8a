"""Counts the matches of a pattern in log files with Pathway. Arguments: PATTERN FILE..."""
import json
import os
import re
import sys
import time

os.environ.setdefault("PATHWAY_THREADS", str(len(os.sched_getaffinity(0))))
begun = time.time()
import pathway

pattern, files = re.compile(sys.argv[1].encode()), sys.argv[2:]


class Lines(pathway.io.python.ConnectorSubject):
    """The lines of a file as bytes. Pathway's own reader drops lines with invalid UTF-8, which must be counted."""

    def __init__(self, file):
        super().__init__()
        self.file = file

    def run(self):
        with open(self.file, "rb") as file:
            for line in file:
                self.next_bytes(line)


@pathway.udf(deterministic=True)
def find(line: bytes) -> list[str]:
    return [code.decode() for code in pattern.findall(line)]


tables = [pathway.io.python.read(Lines(file), format="binary") for file in files]
lines = tables[0].concat_reindex(*tables[1:]) if len(tables) > 1 else tables[0]
codes = lines.select(code=find(lines.data)).flatten(pathway.this.code)
counts = codes.groupby(codes.code).reduce(codes.code, times=pathway.reducers.count())
counted = {}


def change(key, row, time, is_addition):
    if is_addition:
        counted[row["code"]] = row["times"]


pathway.io.subscribe(counts, on_change=change)
ready = time.time()
pathway.run(monitoring_level=pathway.MonitoringLevel.NONE)
print(json.dumps({"codes": counted, "start_seconds": ready - begun}))
