//! A code found in a line, as numbers.

/// A code found in a line.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct FoundCode {
    /// The code's number.
    pub code: u32,
    /// The index of the rule that found it.
    pub rule_index: usize,
}
