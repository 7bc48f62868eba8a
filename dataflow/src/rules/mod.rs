//! Which texts are error codes: the rule files and their compiled form.
//!
//! Order is priority. A rule file is accepted as a whole or rejected with the
//! rule and the reason.

pub mod form;
pub mod reference;

use std::collections::HashSet;
use std::sync::Arc;

use regex_automata::meta::Regex;
use regex_automata::util::primitives::PatternID;
use regex_automata::util::syntax;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use crate::rules::form::Form;

/// The built-in rules, as the text of a rule file.
pub const DEFAULT_RULES: &str = include_str!("../../rules/default.toml");

/// The memory limit of a compiled pattern (2 MiB); a larger one is rejected.
const PATTERN_BYTES_MAX: usize = 2 << 20;

/// The severity of a code, in ascending order.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
#[expect(missing_docs, reason = "the names are the meaning")]
pub enum Severity {
    Info,
    Warning,
    Error,
    Critical,
}

impl Severity {
    /// The name in rule files, tables and responses.
    pub fn as_str(self) -> &'static str {
        match self {
            Severity::Info => "info",
            Severity::Warning => "warning",
            Severity::Error => "error",
            Severity::Critical => "critical",
        }
    }

    /// The severity of this name.
    pub fn of(word: &str) -> Option<Severity> {
        [Severity::Info, Severity::Warning, Severity::Error, Severity::Critical]
            .into_iter()
            .find(|one| one.as_str() == word)
    }
}

/// Why a rule file is invalid.
#[derive(Debug, thiserror::Error)]
#[expect(missing_docs, reason = "the messages say what each variant means")]
pub enum RuleError {
    #[error("invalid rule file: {0}")]
    Syntax(Box<toml::de::Error>),
    #[error("no [[rule]] in the rule file; add at least one")]
    NoRule,
    #[error("two rules are named {rule:?}; rename one of them")]
    Duplicate { rule: String },
    #[error("rule {rule:?}: no patterns; add at least one")]
    NoPattern { rule: String },
    #[error(
        "rule {rule:?}: unknown form {form:?}; use asis, upper, dtc, hex8, nrc, spn, sig, cls, nserr, esprst, errno, \
         exit, http, err, fixed or a template with groups, such as \"ACME-{{code}}\""
    )]
    UnknownForm { rule: String, form: String },
    #[error("rule {rule:?}: pattern {pattern:?} has no group named {group:?}; add (?P<{group}>...)")]
    NoGroup { rule: String, pattern: String, group: String },
    #[error("rule {rule:?}: pattern {pattern:?} has no `code`, which the form fixed requires; add it")]
    NoFixedCode { rule: String, pattern: String },
    #[error("rule {rule:?}: invalid pattern {pattern:?}: {reason}")]
    BadPattern { rule: String, pattern: String, reason: String },
}

/// Compiled rules, in order of priority.
#[derive(Debug, Clone)]
pub struct RuleSet {
    rules: Arc<[Rule]>,
    fingerprint: Arc<str>,
}

/// One rule: its patterns in order, tried on the lines that match `require`.
#[derive(Debug)]
pub struct Rule {
    /// The name that reports show.
    pub name: Arc<str>,
    /// A description of its codes; empty if the rule file has none.
    pub about: String,
    /// The minimum severity of its codes; a line's level may raise it.
    pub severity: Severity,
    /// How codes are formatted.
    pub form: Form,
    /// The rule is tried only on lines that match this.
    pub require: Option<Regex>,
    /// Whether a match of `require` depends on more than its own bytes and the two adjacent ones.
    pub require_looks_far: bool,
    /// Codes that match this are not counted.
    pub deny: Option<Regex>,
    /// The patterns, in order.
    pub patterns: Vec<Pattern>,
}

/// One pattern of a rule.
#[derive(Debug)]
pub struct Pattern {
    /// The pattern as written in the rule file.
    pub text: String,
    /// The compiled pattern, which matches the bytes of a line.
    pub regex: Regex,
    /// The code of every match, if it is fixed.
    pub fixed: Option<String>,
    /// The index of the group `code`.
    pub code_group: usize,
    /// The index of the group `sym`; later matches must not overlap its span either.
    pub sym_group: Option<usize>,
    /// Whether a match depends on more than its own bytes and the two adjacent ones.
    pub looks_far: bool,
    /// Whether a match may have any length, so that a search may run to the end of the line.
    pub runs_far: bool,
}

impl Rule {
    /// The code of a match of `pattern`, from the text of its groups (by index);
    /// `None` if there is none.
    pub fn code<'l>(&self, pattern: &Pattern, group: impl Fn(usize) -> Option<&'l [u8]>) -> Option<String> {
        match &pattern.fixed {
            Some(fixed) => group(pattern.code_group).map(|_| fixed.clone()),
            None => self.form.code(|name| group(pattern.group(name)?)),
        }
    }

    /// Whether `deny` excludes this code from the counts.
    pub fn denies(&self, code: &str) -> bool {
        self.deny.as_ref().is_some_and(|deny| deny.is_match(code))
    }
}

impl Pattern {
    fn group(&self, name: &str) -> Option<usize> {
        self.regex.group_info().to_index(PatternID::ZERO, name)
    }
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RuleFile {
    #[serde(default)]
    rule: Vec<RuleSpec>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RuleSpec {
    name: String,
    #[serde(default)]
    about: String,
    #[serde(default = "RuleSpec::severity_default")]
    severity: Severity,
    #[serde(default = "RuleSpec::form_default")]
    form: String,
    require: Option<String>,
    deny: Option<String>,
    patterns: Vec<PatternSpec>,
}

impl RuleSpec {
    fn severity_default() -> Severity {
        Severity::Error
    }

    fn form_default() -> String {
        "asis".to_owned()
    }
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct PatternSpec {
    pattern: String,
    code: Option<String>,
}

impl RuleSet {
    /// The built-in rules.
    pub fn built_in() -> Result<RuleSet, RuleError> {
        RuleSet::parse(&[DEFAULT_RULES])
    }

    /// Compiles the rules in the texts of these files; earlier files have priority.
    pub fn parse(files: &[&str]) -> Result<RuleSet, RuleError> {
        let mut rules = Vec::new();
        let mut names = HashSet::new();
        for file in files {
            let file: RuleFile = toml::from_str(file).map_err(|error| RuleError::Syntax(Box::new(error)))?;
            for spec in file.rule {
                if !names.insert(spec.name.clone()) {
                    return Err(RuleError::Duplicate { rule: spec.name });
                }
                rules.push(Rule::compile(spec)?);
            }
        }
        if rules.is_empty() {
            return Err(RuleError::NoRule);
        }
        let mut digest = Sha256::new();
        for file in files {
            digest.update((file.len() as u64).to_le_bytes());
            digest.update(file);
        }
        let fingerprint = hex::encode(&digest.finalize()[..8]);
        Ok(RuleSet { rules: rules.into(), fingerprint: fingerprint.into() })
    }

    /// Identifies these rules: the first 16 hexadecimal digits of a SHA-256 over the files' texts.
    pub fn fingerprint(&self) -> &Arc<str> {
        &self.fingerprint
    }

    /// The rules in order of priority.
    pub fn rules(&self) -> &[Rule] {
        &self.rules
    }
}

impl Rule {
    fn compile(spec: RuleSpec) -> Result<Rule, RuleError> {
        let rule = spec.name;
        if spec.patterns.is_empty() {
            return Err(RuleError::NoPattern { rule });
        }
        let Some(form) = Form::parse(&spec.form) else {
            return Err(RuleError::UnknownForm { rule, form: spec.form });
        };
        let require_looks_far = spec.require.as_deref().is_some_and(|require| reach(require).0);
        let optional = |text: Option<String>| text.map(|text| compile(&rule, &text)).transpose();
        let (require, deny) = (optional(spec.require)?, optional(spec.deny)?);
        let mut patterns = Vec::with_capacity(spec.patterns.len());
        for PatternSpec { pattern, code } in spec.patterns {
            let regex = compile(&rule, &pattern)?;
            let group = |name: &str| regex.group_info().to_index(PatternID::ZERO, name);
            let needed = if code.is_none() { form.groups() } else { Vec::new() };
            let missing = needed.into_iter().find(|name| group(name).is_none());
            let (Some(code_group), None) = (group("code"), missing) else {
                let group = if group("code").is_none() { "code" } else { missing.unwrap_or_default() };
                return Err(RuleError::NoGroup { rule, group: group.to_owned(), pattern });
            };
            if form == Form::Fixed && code.is_none() {
                return Err(RuleError::NoFixedCode { rule, pattern });
            }
            let sym_group = group("sym");
            let (looks_far, runs_far) = reach(&pattern);
            patterns.push(Pattern { text: pattern, regex, fixed: code, code_group, sym_group, looks_far, runs_far });
        }
        Ok(Rule {
            name: rule.into(),
            about: spec.about,
            severity: spec.severity,
            form,
            require,
            require_looks_far,
            deny,
            patterns,
        })
    }
}

fn compile(rule: &str, pattern: &str) -> Result<Regex, RuleError> {
    Regex::builder()
        .syntax(syntax::Config::new().unicode(false).utf8(false))
        .configure(Regex::config().utf8_empty(false).nfa_size_limit(Some(PATTERN_BYTES_MAX)))
        .build(pattern)
        .map_err(|error| {
            let reason = match (error.size_limit(), error.syntax_error()) {
                (Some(limit), _) => format!("its compiled form takes more than {limit} bytes; simplify it"),
                // The engine's message shows the pattern on several lines; the last line has the reason.
                (None, Some(syntax)) => {
                    let text = syntax.to_string();
                    text.lines().last().unwrap_or(&text).trim().trim_start_matches("error: ").to_owned()
                }
                (None, None) => error.to_string(),
            };
            RuleError::BadPattern { rule: rule.to_owned(), pattern: pattern.to_owned(), reason }
        })
}

/// Whether a match of a valid pattern depends on more than its own bytes and the
/// two adjacent ones, as only a Unicode word boundary does; and whether a match
/// may have any length.
fn reach(pattern: &str) -> (bool, bool) {
    /// A pattern with longer matches than this (bytes) counts as one of any length.
    const BOUNDED_BYTES_MAX: usize = 512;
    let hir = regex_syntax::ParserBuilder::new().unicode(false).utf8(false).build().parse(pattern);
    hir.map_or((true, true), |hir| {
        let properties = hir.properties();
        let bounded = properties.maximum_len().is_some_and(|length| length <= BOUNDED_BYTES_MAX);
        (properties.look_set().contains_word_unicode(), !bounded)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_built_in_rules_are_valid() {
        let rules = RuleSet::built_in().expect("the built-in rules are valid");
        assert_eq!(rules.rules().len(), 19);
        assert_eq!(rules.rules().iter().map(|rule| rule.patterns.len()).sum::<usize>(), 63);
    }

    #[test]
    fn an_invalid_rule_file_is_rejected_with_the_rule_and_the_reason() {
        let rule = |body: &str| format!("[[rule]]\nname = \"acme\"\n{body}");
        let table = [
            ("".to_owned(), "no [[rule]] in the rule file; add at least one"),
            (rule("patterns = []"), "rule \"acme\": no patterns; add at least one"),
            (
                rule("form = \"odd\"\npatterns = [{ pattern = '(?P<code>x)' }]"),
                "rule \"acme\": unknown form \"odd\"; use asis, upper, dtc, hex8, nrc, spn, sig, cls, nserr, esprst, errno, \
                 exit, http, err, fixed or a template with groups, such as \"ACME-{code}\"",
            ),
            (
                rule("patterns = [{ pattern = 'x' }]"),
                "rule \"acme\": pattern \"x\" has no group named \"code\"; add (?P<code>...)",
            ),
            (
                rule("form = \"A{unit}\"\npatterns = [{ pattern = '(?P<code>x)' }]"),
                "rule \"acme\": pattern \"(?P<code>x)\" has no group named \"unit\"; add (?P<unit>...)",
            ),
            (
                rule("form = \"fixed\"\npatterns = [{ pattern = '(?P<code>x)' }]"),
                "rule \"acme\": pattern \"(?P<code>x)\" has no `code`, which the form fixed requires; add it",
            ),
            (
                rule("patterns = [{ pattern = '(?P<code>x' }]"),
                "rule \"acme\": invalid pattern \"(?P<code>x\": unclosed group",
            ),
            (
                rule("patterns = [{ pattern = '(?P<code>(?:[a-z]{900}){900})' }]"),
                "rule \"acme\": invalid pattern \"(?P<code>(?:[a-z]{900}){900})\": its compiled form takes more than 2097152 bytes; simplify it",
            ),
            (
                rule("patterns = [{ pattern = '(?P<code>x)(?=y)' }]"),
                "rule \"acme\": invalid pattern \"(?P<code>x)(?=y)\": look-around, including look-ahead and look-behind, is not supported",
            ),
            (
                [rule("patterns = [{ pattern = '(?P<code>x)' }]"), rule("patterns = [{ pattern = '(?P<code>y)' }]")]
                    .join("\n"),
                "two rules are named \"acme\"; rename one of them",
            ),
        ];
        for (file, expected) in table {
            let error = RuleSet::parse(&[&file]).expect_err(expected);
            assert_eq!(error.to_string(), expected);
        }
        assert!(matches!(RuleSet::parse(&[&rule("paterns = []")]), Err(RuleError::Syntax(_))));
    }
}
