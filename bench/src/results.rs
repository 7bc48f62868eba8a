//! The results of a run: a plain data model that is printed, drawn, written and compared.
//!
//! ```text
//! run.add(Measurement::higher("scan", "one worker", 2.6, "GB/s").against("wc -l", 6.9).target_ratio(0.35));
//! ```

use std::path::Path;

use anyhow::{Context, Result};
use serde::{Deserialize, Serialize};

use crate::machine::Machine;

/// All measurements of one run of this program, on one machine.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Run {
    /// Where and when.
    pub machine: Machine,
    /// In the order in which they were taken.
    pub measurements: Vec<Measurement>,
    /// Conditions of the measurements.
    #[serde(default)]
    pub remarks: Vec<String>,
    /// Failures: a run with any has failed.
    #[serde(default)]
    pub failures: Vec<String>,
}

/// Which direction is better.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Better {
    /// More is better: a rate.
    Higher,
    /// Less is better: a time, memory.
    Lower,
    /// For information only; neither drawn nor compared.
    #[serde(rename = "told")]
    Info,
}

/// One measured value. Measurements with the same group and name share one line of the table.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Measurement {
    /// The benchmark, such as `peers`.
    pub group: String,
    /// What was measured, such as `wc -l`.
    pub name: String,
    /// The value in `unit`.
    pub value: f64,
    /// The unit, such as `GB/s`.
    pub unit: String,
    /// Which direction is better.
    pub better: Better,
    /// Whether another tool was measured, for comparison.
    #[serde(default, skip_serializing_if = "is_false")]
    pub peer: bool,
    /// The bound for `value`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub target: Option<f64>,
    /// Comparisons with references.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub ratios: Vec<Ratio>,
    /// A note for the reader.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub note: Option<String>,
}

/// The ratio of a value to a reference from the same run.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Ratio {
    /// The name of the reference.
    pub to: String,
    /// The value divided by the value of the reference.
    pub ratio: f64,
    /// The bound for `ratio`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub target: Option<f64>,
}

impl Run {
    /// An empty run on this machine, now.
    pub fn begin() -> Run {
        Run::on(Machine::look())
    }

    /// An empty run.
    pub fn on(machine: Machine) -> Run {
        Run { machine, measurements: Vec::new(), remarks: Vec::new(), failures: Vec::new() }
    }

    /// Adds a measurement.
    pub fn add(&mut self, measurement: Measurement) {
        self.measurements.push(measurement);
    }

    /// Adds a remark about the measurements.
    pub fn remark(&mut self, remark: impl Into<String>) {
        self.remarks.push(remark.into());
    }

    /// Records a failure; the run continues.
    pub fn fail(&mut self, failure: impl Into<String>) {
        self.failures.push(failure.into());
    }

    /// The groups in the order of their first measurement.
    pub fn groups(&self) -> Vec<&str> {
        let mut groups: Vec<&str> = Vec::new();
        for measurement in &self.measurements {
            if !groups.contains(&measurement.group.as_str()) {
                groups.push(&measurement.group);
            }
        }
        groups
    }

    /// The measurements of a group.
    pub fn of<'a>(&'a self, group: &'a str) -> impl Iterator<Item = &'a Measurement> {
        self.measurements.iter().filter(move |measurement| measurement.group == group)
    }

    /// Reads what [`Run::write`] wrote.
    pub fn read(path: &Path) -> Result<Run> {
        let text = std::fs::read_to_string(path).with_context(|| format!("cannot read {}", path.display()))?;
        serde_json::from_str(&text)
            .with_context(|| format!("{} is not the result of a run; use a file written with --json", path.display()))
    }

    /// Writes the run as JSON.
    pub fn write(&self, path: &Path) -> Result<()> {
        let text = serde_json::to_string_pretty(self)?;
        std::fs::write(path, text + "\n").with_context(|| format!("cannot write {}", path.display()))
    }
}

impl Measurement {
    /// A measurement for which higher is better.
    pub fn higher(group: &str, name: impl Into<String>, value: f64, unit: &str) -> Measurement {
        Measurement::new(group, name.into(), value, unit, Better::Higher)
    }

    /// A measurement for which lower is better.
    pub fn lower(group: &str, name: impl Into<String>, value: f64, unit: &str) -> Measurement {
        Measurement::new(group, name.into(), value, unit, Better::Lower)
    }

    /// A measurement for information only.
    pub fn info(group: &str, name: impl Into<String>, value: f64, unit: &str) -> Measurement {
        Measurement::new(group, name.into(), value, unit, Better::Info)
    }

    fn new(group: &str, name: String, value: f64, unit: &str, better: Better) -> Measurement {
        let (group, unit) = (group.to_owned(), unit.to_owned());
        Measurement { group, name, value, unit, better, peer: false, target: None, ratios: Vec::new(), note: None }
    }

    /// Marks a measurement of another tool. Pictures highlight Argus, and only Argus is compared.
    pub fn peer(self) -> Measurement {
        Measurement { peer: true, ..self }
    }

    /// Adds the ratio to a reference value, in the same unit and from the same run.
    pub fn against(mut self, reference: impl Into<String>, value: f64) -> Measurement {
        self.ratios.push(Ratio { to: reference.into(), ratio: self.value / value, target: None });
        self
    }

    /// Sets the bound for the last ratio: a minimum if higher is better, else a maximum.
    pub fn target_ratio(mut self, bound: f64) -> Measurement {
        if let Some(last) = self.ratios.last_mut() {
            last.target = Some(bound);
        }
        self
    }

    /// Sets the bound for the value: a minimum if higher is better, else a maximum.
    pub fn target(self, bound: f64) -> Measurement {
        Measurement { target: Some(bound), ..self }
    }

    /// Adds a note for the reader.
    pub fn note(self, note: impl Into<String>) -> Measurement {
        Measurement { note: Some(note.into()), ..self }
    }
}

fn is_false(value: &bool) -> bool {
    !value
}

impl Better {
    /// Whether `value` meets `bound`.
    pub fn meets(self, value: f64, bound: f64) -> bool {
        match self {
            Better::Higher => value >= bound,
            Better::Lower => value <= bound,
            Better::Info => true,
        }
    }

    /// The sign before a bound.
    pub fn sign(self) -> &'static str {
        match self {
            Better::Higher => "≥",
            Better::Lower => "≤",
            Better::Info => "",
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_written_run_reads_back_equal() {
        let mut run = Run::begin();
        run.add(Measurement::higher("scan", "one worker", 2.5, "GB/s").against("wc -l", 5.0).target_ratio(0.35));
        run.add(Measurement::lower("scan", "memory", 31.0, "MiB").target(100.0).note("of two files"));
        run.add(Measurement::info("scan", "lines", 12.0, "lines").peer());
        run.remark("warm");
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("run.json");
        run.write(&path).expect("writes");
        assert_eq!(Run::read(&path).expect("reads"), run);
    }

    #[test]
    fn a_ratio_is_the_value_divided_by_the_reference() {
        let measured = Measurement::higher("scan", "one worker", 2.0, "GB/s").against("wc -l", 4.0).target_ratio(0.35);
        let Ratio { ratio, target, .. } = measured.ratios[0];
        assert_eq!((ratio, target), (0.5, Some(0.35)));
        assert!(measured.better.meets(0.5, 0.35) && !measured.better.meets(0.3, 0.35));
        assert!(Better::Lower.meets(4.9, 5.0) && !Better::Lower.meets(5.1, 5.0));
    }
}
