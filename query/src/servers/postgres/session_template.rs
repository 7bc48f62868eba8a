//! The sessions of PostgreSQL clients.

use datafusion::error::DataFusionError;
use datafusion::prelude::SessionContext;
use datafusion_postgres::datafusion_pg_catalog::pg_catalog::context::EmptyContextProvider;
use datafusion_postgres::datafusion_pg_catalog::setup_pg_catalog;

use super::{functions, session_reset};
use crate::engine::SessionTemplate;
use crate::tables::CATALOG;

/// The settings and the `pg_catalog` of PostgreSQL clients' sessions, which describes the public tables. Their names do not
/// change, so it is made once.
pub(super) fn session_template(empty: &SessionContext) -> Result<SessionTemplate, DataFusionError> {
    setup_pg_catalog(empty, CATALOG, EmptyContextProvider).map_err(|error| *error)?;
    empty.register_udf(session_reset::unlock_all());
    functions::register(empty)?;
    let state = empty.state();
    let catalog = state.catalog_list().catalog(CATALOG).and_then(|catalog| catalog.schema("pg_catalog"));
    let pg_catalog = catalog.ok_or_else(|| DataFusionError::Internal("pg_catalog was not created".into()))?;
    Ok(SessionTemplate { state, pg_catalog })
}
