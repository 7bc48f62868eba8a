//! A table of differences for DataFusion: its files, and the rows that are only in memory.

use std::sync::Arc;

use argus_sinks::{DataFile, Snapshot, Table};
use arrow::datatypes::SchemaRef;
use async_trait::async_trait;
use datafusion::catalog::{Session, TableProvider};
use datafusion::common::DFSchema;
use datafusion::datasource::listing::PartitionedFile;
use datafusion::datasource::memory::MemorySourceConfig;
use datafusion::datasource::physical_plan::{FileGroup, FileScanConfigBuilder, ParquetSource};
use datafusion::datasource::source::DataSourceExec;
use datafusion::error::Result;
use datafusion::execution::object_store::ObjectStoreUrl;
use datafusion::logical_expr::utils::conjunction;
use datafusion::logical_expr::{Expr, TableProviderFilterPushDown, TableType};
use datafusion::physical_plan::ExecutionPlan;
use datafusion::physical_plan::empty::EmptyExec;
use datafusion::physical_plan::union::UnionExec;
use object_store::ObjectMeta;

use crate::tables::leased::LeasedReaders;

/// One table of a snapshot.
#[derive(Debug)]
pub struct Differences {
    table: Table,
    /// Owned by everything that reads its files: they are deleted when no snapshot refers to them.
    snapshot: Arc<Snapshot>,
    store: ObjectStoreUrl,
}

impl Differences {
    /// The rows of `table` in `snapshot`, whose files are in `store`.
    pub fn new(table: Table, snapshot: Arc<Snapshot>, store: ObjectStoreUrl) -> Differences {
        Differences { table, snapshot, store }
    }

    fn scan_files(
        &self,
        state: &dyn Session,
        projection: Option<&Vec<usize>>,
        filters: &[Expr],
    ) -> Result<Option<Arc<dyn ExecutionPlan>>> {
        let rows = self.snapshot.table(self.table);
        let files: Vec<PartitionedFile> = rows.committed.iter().chain(&rows.spilled).map(partitioned).collect();
        if files.is_empty() {
            return Ok(None);
        }
        let options = state.config_options().execution.parquet.clone();
        let store = state.runtime_env().object_store(&self.store)?;
        let readers = LeasedReaders::new(store, Arc::clone(&self.snapshot));
        let mut source = ParquetSource::new(self.schema())
            .with_parquet_file_reader_factory(Arc::new(readers))
            .with_pushdown_filters(options.pushdown_filters)
            .with_enable_page_index(options.enable_page_index);
        if let Some(filter) = conjunction(filters.to_vec()) {
            let schema = DFSchema::try_from(self.schema())?;
            source = source.with_predicate(state.create_physical_expr(filter, &schema)?);
        }
        let partitions = state.config().target_partitions().clamp(1, files.len());
        let mut groups = vec![Vec::new(); partitions];
        for (index, file) in files.into_iter().enumerate() {
            groups[index % partitions].push(file);
        }
        let scan = FileScanConfigBuilder::new(self.store.clone(), Arc::new(source))
            .with_file_groups(groups.into_iter().map(FileGroup::new).collect())
            .with_projection_indices(projection.cloned())?
            .build();
        Ok(Some(DataSourceExec::from_data_source(scan)))
    }
}

fn partitioned(file: &DataFile) -> PartitionedFile {
    PartitionedFile::new_from_meta(ObjectMeta {
        location: file.path.clone(),
        // Data files are immutable, so the time does not matter.
        last_modified: chrono::DateTime::UNIX_EPOCH,
        size: file.bytes,
        e_tag: None,
        version: None,
    })
}

#[async_trait]
impl TableProvider for Differences {
    fn schema(&self) -> SchemaRef {
        self.table.schema()
    }

    fn table_type(&self) -> TableType {
        TableType::Base
    }

    fn supports_filters_pushdown(&self, filters: &[&Expr]) -> Result<Vec<TableProviderFilterPushDown>> {
        // Statistics prune files and row groups; DataFusion filters the remaining rows again.
        Ok(vec![TableProviderFilterPushDown::Inexact; filters.len()])
    }

    async fn scan(
        &self,
        state: &dyn Session,
        projection: Option<&Vec<usize>>,
        filters: &[Expr],
        _limit: Option<usize>,
    ) -> Result<Arc<dyn ExecutionPlan>> {
        let mut parts: Vec<Arc<dyn ExecutionPlan>> = Vec::new();
        parts.extend(self.scan_files(state, projection, filters)?);
        let in_memory = &self.snapshot.table(self.table).batches;
        if !in_memory.is_empty() {
            let rows = std::slice::from_ref(in_memory);
            parts.push(MemorySourceConfig::try_new_exec(rows, self.schema(), projection.cloned())?);
        }
        match parts.len() {
            0 => {
                let schema = match projection {
                    Some(columns) => Arc::new(self.schema().project(columns)?),
                    None => self.schema(),
                };
                Ok(Arc::new(EmptyExec::new(schema)))
            }
            1 => Ok(parts.swap_remove(0)),
            _ => UnionExec::try_new(parts),
        }
    }
}
