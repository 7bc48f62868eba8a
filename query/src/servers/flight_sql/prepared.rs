//! Handles of Flight SQL: a statement, and its parameter values once a client has bound them.
//!
//! ```text
//!  signed: length of the statement, 4 bytes, big-endian ‖ statement ‖ values: nothing, or one row as an Arrow stream
//! ```
//!
//! So the server stores nothing, and a handle is valid as long as the server runs. It is signed ([`SigningKey`]),
//! because the reader of an Arrow stream trusts the lengths in it: only streams that we wrote are read.

use arrow::array::RecordBatch;
use arrow::error::ArrowError;
use arrow::ipc::reader::StreamReader;
use arrow::ipc::writer::StreamWriter;
use bytes::Bytes;
use datafusion::common::ScalarValue;
use datafusion::error::DataFusionError;
use datafusion::sql::sqlparser::dialect::GenericDialect;
use datafusion::sql::sqlparser::tokenizer::{Location, Token, Tokenizer};

use crate::cache::SigningKey;

/// The largest parameter values of a statement (256 KiB).
const VALUES_BYTES_MAX: usize = 256 << 10;

/// The key that handles are signed under.
const SIGNED_AS: &str = "flight";

/// Why a handle cannot be made or read.
#[derive(Debug, thiserror::Error)]
pub(super) enum HandleError {
    #[error("the handle is invalid or was made before the server restarted; prepare the statement again")]
    Foreign,
    #[error("the statement has both ? and $1 parameters; use one form")]
    Mixed,
    #[error("parameter values must be one row, but the client sent {0} rows")]
    NotOneRow(usize),
    #[error("the parameter values exceed {VALUES_BYTES_MAX} bytes; send shorter values")]
    TooLong,
    #[error("the parameter values are not a valid Arrow stream")]
    Unreadable(#[from] ArrowError),
    #[error("the parameter values have a type that is not supported")]
    Unusable(#[from] DataFusionError),
}

/// A statement with its parameter values.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Prepared {
    pub(super) sql: String,
    pub(super) values: Vec<ScalarValue>,
    /// The values as an Arrow stream.
    row: Bytes,
}

impl Prepared {
    /// A statement without values. Its parameters are written `$1` or `?`.
    pub(super) fn new(sql: &str) -> Result<Prepared, HandleError> {
        Ok(Prepared { sql: numbered(sql)?, values: Vec::new(), row: Bytes::new() })
    }

    /// The same with these values.
    pub(super) fn with_values(self, row: &RecordBatch) -> Result<Prepared, HandleError> {
        if row.num_rows() != 1 {
            return Err(HandleError::NotOneRow(row.num_rows()));
        }
        let mut written = StreamWriter::try_new(Vec::new(), &row.schema())?;
        written.write(row)?;
        let written = written.into_inner()?;
        if written.len() > VALUES_BYTES_MAX {
            return Err(HandleError::TooLong);
        }
        Ok(Prepared { values: values_of(row)?, row: written.into(), ..self })
    }

    /// Its handle.
    pub(super) fn handle(&self, signing: SigningKey) -> Result<Bytes, HandleError> {
        // Longer statements were refused before.
        let length = u32::try_from(self.sql.len()).unwrap_or(u32::MAX);
        let payload = [&length.to_be_bytes()[..], self.sql.as_bytes(), &self.row].concat();
        signing.sign(SIGNED_AS, &payload).map(Bytes::from).ok_or(HandleError::TooLong)
    }

    /// Reads a handle.
    pub(super) fn of(handle: &Bytes, signing: SigningKey) -> Result<Prepared, HandleError> {
        let payload = signing.verify(SIGNED_AS, handle).ok_or(HandleError::Foreign)?;
        let (length, rest) = payload.split_first_chunk().ok_or(HandleError::Foreign)?;
        let (sql, row) = rest.split_at_checked(u32::from_be_bytes(*length) as usize).ok_or(HandleError::Foreign)?;
        let sql = std::str::from_utf8(sql).map_err(|_| HandleError::Foreign)?.to_owned();
        let values = match row {
            [] => Vec::new(),
            row => values_of(&StreamReader::try_new(row, None)?.next().ok_or(HandleError::Foreign)??)?,
        };
        Ok(Prepared { sql, values, row: Bytes::copy_from_slice(row) })
    }
}

fn values_of(row: &RecordBatch) -> Result<Vec<ScalarValue>, HandleError> {
    if row.num_rows() != 1 {
        return Err(HandleError::NotOneRow(row.num_rows()));
    }
    let values: Result<_, DataFusionError> =
        row.columns().iter().map(|column| ScalarValue::try_from_array(column, 0)).collect();
    Ok(values?)
}

/// The statement with each `?` replaced by `$1`, `$2`, …, as the engine requires.
fn numbered(sql: &str) -> Result<String, HandleError> {
    // If the tokenizer fails, the parser reports the error.
    let tokens = Tokenizer::new(&GenericDialect {}, sql).tokenize_with_location().unwrap_or_default();
    let placeholders = tokens.iter().filter(|token| matches!(token.token, Token::Placeholder(_)));
    let (unnumbered, named): (Vec<_>, Vec<_>) =
        placeholders.partition(|token| matches!(&token.token, Token::Placeholder(name) if name == "?"));
    if !unnumbered.is_empty() && !named.is_empty() {
        return Err(HandleError::Mixed);
    }
    let mut positions = unnumbered.into_iter().map(|token| token.span.start).peekable();
    let (mut numbered, mut position, mut number) = (String::with_capacity(sql.len()), Location::new(1, 1), 0);
    for character in sql.chars() {
        if positions.next_if_eq(&position).is_some() {
            number += 1;
            numbered.push_str(&format!("${number}"));
        } else {
            numbered.push(character);
        }
        position = match character {
            '\n' => Location::new(position.line + 1, 1),
            _ => Location::new(position.line, position.column + 1),
        };
    }
    Ok(numbered)
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use arrow::array::{Int64Array, StringArray};

    use super::*;

    #[test]
    fn question_marks_are_numbered_except_in_strings_and_comments() {
        let sql = "SELECT 'é?', \"?\" -- ?\n FROM t\nWHERE a = ? AND b='?' AND c > ?";
        let numbered = |sql| super::numbered(sql).expect("its parameters have one form");
        assert_eq!(numbered(sql), "SELECT 'é?', \"?\" -- ?\n FROM t\nWHERE a = $1 AND b='?' AND c > $2");
        assert_eq!(numbered("SELECT $1, $name"), "SELECT $1, $name");
        assert_eq!(numbered("SELECT 'no end ?"), "SELECT 'no end ?");
        assert!(matches!(super::numbered("SELECT $1, ?"), Err(HandleError::Mixed)), "both would be the first");
    }

    #[test]
    fn a_handle_contains_its_statement_and_values() {
        let texts: arrow::array::ArrayRef = Arc::new(StringArray::from(vec!["E_FAIL"]));
        let numbers: arrow::array::ArrayRef = Arc::new(Int64Array::from(vec![7]));
        let row = RecordBatch::try_from_iter([("1", texts), ("2", numbers)]).expect("it is a row");
        let signing = SigningKey::random();
        let prepared = Prepared::new("SELECT ?, ?").expect("its parameters have one form");
        assert_eq!(
            Prepared::of(&prepared.handle(signing).expect("it is short"), signing).expect("it is ours"),
            prepared
        );
        let prepared = prepared.with_values(&row).expect("it is one row");
        let read = Prepared::of(&prepared.handle(signing).expect("it is short"), signing).expect("it is ours");
        assert_eq!(
            (&*read.sql, &read.values),
            ("SELECT $1, $2", &vec![ScalarValue::from("E_FAIL"), ScalarValue::from(7_i64)])
        );
        assert!(matches!(prepared.with_values(&row.slice(0, 0)), Err(HandleError::NotOneRow(0))));
        let whole = read.handle(signing).expect("it is short");
        assert!(Prepared::of(&whole, SigningKey::random()).is_err(), "another server's");
        for foreign in [&b""[..], b"\0\0\0\x09SELECT", b"\0\0\0\x01\xff", &whole[..whole.len() - 1]] {
            assert!(Prepared::of(&Bytes::copy_from_slice(foreign), signing).is_err());
        }
    }
}
