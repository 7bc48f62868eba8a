"""Counts the matches of a pattern in log files with bytewax. Arguments: PATTERN FILE..."""
import json
import re
import sys
import time

begun = time.time()
import bytewax.operators as op
from bytewax.dataflow import Dataflow
from bytewax.inputs import FixedPartitionedSource, StatefulSourcePartition
from bytewax.testing import TestingSink, run_main

pattern, files = re.compile(sys.argv[1].encode()), sys.argv[2:]


class Lines(StatefulSourcePartition):
    """The lines of a file as bytes, in groups."""

    def __init__(self, file):
        self.file = open(file, "rb")

    def next_batch(self):
        lines = self.file.readlines(1 << 20)
        if not lines:
            raise StopIteration
        return lines

    def snapshot(self):
        return self.file.tell()


class Files(FixedPartitionedSource):
    """A partition for each file."""

    def list_parts(self):
        return files

    def build_part(self, step, file, state):
        return Lines(file)


counted = []
flow = Dataflow("codes")
lines = op.input("lines", flow, Files())
codes = op.flat_map("find", lines, pattern.findall)
op.output("out", op.count_final("count", codes, lambda code: code.decode()), TestingSink(counted))
ready = time.time()
run_main(flow)
print(json.dumps({"codes": dict(counted), "start_seconds": ready - begun}))
