//! Why a query failed, in messages for its user.

use std::time::Duration;

use arrow::error::ArrowError;
use datafusion::common::SchemaError;
use datafusion::error::DataFusionError;

use crate::sql::joins::Held;
use crate::sql::statement_limits::{
    CALLS_MAX, LIST_VALUES_MAX, STATEMENT_BYTES_MAX, STATEMENT_TOKENS_MAX, TEXT_BYTES_MAX,
};
use crate::tables::catalog::CATALOG_TABLE;
use crate::tables::views::VIEWS;

/// Why a query failed.
#[derive(Debug, thiserror::Error)]
#[expect(missing_docs, reason = "the messages explain the variants")]
pub enum QueryError {
    #[error("only a single query (SELECT, VALUES or WITH) is allowed")]
    NotAQuery,
    #[error("{0}")]
    Unsupported(String),
    #[error("{}", reason(.0))]
    Invalid(Box<DataFusionError>),
    #[error("the query took longer than {} ms", .0.as_millis())]
    TimedOut(Duration),
    #[error("the query exceeds its memory or spill limit; select fewer rows and columns, or group by fewer keys")]
    TooLarge,
    #[error("too many concurrent requests; retry later")]
    Busy,
    #[error(
        "the statement is too long: at most {STATEMENT_BYTES_MAX} bytes, {TEXT_BYTES_MAX} bytes in one string, \
         {STATEMENT_TOKENS_MAX} tokens and {LIST_VALUES_MAX} values in lists; split it"
    )]
    TooLong,
    #[error("the statement has more than {CALLS_MAX} calls of functions that build strings or lists; split it")]
    TooManyCalls,
    #[error("the answer has more than {0} rows; add a LIMIT or aggregate")]
    TooManyRows(usize),
    #[error("the query was aborted; retry it, or simplify it")]
    Aborted,
    #[error("the tables could not be read; retry, or ask the operator of the server")]
    Failed(#[source] Box<DataFusionError>),
}

/// What DataFusion writes before the reason when it cannot evaluate a filter on a file's values.
const CONDITION_FAILED: &str = "Error evaluating filter predicate: ";

/// Whether a reason is about the engine's internals, which a user does not know.
fn is_of_the_engine(text: &str) -> bool {
    ["Physical plan does not support", "bug report", "This feature is not implemented: Physical"]
        .iter()
        .any(|words| text.contains(words))
}

/// Longer reasons are truncated to this.
const REASON_BYTES_MAX: usize = 500;

/// The root cause, which the user can act on, without the engine's context.
fn reason(error: &DataFusionError) -> String {
    let root = error.find_root();
    if matches!(root, DataFusionError::Internal(_)) || is_of_the_engine(&root.strip_backtrace()) {
        return "the engine cannot run this statement; rewrite it in smaller steps".to_owned();
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
            // A spill that does not fit on the disk or within its limit.
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

    /// The SQLSTATE of the error (PostgreSQL, appendix A).
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
            QueryError::Failed(_) | QueryError::Aborted => "58000",
        }
    }
}

#[cfg(test)]
mod tests {
    use parquet::errors::ParquetError;

    use super::*;

    #[test]
    fn a_reason_is_the_root_cause_in_one_line() {
        let check = |error: DataFusionError, text: &str| assert_eq!(QueryError::of(error).to_string(), text);
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
