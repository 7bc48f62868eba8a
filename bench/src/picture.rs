//! A run as an SVG bar chart, for light and dark pages.
//!
//! One panel per group and unit, with the task as its heading. Every bar begins at
//! 0 and is labelled with its value.

use std::fmt::Write;

use crate::results::{Better, Measurement, Run};
use crate::table::format_number;

/// Approximate width of a letter of a name.
const LETTER: f64 = 7.8;
/// The longest bar; its value is printed to its right.
const LONGEST: f64 = 420.0;
const VALUE: f64 = 70.0;
const ROW: f64 = 24.0;
const HEADING: f64 = 44.0;

const STYLE: &str = "
  text { font: 13px system-ui, sans-serif; fill: #24292f; }
  .heading { font-weight: 600; }
  .quiet { fill: #656d76; font-size: 11px; }
  .bar { fill: #afb8c1; }
  .ours { fill: #0969da; }
  .name-ours { font-weight: 600; }
  @media (prefers-color-scheme: dark) {
    text { fill: #e6edf3; }
    .quiet { fill: #8d96a0; }
    .bar { fill: #6e7681; }
    .ours { fill: #4493f8; }
  }
";

struct Panel<'a> {
    heading: String,
    bars: Vec<&'a Measurement>,
}

/// The picture, as the text of an SVG file.
pub fn draw(run: &Run) -> String {
    let panels = panels(run);
    let names = panels.iter().flat_map(|panel| &panel.bars).map(|bar| bar.name.chars().count());
    // Where bars begin; names are printed to the left.
    let left = 24.0 + LETTER * names.max().unwrap_or_default() as f64;
    let width = left + LONGEST + VALUE;
    let mut body = String::new();
    let mut top = 8.0;
    for panel in &panels {
        top = draw_panel(&mut body, panel, left, top);
    }
    let machine = &run.machine;
    let caption = format!("{}, {} cores, {}, argus {}", machine.cpu, machine.cores, machine.date, machine.argus);
    text(&mut body, 8.0, top + 24.0, "quiet", "start", &caption);
    let height = top + 36.0;
    format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {width:.0} {height}\" width=\"{width:.0}\" height=\"{height}\" \
         role=\"img\">\n<title>What Argus measured</title>\n<style>{STYLE}</style>\n{body}</svg>\n"
    )
}

/// Panels with other tools are sorted, best first.
fn panels(run: &Run) -> Vec<Panel<'_>> {
    let mut panels: Vec<Panel> = Vec::new();
    for measurement in run.measurements.iter().filter(|measurement| measurement.better != Better::Info) {
        let direction = if measurement.better == Better::Higher { "higher is better" } else { "lower is better" };
        let heading = format!("{}, in {}: {direction}", task(&measurement.group), measurement.unit);
        match panels.iter_mut().find(|panel| panel.heading == heading) {
            Some(panel) => panel.bars.push(measurement),
            None => panels.push(Panel { heading, bars: vec![measurement] }),
        }
    }
    for panel in panels.iter_mut().filter(|panel| panel.bars.iter().any(|bar| bar.peer)) {
        let sign = |bar: &Measurement| if bar.better == Better::Higher { -1.0 } else { 1.0 };
        panel.bars.sort_by(|a, b| (sign(a) * a.value).total_cmp(&(sign(b) * b.value)));
    }
    panels
}

/// The task of a group of measurements, for its heading.
fn task(group: &str) -> &str {
    match group {
        "peers" => "Count the error codes of the same log files",
        group => group,
    }
}

/// Draws a panel at `top`; returns its lower end.
fn draw_panel(body: &mut String, panel: &Panel, left: f64, top: f64) -> f64 {
    let values = || panel.bars.iter().map(|bar| bar.value).filter(|value| *value > 0.0);
    let most = values().fold(0.0, f64::max);
    text(body, 8.0, top + 24.0, "heading", "start", &panel.heading);
    for (row, bar) in panel.bars.iter().enumerate() {
        let y = top + HEADING + row as f64 * ROW - 8.0;
        let share = if bar.value > 0.0 { bar.value / most } else { 0.0 };
        let (length, class) = ((share * LONGEST).max(1.0), if bar.peer { "bar" } else { "bar ours" });
        let name = if bar.peer { "name" } else { "name-ours" };
        text(body, left - 8.0, y + 14.0, name, "end", &bar.name);
        body.push_str(&format!(
            "<rect class=\"{class}\" x=\"{left:.1}\" y=\"{y}\" width=\"{length:.1}\" height=\"{}\" rx=\"2\"/>\n",
            ROW - 6.0
        ));
        text(body, left + length + 6.0, y + 14.0, name, "start", &format_number(bar.value));
    }
    top + HEADING + panel.bars.len() as f64 * ROW
}

fn text(body: &mut String, x: f64, y: f64, class: &str, anchor: &str, words: &str) {
    let mut escaped = String::new();
    for letter in words.chars() {
        match letter {
            '<' => escaped.push_str("&lt;"),
            '>' => escaped.push_str("&gt;"),
            '&' => escaped.push_str("&amp;"),
            letter => escaped.push(letter),
        }
    }
    // Writing to a string cannot fail.
    let _ =
        writeln!(body, "<text class=\"{class}\" x=\"{x:.1}\" y=\"{y:.1}\" text-anchor=\"{anchor}\">{escaped}</text>");
}

#[cfg(test)]
mod tests {
    use std::io::Write;
    use std::process::{Command, Stdio};

    use super::*;
    use crate::machine::Machine;

    #[test]
    fn a_picture_is_xml_with_a_bar_for_each_measurement() {
        let mut run = Run::on(Machine::default());
        run.add(Measurement::higher("peers", "rg | awk <sum> & \"more\"", 0.5, "GB/s").peer());
        run.add(Measurement::higher("peers", "flink", 0.001, "GB/s").peer());
        run.add(Measurement::higher("peers", "argus", 2.0, "GB/s"));
        run.add(Measurement::lower("peers", "argus", 0.0, "MiB"));
        run.add(Measurement::info("peers", "argus", 7.0, "s"));
        let count = "import sys, xml.etree.ElementTree as x\n\
                     print(sum(e.tag.endswith('rect') for e in x.parse(sys.stdin).iter()))";
        let mut python = Command::new("python3")
            .args(["-c", count])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .expect("python3 is installed");
        let drawn = draw(&run);
        python.stdin.take().expect("piped").write_all(drawn.as_bytes()).expect("writes");
        let output = python.wait_with_output().expect("ends");
        assert_eq!(String::from_utf8_lossy(&output.stdout).trim(), "4", "{drawn}");
        assert!(!drawn.contains("NaN") && !drawn.contains("inf"), "{drawn}");
    }
}
