//! The metrics of the service.

use metrics::{counter, describe_counter, describe_gauge};

/// Describes the metrics, and exports counters as 0 from the start.
pub(super) fn describe() {
    describe_counter!("argus_lines_total", "Lines counted.");
    describe_counter!("argus_bytes_total", "Bytes of text counted, after decompression.");
    describe_counter!("argus_occurrences_total", "Occurrences of error codes counted.");
    describe_counter!("argus_computed_total", "Answers computed instead of served from a cache, by kind.");
    describe_counter!("argus_cache_requests_total", "Requests to the caches, by tier and outcome.");
    describe_gauge!("argus_epoch", "The last epoch that was accepted.");
    describe_gauge!("argus_committed_epoch", "The last epoch that is committed to the lake.");
    describe_gauge!("argus_in_flight_bytes", "Bytes of text in the dataflow whose occurrences are not staged yet.");
    for name in ["argus_lines_total", "argus_bytes_total", "argus_occurrences_total"] {
        counter!(name).increment(0);
    }
    for kind in ["report", "fleet", "sql", "chart"] {
        counter!("argus_computed_total", "kind" => kind).increment(0);
    }
}
