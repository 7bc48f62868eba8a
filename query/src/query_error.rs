//! Why a question has no answer, in words for whoever asked.

use std::time::Duration;

use arrow::error::ArrowError;
use datafusion::common::SchemaError;
use datafusion::error::DataFusionError;

use crate::catalog::CATALOG_TABLE;
use crate::joins::Held;
use crate::statement::{CALLS_MAX, LIST_VALUES_MAX, STATEMENT_BYTES_MAX, STATEMENT_WORDS_MAX, TEXT_BYTES_MAX};
use crate::views::VIEWS;

/// Why a question has no answer.
#[derive(Debug, thiserror::Error)]
#[expect(missing_docs, reason = "the messages say what each variant means")]
pub enum QueryError {
    #[error("only a single query (SELECT, VALUES, WITH) can be asked")]
    NotAQuery,
    #[error("{0}")]
    Unsupported(String),
    #[error("{}", reason(.0))]
    Invalid(Box<DataFusionError>),
    #[error("the query took longer than {} ms", .0.as_millis())]
    TimedOut(Duration),
    #[error("the query or its answer needs more memory than it may use; select less or group by less")]
    TooLarge,
    #[error("too many questions at once; try again")]
    Busy,
    #[error(
        "the statement is too long: at most {STATEMENT_BYTES_MAX} bytes, {TEXT_BYTES_MAX} in one text, {STATEMENT_WORDS_MAX} \
         words and signs, and {LIST_VALUES_MAX} values in lists"
    )]
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

/// Whether a reason speaks of the engine's own parts, which a user knows nothing of.
fn is_of_the_engine(text: &str) -> bool {
    ["Physical plan does not support", "bug report", "This feature is not implemented: Physical"]
        .iter()
        .any(|words| text.contains(words))
}

/// A reason (bytes) is cut to this.
const REASON_BYTES_MAX: usize = 500;

/// What the user can do something about: what is at the bottom, without what the engine was at and its own chain.
fn reason(error: &DataFusionError) -> String {
    let root = error.find_root();
    if matches!(root, DataFusionError::Internal(_)) || is_of_the_engine(&root.strip_backtrace()) {
        return "the engine cannot run this statement; write it another way, in smaller steps".to_owned();
    }
    let text = root.strip_backtrace();
    if let Some(name) =
        text.split_once("table '").and_then(|(_, rest)| rest.split_once("' not found")).map(|(name, _)| name)
    {
        let name = name.rsplit('.').next().unwrap_or(name);
        let known: Vec<&str> = VIEWS.iter().map(|view| view.name).chain([CATALOG_TABLE]).collect();
        return format!("there is no table {name}; there are {}", known.join(", "));
    }
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
            QueryError::Unsupported(_) => "0A000",
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
