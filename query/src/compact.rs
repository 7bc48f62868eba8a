//! What files of the lake's tables become when they are compacted, as queries:
//! rows of what is gone are left out, old differences are folded into one.
//!
//! The engine's own memory limit and spilling hold here as for any query.

use std::sync::Arc;

use argus_sinks::{DataFile, Snapshot, Table};
use arrow::array::{ArrayRef, RecordBatch};
use arrow::compute::{cast, concat_batches};
use arrow::datatypes::{DataType, Field, Schema};
use datafusion::catalog::{MemorySchemaProvider, SchemaProvider};
use datafusion::datasource::MemTable;
use datafusion::error::DataFusionError;
use futures::stream::BoxStream;
use futures::{StreamExt, TryStreamExt};

use crate::engine::Engine;
use crate::query_error::QueryError;

/// What is gone and leaves no row.
#[derive(Debug, Clone)]
pub struct Gone {
    /// `batch_id` and `version` of what was replaced before the horizon or deleted.
    versions: RecordBatch,
    /// `batch_id` of what was deleted.
    batches: RecordBatch,
    /// `vin` of the vehicles that something was deleted of: nothing older is told apart of their cells.
    vins: RecordBatch,
}

/// Replaced before the horizon, or of a deleted file or batch: those leave at once,
/// with all their generations. A version that is live no more never is again.
const GONE_VERSIONS: &str = "
    SELECT DISTINCT batch_id, version FROM lake.files
    WHERE (live < 0 AND epoch <= {horizon})
       OR file_id IN (SELECT file_id FROM lake.files WHERE erased > 0)
       OR batch_id IN (SELECT batch_id FROM lake.batches WHERE live < 0)";

const GONE_BATCHES: &str = "SELECT DISTINCT batch_id FROM lake.batches WHERE live < 0";

const GONE_VINS: &str = "
    SELECT DISTINCT vin FROM lake.batches
    WHERE batch_id IN (SELECT batch_id FROM lake.batches WHERE live < 0)
       OR batch_id IN (SELECT batch_id FROM lake.files WHERE erased > 0)";

/// Rows of one file that are of something gone.
const HOLDS_GONE: &str = "
    SELECT 1 AS one FROM upkeep.gone_versions g JOIN lake.{table} t ON t.batch_id = g.batch_id AND t.version = g.version
    LIMIT 1";

const HOLDS_GONE_VIN: &str = "SELECT 1 AS one FROM upkeep.gone_vins g JOIN lake.fleet t ON t.vin = g.vin LIMIT 1";

const HOLDS_GONE_BATCH: &str =
    "SELECT 1 AS one FROM upkeep.gone_batches g JOIN lake.batches t ON t.batch_id = g.batch_id LIMIT 1";

/// The epochs that are told apart: those up to the horizon are one.
const EPOCHS: &str = "CASE WHEN epoch <= {horizon} THEN 0 ELSE epoch END";

const WITHOUT_GONE: &str = "lake.{table} t LEFT ANTI JOIN upkeep.gone_versions g \
                            ON t.batch_id = g.batch_id AND t.version = g.version";

fn compacted_sql(table: Table) -> &'static str {
    match table {
        Table::Errors => "SELECT t.* FROM {without_gone} ORDER BY batch_id, file, line",
        Table::ErrorCounts => {
            "SELECT max(epoch) AS epoch, batch_id, version, file, component, code, \
             first_value(rule ORDER BY example_line) AS rule, min(severity) AS severity, sum(count) AS count, \
             min(first_seen) AS first_seen, max(last_seen) AS last_seen, min(example_line) AS example_line, \
             first_value(example_text ORDER BY example_line) AS example_text FROM {without_gone} \
             GROUP BY batch_id, version, file, component, code, {epochs} ORDER BY batch_id, code"
        }
        Table::Batches => {
            "SELECT max(epoch) AS epoch, t.batch_id, vehicle_id, vin, platform, firmware, created_at, \
             sum(live) AS live, sum(completed) AS completed \
             FROM lake.batches t LEFT ANTI JOIN upkeep.gone_batches g ON t.batch_id = g.batch_id \
             GROUP BY t.batch_id, vehicle_id, vin, platform, firmware, created_at, {epochs} ORDER BY batch_id, epoch"
        }
        Table::Fleet => {
            "SELECT max(epoch) AS epoch, firmware, platform, vehicle_id, t.vin, subject, component, code, \
             sum(live) AS live, count, batches, first_seen, last_seen, first_batch \
             FROM upkeep.gone_vins g RIGHT JOIN lake.fleet t ON t.vin = g.vin \
             GROUP BY firmware, platform, vehicle_id, t.vin, subject, component, code, count, batches, \
             first_seen, last_seen, first_batch, \
             CASE WHEN epoch <= {horizon} OR g.vin IS NOT NULL THEN 0 ELSE epoch END \
             HAVING sum(live) <> 0 ORDER BY t.vin, code"
        }
        Table::Files => {
            "SELECT max(epoch) AS epoch, batch_id, file_id, version, name, generation, sum(live) AS live, \
             sum(erased) AS erased, sum(bytes) AS bytes, sum(lines) AS lines, sum(long_lines) AS long_lines, \
             sum(last_line) AS last_line, sum(error_lines) AS error_lines, sum(sightings) AS sightings, \
             max(uploaded_at) AS uploaded_at, max(failure) AS failure, max(\"binary\") AS \"binary\" \
             FROM {without_gone} \
             GROUP BY batch_id, file_id, version, name, generation, {epochs} ORDER BY batch_id, epoch"
        }
    }
}

impl Gone {
    /// What is gone by what is committed, where nothing before `horizon` is told apart.
    pub async fn find(engine: &Engine, snapshot: &Arc<Snapshot>, horizon: u64) -> Result<Gone, QueryError> {
        let committed = Arc::new(snapshot.committed_only());
        let text = |name| Field::new(name, DataType::Utf8, false);
        let ids = async |sql: &str, columns: Vec<Field>| -> Result<RecordBatch, QueryError> {
            let schema = Arc::new(Schema::new(columns));
            let found = engine.collect(&committed, &sql.replace("{horizon}", &horizon.to_string())).await?;
            let found: Result<Vec<_>, _> =
                found.iter().map(|rows| RecordBatch::try_new(Arc::clone(&schema), rows.columns().to_vec())).collect();
            found.and_then(|found| concat_batches(&schema, &found)).map_err(QueryError::of_arrow)
        };
        Ok(Gone {
            versions: ids(GONE_VERSIONS, vec![text("batch_id"), text("version")]).await?,
            batches: ids(GONE_BATCHES, vec![text("batch_id")]).await?,
            vins: ids(GONE_VINS, vec![text("vin")]).await?,
        })
    }

    /// Whether everything is still there.
    pub fn is_nothing(&self) -> bool {
        self.versions.num_rows() == 0 && self.batches.num_rows() == 0
    }

    /// Whether a file has rows of what is gone.
    pub async fn is_in(
        &self,
        engine: &Engine,
        snapshot: &Arc<Snapshot>,
        table: Table,
        file: &DataFile,
    ) -> Result<bool, QueryError> {
        let sql = match table {
            Table::Batches => HOLDS_GONE_BATCH.to_owned(),
            Table::Fleet => HOLDS_GONE_VIN.to_owned(),
            _ => HOLDS_GONE.replace("{table}", table.name()),
        };
        let one = Arc::new(snapshot.of_files(table, std::slice::from_ref(file)));
        let rows: Vec<RecordBatch> =
            engine.stream_with(&one, &sql, self.schema()?).await?.try_collect().await.map_err(QueryError::of)?;
        Ok(rows.iter().any(|rows| rows.num_rows() > 0))
    }

    /// What some files of a table become: the rows of what is left, in the table's order.
    pub async fn compacted(
        &self,
        engine: &Engine,
        snapshot: &Arc<Snapshot>,
        table: Table,
        files: &[DataFile],
        horizon: u64,
    ) -> Result<BoxStream<'static, Result<RecordBatch, QueryError>>, QueryError> {
        let sql = compacted_sql(table)
            .replace("{without_gone}", WITHOUT_GONE)
            .replace("{epochs}", EPOCHS)
            .replace("{table}", table.name())
            .replace("{horizon}", &horizon.to_string());
        let those = Arc::new(snapshot.of_files(table, files));
        let rows = engine.stream_with(&those, &sql, self.schema()?).await?;
        Ok(rows.map(move |rows| as_table(table, &rows.map_err(QueryError::of)?)).boxed())
    }

    fn schema(&self) -> Result<Arc<dyn SchemaProvider>, QueryError> {
        let schema = MemorySchemaProvider::new();
        for (name, rows) in
            [("gone_versions", &self.versions), ("gone_batches", &self.batches), ("gone_vins", &self.vins)]
        {
            let table = MemTable::try_new(rows.schema(), vec![vec![rows.clone()]]).map_err(QueryError::of)?;
            schema.register_table(name.to_owned(), Arc::new(table)).map_err(QueryError::of)?;
        }
        Ok(Arc::new(schema))
    }
}

/// Rows of a query in the types of the table: sums of small numbers are large numbers in SQL.
fn as_table(table: Table, rows: &RecordBatch) -> Result<RecordBatch, QueryError> {
    let schema = table.schema();
    let columns: Result<Vec<ArrayRef>, _> =
        schema.fields().iter().zip(rows.columns()).map(|(field, column)| cast(column, field.data_type())).collect();
    columns.and_then(|columns| RecordBatch::try_new(schema, columns)).map_err(QueryError::of_arrow)
}

impl QueryError {
    fn of_arrow(error: arrow::error::ArrowError) -> QueryError {
        QueryError::of(DataFusionError::ArrowError(Box::new(error), None))
    }
}
