//! The schemas of a session: the tables of differences in `lake`, and over them the users' tables in `public`.

use std::borrow::Cow;
use std::fmt;
use std::sync::Arc;

use argus_sinks::{Snapshot, Table};
use arrow::datatypes::SchemaRef;
use async_trait::async_trait;
use datafusion::catalog::{SchemaProvider, Session, TableProvider};
use datafusion::datasource::ViewTable;
use datafusion::error::DataFusionError;
use datafusion::execution::context::SessionContext;
use datafusion::execution::object_store::ObjectStoreUrl;
use datafusion::logical_expr::{Expr, LogicalPlan, TableType};
use datafusion::physical_plan::ExecutionPlan;

use crate::tables::catalog::{CATALOG_TABLE, CatalogSource, catalog_table};
use crate::tables::provider::Differences;
use crate::tables::views::{LABELS, LABELS_AS_TEXT, VIEWS, View};

/// The tables of differences.
#[derive(Debug)]
pub(crate) struct LakeSchema {
    pub(crate) snapshot: Arc<Snapshot>,
    pub(crate) store: ObjectStoreUrl,
}

#[async_trait]
impl SchemaProvider for LakeSchema {
    fn table_names(&self) -> Vec<String> {
        Table::ALL.map(|table| table.name().to_owned()).to_vec()
    }

    async fn table(&self, name: &str) -> Result<Option<Arc<dyn TableProvider>>, DataFusionError> {
        let table = Table::ALL.into_iter().find(|table| table.name() == name);
        Ok(table.map(|table| -> Arc<dyn TableProvider> {
            Arc::new(Differences::new(table, Arc::clone(&self.snapshot), self.store.clone()))
        }))
    }

    fn table_exist(&self, name: &str) -> bool {
        Table::ALL.iter().any(|table| table.name() == name)
    }
}

/// The tables that users see, planned on access.
pub(crate) struct PublicSchema {
    pub(crate) epoch: u64,
    /// Whether it is before the current epoch.
    pub(crate) is_past: bool,
    /// Whether labels are a map; otherwise they are JSON text.
    pub(crate) labels_as_map: bool,
    /// A session with the tables of differences.
    pub(crate) lake: SessionContext,
    /// Descriptions of codes.
    pub(crate) catalog: Arc<dyn CatalogSource>,
}

impl fmt::Debug for PublicSchema {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("PublicSchema").field("epoch", &self.epoch).finish_non_exhaustive()
    }
}

/// A view that tools list as a table.
#[derive(Debug)]
struct PublicTable(ViewTable);

#[async_trait]
impl TableProvider for PublicTable {
    fn schema(&self) -> SchemaRef {
        self.0.schema()
    }

    fn table_type(&self) -> TableType {
        TableType::Base
    }

    fn get_logical_plan(&self) -> Option<Cow<'_, LogicalPlan>> {
        self.0.get_logical_plan()
    }

    async fn scan(
        &self,
        state: &dyn Session,
        projection: Option<&Vec<usize>>,
        filters: &[Expr],
        limit: Option<usize>,
    ) -> Result<Arc<dyn ExecutionPlan>, DataFusionError> {
        self.0.scan(state, projection, filters, limit).await
    }
}

#[async_trait]
impl SchemaProvider for PublicSchema {
    fn table_names(&self) -> Vec<String> {
        VIEWS.iter().map(|view| view.name).chain([CATALOG_TABLE]).map(str::to_owned).collect()
    }

    async fn table(&self, name: &str) -> Result<Option<Arc<dyn TableProvider>>, DataFusionError> {
        if name == CATALOG_TABLE {
            let rows = self.catalog.rows().await.map_err(DataFusionError::External)?;
            return Ok(Some(Arc::new(catalog_table(&rows)?)));
        }
        let Some(view) = View::named(name) else { return Ok(None) };
        let mut sql = view.sql(self.epoch, self.is_past);
        if !self.labels_as_map {
            sql = sql.replace(LABELS, LABELS_AS_TEXT);
        }
        let plan = self.lake.state().create_logical_plan(&sql).await?;
        Ok(Some(Arc::new(PublicTable(ViewTable::new(plan, None)))))
    }

    fn table_exist(&self, name: &str) -> bool {
        View::named(name).is_some() || name == CATALOG_TABLE
    }
}
