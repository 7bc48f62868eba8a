//! What blocks add up to: for each code and component, how often, when, how bad.

use std::collections::HashMap;
use std::sync::Arc;

use foldhash::fast::RandomState;
use serde::{Deserialize, Serialize};

use crate::names::Names;
use crate::rules::Severity;

/// What blocks of one version add to it.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Fold {
    /// Lines with at least one sighting.
    pub error_lines: u64,
    /// What was seen of each code, by component; lines that name none are under the empty name.
    pub components: HashMap<String, HashMap<String, CodeFold>>,
}

/// What was seen of one code in one component.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct CodeFold {
    /// Sightings.
    pub count: u64,
    /// The rule of the first sighting.
    pub rule: String,
    /// The worst severity of any sighting.
    pub severity: Severity,
    /// The earliest time of a sighting, microseconds since 1970.
    pub first_seen: Option<i64>,
    /// The latest.
    pub last_seen: Option<i64>,
    /// The first line with the code.
    pub example_line: u64,
    /// That line's text.
    pub example_text: String,
}

impl Fold {
    /// Adds other blocks of the same version; the order does not matter.
    pub fn merge(&mut self, other: Fold) {
        self.error_lines += other.error_lines;
        for (component, codes) in other.components {
            let mine = self.components.entry(component).or_default();
            for (name, more) in codes {
                match mine.get_mut(&name) {
                    Some(code) => code.merge(more),
                    None => {
                        mine.insert(name, more);
                    }
                }
            }
        }
    }

    /// Every code of every component, with what was seen of it.
    pub fn codes(self) -> impl Iterator<Item = (Option<String>, String, CodeFold)> {
        self.components.into_iter().flat_map(|(component, codes)| {
            let component = (!component.is_empty()).then_some(component);
            codes.into_iter().map(move |(code, seen)| (component.clone(), code, seen))
        })
    }
}

impl CodeFold {
    fn merge(&mut self, more: CodeFold) {
        self.count += more.count;
        self.severity = self.severity.max(more.severity);
        self.first_seen = earliest(self.first_seen, more.first_seen);
        self.last_seen = self.last_seen.max(more.last_seen);
        if more.example_line < self.example_line {
            self.rule = more.rule;
            self.example_line = more.example_line;
            self.example_text = more.example_text;
        }
    }
}

fn earliest(a: Option<i64>, b: Option<i64>) -> Option<i64> {
    match (a, b) {
        (Some(a), Some(b)) => Some(a.min(b)),
        (a, b) => a.or(b),
    }
}

/// A fold that one scanner still adds to, by the numbers of its [`Names`].
#[derive(Debug, Default)]
pub struct OpenFold {
    /// Lines with at least one sighting.
    pub error_lines: u64,
    entries: Vec<(Option<Arc<str>>, Arc<str>, CodeFold)>,
    places: HashMap<(Option<u32>, u32), usize, RandomState>,
    /// Which numbers `places` speaks of.
    numbering: u64,
}

/// A code on a line, as a fold takes it.
pub struct Seen<'a> {
    /// The component's number, where the line names one.
    pub component: Option<u32>,
    /// The code's number.
    pub code: u32,
    /// The rule that found it.
    pub rule: &'a str,
    /// The line's own severity, else the rule's.
    pub severity: Severity,
    /// The line's time.
    pub observed_at: Option<i64>,
    /// The line's number.
    pub line: u64,
}

impl OpenFold {
    /// Goes on with other numbers than before.
    pub fn renumber(&mut self, numbering: u64) {
        if self.numbering != numbering {
            self.numbering = numbering;
            self.places.clear();
        }
    }

    /// Adds a sighting; `text` is asked for the line's text where it becomes an example.
    pub fn add(&mut self, seen: &Seen<'_>, names: &Names, text: impl FnOnce() -> String) {
        let Seen { component, code, rule, severity, observed_at, line } = *seen;
        if let Some(&place) = self.places.get(&(component, code)) {
            let (_, _, fold) = &mut self.entries[place];
            fold.count += 1;
            fold.severity = fold.severity.max(severity);
            fold.first_seen = earliest(fold.first_seen, observed_at);
            fold.last_seen = fold.last_seen.max(observed_at);
            if line < fold.example_line {
                fold.example_line = line;
                rule.clone_into(&mut fold.rule);
                fold.example_text = text();
            }
            return;
        }
        let fold = CodeFold {
            count: 1,
            rule: rule.to_owned(),
            severity,
            first_seen: observed_at,
            last_seen: observed_at,
            example_line: line,
            example_text: text(),
        };
        self.places.insert((component, code), self.entries.len());
        let component = component.map(|component| Arc::clone(names.text(component)));
        self.entries.push((component, Arc::clone(names.text(code)), fold));
    }

    /// What it has come to.
    pub fn close(self) -> Fold {
        let mut fold = Fold { error_lines: self.error_lines, ..Fold::default() };
        for (component, code, seen) in self.entries {
            let component = component.as_deref().unwrap_or_default();
            let codes = match fold.components.get_mut(component) {
                Some(codes) => codes,
                None => fold.components.entry(component.to_owned()).or_default(),
            };
            match codes.get_mut(&*code) {
                Some(before) => before.merge(seen),
                None => {
                    codes.insert(code.to_string(), seen);
                }
            }
        }
        fold
    }
}
