//! Why a question has no answer, in words for whoever asked.

use std::time::Duration;

use datafusion::error::DataFusionError;

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

/// What the user can do something about: the first line, without the engine's own chain.
fn reason(error: &DataFusionError) -> String {
    let text = error.strip_backtrace();
    text.lines().next().unwrap_or_default().to_owned()
}

impl QueryError {
    pub(crate) fn of(error: DataFusionError) -> QueryError {
        match error.find_root() {
            DataFusionError::ResourcesExhausted(_) => QueryError::TooLarge,
            DataFusionError::ObjectStore(_) | DataFusionError::IoError(_) | DataFusionError::ParquetError(_) => {
                QueryError::Failed(Box::new(error))
            }
            _ => QueryError::Invalid(Box::new(error)),
        }
    }
}
