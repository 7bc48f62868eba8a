//! The named statements and portals of a connection, and their limits.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use datafusion_postgres::pgwire::api::results::QueryResponse;
use datafusion_postgres::pgwire::api::store::PortalStore;
use datafusion_postgres::pgwire::api::{ClientInfo, ClientPortalStore, DEFAULT_NAME};
use datafusion_postgres::pgwire::error::PgWireError;
use datafusion_postgres::pgwire::messages::response::TransactionStatus;

use super::with_code;

/// Named statements and portals per connection.
const STATEMENTS_MAX: usize = 1_000;
/// Their approximate memory together (16 MiB).
const STATEMENT_BYTES_MAX: usize = 16 << 20;

/// A limit is reached. Existing statements and portals stay.
#[derive(Debug, thiserror::Error, PartialEq)]
#[error("more than {STATEMENTS_MAX} named statements and portals, or {STATEMENT_BYTES_MAX} bytes of them; close some")]
pub(super) struct TooMany;

impl From<TooMany> for PgWireError {
    fn from(error: TooMany) -> PgWireError {
        with_code("53400", error.to_string())
    }
}

/// A name and its kind: a statement and a portal can have the same name.
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

/// The names of a connection's statements and portals in the crate's store, with their bytes.
#[derive(Debug, Default)]
pub(super) struct PreparedStatements(Mutex<Names>);

#[derive(Debug, Default)]
struct Names {
    bytes_of: HashMap<Name, usize>,
    bytes: usize,
    /// The rows of cursors, which the crate's store does not provide.
    cursors: HashMap<String, QueryResponse>,
}

impl PreparedStatements {
    /// The statements and portals of a client.
    pub(super) fn of(client: &(impl ClientInfo + ?Sized)) -> Arc<PreparedStatements> {
        client.session_extensions().get_or_insert_with(PreparedStatements::default)
    }

    /// Counts a statement or portal that will be stored next. It replaces one of the same name.
    pub(super) fn note(&self, name: Name, bytes: usize) -> Result<(), TooMany> {
        if name.is_default() {
            // The next unnamed one replaces it.
            return Ok(());
        }
        let mut names = self.names();
        let before = names.bytes_of.get(&name).copied();
        let count = names.bytes_of.len() + usize::from(before.is_none());
        let all = names.bytes - before.unwrap_or_default() + bytes;
        if count > STATEMENTS_MAX || all > STATEMENT_BYTES_MAX {
            return Err(TooMany);
        }
        names.bytes = all;
        names.bytes_of.insert(name, bytes);
        Ok(())
    }

    /// Stores the rows of a cursor, whose name was counted.
    pub(super) fn put_cursor(&self, name: String, rows: QueryResponse) {
        self.names().cursors.insert(name, rows);
    }

    /// Takes the rows of a cursor; the caller puts them back.
    pub(super) fn take_cursor(&self, name: &str) -> Option<QueryResponse> {
        self.names().cursors.remove(name)
    }

    /// Removes a statement or portal; returns whether there was one with this name.
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

    /// Removes all chosen statements and portals.
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

/// Closes portals at the end of their transaction; outside of one, at the end of the message or at `Sync`.
pub(super) fn end_portals<C>(client: &C)
where
    C: ClientInfo + ClientPortalStore<PortalStore: PortalStore>,
{
    let store = client.portal_store();
    store.rm_portal(DEFAULT_NAME);
    if client.transaction_status() == TransactionStatus::Idle {
        PreparedStatements::of(client).close_all(store, |name| matches!(name, Name::Portal(_)));
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

    fn count_and_bytes(prepared: &PreparedStatements) -> (usize, usize) {
        let names = prepared.names();
        (names.bytes_of.len(), names.bytes)
    }

    #[test]
    fn statements_and_portals_are_counted_by_name_until_they_are_closed() {
        let (prepared, store) = (PreparedStatements::default(), Store::default());
        store.put_empty_statement("a");
        for _ in 0..2 {
            prepared.note(statement("a"), 13).expect("it is one statement");
            prepared.note(Name::Portal("a".to_owned()), 4).expect("and one portal");
            prepared.note(statement(DEFAULT_NAME), 100).expect("an unnamed one is not counted");
        }
        assert_eq!(count_and_bytes(&prepared), (2, 17));
        assert!(prepared.close(&store, &statement("a")) && !prepared.close(&store, &statement("b")));
        assert_eq!((count_and_bytes(&prepared), store.get_statement("a").is_none()), ((1, 4), true));
        prepared.close_all(&store, |name| matches!(name, Name::Portal(_)));
        assert_eq!(count_and_bytes(&prepared), (0, 0));
    }

    #[test]
    fn too_many_are_refused_and_the_others_stay() {
        let (prepared, store) = (PreparedStatements::default(), Store::default());
        let many = (0..=STATEMENTS_MAX).map(|number| prepared.note(statement(&number.to_string()), 1));
        assert_eq!(many.filter(Result::is_err).count(), 1);
        assert_eq!(prepared.note(statement("0"), 2), Ok(()), "an existing one may be replaced");
        assert_eq!(prepared.note(statement("0"), STATEMENT_BYTES_MAX), Err(TooMany));
        assert_eq!(count_and_bytes(&prepared), (STATEMENTS_MAX, STATEMENTS_MAX + 1));
        assert!(prepared.close(&store, &statement("1")));
        assert_eq!(prepared.note(statement("new"), 1), Ok(()));
    }
}
