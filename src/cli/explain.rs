//! `argus analyze --explain`: how each pattern is searched for, which patterns are slow, and why.

use std::io::{self, Write};

use argus_dataflow::RuleSet;
use argus_dataflow::scan::plan::{Plan, Planned, Reach};

/// Writes a line for each pattern, the slow ones first.
pub fn write(out: &mut dyn Write, rules: RuleSet) -> io::Result<()> {
    let plan = Plan::new(rules);
    let mut patterns: Vec<&Planned> = plan.patterns().iter().collect();
    // The sort is stable: patterns of one reach stay in order of priority.
    patterns.sort_by_key(|planned| match planned.reach {
        Reach::EveryLine => 0,
        Reach::Lines => 1,
        Reach::Starts => 2,
    });
    let width = plan.rules().iter().map(|rule| rule.name.chars().count()).max().unwrap_or(0).max("rule".len());
    writeln!(out, "{:<width$}  pattern  {:<34}  per MB of logs", "rule", "tried")?;
    for planned in &patterns {
        let rule = &plan.rules()[planned.rule_index].name;
        let tried = match planned.reach {
            Reach::Starts => "where a match can begin",
            Reach::Lines => "on lines that can have a match",
            Reach::EveryLine => "on every line: slow",
        };
        let often = match planned.frequency {
            Ok(frequency) => format!("about {:.0} times", (frequency * 1e6).ceil()),
            Err(why) => why.to_string(),
        };
        writeln!(out, "{rule:<width$}  {:>7}  {tried:<34}  {often}", planned.pattern_index + 1)?;
    }
    let slow = patterns.iter().filter(|planned| planned.reach == Reach::EveryLine).count();
    match slow {
        0 => writeln!(out, "no pattern is slow"),
        1 => writeln!(out, "1 pattern is slow: it is tried on every line; add a literal that every match contains"),
        slow => writeln!(
            out,
            "{slow} patterns are slow: they are tried on every line; add literals that every match contains"
        ),
    }
}
