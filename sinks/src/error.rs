//! Why the lake stops, or an operation on it fails.

use deltalake_core::DeltaTableError;

use crate::schema::Table;

/// Why the lake stopped.
#[derive(Debug, thiserror::Error)]
#[expect(missing_docs, reason = "the messages explain each variant")]
pub enum LakeError {
    #[error("operation on Delta table {table} failed")]
    Table { table: &'static str, source: Box<DeltaTableError> },
    #[error("cannot add the rows of epoch {epoch}")]
    Rows { epoch: u64, source: Box<DeltaTableError> },
    #[error("cannot stage the occurrences of file {file:?}")]
    Occurrences { file: String, source: Box<DeltaTableError> },
    #[error("another process has taken over Delta table {table}; this one can commit nothing more")]
    Fenced { table: &'static str },
    #[error(
        "Delta table {table} has no column {column}: an earlier version of Argus created it; rebuild the lake from the \
         stored files with `argus recount`"
    )]
    EarlierVersion { table: &'static str, column: &'static str },
    #[error(
        "Delta table {table} is missing or outdated: found version {found}, expected at least version {expected} \
         (epoch {epoch}); restore the folder `lake`, or rebuild it from the stored files with `argus recount`"
    )]
    Outdated { table: &'static str, found: String, expected: u64, epoch: u64 },
}

pub(crate) fn failed(table: Table, source: DeltaTableError) -> LakeError {
    LakeError::Table { table: table.name(), source: Box::new(source) }
}
