-- Tables that can be queried directly, for DuckDB and Spark. They read the Delta tables of this folder as lake_files,
-- lake_error_counts and so on; see README.md.

CREATE VIEW live_versions AS
SELECT batch_id, file_id, version, CAST(sum(last_line) AS BIGINT) AS last_line
FROM lake_files GROUP BY batch_id, file_id, version HAVING sum(live) > 0;

CREATE VIEW files AS
SELECT f.batch_id, f.file_id, f.name, max(f.generation) AS generation,
       CAST(sum(f.bytes) AS BIGINT) AS bytes, CAST(sum(f.lines) AS BIGINT) AS lines,
       CAST(sum(f.long_lines) AS BIGINT) AS long_lines, CAST(sum(f.error_lines) AS BIGINT) AS error_lines,
       CAST(sum(f.occurrences) AS BIGINT) AS errors, min(f.first_ts) AS first_ts, max(f.last_ts) AS last_ts,
       max_by(f.sha256, f.epoch) AS sha256, max_by(f.rules, f.epoch) AS rules,
       max(f.uploaded_at) AS uploaded_at, max(f.failure) AS failure, max(f.epoch) AS epoch
FROM live_versions v JOIN lake_files f ON f.version = v.version
GROUP BY f.batch_id, f.file_id, f.name;

CREATE VIEW error_counts AS
SELECT c.batch_id, c.file, c.code, c.severity, min_by(c.rule, c.example_line) AS rule,
       CAST(sum(c.count) AS BIGINT) AS count,
       CAST(sum(CASE WHEN c.active THEN 0 ELSE c.count END) AS BIGINT) AS inactive,
       min(c.first_seen) AS first_seen, max(c.last_seen) AS last_seen,
       min(c.example_line) AS example_line, min_by(c.example_text, c.example_line) AS example_text
FROM live_versions v JOIN lake_error_counts c ON c.version = v.version
GROUP BY c.batch_id, c.file, c.code, c.severity;

CREATE VIEW errors AS
SELECT e.batch_id, e.file, e.line, e.ts, e.ts_plausible, e.level, e.component, e.code, e.rule, e.severity, e.active, e.text
FROM live_versions v JOIN lake_errors e ON e.version = v.version
WHERE e.line <= v.last_line;

CREATE VIEW batches AS
SELECT b.batch_id, b.vehicle_id, b.vin, b.platform, b.firmware, b.labels, b.status, b.created_at,
       coalesce(min(f.first_ts), b.created_at) AS recorded_first, coalesce(max(f.last_ts), b.created_at) AS recorded_last
FROM (SELECT batch_id, vehicle_id, vin, platform, firmware, labels, created_at,
             CASE WHEN sum(completed) > 0 THEN 'completed' ELSE 'pending' END AS status
      FROM lake_batches GROUP BY batch_id, vehicle_id, vin, platform, firmware, labels, created_at
      HAVING sum(live) > 0) b
LEFT JOIN files f ON f.batch_id = b.batch_id
GROUP BY b.batch_id, b.vehicle_id, b.vin, b.platform, b.firmware, b.labels, b.status, b.created_at;

CREATE VIEW fleet_codes AS
SELECT firmware, platform, vehicle_id, vin, code, count, inactive, batches, first_seen, last_seen
FROM lake_fleet WHERE subject = 'code'
GROUP BY firmware, platform, vehicle_id, vin, code, count, inactive, batches, first_seen, last_seen
HAVING sum(live) > 0;

CREATE VIEW vehicles AS
SELECT vin, vehicle_id, platform, firmware, batches, first_seen, last_seen
FROM (SELECT vin, vehicle_id, platform, firmware, count(*) OVER (PARTITION BY vin) AS batches,
             min(recorded_first) OVER (PARTITION BY vin) AS first_seen,
             max(recorded_last) OVER (PARTITION BY vin) AS last_seen,
             row_number() OVER (PARTITION BY vin ORDER BY recorded_first DESC, batch_id DESC) AS newest
      FROM batches) of_vins
WHERE newest = 1;
