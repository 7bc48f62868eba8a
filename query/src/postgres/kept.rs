//! What a connection keeps on the server: named statements and portals, and how much of them there may be.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use datafusion_postgres::pgwire::api::results::QueryResponse;
use datafusion_postgres::pgwire::api::store::PortalStore;
use datafusion_postgres::pgwire::api::{ClientInfo, ClientPortalStore, DEFAULT_NAME};
use datafusion_postgres::pgwire::error::PgWireError;
use datafusion_postgres::pgwire::messages::response::TransactionStatus;

use super::with_code;

/// Statements and portals with a name that a connection may keep.
const KEPT_MAX: usize = 1_000;
/// What they may take together (16 MiB), roughly.
const KEPT_BYTES_MAX: usize = 16 << 20;

/// One more would be too many. What was kept before still is.
#[derive(Debug, thiserror::Error, PartialEq)]
#[error("at most {KEPT_MAX} statements and portals of {KEPT_BYTES_MAX} bytes are kept; close some")]
pub(super) struct TooMany;

impl From<TooMany> for PgWireError {
    fn from(error: TooMany) -> PgWireError {
        with_code("53400", error.to_string())
    }
}

/// A name, and what has it: the two kinds may have alike names.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) enum Name {
    Statement(String),
    Portal(String),
}

impl Name {
    fn is_default(&self) -> bool {
        let (Name::Statement(name) | Name::Portal(name)) = self;
        name == DEFAULT_NAME
    }
}

/// The names that a connection keeps something under in the crate's store, each with the bytes that it takes.
#[derive(Debug, Default)]
pub(super) struct Kept(Mutex<Names>);

#[derive(Debug, Default)]
struct Names {
    bytes_of: HashMap<Name, usize>,
    bytes: usize,
    /// The rows of portals that were declared as cursors; the crate's store cannot be asked for those.
    cursors: HashMap<String, QueryResponse>,
}

impl Kept {
    /// That of a client.
    pub(super) fn of(client: &(impl ClientInfo + ?Sized)) -> Arc<Kept> {
        client.session_extensions().get_or_insert_with(Kept::default)
    }

    /// Notes what is to be stored next, in place of what had its name.
    pub(super) fn note(&self, name: Name, bytes: usize) -> Result<(), TooMany> {
        if name.is_default() {
            // The one without a name is replaced by the next.
            return Ok(());
        }
        let mut names = self.names();
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

    /// Keeps the rows of a cursor, whose name is noted.
    pub(super) fn put_cursor(&self, name: String, rows: QueryResponse) {
        self.names().cursors.insert(name, rows);
    }

    /// Takes the rows of a cursor, to be put back.
    pub(super) fn take_cursor(&self, name: &str) -> Option<QueryResponse> {
        self.names().cursors.remove(name)
    }

    /// Takes one out of the store, and says whether it was there under a name.
    pub(super) fn close(&self, store: &impl PortalStore, name: &Name) -> bool {
        match name {
            Name::Statement(name) => store.rm_statement(name),
            Name::Portal(name) => store.rm_portal(name),
        }
        let mut names = self.names();
        if let Name::Portal(name) = name {
            names.cursors.remove(name);
        }
        let closed = names.bytes_of.remove(name);
        names.bytes -= closed.unwrap_or_default();
        closed.is_some()
    }

    /// Takes all those out of the store that are chosen.
    pub(super) fn close_all(&self, store: &impl PortalStore, chosen: impl Fn(&Name) -> bool) {
        let names: Vec<Name> = self.names().bytes_of.keys().filter(|name| chosen(name)).cloned().collect();
        for name in names {
            self.close(store, &name);
        }
    }

    fn names(&self) -> MutexGuard<'_, Names> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Portals end with their transaction, and outside of one with what the client sent together.
pub(super) fn end_portals<C>(client: &C)
where
    C: ClientInfo + ClientPortalStore<PortalStore: PortalStore>,
{
    let store = client.portal_store();
    store.rm_portal(DEFAULT_NAME);
    if client.transaction_status() == TransactionStatus::Idle {
        Kept::of(client).close_all(store, |name| matches!(name, Name::Portal(_)));
    }
}

#[cfg(test)]
mod tests {
    use datafusion_postgres::pgwire::api::store::MemPortalStore;

    use super::*;

    type Store = MemPortalStore<String>;

    fn statement(name: &str) -> Name {
        Name::Statement(name.to_owned())
    }

    fn count_and_bytes(kept: &Kept) -> (usize, usize) {
        let names = kept.names();
        (names.bytes_of.len(), names.bytes)
    }

    #[test]
    fn what_is_kept_is_counted_by_name_until_it_is_closed() {
        let (kept, store) = (Kept::default(), Store::default());
        store.put_empty_statement("a");
        for _ in 0..2 {
            kept.note(statement("a"), 13).expect("it is one statement");
            kept.note(Name::Portal("a".to_owned()), 4).expect("and one portal");
            kept.note(statement(DEFAULT_NAME), 100).expect("without a name it is not kept");
        }
        assert_eq!(count_and_bytes(&kept), (2, 17));
        assert!(kept.close(&store, &statement("a")) && !kept.close(&store, &statement("b")));
        assert_eq!((count_and_bytes(&kept), store.get_statement("a").is_none()), ((1, 4), true));
        kept.close_all(&store, |name| matches!(name, Name::Portal(_)));
        assert_eq!(count_and_bytes(&kept), (0, 0));
    }

    #[test]
    fn too_many_are_refused_and_the_others_stay() {
        let (kept, store) = (Kept::default(), Store::default());
        let many = (0..=KEPT_MAX).map(|number| kept.note(statement(&number.to_string()), 1));
        assert_eq!(many.filter(Result::is_err).count(), 1);
        assert_eq!(kept.note(statement("0"), 2), Ok(()), "what is there may be replaced");
        assert_eq!(kept.note(statement("0"), KEPT_BYTES_MAX), Err(TooMany));
        assert_eq!(count_and_bytes(&kept), (KEPT_MAX, KEPT_MAX + 1));
        assert!(kept.close(&store, &statement("1")));
        assert_eq!(kept.note(statement("new"), 1), Ok(()));
    }
}
