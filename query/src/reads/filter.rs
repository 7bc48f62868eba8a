//! Which batches and lines of the fleet a read covers.

use std::collections::BTreeMap;

use crate::tables::views::{literal, time_literal};

/// Selects batches and lines of the fleet. The default selects all.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct FleetFilter {
    /// Only batches of this hardware platform.
    pub platform: Option<String>,
    /// Only batches with this firmware.
    pub firmware: Option<String>,
    /// Only batches with these labels.
    pub labels: BTreeMap<String, String>,
    /// Only lines of this component.
    pub component: Option<String>,
    /// Only codes of this severity.
    pub severity: Option<String>,
    /// Only lines with a plausible timestamp at or after this, microseconds since 1970.
    pub since: Option<i64>,
    /// Only lines with a plausible timestamp before this.
    pub until: Option<i64>,
}

impl FleetFilter {
    /// Whether it selects everything.
    pub fn is_all(&self) -> bool {
        *self == FleetFilter::default()
    }

    /// Whether it selects lines by their time.
    pub fn has_times(&self) -> bool {
        self.since.is_some() || self.until.is_some()
    }

    /// Conditions on the columns of `batches`, each with ` AND ` before it; `b` is the alias of the table.
    pub(crate) fn of_batches(&self) -> String {
        let mut conditions = String::new();
        for (column, value) in [("platform", &self.platform), ("firmware", &self.firmware)] {
            if let Some(value) = value {
                conditions += &format!(" AND b.{column} = {}", literal(value));
            }
        }
        for (name, value) in &self.labels {
            conditions += &format!(" AND label_value(b.labels, {}) = {}", literal(name), literal(value));
        }
        conditions
    }

    /// Conditions on the columns of `errors`, but for the time.
    pub(crate) fn of_lines(&self) -> String {
        let mut conditions = String::new();
        for (column, value) in [("component", &self.component), ("severity", &self.severity)] {
            if let Some(value) = value {
                conditions += &format!(" AND {column} = {}", literal(value));
            }
        }
        conditions
    }

    /// The condition that a line has a plausible time in the range.
    pub(crate) fn of_times(&self, column: &str) -> String {
        let mut condition = "ts_plausible".to_owned();
        for (comparison, time) in [(">=", self.since), ("<", self.until)] {
            if let Some(time) = time {
                condition += &format!(" AND {column} {comparison} {}", time_literal(time));
            }
        }
        condition
    }
}
