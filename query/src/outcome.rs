//! The outcomes of users' queries, as a metric.

use metrics::counter;

/// The outcome of a query, counted when it is dropped: `cancelled` until the query has ended.
#[derive(Debug)]
pub(crate) struct Outcome(&'static str);

impl Outcome {
    /// The outcome of a query that begins now.
    pub(crate) fn begin() -> Outcome {
        counter!("argus_computed_total", "kind" => "sql").increment(1);
        Outcome("cancelled")
    }

    /// The query has ended with its last row, or with an error.
    pub(crate) fn ended<T, E>(&mut self, result: &Result<T, E>) {
        self.0 = if result.is_ok() { "ok" } else { "error" };
    }
}

impl Drop for Outcome {
    fn drop(&mut self) {
        counter!("argus_queries_total", "outcome" => self.0).increment(1);
    }
}
