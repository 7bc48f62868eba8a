//! A run as aligned text: a table per group, a line per name, a column per unit.

use std::io::{self, Write};

use crate::results::{Measurement, Ratio, Run};

/// Prints the machine and the tables.
pub fn print(out: &mut dyn Write, run: &Run) -> io::Result<()> {
    let machine = &run.machine;
    let gib = machine.memory_mib as f64 / 1024.0;
    writeln!(
        out,
        "{}, {} cores, {gib:.0} GiB, Linux {}, {}, argus {}",
        machine.cpu, machine.cores, machine.kernel, machine.date, machine.argus
    )?;
    for group in run.groups() {
        writeln!(out)?;
        for line in lines(group, &run.of(group).collect::<Vec<_>>()) {
            writeln!(out, "{}", line.trim_end())?;
        }
    }
    for (number, remark) in run.remarks.iter().enumerate() {
        let gap = if number == 0 { "\n" } else { "" };
        writeln!(out, "{gap}{remark}")?;
    }
    run.failures.iter().try_for_each(|failure| writeln!(out, "\nFAILED: {failure}"))
}

fn lines(group: &str, measurements: &[&Measurement]) -> Vec<String> {
    let (mut names, mut units): (Vec<&str>, Vec<&str>) = (Vec::new(), Vec::new());
    for measurement in measurements {
        if !names.contains(&measurement.name.as_str()) {
            names.push(&measurement.name);
        }
        if !units.contains(&measurement.unit.as_str()) {
            units.push(&measurement.unit);
        }
    }
    let mut rows = vec![std::iter::once(group.to_owned()).chain(units.iter().map(|unit| (*unit).to_owned())).collect()];
    for name in names {
        let same: Vec<&&Measurement> = measurements.iter().filter(|measurement| measurement.name == name).collect();
        let mut row = vec![name.to_owned()];
        for unit in &units {
            let found = same.iter().find(|measurement| measurement.unit == *unit);
            row.push(found.map_or_else(String::new, |measurement| format_number(measurement.value)));
        }
        // With several bounds, each needs its unit.
        let several = same.iter().filter(|measurement| is_bound(measurement)).count() > 1;
        let remarks: Vec<String> = same.iter().flat_map(|measurement| remarks(measurement, several)).collect();
        row.push(remarks.join(", "));
        rows.push(row);
    }
    align(&rows, units.len())
}

/// Aligns the first column left and the `values` columns after it right.
fn align(rows: &[Vec<String>], values: usize) -> Vec<String> {
    let width = |column: usize| rows.iter().filter_map(|row| row.get(column)).map(|cell| cell.chars().count()).max();
    let widths: Vec<usize> = (0..=values).map(|column| width(column).unwrap_or_default()).collect();
    let pad = |row: &Vec<String>| {
        let mut line = String::new();
        for (column, cell) in row.iter().enumerate() {
            match widths.get(column) {
                Some(width) if column == 0 => line.push_str(&format!("{cell:<width$}")),
                Some(width) => line.push_str(&format!("  {cell:>width$}")),
                None => line.push_str(&format!("  {cell}")),
            }
        }
        line
    };
    rows.iter().map(pad).collect()
}

fn is_bound(measurement: &Measurement) -> bool {
    measurement.target.is_some() || !measurement.ratios.is_empty()
}

/// Ratios, bounds and notes as text, with the unit where it is ambiguous.
fn remarks(measurement: &Measurement, with_unit: bool) -> Vec<String> {
    let mut texts = Vec::new();
    if let Some(target) = measurement.target {
        texts.push(bound(measurement, measurement.value, target));
    }
    for Ratio { to, ratio, target } in &measurement.ratios {
        let bound = target.map_or_else(String::new, |target| format!(" ({})", bound(measurement, *ratio, target)));
        texts.push(format!("{} × {to}{bound}", format_number(*ratio)));
    }
    if let Some(first) = texts.first_mut().filter(|_| with_unit || measurement.target.is_some()) {
        *first = format!("{} {first}", measurement.unit);
    }
    texts.extend(measurement.note.clone());
    texts
}

fn bound(measurement: &Measurement, value: f64, bound: f64) -> String {
    let mark = if measurement.better.meets(value, bound) { "✓" } else { "✗ MISSED" };
    format!("{} {} {mark}", measurement.better.sign(), format_number(bound))
}

/// A number with three significant digits, two if it is below 1, and no decimals if it is whole.
pub fn format_number(value: f64) -> String {
    let size = value.abs();
    let digits = match size {
        _ if size >= 99.95 || value.fract() == 0.0 => 0,
        _ if size >= 9.995 => 1,
        _ if size >= 0.0995 => 2,
        _ => 1 - size.log10().floor() as i32,
    };
    format!("{value:.*}", digits.clamp(0, 9) as usize)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::machine::Machine;

    #[test]
    fn names_are_lines_and_units_are_columns() {
        let mut run = Run::on(Machine::default());
        run.add(Measurement::info("peers", "wc -l", 0.15, "s"));
        run.add(Measurement::higher("peers", "wc -l", 6.9, "GB/s"));
        run.add(Measurement::higher("peers", "argus", 2.07, "GB/s").against("wc -l", 6.9).target_ratio(0.35));
        run.add(Measurement::lower("peers", "argus", 61.0, "MiB").target(100.0).note("18 rules"));
        let mut out = Vec::new();
        print(&mut out, &run).expect("writes to memory");
        let text = String::from_utf8(out).expect("UTF-8");
        let table: Vec<&str> = text.lines().skip(2).collect();
        assert_eq!(
            table,
            [
                "peers     s  GB/s  MiB",
                "wc -l  0.15  6.90",
                "argus        2.07   61  GB/s 0.30 × wc -l (≥ 0.35 ✗ MISSED), MiB ≤ 100 ✓, 18 rules",
            ]
        );
    }

    #[test]
    fn a_number_has_two_or_three_significant_digits() {
        let numbers = [1234.5, 61.04, 6.9, 0.151, 0.0661, 0.000283, 2.0, 0.0].map(format_number);
        assert_eq!(numbers, ["1234", "61.0", "6.90", "0.15", "0.066", "0.00028", "2", "0"]);
    }
}
