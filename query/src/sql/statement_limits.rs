//! How large a statement may be.

/// The longest statement (512 KiB): several thousand values in a list.
pub const STATEMENT_BYTES_MAX: usize = 512 << 10;
/// The longest string literal (64 KiB): it is copied to each row of a batch.
pub const TEXT_BYTES_MAX: usize = 64 << 10;
/// Tokens in a statement, without the values of lists. Each can be a level of a tree that is walked on a stack, and
/// planning some statements takes quadratic time.
pub const STATEMENT_TOKENS_MAX: usize = 2_000;
/// Values in the lists of a statement (`IN (…)`), which do not add levels to the tree.
pub const LIST_VALUES_MAX: usize = 20_000;

/// Calls of functions that amplify their input ([`crate::sql::limits`]): their results are in memory at the same time.
pub const CALLS_MAX: usize = 64;
