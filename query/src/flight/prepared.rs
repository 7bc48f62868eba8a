//! What a handle of Flight SQL stands for: a statement, and the values of its parameters once a client has said them.
//!
//! ```text
//!  sealed: length of the statement, 4 bytes, big end first ‖ statement ‖ values: nothing, or one row as an Arrow stream
//! ```
//!
//! So the server keeps nothing, and a handle holds as long as the server runs. It is sealed ([`SealKey`]), for what
//! reads an Arrow stream trusts the lengths in it: only what we wrote is read.

use arrow::array::RecordBatch;
use arrow::error::ArrowError;
use arrow::ipc::reader::StreamReader;
use arrow::ipc::writer::StreamWriter;
use bytes::Bytes;
use datafusion::common::ScalarValue;
use datafusion::error::DataFusionError;
use datafusion::sql::sqlparser::dialect::GenericDialect;
use datafusion::sql::sqlparser::tokenizer::{Location, Token, Tokenizer};

use crate::cache::SealKey;

/// What the values of parameters may take (256 KiB).
const VALUES_BYTES_MAX: usize = 256 << 10;

/// What a seal is made for.
const SEALED_AS: &str = "flight";

/// Why a handle cannot be made or read.
#[derive(Debug, thiserror::Error)]
pub(super) enum HandleError {
    #[error("the handle is not one of ours")]
    Foreign,
    #[error("parameters are written either ? or $1, not both in one statement")]
    Mixed,
    #[error("parameters are one row of values for the statement; it was given {0} rows")]
    NotOneRow(usize),
    #[error("the values of parameters may have at most {VALUES_BYTES_MAX} bytes")]
    TooLong,
    #[error("the values of parameters cannot be read")]
    Unreadable(#[from] ArrowError),
    #[error("the values of parameters cannot be used")]
    Unusable(#[from] DataFusionError),
}

/// A statement with its values.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Prepared {
    pub(super) sql: String,
    pub(super) values: Vec<ScalarValue>,
    /// The values as they came.
    row: Bytes,
}

impl Prepared {
    /// A statement, whose parameters may be written `$1` or `?`, without values.
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

    /// What stands for it.
    pub(super) fn handle(&self, seal: SealKey) -> Result<Bytes, HandleError> {
        // A statement that is longer is refused before.
        let length = u32::try_from(self.sql.len()).unwrap_or(u32::MAX);
        let told = [&length.to_be_bytes()[..], self.sql.as_bytes(), &self.row].concat();
        seal.seal(SEALED_AS, &told).map(Bytes::from).ok_or(HandleError::TooLong)
    }

    /// What a handle stands for.
    pub(super) fn of(handle: &Bytes, seal: SealKey) -> Result<Prepared, HandleError> {
        let told = seal.open(SEALED_AS, handle).ok_or(HandleError::Foreign)?;
        let (length, rest) = told.split_first_chunk().ok_or(HandleError::Foreign)?;
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

/// The statement with each `?` numbered, as the engine wants its parameters.
fn numbered(sql: &str) -> Result<String, HandleError> {
    // What cannot be told apart is for the parser to complain about.
    let tokens = Tokenizer::new(&GenericDialect {}, sql).tokenize_with_location().unwrap_or_default();
    let placeholders = tokens.iter().filter(|token| matches!(token.token, Token::Placeholder(_)));
    let (marks, named): (Vec<_>, Vec<_>) =
        placeholders.partition(|token| matches!(&token.token, Token::Placeholder(name) if name == "?"));
    if !marks.is_empty() && !named.is_empty() {
        return Err(HandleError::Mixed);
    }
    let mut places = marks.into_iter().map(|token| token.span.start).peekable();
    let (mut numbered, mut here, mut number) = (String::with_capacity(sql.len()), Location::new(1, 1), 0);
    for letter in sql.chars() {
        if places.next_if_eq(&here).is_some() {
            number += 1;
            numbered.push_str(&format!("${number}"));
        } else {
            numbered.push(letter);
        }
        here = match letter {
            '\n' => Location::new(here.line + 1, 1),
            _ => Location::new(here.line, here.column + 1),
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
    fn question_marks_are_numbered_but_those_in_texts() {
        let sql = "SELECT 'é?', \"?\" -- ?\n FROM t\nWHERE a = ? AND b='?' AND c > ?";
        let numbered = |sql| super::numbered(sql).expect("its parameters are of one kind");
        assert_eq!(numbered(sql), "SELECT 'é?', \"?\" -- ?\n FROM t\nWHERE a = $1 AND b='?' AND c > $2");
        assert_eq!(numbered("SELECT $1, $name"), "SELECT $1, $name");
        assert_eq!(numbered("SELECT 'no end ?"), "SELECT 'no end ?");
        assert!(matches!(super::numbered("SELECT $1, ?"), Err(HandleError::Mixed)), "both would be the first");
    }

    #[test]
    fn a_handle_stands_for_its_statement_and_values() {
        let texts: arrow::array::ArrayRef = Arc::new(StringArray::from(vec!["E_FAIL"]));
        let numbers: arrow::array::ArrayRef = Arc::new(Int64Array::from(vec![7]));
        let row = RecordBatch::try_from_iter([("1", texts), ("2", numbers)]).expect("it is a row");
        let seal = SealKey::random();
        let prepared = Prepared::new("SELECT ?, ?").expect("of one kind");
        assert_eq!(Prepared::of(&prepared.handle(seal).expect("it is short"), seal).expect("it is ours"), prepared);
        let prepared = prepared.with_values(&row).expect("it is one row");
        let read = Prepared::of(&prepared.handle(seal).expect("it is short"), seal).expect("it is ours");
        assert_eq!(
            (&*read.sql, &read.values),
            ("SELECT $1, $2", &vec![ScalarValue::from("E_FAIL"), ScalarValue::from(7_i64)])
        );
        assert!(matches!(prepared.with_values(&row.slice(0, 0)), Err(HandleError::NotOneRow(0))));
        let whole = read.handle(seal).expect("it is short");
        assert!(Prepared::of(&whole, SealKey::random()).is_err(), "another server's");
        for foreign in [&b""[..], b"\0\0\0\x09SELECT", b"\0\0\0\x01\xff", &whole[..whole.len() - 1]] {
            assert!(Prepared::of(&Bytes::copy_from_slice(foreign), seal).is_err());
        }
    }
}
