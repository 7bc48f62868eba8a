//! Compares two runs: what became slower, and what faster.

use std::io::{self, Write, stdout};
use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::{Result, bail};

use crate::results::{Better, Measurement, Run};
use crate::table::format_number;

/// Flags of `argus-bench compare`.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// The earlier run, written with --json.
    before: PathBuf,
    /// The later run.
    after: PathBuf,
    /// How much worse a measurement may become, such as 10%.
    #[arg(long, default_value = "10%", value_parser = percent)]
    threshold: f64,
}

/// A measurement that both runs have.
#[derive(Debug, PartialEq)]
struct Change<'a> {
    after: &'a Measurement,
    /// The reference if ratios are compared; `None` if values are.
    reference: Option<&'a str>,
    was: f64,
    is: f64,
}

/// Prints the changes; exits with 1 if a measurement became worse by more than the threshold.
pub fn run(args: &Args) -> Result<ExitCode> {
    let (before, after) = (Run::read(&args.before)?, Run::read(&args.after)?);
    let changes = changes(&before, &after);
    if changes.is_empty() {
        bail!("{} and {} have no measurement in common", args.before.display(), args.after.display());
    }
    let slower = print(&mut stdout(), &changes, args.threshold)?;
    Ok(if slower { ExitCode::FAILURE } else { ExitCode::SUCCESS })
}

/// `10%` as 0.1.
fn percent(text: &str) -> Result<f64, String> {
    let number = text.strip_suffix('%').unwrap_or(text).parse::<f64>().map_err(|error| error.to_string())?;
    if number.is_finite() && number >= 0.0 { Ok(number / 100.0) } else { Err("must be 0 % or more".to_owned()) }
}

/// Pairs the Argus measurements of both runs. Machines are noisy, and a reference
/// was measured under the same noise, so ratios are compared if there is one.
fn changes<'a>(before: &'a Run, after: &'a Run) -> Vec<Change<'a>> {
    let mut changes = Vec::new();
    for new in after.measurements.iter().filter(|new| new.better != Better::Info && !new.peer) {
        let same = |old: &&Measurement| (&old.group, &old.name, &old.unit) == (&new.group, &new.name, &new.unit);
        let Some(old) = before.measurements.iter().find(same) else { continue };
        let ratio = new.ratios.iter().find_map(|is| Some((is, old.ratios.iter().find(|was| was.to == is.to)?)));
        changes.push(match ratio {
            Some((is, was)) => Change { after: new, reference: Some(&is.to), was: was.ratio, is: is.ratio },
            None => Change { after: new, reference: None, was: old.value, is: new.value },
        });
    }
    changes
}

impl Change<'_> {
    /// The factor by which it became worse; below 1 it became better.
    fn worse(&self) -> f64 {
        let (worse, better) =
            if self.after.better == Better::Higher { (self.was, self.is) } else { (self.is, self.was) };
        if worse == better { 1.0 } else { worse / better }
    }
}

/// Prints the changes beyond the threshold, worst first; returns whether one became worse.
fn print(out: &mut dyn Write, changes: &[Change], threshold: f64) -> io::Result<bool> {
    let mut sorted: Vec<&Change> = changes.iter().collect();
    sorted.sort_by(|a, b| b.worse().total_cmp(&a.worse()));
    let (mut slower, mut faster) = (0, 0);
    for change in sorted {
        let worse = change.worse();
        let word = if worse > 1.0 + threshold {
            slower += 1;
            format!("slower {:.2} times", worse)
        } else if 1.0 / worse > 1.0 + threshold {
            faster += 1;
            format!("faster {:.2} times", 1.0 / worse)
        } else {
            continue;
        };
        let Measurement { group, name, unit, .. } = change.after;
        let of = change.reference.map_or_else(|| unit.clone(), |reference| format!("× {reference}"));
        writeln!(out, "{word}: {group}, {name}: {} → {} {of}", format_number(change.was), format_number(change.is))?;
    }
    writeln!(
        out,
        "{slower} slower, {faster} faster, {} within {:.0} %",
        changes.len() - slower - faster,
        threshold * 100.0
    )?;
    Ok(slower > 0)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::machine::Machine;

    fn run(measurements: Vec<Measurement>) -> Run {
        Run { measurements, ..Run::on(Machine::default()) }
    }

    fn compared(before: Measurement, after: Measurement) -> (bool, String) {
        let (before, after) = (run(vec![before]), run(vec![after]));
        let mut out = Vec::new();
        let slower = print(&mut out, &changes(&before, &after), 0.1).expect("writes to memory");
        (slower, String::from_utf8(out).expect("UTF-8"))
    }

    #[test]
    fn a_ratio_is_compared_where_there_is_one() {
        // The machine became half as fast; Argus did not become slower relative to it.
        let (slower, printed) = compared(
            Measurement::higher("scan", "all rules", 2.0, "GB/s").against("wc -l", 4.0),
            Measurement::higher("scan", "all rules", 1.0, "GB/s").against("wc -l", 2.0),
        );
        assert_eq!((slower, printed.as_str()), (false, "0 slower, 0 faster, 1 within 10 %\n"));
    }

    #[test]
    fn a_lower_rate_is_slower() {
        let rate = |value| Measurement::higher("scan", "all rules", value, "GB/s");
        let (slower, printed) = compared(rate(2.0), rate(1.0));
        assert!(slower);
        assert_eq!(printed, "slower 2.00 times: scan, all rules: 2 → 1 GB/s\n1 slower, 0 faster, 0 within 10 %\n");
        assert!(!compared(rate(2.0), rate(1.9)).0);
        assert!(compared(rate(1.0), rate(2.0)).1.starts_with("faster 2.00 times"));
    }

    #[test]
    fn a_longer_time_is_slower() {
        let time = |value| Measurement::lower("fresh", "p50", value, "ms");
        assert!(compared(time(1.0), time(1.2)).0);
        assert!(!compared(time(1.2), time(1.0)).0);
        assert!(!compared(time(0.0), time(0.0)).0);
    }

    #[test]
    fn a_measurement_of_only_one_run_is_not_compared() {
        let (before, after) = (Measurement::lower("a", "b", 1.0, "s"), Measurement::lower("a", "c", 9.0, "s"));
        assert_eq!(changes(&run(vec![before]), &run(vec![after])), []);
    }

    #[test]
    fn a_threshold_is_a_percentage() {
        assert_eq!(percent("10%"), Ok(0.1));
        assert_eq!(percent("5"), Ok(0.05));
        assert!(percent("-1%").is_err() && percent("fast").is_err());
    }
}
