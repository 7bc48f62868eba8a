//! The metrics of the service.

use metrics::{Unit, counter, describe_counter, describe_gauge, describe_histogram};

use super::process;
use crate::storage::counted;

/// Describes the metrics, and exports counters as 0 from the start.
pub(super) fn describe() {
    process::describe();
    counted::describe();
    describe_counter!("argus_inbox_objects_total", "Objects of the inbox, by outcome: counted, rejected.");
    describe_counter!(
        "argus_explanations_total",
        "Explanations of findings, by outcome: completed, case, failed, not_asked."
    );
    describe_counter!("argus_audit_lost_total", "Records that the audit log could not take in time.");
    describe_counter!(
        "argus_audit_refused_unrecorded_total",
        "Refused requests of a flood, of which the audit log has only some."
    );
    describe_counter!("argus_lines_total", "Lines counted.");
    describe_counter!("argus_bytes_total", "Bytes of text counted, after decompression.");
    describe_counter!("argus_occurrences_total", "Occurrences of error codes counted.");
    describe_counter!("argus_computed_total", "Answers computed instead of served from a cache, by kind.");
    describe_counter!("argus_cache_requests_total", "Requests to the caches, by tier and outcome.");
    describe_gauge!("argus_epoch", "The last epoch that was accepted.");
    describe_gauge!("argus_committed_epoch", "The last epoch that is committed to the lake.");
    describe_gauge!("argus_closed_epoch", "The last epoch that readers see.");
    describe_histogram!(
        "argus_round_duration_seconds",
        Unit::Seconds,
        "How long a round takes from its first request to its answers."
    );
    describe_gauge!(
        "argus_frontier_lag_seconds",
        Unit::Seconds,
        "How long the oldest epoch that is accepted and not closed has waited."
    );
    describe_gauge!("argus_queue_length", "Requests that wait, by queue.");
    describe_counter!("argus_queries_total", "SQL queries that ran, by outcome.");
    describe_counter!("argus_maintenance_runs_total", "Runs of the maintenance, by outcome.");
    describe_counter!("argus_maintenance_files_total", "Files that the maintenance replaced, deleted or skipped.");
    describe_histogram!(
        "argus_maintenance_duration_seconds",
        Unit::Seconds,
        "How long a run of the maintenance takes."
    );
    describe_histogram!("argus_commit_duration_seconds", Unit::Seconds, "How long a commit of the lake takes.");
    describe_counter!("argus_commits_total", "Commits of the lake, by outcome.");
    describe_counter!("argus_uploads_total", "Uploads and appends, by outcome.");
    describe_gauge!("argus_in_flight_bytes", "Bytes of text in the dataflow whose occurrences are not staged yet.");
    for name in ["argus_lines_total", "argus_bytes_total", "argus_occurrences_total"] {
        counter!(name).increment(0);
    }
    for outcome in ["committed", "failed"] {
        counter!("argus_commits_total", "outcome" => outcome).increment(0);
    }
    for outcome in ["ok", "error", "cancelled"] {
        counter!("argus_queries_total", "outcome" => outcome).increment(0);
    }
    for outcome in ["ok", "failed"] {
        counter!("argus_maintenance_runs_total", "outcome" => outcome).increment(0);
    }
    for action in ["replaced", "deleted", "skipped"] {
        counter!("argus_maintenance_files_total", "action" => action).increment(0);
    }
    for outcome in ["accepted", "failed"] {
        counter!("argus_uploads_total", "outcome" => outcome).increment(0);
    }
    for kind in ["report", "fleet", "sql", "chart"] {
        counter!("argus_computed_total", "kind" => kind).increment(0);
    }
}
