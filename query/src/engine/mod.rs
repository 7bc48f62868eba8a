//! Sessions, their limits and their admission control.
//!
//! Each query gets a session, which sees one snapshot. Only queries run: SQL cannot
//! write, and cannot read anything but our tables.

pub mod admission;
pub mod background;
pub mod memory;

use std::fmt;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use argus_sinks::{RecentBatch, Snapshot};
use arrow::array::{RecordBatch, RecordBatchOptions};
use arrow::compute::cast;
use arrow::datatypes::{DataType, Field, Schema};
use datafusion::catalog::CatalogProviderList;
use datafusion::catalog::information_schema::INFORMATION_SCHEMA;
use datafusion::catalog::{CatalogProvider, MemoryCatalogProvider, MemoryCatalogProviderList, SchemaProvider};
use datafusion::common::ScalarValue;
use datafusion::error::DataFusionError;
use datafusion::execution::FunctionRegistry;
use datafusion::execution::SessionStateBuilder;
use datafusion::execution::context::SessionContext;
use datafusion::execution::disk_manager::DiskManagerBuilder;
use datafusion::execution::memory_pool::{FairSpillPool, MemoryPool};
use datafusion::execution::object_store::ObjectStoreUrl;
use datafusion::execution::runtime_env::{RuntimeEnv, RuntimeEnvBuilder};
use datafusion::execution::session_state::SessionState;
use datafusion::logical_expr::LogicalPlan;
use datafusion::physical_plan::SendableRecordBatchStream;
use datafusion::physical_plan::stream::RecordBatchStreamAdapter;
use datafusion::prelude::SessionConfig;
use datafusion::sql::sqlparser::dialect::GenericDialect;
use futures::{StreamExt, TryStreamExt};
use object_store::ObjectStore;
use tokio::time::timeout;
use url::Url;
use uuid::Uuid;

use crate::engine::admission::{Admission, Permit};
use crate::engine::background::{AbortOnDrop, Background};
use crate::engine::memory::QueryPool;
use crate::error::QueryError;
use crate::reads::lookup::Lookup;
use crate::sql::joins::{Deadline, LimitJoins};
use crate::sql::labels::{label_map, label_value};
use crate::sql::limits::bounded;
use crate::sql::rewrite::{name_as_written, rewrite};
use crate::sql::statement::{check_plan, check_statement};
use crate::sql::times::with_times;
use crate::tables::CATALOG;
use crate::tables::catalog::CatalogSource;
use crate::tables::documented::DocumentedSchema;
use crate::tables::schemas::{LakeSchema, PublicSchema};

/// Rows per batch.
const BATCH_ROWS: usize = 1024;

/// What a sort reserves for spilling (1 MiB): several sorts in one query share its memory.
const SPILL_RESERVATION_BYTES: usize = 1 << 20;

/// The time limit of an internal query.
const INTERNAL_QUERY_TIME: Duration = Duration::from_secs(30);

/// The limits of the engine. Users' queries and internal queries (reports, lines
/// with codes) have separate limits, so that neither starves the other.
#[derive(Debug, Clone)]
pub struct EngineConfig {
    /// Memory for all users' queries together; beyond it, sorts and aggregations spill to disk.
    pub query_bytes: usize,
    /// Memory for one user's query.
    pub query_bytes_each: usize,
    /// Disk space for what users' queries spill, together.
    pub spill_bytes: u64,
    /// Users' queries that run at once.
    pub queries_max: usize,
    /// Users' queries that wait for a permit; further ones are refused.
    pub queries_waiting_max: usize,
    /// Threads for a user's query, and the partitions of its plan.
    pub query_threads: usize,
    /// Memory for all internal queries together.
    pub internal_query_bytes: usize,
    /// Internal queries that run at once.
    pub internal_queries_max: usize,
    /// Memory for all internal queries together that read a whole table.
    pub large_query_bytes: usize,
    /// Internal queries that read a whole table and run at once.
    pub large_queries_max: usize,
    /// How long a query may wait for its permit.
    pub permit_wait: Duration,
    /// Whether a request to the store takes long, so that a look-up reads more bytes in fewer requests.
    pub is_remote: bool,
    /// The rows of the table `catalog`.
    pub catalog: Arc<dyn CatalogSource>,
}

impl Default for EngineConfig {
    fn default() -> Self {
        EngineConfig {
            query_bytes: 128 << 20,
            query_bytes_each: 64 << 20,
            spill_bytes: 4 << 30,
            queries_max: 4,
            queries_waiting_max: 32,
            query_threads: 2,
            internal_query_bytes: 64 << 20,
            internal_queries_max: 8,
            large_query_bytes: 128 << 20,
            large_queries_max: 2,
            permit_wait: Duration::from_secs(10),
            is_remote: false,
            catalog: Arc::new(Vec::new()),
        }
    }
}

/// Runs queries on snapshots. Clones share the limits.
#[derive(Clone)]
pub struct Engine {
    queries: Arc<QueryClass>,
    internal_queries: Arc<QueryClass>,
    large_queries: Arc<QueryClass>,
    pub(crate) lookup: Lookup,
    pub(crate) background: Background,
    catalog: Arc<dyn CatalogSource>,
    /// Created for the first PostgreSQL client.
    pg: Arc<OnceLock<SessionTemplate>>,
    store: Arc<ObjectStoreUrl>,
}

/// The tables that a session sees.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Visibility {
    /// The public tables.
    Tables,
    /// Those, and the tables of differences, which contain deleted rows until compaction.
    Lake,
}

/// A class of queries: its session settings, its memory and its admission control.
#[derive(Clone)]
struct QueryClass {
    state: SessionState,
    memory: Arc<dyn MemoryPool>,
    /// Memory for one query.
    bytes_each: usize,
    admission: Admission,
    /// Whether clients can read maps; PostgreSQL clients cannot.
    labels_as_map: bool,
}

impl fmt::Debug for Engine {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Engine").field("store", &self.store).finish_non_exhaustive()
    }
}

impl Engine {
    /// An engine for tables whose files are in `store`, the store of `root`'s scheme and host.
    pub fn new(store: Arc<dyn ObjectStore>, root: &Url, config: &EngineConfig) -> Result<Engine, DataFusionError> {
        let mut base = root.clone();
        base.set_path("");
        let store_url = ObjectStoreUrl::parse(base.as_str())?;
        let class =
            |memory: Arc<dyn MemoryPool>, bytes_each, admission, threads| -> Result<QueryClass, DataFusionError> {
                let spill = DiskManagerBuilder::default().with_max_temp_directory_size(config.spill_bytes);
                let runtime = RuntimeEnvBuilder::new()
                    .with_memory_pool(Arc::clone(&memory))
                    .with_disk_manager_builder(spill)
                    .build()?;
                runtime.register_object_store(store_url.as_ref(), Arc::clone(&store));
                let mut state = with_times(bounded(session_state(runtime, threads))?)?;
                state.register_udf(Arc::new(label_map()))?;
                state.register_udf(Arc::new(label_value()))?;
                Ok(QueryClass { state, memory, bytes_each, admission, labels_as_map: true })
            };
        let queries = class(
            Arc::new(FairSpillPool::new(config.query_bytes)),
            config.query_bytes_each,
            Admission::new(config.queries_max, config.queries_waiting_max, config.permit_wait),
            config.query_threads,
        )?;
        let internal = |bytes, bytes_each, permits_max| {
            let admission = Admission::new(permits_max, usize::MAX, config.permit_wait);
            class(Arc::new(FairSpillPool::new(bytes)), bytes_each, admission, 1)
        };
        let internal_queries =
            internal(config.internal_query_bytes, config.internal_query_bytes, config.internal_queries_max)?;
        // A query that groups all occurrences spills, and needs enough memory to do so.
        let large_max = config.large_queries_max.max(1);
        let large_each = config.large_query_bytes / large_max;
        let large_queries = internal(config.large_query_bytes, large_each, large_max)?;
        let lookup = Lookup::new(store, config.is_remote);
        // Some queries occupy their threads until their time limit; a few threads are left for others.
        let threads = config.query_threads * (config.queries_max + 1);
        let background = Background::start(threads).map_err(DataFusionError::IoError)?;
        Ok(Engine {
            queries: Arc::new(queries),
            internal_queries: Arc::new(internal_queries),
            large_queries: Arc::new(large_queries),
            lookup,
            background,
            catalog: Arc::clone(&config.catalog),
            pg: Arc::default(),
            store: Arc::new(store_url),
        })
    }

    /// Runs a query and streams its rows, on the caller's threads, without a time limit or a permit. It sees the tables
    /// of differences too, because the caller has access to the lake's files anyway.
    pub async fn stream(&self, snapshot: &Arc<Snapshot>, sql: &str) -> Result<SendableRecordBatchStream, QueryError> {
        check_statement(sql)?;
        let session = self.session_of(&self.queries, snapshot, Visibility::Lake, None).map_err(QueryError::of)?;
        let (_, rows) = run(&session, sql, Vec::new()).await?;
        Ok(rows)
    }

    /// The number of users' queries that wait for a permit.
    pub fn queue_length(&self) -> usize {
        self.queries.admission.queue_length()
    }

    /// Waits for a permit to run a user's query.
    pub async fn permit(&self) -> Result<Permit, QueryError> {
        self.queries.admission.take().await
    }

    /// A session for a user's query, which sees one snapshot.
    pub(crate) fn session(
        &self,
        snapshot: &Arc<Snapshot>,
        deadline: Option<Deadline>,
    ) -> Result<SessionContext, QueryError> {
        self.session_of(&self.queries, snapshot, Visibility::Tables, deadline).map_err(QueryError::of)
    }

    /// The totals of a batch, from its rows in the tables.
    pub(crate) async fn look_up(&self, snapshot: &Snapshot, id: Uuid) -> Result<RecentBatch, QueryError> {
        let _permit = self.internal_permit().await?;
        self.lookup.batch(snapshot, id).await
    }

    /// Waits for a permit to run an internal query or look-up.
    pub(crate) async fn internal_permit(&self) -> Result<Permit, QueryError> {
        self.internal_queries.admission.take().await
    }

    /// Runs an internal query and collects all rows, within the time limit. It runs on the background threads: a query
    /// that reads a whole table must not delay uploads and reports.
    pub(crate) async fn collect(&self, snapshot: &Arc<Snapshot>, sql: &str) -> Result<Vec<RecordBatch>, QueryError> {
        with_timeout(self.collect_of(&self.internal_queries, snapshot, sql)).await
    }

    /// The same for a query that reads a whole table: few of those run at once, each with much memory.
    pub(crate) async fn collect_large(
        &self,
        snapshot: &Arc<Snapshot>,
        sql: &str,
    ) -> Result<Vec<RecordBatch>, QueryError> {
        with_timeout(self.collect_of(&self.large_queries, snapshot, sql)).await
    }

    /// The same without a time limit, for the start of a server.
    pub(crate) async fn collect_without_timeout(
        &self,
        snapshot: &Arc<Snapshot>,
        sql: &str,
    ) -> Result<Vec<RecordBatch>, QueryError> {
        self.collect_of(&self.large_queries, snapshot, sql).await
    }

    async fn collect_of(
        &self,
        class: &Arc<QueryClass>,
        snapshot: &Arc<Snapshot>,
        sql: &str,
    ) -> Result<Vec<RecordBatch>, QueryError> {
        let permit = class.admission.take().await?;
        let class = Arc::clone(class);
        let (engine, snapshot, sql) = (self.clone(), Arc::clone(snapshot), sql.to_owned());
        let task = self.background.handle().spawn(async move {
            let _permit = permit;
            let session = engine.session_of(&class, &snapshot, Visibility::Lake, None).map_err(QueryError::of)?;
            let (_, rows) = run(&session, &sql, Vec::new()).await?;
            rows.try_collect().await.map_err(QueryError::of)
        });
        let _abort_on_drop = AbortOnDrop(task.abort_handle());
        task.await.unwrap_or(Err(QueryError::Aborted))
    }

    /// A session for a PostgreSQL client's statement, which sees one snapshot. `prepare` makes the template of these
    /// sessions from one without rows, once.
    pub(crate) fn pg_session(
        &self,
        snapshot: &Arc<Snapshot>,
        deadline: Option<Deadline>,
        prepare: fn(&SessionContext) -> Result<SessionTemplate, DataFusionError>,
    ) -> Result<SessionContext, QueryError> {
        let session = || -> Result<SessionContext, DataFusionError> {
            let pg = match self.pg.get() {
                Some(pg) => pg,
                None => {
                    let template = prepare(&self.empty_pg_session()?)?;
                    self.pg.get_or_init(|| template)
                }
            };
            let class = QueryClass { state: pg.state.clone(), labels_as_map: false, ..self.queries.as_ref().clone() };
            let session = self.session_of(&class, snapshot, Visibility::Tables, deadline)?;
            if let Some(catalog) = session.catalog(CATALOG) {
                catalog.register_schema("pg_catalog", Arc::clone(&pg.pg_catalog))?;
            }
            Ok(session)
        };
        session().map_err(QueryError::of)
    }

    fn session_of(
        &self,
        class: &QueryClass,
        snapshot: &Arc<Snapshot>,
        visibility: Visibility,
        deadline: Option<Deadline>,
    ) -> Result<SessionContext, DataFusionError> {
        let lake = Arc::new(LakeSchema { snapshot: Arc::clone(snapshot), store: self.store.as_ref().clone() });
        let public = self.public(class, snapshot, lake.clone())?;
        let documented = Arc::new(DocumentedSchema::of(public.clone()));
        let mut schemas: Vec<(&str, Arc<dyn SchemaProvider>)> =
            vec![("public", public), (INFORMATION_SCHEMA, documented)];
        if visibility == Visibility::Lake {
            schemas.push(("lake", lake));
        }
        class.context(&schemas, deadline)
    }

    /// The public tables, which are views of the tables of differences.
    fn public(
        &self,
        class: &QueryClass,
        snapshot: &Snapshot,
        lake: Arc<LakeSchema>,
    ) -> Result<Arc<PublicSchema>, DataFusionError> {
        let (lake, catalog) = (class.context(&[("lake", lake)], None)?, Arc::clone(&self.catalog));
        let labels_as_map = class.labels_as_map;
        Ok(Arc::new(PublicSchema { epoch: snapshot.epoch, is_past: snapshot.is_past, labels_as_map, lake, catalog }))
    }

    /// A session with the public tables, without rows.
    fn empty_pg_session(&self) -> Result<SessionContext, DataFusionError> {
        let nothing: Arc<Snapshot> = Arc::default();
        let lake = Arc::new(LakeSchema { snapshot: Arc::clone(&nothing), store: self.store.as_ref().clone() });
        let class = QueryClass { labels_as_map: false, ..self.queries.as_ref().clone() };
        class.context(&[("public", self.public(&class, &nothing, lake)?)], None)
    }
}

/// The settings and the `pg_catalog` of PostgreSQL clients' sessions.
pub(crate) struct SessionTemplate {
    pub(crate) state: SessionState,
    pub(crate) pg_catalog: Arc<dyn SchemaProvider>,
}

/// The answer of an internal query, within the time limit.
pub(crate) async fn with_timeout<T>(answer: impl Future<Output = Result<T, QueryError>>) -> Result<T, QueryError> {
    timeout(INTERNAL_QUERY_TIME, answer).await.unwrap_or(Err(QueryError::TimedOut(INTERNAL_QUERY_TIME)))
}

/// Plans and starts a statement, which must be a query, with its parameter values; returns its plan and rows.
pub(crate) async fn run(
    context: &SessionContext,
    sql: &str,
    values: Vec<ScalarValue>,
) -> Result<(LogicalPlan, SendableRecordBatchStream), QueryError> {
    let sql = rewrite(sql, &GenericDialect {})?;
    let mut plan = context.state().create_logical_plan(&sql).await.map_err(QueryError::of)?;
    if !values.is_empty() {
        plan = plan.with_param_values(values).map_err(QueryError::of)?;
    }
    check_plan(&plan)?;
    let frame = context.execute_logical_plan(plan.clone()).await.map_err(QueryError::of)?;
    let rows = frame.execute_stream().await.map_err(QueryError::of)?;
    Ok((plan, readable(rows)))
}

/// The rows with column names as the query spells them, and without view types, which older Arrow readers do not know.
fn readable(rows: SendableRecordBatchStream) -> SendableRecordBatchStream {
    let schema = rows.schema();
    let read = |field: &Arc<Field>| {
        let kind = match field.data_type() {
            DataType::Utf8View => DataType::Utf8,
            DataType::BinaryView => DataType::Binary,
            other => other.clone(),
        };
        let name = name_as_written(field.name()).to_owned();
        Arc::new(field.as_ref().clone().with_name(name).with_data_type(kind))
    };
    let fields: Vec<Arc<Field>> = schema.fields().iter().map(read).collect();
    if fields.iter().eq(schema.fields().iter()) {
        return rows;
    }
    let read = Arc::new(Schema::new_with_metadata(fields, schema.metadata().clone()));
    let to = Arc::clone(&read);
    let rows = rows.map(move |rows| {
        let rows = rows?;
        let columns = rows.columns().iter().zip(to.fields()).map(|(column, field)| cast(column, field.data_type()));
        let columns = columns.collect::<Result<Vec<_>, _>>()?;
        let options = RecordBatchOptions::new().with_row_count(Some(rows.num_rows()));
        Ok(RecordBatch::try_new_with_options(Arc::clone(&to), columns, &options)?)
    });
    Box::pin(RecordBatchStreamAdapter::new(read, rows))
}

fn session_state(runtime: RuntimeEnv, threads: usize) -> SessionState {
    let mut session = SessionConfig::new()
        .with_batch_size(BATCH_ROWS)
        .with_target_partitions(threads.max(1))
        .with_information_schema(false)
        .with_default_catalog_and_schema(CATALOG, "public")
        .with_create_default_catalog_and_schema(false);
    session.options_mut().execution.parquet.pushdown_filters = true;
    // Older Arrow readers do not know view types.
    session.options_mut().sql_parser.map_string_types_to_utf8view = false;
    session.options_mut().execution.sort_spill_reservation_bytes = SPILL_RESERVATION_BYTES;
    SessionStateBuilder::new().with_config(session).with_runtime_env(Arc::new(runtime)).with_default_features().build()
}

impl QueryClass {
    /// A session that sees only these schemas, with its share of the memory.
    fn context(
        &self,
        schemas: &[(&str, Arc<dyn SchemaProvider>)],
        deadline: Option<Deadline>,
    ) -> Result<SessionContext, DataFusionError> {
        let catalog = MemoryCatalogProvider::new();
        for (name, schema) in schemas {
            catalog.register_schema(name, Arc::clone(schema))?;
        }
        let catalogs = MemoryCatalogProviderList::new();
        catalogs.register_catalog(CATALOG.to_owned(), Arc::new(catalog));
        let memory = QueryPool::new(Arc::clone(&self.memory), self.bytes_each);
        let runtime = RuntimeEnvBuilder::from_runtime_env(self.state.runtime_env()).with_memory_pool(Arc::new(memory));
        let state = SessionStateBuilder::new_from_existing(self.state.clone())
            .with_catalog_list(Arc::new(catalogs))
            .with_runtime_env(Arc::new(runtime.build()?))
            .with_physical_optimizer_rule(Arc::new(LimitJoins(deadline)))
            .build();
        Ok(SessionContext::new_with_state(state))
    }
}
