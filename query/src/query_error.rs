//! Why a question has no answer, in words for whoever asked.

use std::time::Duration;

use arrow::error::ArrowError;
use datafusion::common::SchemaError;
use datafusion::error::DataFusionError;

use crate::joins::Held;
use crate::statement::{CALLS_MAX, STATEMENT_BYTES_MAX, STATEMENT_WORDS_MAX};

/// Why a question has no answer.
#[derive(Debug, thiserror::Error)]
#[expect(missing_docs, reason = "the messages say what each variant means")]
pub enum QueryError {
    #[error("only a single query (SELECT, VALUES, WITH) can be asked")]
    NotAQuery,
    #[error("{}", reason(.0))]
    Invalid(Box<DataFusionError>),
    #[error("the query took longer than {} ms", .0.as_millis())]
    TimedOut(Duration),
    #[error("the query or its answer needs more memory than it may use; select less or group by less")]
    TooLarge,
    #[error("too many questions at once; try again")]
    Busy,
    #[error("the statement is too long: at most {STATEMENT_BYTES_MAX} bytes and {STATEMENT_WORDS_MAX} words and signs")]
    TooLong,
    #[error("a statement may call functions that make text and lists at most {CALLS_MAX} times; ask in parts")]
    TooManyCalls,
    #[error("the answer has more than {0} rows; ask with a LIMIT, or for sums")]
    TooManyRows(usize),
    #[error("the query broke off")]
    BrokeOff,
    #[error("the tables could not be read")]
    Failed(#[source] Box<DataFusionError>),
}

/// What the engine says of a condition that it could not ask of a file's values, before the reason.
const CONDITION_FAILED: &str = "Error evaluating filter predicate: ";

/// A reason (bytes) is cut to this.
const REASON_BYTES_MAX: usize = 500;

/// What the user can do something about: what is at the bottom, without what the engine was at and its own chain.
fn reason(error: &DataFusionError) -> String {
    let text = error.find_root().strip_backtrace();
    let text = match text.split_once(CONDITION_FAILED) {
        // As in: ArrowError(CastError("Cannot cast …"), Some(""))
        Some((_, text)) => {
            text.split_once("(\"").and_then(|(_, text)| text.split_once("\")")).map_or(text, |(text, _)| text)
        }
        None => &text,
    };
    let mut text = text.split_whitespace().collect::<Vec<_>>().join(" ");
    if text.len() > REASON_BYTES_MAX {
        text.truncate(text.floor_char_boundary(REASON_BYTES_MAX));
        text.push('…');
    }
    text
}

impl QueryError {
    pub(crate) fn of(error: DataFusionError) -> QueryError {
        match error.find_root() {
            DataFusionError::ResourcesExhausted(_) => QueryError::TooLarge,
            DataFusionError::External(root) => match root.downcast_ref() {
                Some(Held::Late(time)) => QueryError::TimedOut(*time),
                Some(Held::TooLarge) => QueryError::TooLarge,
                None => QueryError::Invalid(Box::new(error)),
            },
            // A spill that the disk has no room for, or that may be no longer.
            DataFusionError::ArrowError(root, _) if matches!(**root, ArrowError::IoError(..)) => {
                match root.to_string().contains("max_temp_directory_size") {
                    true => QueryError::TooLarge,
                    false => QueryError::Failed(Box::new(error)),
                }
            }
            DataFusionError::ParquetError(root) if root.to_string().contains(CONDITION_FAILED) => {
                QueryError::Invalid(Box::new(error))
            }
            DataFusionError::ObjectStore(_) | DataFusionError::IoError(_) | DataFusionError::ParquetError(_) => {
                QueryError::Failed(Box::new(error))
            }
            _ => QueryError::Invalid(Box::new(error)),
        }
    }

    /// The SQLSTATE that says the same (PostgreSQL, appendix A).
    pub(crate) fn sqlstate(&self) -> &'static str {
        match self {
            QueryError::NotAQuery => "25006",
            QueryError::Invalid(error) => match error.find_root() {
                DataFusionError::SQL(..) => "42601",
                DataFusionError::SchemaError(root, _) => match **root {
                    SchemaError::AmbiguousReference { .. } => "42702",
                    SchemaError::DuplicateQualifiedField { .. } | SchemaError::DuplicateUnqualifiedField { .. } => {
                        "42701"
                    }
                    _ => "42703",
                },
                DataFusionError::Plan(text) if text.contains("not found") && text.contains("table ") => "42P01",
                DataFusionError::Plan(text) if text.contains("Invalid function") => "42883",
                DataFusionError::ArrowError(root, _) => match **root {
                    ArrowError::DivideByZero => "22012",
                    ArrowError::CastError(_) | ArrowError::ParseError(_) => "22P02",
                    ArrowError::ArithmeticOverflow(_) => "22003",
                    _ => "42000",
                },
                _ => "42000",
            },
            QueryError::TimedOut(_) => "57014",
            QueryError::TooLarge | QueryError::TooManyRows(_) => "53200",
            QueryError::TooLong | QueryError::TooManyCalls => "54000",
            QueryError::Busy => "53300",
            QueryError::Failed(_) | QueryError::BrokeOff => "58000",
        }
    }
}

#[cfg(test)]
mod tests {
    use parquet::errors::ParquetError;

    use super::*;

    #[test]
    fn a_reason_is_what_is_at_the_bottom_in_one_line() {
        let check = |error: DataFusionError, said: &str| assert_eq!(QueryError::of(error).to_string(), said);
        let plan = |text: &str| DataFusionError::Plan(text.to_owned());
        check(plan("no such column").context("type_coercion"), "Error during planning: no such column");
        let regex = DataFusionError::External("regex parse error:\n    (\n    ^\nerror: unclosed group".into());
        check(regex, "External error: regex parse error: ( ^ error: unclosed group");
        let text = format!("Compute error: {CONDITION_FAILED}ArrowError(CastError(\"Cannot cast 'x'\"), Some(\"\"))");
        check(DataFusionError::ParquetError(Box::new(ParquetError::External(text.into()))), "Cannot cast 'x'");
        let long = QueryError::of(plan(&"é".repeat(400))).to_string();
        assert!(long.len() <= REASON_BYTES_MAX + '…'.len_utf8() && long.ends_with("é…"), "{long}");
    }
}
