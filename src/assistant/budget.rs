//! Tokens of a day, and what tokens cost.

use std::sync::{Mutex, MutexGuard, PoisonError};

use chrono::Utc;
use serde::{Deserialize, Serialize};

use super::model::Usage;
use crate::metadata::{Document, DocumentKind, MetadataError};

/// Tokens that are paid for together.
const TOKENS_PER_PRICE: f64 = 1_000_000.0;

/// What a million tokens cost, in any currency.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Prices {
    /// Tokens that the model reads.
    pub prompt: f64,
    /// Tokens that it writes.
    pub completion: f64,
}

impl Prices {
    /// What a call costs.
    pub fn of(self, usage: Usage) -> f64 {
        (self.prompt * usage.prompt_tokens as f64 + self.completion * usage.completion_tokens as f64) / TOKENS_PER_PRICE
    }
}

/// What was used on a day.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Spent {
    /// The day, in UTC.
    pub day: String,
    /// Tokens.
    pub tokens: u64,
}

impl Spent {
    /// Nothing today.
    pub fn today() -> Spent {
        Spent { day: Utc::now().date_naive().to_string(), tokens: 0 }
    }
}

/// The limit of a day.
pub struct Budget {
    limit: u64,
    spent: Mutex<Spent>,
}

/// Tokens that are reserved for a call. If it is dropped, they count as used: the call may have happened.
pub struct Reserved<'b> {
    budget: &'b Budget,
    day: String,
    tokens: u64,
}

impl Budget {
    /// A limit of tokens a day, of which some are spent.
    pub fn new(limit: u64, spent: Spent) -> Budget {
        Budget { limit, spent: Mutex::new(spent) }
    }

    /// Reserves tokens for a call; `None` if the day's limit does not allow it.
    pub fn reserve(&self, tokens: u64) -> Option<Reserved<'_>> {
        let mut spent = self.spent();
        let today = Spent::today();
        if spent.day != today.day {
            *spent = today;
        }
        if spent.tokens.saturating_add(tokens) > self.limit {
            return None;
        }
        spent.tokens += tokens;
        Some(Reserved { budget: self, day: spent.day.clone(), tokens })
    }

    /// What is spent, to be stored.
    pub fn document(&self) -> Result<Document, MetadataError> {
        let spent = self.spent();
        Document::new(DocumentKind::Usage, spent.day.clone(), &*spent)
    }

    fn spent(&self) -> MutexGuard<'_, Spent> {
        self.spent.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Reserved<'_> {
    /// The call has used this many tokens instead.
    pub fn used(self, tokens: u64) {
        let mut spent = self.budget.spent();
        // On another day, the reservation is forgotten already.
        if spent.day == self.day {
            spent.tokens = spent.tokens.saturating_sub(self.tokens) + tokens;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_call_beyond_the_limit_of_the_day_is_refused() {
        let budget = Budget::new(100, Spent { tokens: 30, ..Spent::today() });
        let first = budget.reserve(60).expect("it fits");
        assert!(budget.reserve(20).is_none());
        first.used(10);
        let second = budget.reserve(60).expect("less was used");
        // Dropped: it may have been used.
        drop(second);
        assert!(budget.reserve(1).is_none());
        *budget.spent() = Spent { day: "2020-01-01".to_owned(), tokens: 100 };
        assert!(budget.reserve(100).is_some(), "another day begins");
    }

    #[test]
    fn tokens_have_their_price() {
        let usage = Usage { prompt_tokens: 2_000_000, completion_tokens: 500_000 };
        assert_eq!(Prices { prompt: 0.5, completion: 2.0 }.of(usage), 2.0);
    }
}
