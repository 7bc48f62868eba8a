//! Sessions, their limits, and the turns of who asks.
//!
//! A session is made for each question and sees one snapshot. Only queries
//! are asked: nothing in SQL writes, or reads anything but our tables.

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
use datafusion::datasource::MemTable;
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

use crate::background::{AbortOnDrop, Background};
use crate::bounded::bounded;
use crate::catalog::{CatalogRow, catalog_table};
use crate::documented::DocumentedSchema;
use crate::joins::{Deadline, HoldJoins};
use crate::labels::{label_map, label_value};
use crate::lookup::Lookup;
use crate::memory::QueryPool;
use crate::postgres::PgSessions;
use crate::query_error::QueryError;
use crate::rewrite::{name_as_written, rewrite};
use crate::schemas::{LakeSchema, PublicSchema};
use crate::statement::{check_plan, check_statement};
use crate::times::with_times;
use crate::turns::{Turn, Turns};

/// Rows that are computed at once.
const BATCH_ROWS: usize = 1024;

/// What a sort keeps free to write out what it holds (1 MiB): several in one query share its memory.
const SPILL_RESERVATION_BYTES: usize = 1 << 20;

/// How long one of our own questions may take.
const QUESTION_TIME: Duration = Duration::from_secs(30);

/// The name of our catalog, which clients see as the database.
pub const CATALOG: &str = "argus";

/// The limits of the engine. Users' queries and our own questions (reports,
/// lines with codes) have limits of their own, so that neither starves the other.
#[derive(Debug, Clone)]
pub struct EngineConfig {
    /// Memory for all users' queries together; sorts and groupings beyond it spill to disk.
    pub query_bytes: usize,
    /// Memory for one of them.
    pub query_bytes_each: usize,
    /// What users' queries may spill to disk, together.
    pub spill_bytes: u64,
    /// Users' queries that run at once.
    pub queries_max: usize,
    /// Users' queries that wait; at the limit, one more is refused.
    pub queries_waiting_max: usize,
    /// Threads for users' queries, and parts that one is cut into.
    pub query_threads: usize,
    /// Memory for all our own questions together.
    pub question_bytes: usize,
    /// Our own questions that run at once.
    pub questions_max: usize,
    /// Memory for all of our own questions together that read a whole table.
    pub large_question_bytes: usize,
    /// Those that run at once.
    pub large_questions_max: usize,
    /// How long either may wait for its turn.
    pub turn_wait: Duration,
    /// What the rules know of codes.
    pub catalog: Vec<CatalogRow>,
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
            question_bytes: 64 << 20,
            questions_max: 8,
            large_question_bytes: 128 << 20,
            large_questions_max: 2,
            turn_wait: Duration::from_secs(10),
            catalog: Vec::new(),
        }
    }
}

/// Answers questions over snapshots. Clones share the limits.
#[derive(Clone)]
pub struct Engine {
    queries: Arc<Asker>,
    questions: Arc<Asker>,
    large_questions: Arc<Asker>,
    pub(crate) lookup: Lookup,
    pub(crate) background: Background,
    catalog: Arc<MemTable>,
    /// Made when the first PostgreSQL client needs it.
    pg: Arc<OnceLock<PgSessions>>,
    store: Arc<ObjectStoreUrl>,
}

/// What a session sees.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Sees {
    /// The tables that users know.
    Tables,
    /// Those, and the tables of differences, in which what was deleted stands until it is written out.
    Lake,
}

/// One kind of asker: its session settings, its memory, and its turns.
#[derive(Clone)]
struct Asker {
    state: SessionState,
    memory: Arc<dyn MemoryPool>,
    /// What one question may take of it.
    bytes_each: usize,
    turns: Turns,
    /// Whether whoever asks can be given maps, as PostgreSQL's clients cannot.
    knows_maps: bool,
}

impl fmt::Debug for Engine {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Engine").field("store", &self.store).finish_non_exhaustive()
    }
}

impl Engine {
    /// An engine over tables whose files are in `store`, the store of `root`'s scheme and host.
    pub fn new(store: Arc<dyn ObjectStore>, root: &Url, config: &EngineConfig) -> Result<Engine, DataFusionError> {
        let mut base = root.clone();
        base.set_path("");
        let store_url = ObjectStoreUrl::parse(base.as_str())?;
        let asker = |memory: Arc<dyn MemoryPool>, bytes_each, turns, threads| -> Result<Asker, DataFusionError> {
            let spill = DiskManagerBuilder::default().with_max_temp_directory_size(config.spill_bytes);
            let runtime = RuntimeEnvBuilder::new()
                .with_memory_pool(Arc::clone(&memory))
                .with_disk_manager_builder(spill)
                .build()?;
            runtime.register_object_store(store_url.as_ref(), Arc::clone(&store));
            let mut state = with_times(bounded(session_state(runtime, threads))?)?;
            state.register_udf(Arc::new(label_map()))?;
            state.register_udf(Arc::new(label_value()))?;
            Ok(Asker { state, memory, bytes_each, turns, knows_maps: true })
        };
        let queries = asker(
            Arc::new(FairSpillPool::new(config.query_bytes)),
            config.query_bytes_each,
            Turns::new(config.queries_max, config.queries_waiting_max, config.turn_wait),
            config.query_threads,
        )?;
        let own = |bytes, bytes_each, turns_max| {
            let turns = Turns::new(turns_max, usize::MAX, config.turn_wait);
            asker(Arc::new(FairSpillPool::new(bytes)), bytes_each, turns, 1)
        };
        let questions = own(config.question_bytes, config.question_bytes, config.questions_max)?;
        // What groups all occurrences spills, and needs room enough to do so.
        let large_max = config.large_questions_max.max(1);
        let large_each = config.large_question_bytes / large_max;
        let large_questions = own(config.large_question_bytes, large_each, large_max)?;
        let lookup = Lookup::new(store);
        // Some queries hold on to a thread for as long as they may; a few are left for the others.
        let threads = config.query_threads * (config.queries_max + 1);
        let background = Background::start(threads).map_err(DataFusionError::IoError)?;
        let catalog = Arc::new(catalog_table(&config.catalog)?);
        Ok(Engine {
            queries: Arc::new(queries),
            questions: Arc::new(questions),
            large_questions: Arc::new(large_questions),
            lookup,
            background,
            catalog,
            pg: Arc::default(),
            store: Arc::new(store_url),
        })
    }

    /// Answers a query as it is computed, on the caller's threads and without limits of its own. Sees the tables of
    /// differences too, for whoever has the lake's files anyway.
    pub async fn stream(&self, snapshot: &Arc<Snapshot>, sql: &str) -> Result<SendableRecordBatchStream, QueryError> {
        check_statement(sql)?;
        let session = self.session_of(&self.queries, snapshot, Sees::Lake, None).map_err(QueryError::of)?;
        let (_, rows) = run(&session, sql, Vec::new()).await?;
        Ok(rows)
    }

    /// A turn to ask a user's query.
    pub async fn turn(&self) -> Result<Turn, QueryError> {
        self.queries.turns.take().await
    }

    /// A session for a user's query, which sees one snapshot.
    pub(crate) fn session(
        &self,
        snapshot: &Arc<Snapshot>,
        deadline: Option<Deadline>,
    ) -> Result<SessionContext, QueryError> {
        self.session_of(&self.queries, snapshot, Sees::Tables, deadline).map_err(QueryError::of)
    }

    /// What a batch comes to, by its rows in the tables.
    pub(crate) async fn look_up(&self, snapshot: &Snapshot, id: Uuid) -> Result<RecentBatch, QueryError> {
        let _turn = self.questions.turns.take().await?;
        self.lookup.batch(snapshot, id).await
    }

    /// Answers one of our own questions in full, within a time. It runs on the background threads: one that reads a
    /// whole table must not keep uploads and reports from theirs.
    pub(crate) async fn collect(&self, snapshot: &Arc<Snapshot>, sql: &str) -> Result<Vec<RecordBatch>, QueryError> {
        in_time(self.collect_of(&self.questions, snapshot, sql)).await
    }

    /// The same of a question that reads a whole table: few of those run at once, each with much memory.
    pub(crate) async fn collect_large(
        &self,
        snapshot: &Arc<Snapshot>,
        sql: &str,
    ) -> Result<Vec<RecordBatch>, QueryError> {
        in_time(self.collect_of(&self.large_questions, snapshot, sql)).await
    }

    /// The same, however long it takes: for the start of a server.
    pub(crate) async fn collect_at_leisure(
        &self,
        snapshot: &Arc<Snapshot>,
        sql: &str,
    ) -> Result<Vec<RecordBatch>, QueryError> {
        self.collect_of(&self.large_questions, snapshot, sql).await
    }

    async fn collect_of(
        &self,
        asker: &Arc<Asker>,
        snapshot: &Arc<Snapshot>,
        sql: &str,
    ) -> Result<Vec<RecordBatch>, QueryError> {
        let permit = asker.turns.take().await?;
        let asker = Arc::clone(asker);
        let (engine, snapshot, sql) = (self.clone(), Arc::clone(snapshot), sql.to_owned());
        let answered = self.background.handle().spawn(async move {
            let _permit = permit;
            let session = engine.session_of(&asker, &snapshot, Sees::Lake, None).map_err(QueryError::of)?;
            let (_, rows) = run(&session, &sql, Vec::new()).await?;
            rows.try_collect().await.map_err(QueryError::of)
        });
        let _ends_with_this = AbortOnDrop(answered.abort_handle());
        answered.await.unwrap_or(Err(QueryError::BrokeOff))
    }

    /// A session for a PostgreSQL client's statement, which sees one snapshot.
    pub(crate) fn pg_session(
        &self,
        snapshot: &Arc<Snapshot>,
        deadline: Option<Deadline>,
    ) -> Result<SessionContext, QueryError> {
        let made = || -> Result<SessionContext, DataFusionError> {
            let pg = match self.pg.get() {
                Some(pg) => pg,
                None => {
                    let made = self.pg_sessions()?;
                    self.pg.get_or_init(|| made)
                }
            };
            let asker = Asker { state: pg.state.clone(), knows_maps: false, ..self.queries.as_ref().clone() };
            let session = self.session_of(&asker, snapshot, Sees::Tables, deadline)?;
            if let Some(catalog) = session.catalog(CATALOG) {
                catalog.register_schema("pg_catalog", Arc::clone(&pg.catalog))?;
            }
            Ok(session)
        };
        made().map_err(QueryError::of)
    }

    fn session_of(
        &self,
        asker: &Asker,
        snapshot: &Arc<Snapshot>,
        sees: Sees,
        deadline: Option<Deadline>,
    ) -> Result<SessionContext, DataFusionError> {
        let lake = Arc::new(LakeSchema { snapshot: Arc::clone(snapshot), store: self.store.as_ref().clone() });
        let public = self.public(asker, snapshot, lake.clone())?;
        let documented = Arc::new(DocumentedSchema::of(public.clone()));
        let mut schemas: Vec<(&str, Arc<dyn SchemaProvider>)> =
            vec![("public", public), (INFORMATION_SCHEMA, documented)];
        if sees == Sees::Lake {
            schemas.push(("lake", lake));
        }
        asker.context(&schemas, deadline)
    }

    /// The tables that users see, over those of differences.
    fn public(
        &self,
        asker: &Asker,
        snapshot: &Snapshot,
        lake: Arc<LakeSchema>,
    ) -> Result<Arc<PublicSchema>, DataFusionError> {
        let (lake, catalog) = (asker.context(&[("lake", lake)], None)?, Arc::clone(&self.catalog));
        let knows_maps = asker.knows_maps;
        Ok(Arc::new(PublicSchema { epoch: snapshot.epoch, is_past: snapshot.is_past, knows_maps, lake, catalog }))
    }

    /// What PostgreSQL clients are told of the tables that users see.
    fn pg_sessions(&self) -> Result<PgSessions, DataFusionError> {
        let nothing: Arc<Snapshot> = Arc::default();
        let lake = Arc::new(LakeSchema { snapshot: Arc::clone(&nothing), store: self.store.as_ref().clone() });
        let asker = Asker { knows_maps: false, ..self.queries.as_ref().clone() };
        PgSessions::of(&asker.context(&[("public", self.public(&asker, &nothing, lake)?)], None)?)
    }
}

/// What one of our own questions comes to within its time.
pub(crate) async fn in_time<T>(answer: impl Future<Output = Result<T, QueryError>>) -> Result<T, QueryError> {
    timeout(QUESTION_TIME, answer).await.unwrap_or(Err(QueryError::TimedOut(QUESTION_TIME)))
}

/// Plans and starts a statement, which must be a query, with the values of its parameters; says its plan.
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

/// The rows with their columns named as they were asked for, and without the kinds of text that older readers of Arrow do
/// not know.
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
    // Older readers of Arrow know no views.
    session.options_mut().sql_parser.map_string_types_to_utf8view = false;
    session.options_mut().execution.sort_spill_reservation_bytes = SPILL_RESERVATION_BYTES;
    SessionStateBuilder::new().with_config(session).with_runtime_env(Arc::new(runtime)).with_default_features().build()
}

impl Asker {
    /// A session that sees these schemas and no others, with its share of the memory.
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
            .with_physical_optimizer_rule(Arc::new(HoldJoins(deadline)))
            .build();
        Ok(SessionContext::new_with_state(state))
    }
}
