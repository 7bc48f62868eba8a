//! What a connection keeps on the server: named statements and portals, and how much of them there may be.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

use datafusion_postgres::pgwire::api::{ClientInfo, DEFAULT_NAME};
use datafusion_postgres::pgwire::error::{ErrorInfo, PgWireError};

/// Statements and portals with a name that a connection may keep.
pub(super) const KEPT_MAX: usize = 1_000;
/// What the messages that made them may have together (8 MiB; JDBC keeps 5 MiB when nobody says otherwise).
pub(super) const KEPT_BYTES_MAX: usize = 8 << 20;

/// One more would be too many. What was kept before still is.
#[derive(Debug, thiserror::Error, PartialEq)]
#[error("at most {KEPT_MAX} statements and portals of {KEPT_BYTES_MAX} bytes are kept; close some")]
pub(super) struct TooMany;

impl From<TooMany> for PgWireError {
    fn from(error: TooMany) -> PgWireError {
        PgWireError::UserError(Box::new(ErrorInfo::new("ERROR".to_owned(), "53400".to_owned(), error.to_string())))
    }
}

/// A name, and what has it: the two kinds may have alike names.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) enum Name {
    Statement(String),
    Portal(String),
}

impl Name {
    fn text(&self) -> &str {
        match self {
            Name::Statement(name) | Name::Portal(name) => name,
        }
    }
}

/// The names that a connection keeps something under, each with the bytes of the message that made it.
#[derive(Debug, Default)]
pub(super) struct Kept(Mutex<Names>);

#[derive(Debug, Default)]
struct Names {
    bytes_of: HashMap<Name, usize>,
    bytes: usize,
}

impl Kept {
    /// That of a client.
    pub(super) fn of(client: &(impl ClientInfo + ?Sized)) -> Arc<Kept> {
        client.session_extensions().get_or_insert_with(Kept::default)
    }

    /// Notes what is to be kept from now on, in place of what had its name.
    pub(super) fn note(&self, name: Name, bytes: usize) -> Result<(), TooMany> {
        if name.text() == DEFAULT_NAME {
            // The one without a name is replaced by the next.
            return Ok(());
        }
        let mut names = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let before = names.bytes_of.get(&name).copied();
        let count = names.bytes_of.len() + usize::from(before.is_none());
        let all = names.bytes - before.unwrap_or_default() + bytes;
        if count > KEPT_MAX || all > KEPT_BYTES_MAX {
            return Err(TooMany);
        }
        names.bytes = all;
        names.bytes_of.insert(name, bytes);
        Ok(())
    }

    /// Notes that something is closed, and says whether it was there.
    pub(super) fn close(&self, name: &Name) -> bool {
        let mut names = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let closed = names.bytes_of.remove(name);
        names.bytes -= closed.unwrap_or_default();
        closed.is_some()
    }

    /// The names that are taken.
    pub(super) fn names(&self) -> Vec<Name> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).bytes_of.keys().cloned().collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn statement(name: &str) -> Name {
        Name::Statement(name.to_owned())
    }

    fn count_and_bytes(kept: &Kept) -> (usize, usize) {
        (kept.names().len(), kept.0.lock().expect("nothing panicked").bytes)
    }

    #[test]
    fn what_is_kept_is_counted_by_name_until_it_is_closed() {
        let kept = Kept::default();
        for _ in 0..2 {
            kept.note(statement("a"), 13).expect("it is one statement");
            kept.note(Name::Portal("a".to_owned()), 4).expect("and one portal");
            kept.note(statement(DEFAULT_NAME), 100).expect("without a name it is not kept");
        }
        assert_eq!(count_and_bytes(&kept), (2, 17));
        assert!(kept.close(&statement("a")) && !kept.close(&statement("b")));
        assert_eq!(count_and_bytes(&kept), (1, 4));
    }

    #[test]
    fn too_many_are_refused_and_the_others_stay() {
        let kept = Kept::default();
        let many = (0..=KEPT_MAX).map(|number| kept.note(statement(&number.to_string()), 1));
        assert_eq!(many.filter(Result::is_err).count(), 1);
        assert_eq!(kept.note(statement("0"), 2), Ok(()), "what is there may be replaced");
        assert_eq!(kept.note(statement("0"), KEPT_BYTES_MAX), Err(TooMany));
        assert_eq!(count_and_bytes(&kept), (KEPT_MAX, KEPT_MAX + 1));
        assert!(kept.close(&statement("1")));
        assert_eq!(kept.note(statement("new"), 1), Ok(()));
    }
}
