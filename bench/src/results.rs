//! What a run measured: a plain model that is printed, drawn, written and compared.
//!
//! ```text
//! run.add(Measurement::higher("scan", "one worker", 2.6, "GB/s").against("wc -l", 6.9).target_ratio(0.35));
//! ```

use std::path::Path;

use anyhow::{Context, Result};
use serde::{Deserialize, Serialize};

use crate::machine::Machine;

/// All that one run of this program measured, on one machine.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Run {
    /// Where and when.
    pub machine: Machine,
    /// In the order in which they were taken.
    pub measurements: Vec<Measurement>,
    /// What a reader must know beside them.
    #[serde(default)]
    pub remarks: Vec<String>,
    /// What went wrong: a run with any has failed.
    #[serde(default)]
    pub failures: Vec<String>,
}

/// Which way is good.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Better {
    /// More is better: a rate.
    Higher,
    /// Less is better: a time, memory.
    Lower,
    /// Told beside the others; neither drawn nor compared.
    Told,
}

/// One figure. Those of one group and name stand on one line of the table.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Measurement {
    /// What kind of question it answers, such as `peers`.
    pub group: String,
    /// What was measured, such as `wc -l`.
    pub name: String,
    /// How much, in `unit`.
    pub value: f64,
    /// What `value` counts, such as `GB/s`.
    pub unit: String,
    /// Which way is good.
    pub better: Better,
    /// Whether it is a figure of something else, for comparison.
    #[serde(default, skip_serializing_if = "is_false")]
    pub peer: bool,
    /// The bound that `value` is to keep.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub target: Option<f64>,
    /// What it is measured against.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub ratios: Vec<Ratio>,
    /// What a reader must know of it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub note: Option<String>,
}

/// How a value stands to a reference that the same run measured.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Ratio {
    /// The name of the reference.
    pub to: String,
    /// The value, divided by that of the reference.
    pub ratio: f64,
    /// The bound that `ratio` is to keep.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub target: Option<f64>,
}

impl Run {
    /// A run that measured nothing yet, on this machine and now.
    pub fn begin() -> Run {
        Run::on(Machine::look())
    }

    /// A run that measured nothing yet.
    pub fn on(machine: Machine) -> Run {
        Run { machine, measurements: Vec::new(), remarks: Vec::new(), failures: Vec::new() }
    }

    /// Takes in a measurement.
    pub fn add(&mut self, measurement: Measurement) {
        self.measurements.push(measurement);
    }

    /// Says what a reader must know beside the figures.
    pub fn remark(&mut self, remark: impl Into<String>) {
        self.remarks.push(remark.into());
    }

    /// Says what went wrong; the rest of the run goes on.
    pub fn fail(&mut self, failure: impl Into<String>) {
        self.failures.push(failure.into());
    }

    /// The groups, in the order in which they came.
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
        serde_json::from_str(&text).with_context(|| format!("{} does not hold a run", path.display()))
    }

    /// Writes the run as JSON.
    pub fn write(&self, path: &Path) -> Result<()> {
        let text = serde_json::to_string_pretty(self)?;
        std::fs::write(path, text + "\n").with_context(|| format!("cannot write {}", path.display()))
    }
}

impl Measurement {
    /// A figure of which more is better.
    pub fn higher(group: &str, name: impl Into<String>, value: f64, unit: &str) -> Measurement {
        Measurement::new(group, name.into(), value, unit, Better::Higher)
    }

    /// A figure of which less is better.
    pub fn lower(group: &str, name: impl Into<String>, value: f64, unit: &str) -> Measurement {
        Measurement::new(group, name.into(), value, unit, Better::Lower)
    }

    /// A figure that is only told.
    pub fn told(group: &str, name: impl Into<String>, value: f64, unit: &str) -> Measurement {
        Measurement::new(group, name.into(), value, unit, Better::Told)
    }

    fn new(group: &str, name: String, value: f64, unit: &str, better: Better) -> Measurement {
        let (group, unit) = (group.to_owned(), unit.to_owned());
        Measurement { group, name, value, unit, better, peer: false, target: None, ratios: Vec::new(), note: None }
    }

    /// Says that the figure is one of something else: pictures highlight ours, and only ours are compared.
    pub fn peer(self) -> Measurement {
        Measurement { peer: true, ..self }
    }

    /// Compares with the value of a reference, in the same unit and from the same run.
    pub fn against(mut self, reference: impl Into<String>, value: f64) -> Measurement {
        self.ratios.push(Ratio { to: reference.into(), ratio: self.value / value, target: None });
        self
    }

    /// Bounds the last ratio: from below where more is better, else from above.
    pub fn target_ratio(mut self, bound: f64) -> Measurement {
        if let Some(last) = self.ratios.last_mut() {
            last.target = Some(bound);
        }
        self
    }

    /// Bounds the value: from below where more is better, else from above.
    pub fn target(self, bound: f64) -> Measurement {
        Measurement { target: Some(bound), ..self }
    }

    /// Says what a reader must know of it.
    pub fn note(self, note: impl Into<String>) -> Measurement {
        Measurement { note: Some(note.into()), ..self }
    }
}

fn is_false(value: &bool) -> bool {
    !value
}

impl Better {
    /// Whether `value` keeps `bound`.
    pub fn keeps(self, value: f64, bound: f64) -> bool {
        match self {
            Better::Higher => value >= bound,
            Better::Lower => value <= bound,
            Better::Told => true,
        }
    }

    /// How a bound is written.
    pub fn sign(self) -> &'static str {
        match self {
            Better::Higher => "≥",
            Better::Lower => "≤",
            Better::Told => "",
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_run_is_read_as_it_was_written() {
        let mut run = Run::begin();
        run.add(Measurement::higher("scan", "one worker", 2.5, "GB/s").against("wc -l", 5.0).target_ratio(0.35));
        run.add(Measurement::lower("scan", "memory", 31.0, "MiB").target(100.0).note("of two files"));
        run.add(Measurement::told("scan", "lines", 12.0, "lines").peer());
        run.remark("warm");
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("run.json");
        run.write(&path).expect("writes");
        assert_eq!(Run::read(&path).expect("reads"), run);
    }

    #[test]
    fn a_ratio_is_the_value_in_references() {
        let measured = Measurement::higher("scan", "one worker", 2.0, "GB/s").against("wc -l", 4.0).target_ratio(0.35);
        let Ratio { ratio, target, .. } = measured.ratios[0];
        assert_eq!((ratio, target), (0.5, Some(0.35)));
        assert!(measured.better.keeps(0.5, 0.35) && !measured.better.keeps(0.3, 0.35));
        assert!(Better::Lower.keeps(4.9, 5.0) && !Better::Lower.keeps(5.1, 5.0));
    }
}
