//! The table `catalog` of SQL: users' entries as they are now, and what is built in.

use std::error::Error;
use std::fmt;

use argus_query::{CatalogRow, CatalogSource};
use async_trait::async_trait;

use crate::catalog;
use crate::metadata::Metadata;

/// The rows of the table.
pub struct CatalogRows {
    metadata: Metadata,
    rules: Vec<CatalogRow>,
}

impl CatalogRows {
    /// The rows with these of the rules.
    pub fn new(metadata: Metadata, rules: Vec<CatalogRow>) -> CatalogRows {
        CatalogRows { metadata, rules }
    }
}

impl fmt::Debug for CatalogRows {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("CatalogRows").finish_non_exhaustive()
    }
}

#[async_trait]
impl CatalogSource for CatalogRows {
    async fn rows(&self) -> Result<Vec<CatalogRow>, Box<dyn Error + Send + Sync>> {
        Ok(catalog::rows(&self.rules, self.metadata.catalog(usize::MAX, |_| true).await?))
    }
}
