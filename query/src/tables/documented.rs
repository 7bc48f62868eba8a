//! `information_schema`, with a comment on every table and column.
//!
//! DataFusion's own tables, with an additional column `comment` in `tables` and `columns`.

use std::sync::Arc;

use arrow::array::{RecordBatch, StringArray};
use async_trait::async_trait;
use datafusion::catalog::information_schema::InformationSchemaProvider;
use datafusion::catalog::{
    CatalogProvider, CatalogProviderList, MemoryCatalogProvider, MemoryCatalogProviderList, MemorySchemaProvider,
    SchemaProvider, TableProvider,
};
use datafusion::datasource::{MemTable, ViewTable};
use datafusion::error::DataFusionError;
use datafusion::prelude::{SessionConfig, SessionContext};

use crate::tables::CATALOG;
use crate::tables::views::{COLUMN_COMMENTS, TABLE_COMMENTS};

/// `tables` and `columns` with their comments.
const COMMENTED: [(&str, &str); 2] = [
    ("tables", "SELECT t.*, c.comment FROM plain.tables t LEFT JOIN notes.tables c ON t.table_name = c.table_name"),
    (
        "columns",
        // The standard counts columns from 1.
        "SELECT t.* REPLACE (t.ordinal_position + 1 AS ordinal_position), c.comment \
         FROM plain.columns t LEFT JOIN notes.columns c ON t.column_name = c.column_name",
    ),
];

/// The `information_schema` for the tables of one schema.
#[derive(Debug)]
pub struct DocumentedSchema {
    plain: Arc<InformationSchemaProvider>,
}

impl DocumentedSchema {
    /// Describes the tables that users see.
    pub fn of(public: Arc<dyn SchemaProvider>) -> DocumentedSchema {
        let catalog = MemoryCatalogProvider::new();
        // A new catalog has no schema of that name.
        let _ = catalog.register_schema("public", public);
        let catalogs = MemoryCatalogProviderList::new();
        catalogs.register_catalog(CATALOG.to_owned(), Arc::new(catalog));
        DocumentedSchema { plain: Arc::new(InformationSchemaProvider::new(Arc::new(catalogs))) }
    }

    async fn commented(&self, sql: &str) -> Result<ViewTable, DataFusionError> {
        let notes = MemorySchemaProvider::new();
        for (name, key, comments) in
            [("tables", "table_name", &TABLE_COMMENTS[..]), ("columns", "column_name", &COLUMN_COMMENTS[..])]
        {
            let texts = |texts: Vec<&str>| Arc::new(StringArray::from(texts)) as _;
            let (names, comments) = comments.iter().copied().unzip();
            let rows = RecordBatch::try_from_iter([(key, texts(names)), ("comment", texts(comments))])?;
            notes.register_table(name.to_owned(), Arc::new(MemTable::try_new(rows.schema(), vec![vec![rows]])?))?;
        }
        let config = SessionConfig::new().with_default_catalog_and_schema(CATALOG, "plain");
        let context = SessionContext::new_with_config(config.with_create_default_catalog_and_schema(false));
        let catalog = MemoryCatalogProvider::new();
        catalog.register_schema("plain", Arc::clone(&self.plain) as Arc<dyn SchemaProvider>)?;
        catalog.register_schema("notes", Arc::new(notes))?;
        context.register_catalog(CATALOG, Arc::new(catalog));
        let plan = context.state().create_logical_plan(sql).await?;
        Ok(ViewTable::new(plan, Some(sql.to_owned())))
    }
}

#[async_trait]
impl SchemaProvider for DocumentedSchema {
    fn table_names(&self) -> Vec<String> {
        self.plain.table_names()
    }

    async fn table(&self, name: &str) -> Result<Option<Arc<dyn TableProvider>>, DataFusionError> {
        match COMMENTED.iter().find(|(commented, _)| *commented == name) {
            Some((_, sql)) => Ok(Some(Arc::new(self.commented(sql).await?))),
            None => self.plain.table(name).await,
        }
    }

    fn table_exist(&self, name: &str) -> bool {
        self.plain.table_exist(name)
    }
}
